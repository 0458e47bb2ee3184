"""Bodies in the tunnel: one file each, found by its name.

A family has
    ROLES                         its parameters' roles by the end of their names (a regular expression each)
    count(shape, body)            non-embedding parameters N
    flops_per_token(shape, body)  of training, the full count
    grown(trunk, corpus)          a `Grown`: the model with its optimizer, at 0 tokens
    reads                         whether it reads a corpus
    masked                        where its loss is of hidden tokens: True
    roles(shape)                  where ROLES has more than a shape's own
    total(shape, body)            where a shape may have a mixture: N with every expert; `count` is what a token meets
    parameters(shape, body)       where they are more than N and a row for each token: all of them
    architecture(shape), config_dict(shape, body, rules)  what transformers builds, where it does
    inherited(trunk, name, weights)  where it may begin with another body: a parameter's values, of that one's weights
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from tunnel.errors import UserError
from tunnel.run import Body, Mixed, RunSpec, Shape, Stability, TrunkSpec

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


def roles(trunk: TrunkSpec) -> dict[str, Any]:
    """The roles of a body's own parameters."""
    family = load(trunk.family)
    return dict(family.roles(trunk.shape) if hasattr(family, "roles") else family.ROLES)


def config(trunk: TrunkSpec) -> dict[str, Any] | None:
    """A body's config, as keyword arguments of transformers'; None where that builds no such body."""
    family = load(trunk.family)
    if not hasattr(family, "config_dict"):
        return None
    balance = {"balance": trunk.settings.balance} if trunk.shape.mixture is not None else {}
    return dict(family.config_dict(trunk.shape, trunk.body, trunk.rules, **balance))


def mixes(family: str) -> bool:
    """Whether its shapes may have a mixture."""
    return hasattr(load(family), "total")


def total(family: str, shape: Shape, body: Body) -> int:
    """Non-embedding parameters that are kept, of which a token goes through `count`."""
    module = load(family)
    return int((module.count if shape.mixture is None else module.total)(shape, body))


def parameters(trunk: TrunkSpec) -> int:
    """All that a body is made of; the embedding, tied to the readout, once."""
    family, shape, body = load(trunk.family), trunk.shape, trunk.body
    if hasattr(family, "parameters"):
        return int(family.parameters(shape, body))
    return total(trunk.family, shape, body) + body.vocab * shape.width


def inherited(trunk: TrunkSpec, arrays: Arrays) -> Callable[[str], np.ndarray]:
    """What a parameter of a trunk that has a `start` begins with, by name; `arrays`: the start's state."""

    def weights(name: str) -> np.ndarray:
        return np.array(arrays[f"model.{name}"])

    own = getattr(load(trunk.family), "inherited", None)
    return weights if own is None else lambda name: np.array(own(trunk, name, weights))


def hides(family: str) -> bool:
    """Whether a family's loss is of hidden tokens: it reads words, and its loss has no bits per byte."""
    return bool(getattr(load(family), "masked", False))


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
