"""A run is a value: frozen specs with fingerprints, and what was measured of them.

A `TrunkSpec` is everything that shapes warmup and stable, and no length; a `RunSpec` adds the decay: one finished
model, one record, one reading. A `Trial` is one candidate at one seed: a trunk with its forks.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from tunnel.schedule import HALF_LIFE, multiplier

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:+-]{0,255}$")]  # what is shown, and looked for


TOP_K = 2  # experts that a token goes through: MiniCPM-MoE, arXiv 2404.06395  *from paper*
BALANCE = 0.01  # MiniCPM-MoE and Switch  *from paper*: arXiv 2404.06395, 2101.03961


class Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    LATER: ClassVar[frozenset[str]] = frozenset()  # fields added since 0.1: no part of the identity at their default

    @cached_property
    def fingerprint(self) -> str:
        """The identity: a hash of the canonical JSON, 16 hex digits."""
        return fingerprint(canonical(self))

    def replaced(self, **changes: Any) -> Self:
        """A copy with other values (pydantic's own copy would keep the fingerprint)."""
        return type(self)(**{**{k: getattr(self, k) for k in type(self).model_fields}, **changes})


def canonical(value: Any) -> Any:
    """A value as JSON, without what a later version added and this value does not use: old folders stay valid."""
    if isinstance(value, Value):
        fields = type(value).model_fields
        found = {k: getattr(value, k) for k in fields}
        return {k: canonical(v) for k, v in found.items() if k not in value.LATER or v != fields[k].default}
    return [canonical(v) for v in value] if isinstance(value, tuple) else value


def fingerprint(value: Any) -> str:
    """Hash of a JSON value, blind to the order of keys.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Mixture(Value):
    """Experts in place of a block's one feed-forward network."""

    experts: int
    top_k: int  # experts that a token goes through
    granularity: int = 1  # an expert's inner width is 1/granularity of the dense network's


class Shape(Value):
    width: int
    depth: int
    kv_heads: int | None = None  # None: as many as there are heads
    mixture: Mixture | None = None  # None: dense

    LATER = frozenset({"mixture"})

    def __str__(self) -> str:
        m = self.mixture
        finer = f" at 1/{m.granularity}" if m is not None and m.granularity > 1 else ""
        return f"{self.width}×{self.depth}" + (f" {m.top_k} of {m.experts}{finer}" if m is not None else "")


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
    then: tuple[Joined, ...] = ()  # what joins, earliest first; at 0: another source of the pre-training mix
    loss: tuple[tuple[str, float], ...] = ()  # what the loss weighs, by held-out slice; (): the first corpus' alone

    LATER = frozenset({"then", "loss"})


class Joined(Value):
    """Data that joins a trunk after `at` tokens, as `share` of the sequences from then on."""

    at: int
    share: float
    source: Source


class Mixed(Value):
    """A source that is mixed into a decay: `share` of its sequences; what is left goes on as the trunk would."""

    name: Name
    share: float
    source: Source


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
    dropout: float = 0.0  # of the attention's weights
    masking: Literal["words", "tokens"] = "words"  # what an encoder hides as a whole
    balance: float = BALANCE  # weight of the experts' balance loss

    LATER = frozenset({"dropout", "balance", "masking"})


class Checkpoint(Value):
    """A model of somebody else's: a transformers folder or hub name, and the hash of its content."""

    name: str
    digest: str


class Lesson(Value):
    """What a student learns from: a teacher's soft targets where tokens are hidden, and its hidden states (SCIENCE §7).

    The loss is soft_weight · temperature² · cross-entropy + hidden_weight · mean square; no hard labels.
    """

    name: Name  # the teacher's, in the study
    teacher: RunSpec | Checkpoint
    temperature: float
    soft_weight: float
    hidden_weight: float
    layer_map: str


class Task(Value):
    """Labelled texts that a finished model is tuned on; its files by their content."""

    name: Name
    kind: Literal["classify", "pair"]
    digest: str
    labels: int
    examples: int  # to train on: an epoch
    paths: tuple[str, ...]
    held_out_paths: tuple[str, ...]
    held_out: float
    text: str
    text2: str
    label: str


class TrunkSpec(Value):
    family: Name
    rules: Name
    shape: Shape
    body: Body
    settings: Settings
    source: Source
    seed: int
    start: RunSpec | None = None  # the run whose weights it begins with: a finished one, or a stable trunk
    lesson: Lesson | None = None  # of a student
    task: Task | None = None  # of a finished model, its `start`, that is tuned on it

    LATER = frozenset({"start", "lesson", "task"})

    def __str__(self) -> str:
        return f"{self.shape} lr {self.settings.lr:.3g}"

    @property
    def begun(self) -> int:
        """Tokens at which its own training begins: it goes on from a stable trunk, and begins anew after a decay."""
        return self.start.tokens if self.start is not None and not self.start.decay_tokens else 0

    @property
    def needs(self) -> dict[str, RunSpec]:
        """The runs that must be there before its first step, by what for."""
        teacher = self.lesson.teacher if self.lesson is not None else None
        found = {"start": self.start, "teacher": teacher}
        return {use: run for use, run in found.items() if isinstance(run, RunSpec)}

    def until(self, tokens: int) -> TrunkSpec:
        """The spec of what shaped this trunk's first `tokens` tokens: data that joins later is left out.

        A checkpoint lies under this spec's fingerprint, so that a trunk whose data changes goes on from the one before.
        """
        joined = tuple(j for j in self.source.then if j.at < tokens)
        if joined == self.source.then:
            return self
        return self.replaced(source=self.source.replaced(then=joined))


class RunSpec(Value):
    """A trunk with a decay; without one (`decay_tokens` 0) the trunk as it is at `decay_start`."""

    trunk: TrunkSpec
    decay_start: int
    decay_tokens: int
    decay_shape: str
    min_ratio: float = 0.0
    half_life: float = HALF_LIFE  # of an exponential decay, as a part of its length
    mix: tuple[Mixed, ...] = ()  # the decay's own data, by name; the trunk knows nothing of it

    LATER = frozenset({"half_life", "mix"})

    @property
    def tokens(self) -> int:
        """The reading's D."""
        return self.decay_start + self.decay_tokens

    @property
    def state(self) -> str:
        """What its last state lies under in trunks/."""
        return self.fingerprint if self.decay_tokens else self.trunk.until(self.tokens).fingerprint

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
            self.half_life,
        )


class Trial(BaseModel):
    """One candidate at one seed: a trunk with its forks, in the order in which they leave it."""

    model_config = ConfigDict(frozen=True)

    stage: str
    number: int
    runs: tuple[RunSpec, ...]
    keeps: bool = False  # the finished models, beside their records: a full-size run's is wanted

    @property
    def trunk(self) -> TrunkSpec:
        """The longest run's: data that joins late is in no other."""
        return max(self.runs, key=lambda r: r.tokens).trunk

    @property
    def rung(self) -> int:
        """The last rung: the largest D of its readings."""
        return max(r.tokens for r in self.runs)

    @property
    def trained(self) -> int:
        """Tokens that the trunk and its forks take."""
        return max(r.decay_start for r in self.runs) - self.trunk.begun + sum(r.decay_tokens for r in self.runs)

    @property
    def from_scratch(self) -> int:
        """Tokens that the same readings would take without a shared trunk."""
        return sum(r.tokens - r.trunk.begun for r in self.runs)


class Stability(Value):
    """How near a run came to the edge, over its trunk and its decay."""

    attention_logit: float  # largest, in absolute value, on held-out data
    log_partition: float  # mean of log Σ exp(logit), on held-out data
    clip_rate: float  # share of the steps whose gradient was clipped
    spikes: int  # steps whose loss stood out of what came before (`train.SPIKE`)
    update_to_weight: dict[str, float]  # by role: RMS of Adam's step at the peak lr over the weights' RMS
    eps_ratio: float  # Adam's epsilon over the RMS of its denominator, the largest of all roles: should be far below 1
    expert_load: tuple[tuple[float, ...], ...] = ()  # by layer, the experts' shares of what is routed, on held-out data


class Record(Value):
    """One run, measured. `loss` is nats per token on held-out data; None where the run diverged."""

    fingerprint_of: str
    run: RunSpec
    stage: Name
    trial: int
    status: Literal["complete", "diverged"]
    N: int  # that a token goes through
    N_total: int | None = None  # with every expert; None: no more than N
    D: int
    C: float  # 6ND
    flops: float  # full count, attention and logits included
    loss: float | None
    bpb: float | None  # bits per byte
    tokens_trained: int  # what this reading added: its part of the trunk, and its decay
    diverged_at: int | None = None  # tokens
    tau: float | None = None  # B / (lr · weight_decay · D), where there is weight decay
    scores: dict[str, float] = {}  # on a task: accuracy; seconds of one sequence, sequences a second, bytes, parameters
    predicted: str = ""  # on a task: the label of each held-out example, a character each
    slices: dict[str, float] = {}  # held-out loss by source, where there are several; `loss` weighs them
    final: dict[str, str] = {}  # what the finished model was: `folder.checkpoint.digests`
    stability: Stability | None = None
    packed: int = 0  # trials that shared its steps (`tunnel.training.pack`); 0: the reference loop's
    halved_at: int | None = None  # tokens from which half of the micro-batch went through at a time, for want of memory
    started: str  # UTC, ISO 8601
    seconds: float
    host: str
    versions: dict[str, str] = {}
    environment: str | None = Field(None, pattern="^[0-9a-f]{16}$")  # of environments/<hash>.json
