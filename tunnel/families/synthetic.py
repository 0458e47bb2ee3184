"""The calibration body: a known loss surface behind the same path, so that the tunnel is tested by recovering it.

loss = E + A/N^α + B/D^β + h·(ln lr − ln lr*(N, D))² + k·(ln decay − ln decay*)² + u·(multiplier left)
       + m·(s² − 2·s·s*) + noise                      s: the share of a decay's own data
lr*(N, D) = lr_0 · (N/1e6)^a · (D/1e8)^b          lr at the base shape
The slice of a source that is mixed into the decay reads g·(its share) less than the loss.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunnel import transfer
from tunnel.families import Arrays, State, gpt
from tunnel.run import Mixed, TrunkSpec

reads = False
ROLES: dict[str, transfer.Role] = {}
count = gpt.count
flops_per_token = gpt.flops_per_token


@dataclass(frozen=True)
class Truth:
    """The surface; Chinchilla-like numbers at the size of a proxy.  *assumed*"""

    E: float = 1.7
    A: float = 60.0
    alpha: float = 0.34
    B: float = 400.0
    beta: float = 0.32
    h: float = 0.05  # of loss per squared octave·ln2
    lr: float = 0.012
    lr_N: float = -0.06
    lr_D: float = -0.12
    decay: float = 0.15
    k: float = 0.01
    undecayed: float = 0.2
    share: float = 0.4  # of other data in the decay: the best
    m: float = 0.2
    gain: float = 0.3  # of a source's slice, per share
    noise: float = 0.0005  # relative, one standard deviation
    lr_max: float = 0.3  # diverges above

    def best_lr(self, n: float, d: float) -> float:
        return self.lr * (n / 1e6) ** self.lr_N * (d / 1e8) ** self.lr_D

    def best_loss(self, n: float, d: float) -> float:
        return self.E + self.A / n**self.alpha + self.B / d**self.beta


TRUTH = Truth()


class Synthetic:
    """`families.Grown` by arithmetic: it only counts what it was given."""

    halved_at: int | None = None  # it takes no memory

    def __init__(self, trunk: TrunkSpec) -> None:
        self.trunk = trunk
        self.rows: list[tuple[int, float, float, float]] = []
        self.tokens = self.decayed = 0
        self.last = self.known = 0.0
        self.mix: tuple[Mixed, ...] = ()

    def begin(self, others: Mapping[str, State]) -> None:
        """Nothing grows from its arithmetic."""

    def step(self, multiplier: float) -> bool:
        s = self.trunk.settings
        self.tokens += s.batch_tokens
        falling = multiplier < self.last or self.decayed > 0
        self.decayed += s.batch_tokens if falling else 0
        self.last = multiplier
        self.rows.append((self.tokens, self.surface(), multiplier, 1.0))
        return s.lr < TRUTH.lr_max

    def surface(self) -> float:
        n, d = count(self.trunk.shape, self.trunk.body), float(self.tokens)
        off = math.log(self.trunk.settings.lr / TRUTH.best_lr(n, d))
        decay = math.log(max(self.decayed / d, 0.01) / TRUTH.decay)
        mixed = sum(m.share for m in self.mix)
        told = TRUTH.best_loss(n, d) + TRUTH.h * off**2 + TRUTH.k * decay**2 + TRUTH.undecayed * self.last
        return told + TRUTH.m * (mixed**2 - 2 * mixed * TRUTH.share)

    def mix_in(self, mix: tuple[Mixed, ...], at: int) -> None:
        self.mix = mix

    def evaluate(self, pause: Callable[[], None] = lambda: None) -> float:
        mixed = "".join(f" {m.name} {m.share}" for m in self.mix)
        key = hashlib.sha256(f"{self.trunk.fingerprint} {self.tokens} {self.decayed}{mixed}".encode()).digest()
        noise = np.random.default_rng(int.from_bytes(key[:8], "big")).normal()
        self.known = self.surface() * (1 + TRUTH.noise * noise)
        return self.known

    def slices(self) -> dict[str, float]:
        return {m.name: self.known - TRUTH.gain * m.share for m in self.mix}

    def stability(self) -> None:
        """It has no weights."""

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        return {"last": np.array(self.last)}, {"tokens": self.tokens, "decayed": self.decayed}

    def restore(self, arrays: Arrays, meta: dict[str, Any]) -> None:
        self.tokens, self.decayed, self.last = meta["tokens"], meta["decayed"], float(arrays["last"])
        self.rows = []


def grown(trunk: TrunkSpec, corpus: object) -> Synthetic:
    return Synthetic(trunk)
