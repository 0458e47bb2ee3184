"""What a reading will be, from those already read: a smooth surface of log loss over logarithmic settings.

log loss = expected slopes + a Gaussian process over z, the logarithms of N, D, lr and of what else varies, with

    k(z, z') = l² + Σ_j s_j² z_j z'_j + Σ_{j≤k} c_jk² z_j z_k z'_j z'_k + r²·exp(−|z − z'|²/2),    noise beside it

so it is a quadratic surface whose slopes and curvatures are expected within a width (s, c), with what such a surface
cannot follow (r) and a level that is not known (l). Unlike a law it needs no minimum, no grid and no floor: it answers
after a handful of readings, within milliseconds, and its interval says what that is worth. Source: Rasmussen and
Williams 2006, sections 2.2 and 2.7; noise and the widths' scale by their likelihood.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tunnel.quantiles import student

Array = np.ndarray
Table = Mapping[str, Array]

ALWAYS = ("N", "D", "lr")
OTHERS = ("depth", "batch_tokens", "decay", "warmup")  # coordinates where they vary
# Slopes of log loss per e-fold, expected ± one standard deviation: models of 1e4 to 1e9 parameters, trained for 5 to
# 100 tokens each, lose 2 to 20% per e-fold of N or D  *assumed*
SLOPES = {"N": (-0.06, 0.05), "D": (-0.12, 0.06)}
SLOPE = (0.0, 0.05)  # of every other coordinate  *assumed*
CURVATURE = 0.02  # one standard deviation of a second-order coefficient  *assumed*
BENT = 0.06  # that of log lr squared: valleys of a demo's size have 0.03 to 0.08  *measured here*
LEVEL = 0.3  # of log loss, about the readings' mean  *assumed*
REST = 0.015  # of log loss: what a quadratic surface does not follow within an e-fold  *measured here*
STEEP = 0.2  # a reading up its valley's side is followed to this share of its height  *assumed*
NOISES = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032)  # of log loss, tried
SCALES = (0.5, 1.0, 2.0)  # of all widths, tried
MOST = 240  # readings used, the nearest to what is asked: it stays within milliseconds  *measured here*
LEAST = 6  # readings that a forecast takes  *assumed*
FREE = 2  # readings that the noise's prior is worth  *assumed*
ROUNDING = 0.1  # of a logarithm: lengths in whole batches differ by less  *assumed*


@dataclass(frozen=True)
class Told:
    """Forecasts of log loss, one per target, with one standard deviation; how many readings, and their noise."""

    value: Array
    spread: Array
    readings: int
    noise: float

    def half(self, level: float = 0.90) -> Array:
        """Half the interval of log loss: Student's, since the noise is known from the readings alone."""
        return student(0.5 + level / 2, self.readings + FREE) * self.spread


def told(known: Table, targets: Table) -> Told:
    """The targets' log loss from known readings; columns ALWAYS, of OTHERS what there is, and the known ones' loss.

    Raises ValueError where fewer than LEAST readings are known, or a value has no logarithm.
    """
    if len(known["loss"]) < LEAST:
        raise ValueError(f"{len(known['loss'])} readings come before it, and a forecast takes {LEAST}")
    names = [*ALWAYS, *(k for k in OTHERS if varies(known, targets, k))]
    z, at = (np.column_stack([logs(t[k]) for k in names]) for t in (known, targets))
    near = np.argsort(np.abs(z[:, None] - at[None]).sum(axis=2).min(axis=1), kind="stable")[:MOST]
    z, y = z[near], logs(known["loss"])[near]
    steep = STEEP * above(z[:, :2], y)
    z, at = z - z.mean(axis=0), at - z.mean(axis=0)
    expected = np.array([SLOPES.get(k, SLOPE)[0] for k in names])
    return mixed(z, y - z @ expected, at, steep, names, at @ expected)


def mixed(z: Array, left: Array, at: Array, steep: Array, names: Sequence[str], expected: Array) -> Told:
    """The process' answer under every noise and scale tried, each weighing as it makes the readings likely."""
    own, cross, last = (kernel(a, b, names) for a, b in ((z, z), (z, at), (at, at)))
    level, logs_likely, values, spreads = left.mean(), [], [], []
    for scale in SCALES:
        for noise in NOISES:
            root = np.linalg.cholesky(scale**2 * own + np.diag(noise**2 + steep**2))
            solved = np.linalg.solve(root, np.column_stack([left - level, scale**2 * cross]))
            fit, gain = solved[:, 0], solved[:, 1:]
            logs_likely.append(-0.5 * fit @ fit - np.log(np.diag(root)).sum())
            values.append(level + expected + gain.T @ fit)
            spreads.append(np.maximum(scale**2 * np.diag(last) - (gain**2).sum(axis=0), 0.0) + noise**2)
    weight = np.exp(np.array(logs_likely) - max(logs_likely))
    weight /= weight.sum()
    value = weight @ np.array(values)
    variance = weight @ (np.array(spreads) + (np.array(values) - value) ** 2)
    noise = float(np.exp(weight @ np.log(np.tile(NOISES, len(SCALES)))))
    return Told(value, np.sqrt(variance), len(left), noise)


def kernel(a: Array, b: Array, names: Sequence[str]) -> Array:
    """k of the rows of a (n, coordinates) and of b (m, coordinates): (n, m)."""
    slope = np.array([SLOPES.get(k, SLOPE)[1] for k in names])
    bent = np.triu(np.full((len(names), len(names)), CURVATURE))
    bent[names.index("lr"), names.index("lr")] = BENT
    square = np.einsum("ij,ik,mj,mk,jk->im", a, a, b, b, bent**2, optimize=True)
    apart = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.asarray(LEVEL**2 + (a * slope**2) @ b.T + square + REST**2 * np.exp(-apart / 2))


def varies(known: Table, targets: Table, name: str) -> bool:
    return all(name in t for t in (known, targets)) and bool(
        np.ptp(logs(np.concatenate([known[name], targets[name]]))) > ROUNDING
    )


def above(place: Array, y: Array) -> Array:
    """How far each reading lies above the best one at its N and D, of log loss."""
    _, of = np.unique(np.round(place / ROUNDING), axis=0, return_inverse=True)
    best = np.full(len(y), np.inf)
    np.minimum.at(best, of.reshape(-1), y)
    return np.asarray(y - best[of.reshape(-1)])


def logs(values: Array) -> Array:
    found = np.asarray(values, float)
    if not (np.isfinite(found).all() and (found > 0).all()):
        raise ValueError("a value has no logarithm")
    return np.log(found)
