"""What to measure next, where readings differ in cost and the question is asked at a larger place.

    log loss = trend(s) + level(s) + valley(u, s) + noise       u: settings from 0 to 1; s: log scales, 0 at the goal
    cov valley = (1 + Σ δ²·s·s'·∂u·∂u')·A²·exp(−½·Σ((u − u')/ℓ)²)        which shifts by δ of the cube per log scale

A Gaussian process (so all answers are linear algebra): `best` is where the goal's expected loss is least,
`Front.gain` how much a reading elsewhere would settle of the difference between it and what may be better. Per cost,
that is the whole sampler: cheap readings first, dearer ones where only they tell, twice the same where noise decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunnel.valleys.valley import NEAR, Array

TREND = 0.3  # of log loss per log scale: slope of the level  *assumed*
LEVEL, REACH = 0.03, 1.5  # how far levels leave the trend (log loss), and over which distance (log scale)  *assumed*
QUIETEST = 1e-4  # of log loss: noise is not believed to be less  *assumed*
JITTER = 1e-7  # variance of log loss that keeps a covariance positive  *derived* (rounding)
HIGHEST = 8.0  # a reading's noise grows by e for each NEAR above the front, at most so often  *assumed*
# what is believed of A, ℓ, δ and the noise before there are readings: median, and a factor of one deviation  *assumed*;
# the noise of our demo's readings is 0.0024 to 0.009  *measured here*
PRIORS = {"depth": (0.3, 3.0), "length": (0.6, 1.6), "drift": (0.03, 2.0), "noise": (0.005, 2.0)}
STEPS = (0.8, 0.4, 0.2)  # of the logs of these, in their search
WIDTHS = (0.02, 0.06, 0.18)  # of the cube: how far from the best settings are looked at  *assumed*


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


def heights(s: Array, y: Array) -> Array:
    """How far above the front each reading lies: above a plane over the scales, laid under the lowest readings."""
    plane = np.column_stack([np.ones(len(y)), s])
    ridge = np.diag([1e-9, *[1e-3] * s.shape[1]])
    weight, above = np.ones(len(y)), np.zeros(len(y))
    for _ in range(8):
        laid = np.linalg.solve((plane.T * weight) @ plane + ridge, (plane.T * weight) @ y)
        above = y - plane @ laid
        above -= above.min()
        weight = np.exp(-above / NEAR)
    return above


@dataclass(frozen=True)
class Front:
    """Beliefs after finished readings (u, s) and diverged ones; `alpha` and `root` are those of the process."""

    known: Beliefs
    u: Array
    s: Array
    diverged: Array
    mean: float
    alpha: Array
    root: Array  # inverse of the Cholesky root

    def alive(self, u: Array) -> Array:
        """Of a list of settings those that lie nearer to a finished reading than to one that diverged, at any scale."""
        if not len(self.diverged):
            return u
        return u[between(u, self.u).min(1) <= between(u, self.diverged).min(1)]

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
        """Expected fall of the variance of goals' differences from the first, by one reading at each u.

        `goals`: settings (g, d), draws of what is best at the goal after what is expected to be; `s`: all scales;
        `rise`: how far above the front each u is expected, since what is far tells little; `beside`: other rows of u,
        read as well: differences tell what one reading at a new level cannot.
        """
        moved = self.joint(u, s, goals, np.zeros((1, s.shape[1])))
        spread = self.variance(u, s) + self.known.noise**2 * np.exp(np.minimum(rise / NEAR, HIGHEST))
        if beside is not None:
            both = self.joint(u, s, u, s)[np.arange(len(u)), beside]
            moved, spread = moved - moved[beside], spread + spread[beside] - 2 * both
        return np.asarray(((moved - moved[:, :1]) ** 2).mean(1) / np.maximum(spread, QUIETEST**2))


def fit(read: Readings, start: Beliefs | None = None, search: bool = True) -> Front:
    """The front of readings, with the likeliest beliefs near the prior; `start`, `search`: from where, and whether.

    At least one reading must have finished.
    """
    fine = np.isfinite(read.y)
    u, s, y = read.u[fine], read.s[fine], read.y[fine]
    d, (middle, factor) = u.shape[1], prior(u.shape[1], s.shape[1])
    widen = np.exp(np.minimum(heights(s, y) / NEAR, HIGHEST) / 2)
    base, level = float(y.mean()), cov_level(s, s)

    def root_of(known: Beliefs) -> Array | None:
        sd = max(known.noise, QUIETEST) * widen
        try:
            return np.linalg.cholesky(level + cov_valley(known, u, s, u, s) + np.diag(sd**2))
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
    return Front(best, u, s, read.u[~fine], base, inverse.T @ (inverse @ (y - base)), inverse)


def best(front: Front, pool: Array, rng: np.random.Generator, rounds: int = 4) -> Array:
    """The settings (d) that are expected to be best at the goal: the pool's, then ever closer around it."""
    zero, pool = np.zeros((1, front.s.shape[1])), np.vstack([front.alive(pool), front.u])
    at = pool[np.argmin(front.mean_at(pool, zero))]
    for i in range(rounds):
        near = np.clip(at + rng.normal(0, 0.1 / 2.5**i, (64, len(at))), 0, 1)
        near = np.vstack([at, front.alive(near)])
        at = near[np.argmin(front.mean_at(near, zero))]
    return np.asarray(at)


def draws(front: Front, pool: Array, count: int, rng: np.random.Generator) -> Array:
    """Which of a pool's settings each of `count` draws says is best at the goal."""
    zero = np.zeros((1, front.s.shape[1]))
    cov = front.joint(pool, zero, pool, zero)
    root = np.linalg.cholesky(cov + JITTER * np.eye(len(pool)))
    each = front.mean_at(pool, zero)[:, None] + root @ rng.normal(size=(len(pool), count))
    return np.asarray(np.argmin(each, axis=0))


def next_place(
    front: Front, scales: Sequence[Array], costs: Array, pool: Array, rng: np.random.Generator
) -> tuple[Array, int]:
    """Settings and the number of the scales at which a reading settles most per cost."""
    at = best(front, pool, rng)
    near = np.vstack([at + rng.normal(0, w, (24, len(at))) for w in WIDTHS])
    near, pool = front.alive(np.clip(near, 0, 1)), front.alive(pool)
    wide = np.vstack([at, near, pool])
    goals = np.vstack([at, wide[draws(front, wide, 64, rng)]])
    tried = np.vstack([np.unique(goals, axis=0), near, pool[:32], front.u[-64:]])
    found = (-np.inf, at, 0)
    for i, s in enumerate(scales):
        mean = front.mean_at(tried, s[None])
        rise = mean - mean.min()
        beside = rng.permutation(len(tried))
        each = front.gain(tried, s[None], rise, goals), front.gain(tried, s[None], rise, goals, beside) / 2
        gain = np.max(each, axis=0) / costs[i]
        j = int(np.argmax(gain))
        if gain[j] > found[0]:
            found = float(gain[j]), tried[j], i
    return found[1], found[2]
