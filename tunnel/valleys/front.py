"""What to measure next, where readings differ in cost and the question is asked at a larger place.

    log loss = trend(s) + level(s) + valley(u, s) + noise       u: settings from 0 to 1; s: log scales, 0 at the goal
    cov valley = (1 + Σ δ²·s·s'·∂u·∂u')·A²·exp(−½·Σ((u − u')/ℓ)²)        which shifts by δ of the cube per log scale

A Gaussian process (so all answers are linear algebra): `best` is where the goal's expected loss is least,
`Front.gain` what a reading elsewhere would take off it (the knowledge gradient, Frazier et al. 2009). Per cost, that
is the whole sampler: cheap readings first, dearer ones where only they tell, twice the same where noise decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunnel.valleys.valley import NEAR, Array

TREND = 0.3  # of log loss per log scale: slope of the level  *assumed*
LEVEL, REACH = 0.03, 1.5  # how far levels leave the trend (log loss), and over which distance (log scale)  *assumed*
DIVERGED = (1.0, 0.3)  # a diverged run is read as this far above the front, to within so much  *assumed*
QUIETEST = 1e-4  # of log loss: noise is not believed to be less  *assumed*
JITTER = 1e-7  # variance of log loss that keeps a covariance positive  *derived* (rounding)
HIGHEST = 8.0  # a reading's noise grows by e for each NEAR above the front, at most so often  *assumed*
NODES = np.array([-2.33, -1.64, -1.28, -0.84, -0.52, -0.25, 0.0, 0.25, 0.52, 0.84, 1.28, 1.64, 2.33])
# what is believed of A, ℓ, δ and the noise before there are readings: median, and a factor of one deviation  *assumed*
PRIORS = {"depth": (0.3, 3.0), "length": (0.6, 1.6), "drift": (0.03, 2.0), "noise": (0.002, 3.0)}
STEPS = (0.8, 0.4, 0.2)  # of the logs of these, in their search


@dataclass(frozen=True)
class Readings:
    """Settings (n, d), scales (n, k) and log losses (n), infinite where a run diverged."""

    u: Array
    s: Array
    y: Array


@dataclass(frozen=True)
class Beliefs:
    """Logs of A, ℓ (d), δ (k), noise, one after the other."""

    logs: Array
    d: int

    @property
    def depth(self) -> float:
        return float(np.exp(self.logs[0]))

    @property
    def lengths(self) -> Array:
        return np.asarray(np.exp(self.logs[1 : 1 + self.d]))

    @property
    def drifts(self) -> Array:
        return np.asarray(np.exp(self.logs[1 + self.d : -1]))

    @property
    def noise(self) -> float:
        return float(np.exp(self.logs[-1]))


def prior(d: int, k: int) -> tuple[Beliefs, Array]:
    """What is believed beforehand, and the deviations of its logs."""
    rows = [PRIORS["depth"], *[PRIORS["length"]] * d, *[PRIORS["drift"]] * k, PRIORS["noise"]]
    middle, factor = np.log(np.array(rows)).T
    return Beliefs(middle, d), factor


def cov_level(s: Array, t: Array) -> Array:
    apart = ((s[:, None] - t[None]) ** 2).sum(-1)
    return np.asarray(1.0 + TREND**2 * s @ t.T + LEVEL**2 * np.exp(-apart / (2 * REACH**2)))


def cov_valley(known: Beliefs, u: Array, s: Array, v: Array, t: Array) -> Array:
    a, b = u / known.lengths, v / known.lengths
    near = np.exp(-0.5 * between(a, b))
    steep = (known.lengths**-2.0).sum() - between(a / known.lengths, b / known.lengths)
    return np.asarray(known.depth**2 * near * (1 + steep * ((s * known.drifts**2) @ t.T)))


def between(a: Array, b: Array) -> Array:
    """Squared distances (n, m) of two lists of points."""
    return np.asarray(np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T, 0))


def heights(read: Readings) -> Array:
    """How far above the front each reading lies: above a plane over the scales, laid under the lowest readings."""
    fine = np.isfinite(read.y)
    plane = np.column_stack([np.ones(len(read.y)), read.s])
    weight = fine.astype(float)
    y = np.where(fine, read.y, 0.0)
    above = np.zeros(len(y))
    ridge = np.diag([1e-9, *[1e-3] * read.s.shape[1]])
    for _ in range(8):
        laid = np.linalg.solve((plane.T * weight) @ plane + ridge, (plane.T * weight) @ y)
        above = np.where(fine, y - plane @ laid, DIVERGED[0])
        above -= above[fine].min() if fine.any() else 0.0
        weight = fine * np.exp(-above / NEAR)
    return above


@dataclass(frozen=True)
class Front:
    """Beliefs after readings; `alpha` and `root` are those of the process."""

    known: Beliefs
    u: Array
    s: Array
    mean: float
    alpha: Array
    root: Array  # inverse of the Cholesky root

    def mean_at(self, u: Array, s: Array) -> Array:
        return np.asarray(self.mean + self.cross(u, s) @ self.alpha)

    def cross(self, u: Array, s: Array) -> Array:
        return cov_level(s, self.s) + cov_valley(self.known, u, s, self.u, self.s)

    def joint(self, u: Array, s: Array, v: Array, t: Array) -> Array:
        """Covariance of log losses at two lists of places, given the readings."""
        before = cov_level(s, t) + cov_valley(self.known, u, s, v, t)
        return np.asarray(before - (self.cross(u, s) @ self.root.T) @ (self.cross(v, t) @ self.root.T).T)

    def variance(self, u: Array, s: Array) -> Array:
        tilt = 1 + (self.known.lengths**-2.0).sum() * (s**2 * self.known.drifts**2).sum(1)
        before = 1 + TREND**2 * (s**2).sum(1) + LEVEL**2 + self.known.depth**2 * tilt
        return np.asarray(np.maximum(before - ((self.cross(u, s) @ self.root.T) ** 2).sum(1), 1e-12))

    def gain(self, u: Array, s: Array, rise: Array, goals: Array, beside: Array | None = None) -> Array:
        """Expected fall of the least log loss at the goal, among its settings `goals` (g, d), by one reading at each u.

        `s`: the scales of all; `rise`: how far above the front each is expected, since what is far tells little;
        `beside`: other rows of u, read as well: differences tell what one reading at a new level cannot.
        """
        zero = np.zeros((1, s.shape[1]))
        mean = self.mean_at(goals, zero)
        moved = self.joint(u, s, goals, zero)
        noise = self.known.noise**2 * np.exp(np.minimum(rise / NEAR, HIGHEST))
        spread = self.variance(u, s) + noise
        if beside is not None:
            both = self.joint(u, s, u, s)[np.arange(len(u)), beside]
            moved, spread = moved - moved[beside], spread + spread[beside] - 2 * both
        moved = moved / np.sqrt(np.maximum(spread, QUIETEST**2))[:, None]
        after = (mean + moved[:, None, :] * NODES[:, None]).min(-1)
        return np.asarray(mean.min() - after.mean(1))


def fit(read: Readings, start: Beliefs | None = None, search: bool = True) -> Front:
    """The front of readings, with the likeliest beliefs near the prior; `start`, `search`: from where, and whether."""
    d, k = read.u.shape[1], read.s.shape[1]
    middle, factor = prior(d, k)
    above = heights(read)
    fine = np.isfinite(read.y)
    base = float(read.y[fine].mean()) if fine.any() else 0.0
    y = np.where(fine, read.y, 0.0)
    if not fine.all():
        y = np.where(fine, y, lifted(read, above))
    widen = np.exp(np.minimum(above / NEAR, HIGHEST) / 2)
    fixed = cov_level(read.s, read.s)

    def root_of(known: Beliefs) -> Array | None:
        sd = np.where(fine, max(known.noise, QUIETEST) * widen, DIVERGED[1])
        k_all = fixed + cov_valley(known, read.u, read.s, read.u, read.s) + np.diag(sd**2)
        try:
            return np.linalg.cholesky(k_all)
        except np.linalg.LinAlgError:
            return None

    def unlikely(known: Beliefs) -> float:
        root = root_of(known)
        if root is None:
            return np.inf
        z = np.linalg.solve(root, y - base)
        believed = ((known.logs - middle.logs) / factor) ** 2
        return float(0.5 * z @ z + np.log(np.diag(root)).sum() + 0.5 * believed.sum())

    best = start or middle
    least = unlikely(best)
    for step in (STEPS if start is None else STEPS[1:]) if search else ():
        for i in range(len(best.logs)):
            for sign in (1.0, -1.0):
                logs = best.logs.copy()
                logs[i] += sign * step
                tried = unlikely(Beliefs(logs, d))
                if tried < least:
                    best, least = Beliefs(logs, d), tried
                    break
    root = root_of(best)
    assert root is not None
    inverse = np.linalg.inv(root)
    return Front(best, read.u, read.s, base, inverse.T @ (inverse @ (y - base)), inverse)


def lifted(read: Readings, above: Array) -> Array:
    """What diverged runs are read as: well above the finished reading at the scales nearest to theirs."""
    fine = np.flatnonzero(np.isfinite(read.y))
    if not len(fine):
        return np.full(len(read.y), DIVERGED[0])
    apart = ((read.s[:, None] - read.s[None, fine]) ** 2).sum(-1)
    near = fine[np.argmin(apart, axis=1)]
    return np.asarray(read.y[near] - above[near] + DIVERGED[0])


def best(front: Front, pool: Array, rng: np.random.Generator, rounds: int = 4) -> Array:
    """The settings (d) that are expected to be best at the goal: the pool's, then ever closer around it."""
    zero = np.zeros((1, front.s.shape[1]))
    at = pool[np.argmin(front.mean_at(pool, zero))]
    for i in range(rounds):
        near = np.clip(at + rng.normal(0, 0.1 / 2.5**i, (64, len(at))), 0, 1)
        near = np.vstack([at, near])
        at = near[np.argmin(front.mean_at(near, zero))]
    return np.asarray(at)


def draws(front: Front, pool: Array, count: int, rng: np.random.Generator) -> Array:
    """Which of a pool's settings posterior draws say are best at the goal, each once."""
    zero = np.zeros((1, front.s.shape[1]))
    cov = front.joint(pool, zero, pool, zero)
    root = np.linalg.cholesky(cov + JITTER * np.eye(len(pool)))
    each = front.mean_at(pool, zero)[:, None] + root @ rng.normal(size=(len(pool), count))
    return np.unique(np.argmin(each, axis=0))


def next_place(
    front: Front, scales: Sequence[Array], costs: Array, pool: Array, rng: np.random.Generator
) -> tuple[Array, int]:
    """Settings and the number of the scales at which a reading takes most off the goal's loss per cost."""
    at = best(front, pool, rng)
    near = [np.clip(at + rng.normal(0, w, (24, len(at))), 0, 1) for w in (0.02, 0.06, 0.18)]
    wide = np.vstack([at, *near, pool])
    goals = np.vstack([at, wide[draws(front, wide, 64, rng)]])
    found: tuple[float, Array, int] | None = None
    for i, s in enumerate(scales):
        tried = np.vstack([goals, *near, pool[:32], front.u[-64:]])
        mean = front.mean_at(tried, s[None])
        rise = mean - mean.min()
        beside = rng.permutation(len(tried))
        each = front.gain(tried, s[None], rise, goals), front.gain(tried, s[None], rise, goals, beside) / 2
        gain = np.max(each, axis=0) / costs[i]
        j = int(np.argmax(gain))
        if found is None or gain[j] > found[0]:
            found = float(gain[j]), tried[j], i
    assert found is not None
    return found[1], found[2]
