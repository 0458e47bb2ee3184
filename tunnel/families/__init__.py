"""Bodies in the tunnel: one file each, found by its name.

A family has
    ROLES                         its parameters' roles by the end of their names (a regular expression each)
    count(shape, body)            non-embedding parameters N
    flops_per_token(shape, body)  of training, the full count
    grown(trunk, corpus)          a `Grown`: the model with its optimizer, at 0 tokens
    reads                         whether it reads a corpus
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from tunnel.errors import UserError
from tunnel.run import Mixed, RunSpec, Stability

Arrays = Mapping[str, np.ndarray]
State = tuple[Arrays, dict[str, Any]]


class Grown(Protocol):
    """A model in training: what trunk and forks need of it."""

    tokens: int
    rows: list[tuple[int, float, float, float]]  # tokens, training loss, lr multiplier, gradient norm
    halved_at: int | None  # tokens from which a pass took half of the spec's micro-batch, for want of memory

    def begin(self, others: Mapping[str, State]) -> None:
        """Before its first step: takes what its trunk `needs` of other runs, by what for; also before a `restore`."""

    def step(self, multiplier: float) -> bool:
        """Trains one batch; False where the run has diverged."""

    def mix_in(self, mix: tuple[Mixed, ...], at: int) -> None:
        """From `at` tokens on, where its decay starts, it reads these sources too; without any it reads as a trunk."""

    def evaluate(self, pause: Callable[[], None] = ...) -> float:
        """Held-out loss in nats per token; `pause` is called now and then."""

    def slices(self) -> dict[str, float]:
        """The last evaluation by source, where there are several."""

    def stability(self) -> Stability | None:
        """How near the run came to the edge; None for a body that has none."""

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Everything the next step depends on: tensors, and JSON."""

    def restore(self, arrays: Arrays, meta: dict[str, Any]) -> None:
        """The inverse of `state`."""


def names() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def load(name: str) -> Any:
    """The family's module; raises UserError where there is none."""
    if name not in names():
        raise UserError("is not a family", key="family", value=name, choices=names())
    return importlib.import_module(f"{__name__}.{name}")


def flops(run: RunSpec) -> float:
    """Full FLOPs of a reading from scratch; what its trunk grew from counts as what it was then."""
    trunk, start = run.trunk, run.trunk.start
    own = load(trunk.family).flops_per_token(trunk.shape, trunk.body) * (run.tokens - trunk.begun)
    return float(own + (flops(start) if start is not None and trunk.begun else 0.0))


def compute(run: RunSpec) -> float:
    """C = 6ND of a reading, N being what each of its tokens went through."""
    trunk, start = run.trunk, run.trunk.start
    own = 6.0 * load(trunk.family).count(trunk.shape, trunk.body) * (run.tokens - trunk.begun)
    return float(own + (compute(start) if start is not None and trunk.begun else 0.0))
