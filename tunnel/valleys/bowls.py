"""A cell's own smoothed surface: log loss over the log settings tried at one (N, D), as a cubic about its best.

Raw minima of a grid lie too low and jump by grid steps (SCIENCE.md §4), so a cell's optimum is that of a smooth
surface, readings near the best weighing most. A cubic, since valleys are steeper to the right: a parabola's minimum
then lies beside the true one, the more the farther the readings reach (measured here, `benchmarks/optimum.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement, product

import numpy as np

from tunnel.laws import Array
from tunnel.quantiles import TYPICAL

SPARE = 1.5  # rows per coefficient, at the least  *assumed*
COUNTS = 0.05  # rows of less weight than this neither count nor say how far the settings were tried  *assumed*
LEAST = 1e-3  # of d² log L / d(log setting)²: 0.02% an octave beside the best, below seed noise  *derived*
STEPS = 41  # of the grid per setting, from whose least Newton goes on
HUBER = 1.345  # robust standard deviations: 95% efficient under a normal  *derived*
PASSES = 4  # of reweighting


@dataclass(frozen=True)
class Bowl:
    """A smoothed surface of v settings about `centre`, its minimum `best` (v logs) and the curvature H there.

    `edge` names what is wrong with the minimum, "" where it lies inside what was tried. `noise`: of log loss; `left`:
    weighted sum of squared residuals.
    """

    powers: Array  # (m, v)
    a: Array  # (m)
    centre: Array
    box: Array  # (2, v): the settings tried, relative to the centre
    best: Array
    H: Array
    noise: float
    left: float
    edge: str

    def rise(self, x: Array) -> Array:
        """log loss above the minimum at log settings (k, v); outside what was tried, by the minimum's curvature too."""
        u = x - self.centre
        inside = np.clip(u, *self.box)
        low = value(self.powers, self.a, (self.best - self.centre)[None])
        beyond = 0.5 * np.einsum("ki,ij,kj->k", u - inside, self.H, u - inside)
        return np.asarray(np.maximum(value(self.powers, self.a, inside) - low, 0.0) + beyond)


def value(powers: Array, a: Array, u: Array) -> Array:
    """A polynomial at u (k, v): Σ a·Π u^power."""
    return np.asarray(np.prod(u[:, None, :] ** powers, axis=2) @ a)


def derived(powers: Array, a: Array, k: int) -> tuple[Array, Array]:
    """A polynomial's derivative along its k-th variable, again a polynomial."""
    down = powers.copy()
    down[:, k] = np.maximum(down[:, k] - 1, 0)
    return down, a * powers[:, k]


def monomials(v: int, degree: int) -> Array:
    """The powers (m, v) of all products of up to `degree` of v variables."""
    found = [c for d in range(degree + 1) for c in combinations_with_replacement(range(v), d)]
    return np.array([[c.count(k) for k in range(v)] for c in found])


def bowl(x: Array, y: Array, weight: Array, near: float) -> Bowl | None:
    """The surface of one cell: x (n, v) log settings, y log loss, weights; None where its rows are too few.

    A row's weight falls by e for every `near` above the cell's best. Where the rows do not carry a cubic: a parabola.
    """
    weight = weight * np.exp(-(y - y.min()) / near)
    counts = weight > COUNTS * weight.max()
    v = x.shape[1]
    fitting = [p for p in (monomials(v, 3), monomials(v, 2)) if counts.sum() >= SPARE * len(p)]
    if not fitting or min(len(np.unique(x[counts, j].round(6))) for j in range(v)) < 3:
        return None
    powers = fitting[0]
    centre = weight @ x / weight.sum()
    design = np.prod((x - centre)[:, None, :] ** powers, axis=2)
    robust = np.ones(len(y))
    for _ in range(PASSES):
        root = np.sqrt(weight * robust)
        a = np.linalg.lstsq(design * root[:, None], y * root, rcond=1e-10)[0]
        r = y - design @ a
        sigma = float(TYPICAL * np.median(np.abs(r[counts]))) + 1e-12
        robust = 1 / np.maximum(np.abs(r) / (HUBER * sigma), 1.0)
    box = np.stack([x[counts].min(axis=0), x[counts].max(axis=0)]) - centre
    best, h, edge = lowest(powers, a, box)
    freedom = counts.sum() / max(counts.sum() - len(a), 1)
    return Bowl(powers, a, centre, box, centre + best, h, sigma * freedom**0.5, float(weight * robust @ r**2), edge)


def lowest(powers: Array, a: Array, box: Array) -> tuple[Array, Array, str]:
    """Where a polynomial is least inside a box, its curvature there, and what is wrong with that minimum."""
    v = powers.shape[1]
    grid = np.array(list(product(*np.linspace(box[0], box[1], STEPS).T)))
    u = grid[int(np.argmin(value(powers, a, grid)))]
    slopes = [derived(powers, a, k) for k in range(v)]
    bends = [[derived(*s, k) for k in range(v)] for s in slopes]
    step = np.ptp(box, axis=0) / (STEPS - 1)
    for _ in range(3):
        g = np.array([value(*s, u[None])[0] for s in slopes])
        h = np.array([[value(*b, u[None])[0] for b in row] for row in bends])
        if np.linalg.eigvalsh(h).min() < LEAST:
            return u, h, "no curvature"
        u = np.clip(u - np.clip(np.linalg.solve(h, g), -step, step), *box)
    at_edge = bool(((u <= box[0] + step / 2) | (u >= box[1] - step / 2)).any())
    return u, h, "edge" if at_edge else ""


def parabola(best: Array, h: Array) -> Bowl:
    """The surface ½·uᵀHu about a minimum, over all settings."""
    v = len(best)
    powers = monomials(v, 2)
    pairs = [np.repeat(np.arange(v), p) for p in powers]
    a = np.array([(0.5 if p[0] == p[1] else 1.0) * h[p[0], p[1]] if len(p) == 2 else 0.0 for p in pairs])
    box = np.array([[-1e3], [1e3]]) * np.ones(v)  # of logs: everywhere
    return Bowl(powers, a, best, box, best, h, 0.0, 0.0, "")
