"""A run is a value: frozen specs with fingerprints, and what was measured of them.

A `TrunkSpec` is everything that shapes warmup and stable, and no length; a `RunSpec` adds the decay: one finished
model, one record, one reading. A `Trial` is one candidate at one seed: a trunk with its forks.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tunnel.schedule import multiplier


class Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @cached_property
    def fingerprint(self) -> str:
        """The identity: a hash of the canonical JSON, 16 hex digits."""
        return fingerprint(self.model_dump(mode="json"))


def fingerprint(value: Any) -> str:
    """Hash of a JSON value, blind to the order of keys.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Shape(Value):
    width: int
    depth: int
    kv_heads: int | None = None  # None: as many as there are heads

    def __str__(self) -> str:
        return f"{self.width}×{self.depth}"


class Body(Value):
    """What a family needs to know of the base shape (see `study.Model` for the sources)."""

    head_dim: int
    base_width: int
    base_depth: int
    seq_len: int
    ffn_ratio: float
    scale_emb: float
    scale_depth: float
    init_std: float
    vocab: int


class Source(Value):
    """The data a run reads; `corpus_hash` names its content, so a changed corpus is another run."""

    corpus: str
    corpus_hash: str
    tokenizer: str
    held_out: float
    eval_tokens: int


class Settings(Value):
    """Training settings at the base shape; lengths in tokens."""

    lr: float
    warmup: int
    batch_tokens: int
    micro_batch_tokens: int
    weight_decay: float
    beta1: float
    beta2: float
    eps: float
    clip: float
    precision: Literal["fp32", "bf16"]


class TrunkSpec(Value):
    family: str
    rules: str
    shape: Shape
    body: Body
    settings: Settings
    source: Source
    seed: int

    def __str__(self) -> str:
        return f"{self.shape} lr {self.settings.lr:.3g}"


class RunSpec(Value):
    trunk: TrunkSpec
    decay_start: int
    decay_tokens: int
    decay_shape: str
    min_ratio: float = 0.0

    @property
    def tokens(self) -> int:
        """The reading's D."""
        return self.decay_start + self.decay_tokens

    def multiplier(self, tokens: int) -> float:
        """The lr's multiplier for the step that starts after `tokens` tokens."""
        s = self.trunk.settings
        return multiplier(
            tokens,
            s.batch_tokens,
            s.warmup,
            self.decay_start,
            self.decay_tokens,
            self.decay_shape,
            self.min_ratio,
        )


class Trial(BaseModel):
    """One candidate at one seed: a trunk with its forks, shortest first."""

    model_config = ConfigDict(frozen=True)

    stage: str
    number: int
    runs: tuple[RunSpec, ...]

    @property
    def trunk(self) -> TrunkSpec:
        return self.runs[0].trunk

    @property
    def trained(self) -> int:
        """Tokens that the trunk and its forks take."""
        return max(r.decay_start for r in self.runs) + sum(r.decay_tokens for r in self.runs)

    @property
    def from_scratch(self) -> int:
        """Tokens that the same readings would take without a shared trunk."""
        return sum(r.tokens for r in self.runs)


class Record(Value):
    """One run, measured. `loss` is nats per token on held-out data; None where the run diverged."""

    fingerprint_of: str
    run: RunSpec
    stage: str
    trial: int
    status: Literal["complete", "diverged"]
    N: int
    D: int
    C: float  # 6ND
    flops: float  # full count, attention and logits included
    loss: float | None
    bpb: float | None  # bits per byte
    tokens_trained: int  # what this reading added: its part of the trunk, and its decay
    diverged_at: int | None = None  # tokens
    tau: float | None = None  # B / (lr · weight_decay · D), where there is weight decay
    started: str  # UTC, ISO 8601
    seconds: float
    host: str
    versions: dict[str, str] = {}
