"""The lr to choose where lr* is only known with an interval: the one whose expected loss is least.

A valley that is steeper to the right makes a too large lr dearer than a too small one, so the choice lies below lr*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tunnel.quantiles import NORMAL
from tunnel.valleys import valley
from tunnel.valleys.valley import Array, Surface

SKEWS = np.linspace(-2.0, 3.0, 11)  # tried: at 3 an octave too much costs 4 times an octave too little  *assumed*
DRAWS = 60  # of the skew's bootstrap
LEAST_FAN = 4  # lrs of a shape that show a skew: with 3 it was seen in none of 75 simulated ladders  *measured here*


@dataclass(frozen=True)
class Skew:
    """How much steeper the valleys are to the right (`valley.Surface`), with its 90% interval."""

    value: float
    low: float
    high: float

    @property
    def seen(self) -> bool:
        """Whether the readings say that there is one."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Posterior:
    """What is known of lr* at one place: draws of log lr* and of the curvature there."""

    at: float  # the estimate
    draws: Array
    h: Array
    skew: float

    def interval(self) -> tuple[float, float]:
        """90% of log lr*."""
        low, high = np.quantile(self.draws, valley.QUANTILES).tolist()
        return low, high

    def safest(self) -> float:
        """The log lr whose expected loss is least: Σ h·φ'(x − x*) = 0 over the draws."""
        if abs(self.skew) < valley.STRAIGHT:
            return float(self.h @ self.draws / self.h.sum())
        z = self.draws - self.at
        return float(self.at - np.log(self.h @ np.exp(-self.skew * z) / self.h.sum()) / self.skew)

    def regret(self, log_lr: float) -> float:
        """Relative loss that is expected to be given away at an lr."""
        return float(np.mean(self.h * valley.bend(log_lr - self.draws, self.skew)))


def moved(known: Posterior, by: float, half: float, seed: int = 0) -> Posterior:
    """A posterior carried elsewhere: log lr* moves by `by`, known to ±`half` (90%)."""
    scatter = np.random.default_rng(seed).normal(0.0, half / NORMAL, len(known.draws))
    return replace(known, at=known.at + by, draws=known.draws + by + scatter)


def posterior(
    surface: Surface, draws: Sequence[Surface], n: float, d: float, batch: float | None, widening: float
) -> Posterior:
    """lr* at N, D and batch: the bootstrap's spread about the estimate, as wide as `valley.widening` says."""
    at = float(surface.log_lr(n, d, batch))
    curved = [s for s in draws if s.curved]
    if not surface.curved or not curved:
        return Posterior(at, np.array([at]), np.array([max(float(surface.h[-1]), valley.QUIET)]), surface.skew)
    each = np.array([float(s.log_lr(n, d, batch)) for s in curved])
    h = np.array([max(float(s.h[-1]), valley.QUIET) for s in curved])
    return Posterior(at, at + widening * (each - np.median(each)), h, surface.skew)


def skew(table: Mapping[str, Array], draws: int = DRAWS, seed: int = 0) -> Skew:
    """The skew that leaves the least unexplained; the interval is a bootstrap by run. 0 where fans are too short."""
    rung = valley.rungs_of(table)
    _, cell = valley.cells_of(table)
    if min(len(np.unique(table["lr"][cell == i])) for i in np.unique(cell[rung == rung.max()])) < LEAST_FAN:
        return Skew(0.0, 0.0, 0.0)
    at = float(table["D"][rung == rung.max()].max())
    value = leaning(table, None, at)
    each = [leaning(table, w, at) for w in valley.weights(table["run"], draws, seed)]
    low, high = valley.interval(value, np.array(each), valley.widening(table))
    return Skew(value, low, high)


def leaning(table: Mapping[str, Array], weight: Array | None, at: float) -> float:
    """The skew whose surface leaves the least; between those tried by a parabola."""
    left = np.array([valley.surface(table, weight, at, s).noise for s in SKEWS]) ** 2
    return valley.least_of(SKEWS, left)
