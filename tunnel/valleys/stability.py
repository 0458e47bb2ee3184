"""Where training breaks and how far it scatters: lr_max over size, the noise floor, and the seeds an effect takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from tunnel.quantiles import chi_square

Array = np.ndarray

NEAR = 0.05  # of log loss above the best: seeds scatter more on the valley's walls  *assumed*
ONE_SIDED, POWER = 0.05, 0.80  # of the two-sample test: chance of a false alarm, and of seeing a true effect  *assumed*
FLOOR_HALF = 2.0  # where every lr tried diverged, the largest that survives is taken to be this far below  *assumed*
DRAWS = 400  # of lr_max within its brackets


# where it diverges


@dataclass(frozen=True)
class Bracket:
    """One shape's lr_max: it survives `low` and diverges at `high` (None: nothing diverged)."""

    N: float
    low: float
    high: float | None

    @property
    def at(self) -> float | None:
        return None if self.high is None else math.sqrt(self.low * self.high)


@dataclass(frozen=True)
class LrMax:
    """log lr_max = a + b·log N with 90% intervals, from brackets; `status` says how much it rests on.

    fitted: two shapes or more diverged somewhere; one shape: b is 0; none diverged: no law, `at` is None.
    """

    status: str
    brackets: tuple[Bracket, ...]
    a: float = math.nan
    b: float = 0.0
    draws: Array | None = None  # (draws, 2): a and b

    def at(self, n: float) -> float | None:
        """lr_max at N; None where nothing diverged."""
        return None if self.draws is None else math.exp(self.a + self.b * math.log(n))

    def interval(self, n: float) -> tuple[float, float] | None:
        """The 90% interval of `at`: where in its bracket each shape's lr_max lies is not known."""
        if self.draws is None:
            return None
        low, high = np.quantile(self.draws @ [1.0, math.log(n)], [0.05, 0.95])
        return math.exp(low), math.exp(high)


def lr_max(table: Mapping[str, Any]) -> LrMax:
    """The largest lr that survives, and its law over size.

    `table`: columns N, lr (at the base shape) and status ("complete", "diverged"), one reading a row; a pandas frame
    or a mapping of arrays. A lr at which any reading of a shape diverged is not survived, whatever other seeds did.
    """
    n, lr = np.asarray(table["N"], float), np.asarray(table["lr"], float)
    dead = np.asarray(table["status"]) == "diverged"
    brackets = tuple(bracket(float(v), lr[n == v], dead[n == v]) for v in np.unique(n))
    closed = [b for b in brackets if b.high is not None]
    if not closed:
        return LrMax("none diverged", brackets)
    rng = np.random.default_rng(0)
    x = np.log([b.N for b in closed])
    ends = np.log([[b.low, b.high or b.low] for b in closed])
    y = np.vstack([ends.mean(1), rng.uniform(ends[:, 0], ends[:, 1], (DRAWS, len(closed)))])
    weight = 1 / np.maximum(ends[:, 1] - ends[:, 0], 1e-3)
    if len(closed) == 1:
        fits = np.column_stack([y[:, 0], np.zeros(len(y))])
    else:
        design = np.column_stack([np.ones(len(x)), x]) * weight[:, None]
        fits = np.linalg.lstsq(design, (y * weight).T, rcond=None)[0].T
    status = "fitted" if len(closed) > 1 else "one shape"
    return LrMax(status, brackets, float(fits[0, 0]), float(fits[0, 1]), fits[1:])


def bracket(n: float, lr: Array, dead: Array) -> Bracket:
    """Between the smallest lr that diverged and the largest below it that did not."""
    high = float(lr[dead].min()) if dead.any() else None
    alive = lr[~dead] if high is None else lr[~dead & (lr < high)]
    low = float(alive.max()) if len(alive) else (high or math.nan) / FLOOR_HALF
    return Bracket(n, low, high)


# how far it scatters


@dataclass(frozen=True)
class Floor:
    """Relative standard deviation of the loss over seeds, with its 90% interval (chi-square)."""

    relative: float
    low: float
    high: float
    freedom: int
    seeds: int  # of the setting that has most


def noise_floor(losses: list[Array]) -> Floor | None:
    """The noise of one shape at one rung: the seeds' scatter, pooled over its settings near the best one.

    `losses`: for each setting, its seeds' losses. None where no setting has two seeds.
    """
    best = min((float(np.mean(np.log(v))) for v in losses if len(v)), default=math.inf)
    near = [np.log(v) for v in losses if len(v) > 1 and float(np.mean(np.log(v))) <= best + NEAR]
    free = sum(len(v) - 1 for v in near)
    if not free:
        return None
    square = sum(float(((v - v.mean()) ** 2).sum()) for v in near)
    least, most = (math.sqrt(square / chi_square(p, free)) for p in (0.95, 0.05))
    return Floor(math.sqrt(square / free), least, most, free, max(len(v) for v in near))


def seeds_needed(effect: float, noise: float) -> int:
    """Seeds of each of two settings that show a relative difference `effect` above `noise` (one seed's).

    n = 2·((z₁₋α + z_power)·noise/effect)², one-sided α = 5%, power 80%, rounded up, at least 2: the two-sample z-test's
    sample size (Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988, §2.4)  *from paper*

    >>> seeds_needed(0.001, 0.0005), seeds_needed(0.001, 0.0024)
    (4, 72)
    """
    z = NormalDist().inv_cdf(1 - ONE_SIDED) + NormalDist().inv_cdf(POWER)
    return max(2, math.ceil(2 * (z * noise / effect) ** 2))
