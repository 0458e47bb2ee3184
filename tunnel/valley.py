"""Valleys: where the loss is least along a setting, from readings that lie around the minimum.

`bowl` serves a search (many settings, one shape); `surface` serves a ladder's fans (one setting, many shapes and
rungs). Both are linear least squares on log loss, so a bootstrap of hundreds of draws takes a moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Array = np.ndarray

NEAR = 0.05  # of log loss: a reading's weight falls by e for each of these above the best  *assumed*
DRAWS = 400  # of the bootstrap
SURE = 0.8  # of the draws must be curved before a minimum is believed  *assumed*
QUANTILES = (0.05, 0.95)  # a 90% interval


@dataclass(frozen=True)
class Dip:
    """A minimum along one logarithmic setting, with its 90% interval; `curved` where there really is one."""

    at: float
    low: float
    high: float
    curved: bool


def bowl(x: Mapping[str, Array], y: Array, seed: int = 0) -> dict[str, Dip]:
    """The minimum of y = c + Σ_k (b_k x_k + q_k x_k²), readings near the best weighing most.

    `x`: settings' logarithms, one array of n each; `y`: log losses (n). Settings that do not vary are left out; empty
    where there are fewer readings than coefficients.
    """
    names = [k for k, v in x.items() if np.ptp(v) > 1e-9]
    if len(y) < 2 * len(names) + 2:
        return {}
    centre = {k: float(np.mean(x[k])) for k in names}
    columns = [f for k in names for f in (x[k] - centre[k], (x[k] - centre[k]) ** 2)]
    design = np.column_stack([np.ones(len(y)), *columns])
    weight = np.exp(-(y - y.min()) / NEAR)
    rng = np.random.default_rng(seed)
    draws = np.vstack([np.ones(len(y)), rng.multinomial(len(y), np.full(len(y), 1 / len(y)), DRAWS)])
    fits = np.array([least_squares(design, y, weight * d) for d in draws])
    found = {}
    for i, k in enumerate(names):
        b, q = fits[:, 1 + 2 * i], fits[:, 2 + 2 * i]
        curved = q[1:] > 0
        if q[0] <= 0 or not curved.any():
            found[k] = Dip(centre[k], float(x[k].min()), float(x[k].max()), False)
            continue
        minima = centre[k] - b[1:][curved] / (2 * q[1:][curved])
        low, high = np.quantile(minima, QUANTILES)
        found[k] = Dip(centre[k] - b[0] / (2 * q[0]), float(low), float(high), bool(curved.mean() >= SURE))
    return found


def least_squares(design: Array, y: Array, weight: Array) -> Array:
    """Weighted least squares; the smallest solution where the rows do not decide."""
    root = np.sqrt(weight)
    return np.linalg.lstsq(design * root[:, None], y * root, rcond=1e-10)[0]


@dataclass(frozen=True)
class Surface:
    """Fans of one or more shapes, as log loss = m_cell + h·(x − x*)² with x* = a + b·log N + c·log D.

    A cell is a shape at a rung. `cells` holds one row per cell (N, D, width, depth), `log_loss` its minimum, and
    `curved` says whether the fans turned up on both sides at all.
    """

    cells: Mapping[str, Array]
    log_loss: Array  # per cell
    h: float
    a: float
    b: float
    c: float
    curved: bool

    def log_lr(self, n: Array | float, d: Array | float) -> Array:
        """log lr* at N and D."""
        return np.asarray(self.a + self.b * np.log(n) + self.c * np.log(d))

    def regret(self, log_lr: float, n: float, d: float) -> float:
        """The relative loss given away at `log_lr`, to second order."""
        return float(self.h * (log_lr - self.log_lr(n, d)) ** 2)


def surface(table: Mapping[str, Array], weight: Array | None = None) -> Surface:
    """Fits all fans of a ladder at once.

    `table`: columns N, D, lr, loss, width, depth of one reading a row; `weight`: one per row, for a bootstrap.
    With a single lr per shape there is no curvature: the readings themselves are the minima.
    """
    n, d, x = np.log(table["N"]), np.log(table["D"]), np.log(table["lr"])
    y = np.log(table["loss"])
    keys = np.column_stack([table["width"], table["depth"], table["D"]])
    cells, cell = np.unique(keys, axis=0, return_inverse=True)
    cell = cell.reshape(-1)
    first = np.array([int(np.flatnonzero(cell == i)[0]) for i in range(len(cells))])
    rows = {k: np.asarray(table[k])[first] for k in ("N", "D", "width", "depth")}
    best = np.array([y[cell == i].min() for i in range(len(cells))])
    weight = (np.ones(len(y)) if weight is None else weight) * np.exp(-(y - best[cell]) / NEAR)

    dummies = (cell[:, None] == np.arange(len(cells))).astype(float)
    slopes = [s for s in (np.ones(len(y)), centred(n), centred(d)) if s is not None]
    x0 = x - x.mean()
    fit = least_squares(np.column_stack([dummies, x0**2, *(x0 * s for s in slopes)]), y, weight)
    h = fit[len(cells)]
    lines = iter(fit[len(cells) + 1 :])
    a, b, c = (next(lines) if s is not None else 0.0 for s in (np.ones(1), centred(n), centred(d)))
    if not (h > 0 and np.ptp(x) > 1e-9 and len(y) > len(cells)):
        return Surface(rows, best, 0.0, float(np.mean(x)), 0.0, 0.0, False)
    a, b, c = (-v / (2 * h) for v in (a, b, c))
    a += x.mean() - b * n.mean() - c * d.mean()
    at = a + b * np.log(rows["N"]) + c * np.log(rows["D"])
    return Surface(rows, fit[: len(cells)] - h * (at - x.mean()) ** 2, float(h), float(a), float(b), float(c), True)


def centred(v: Array) -> Array | None:
    """A column around its mean; None where it does not vary."""
    return v - v.mean() if np.ptp(v) > 1e-9 else None


def bootstrap(table: Mapping[str, Array], draws: int = 200, seed: int = 0) -> list[Surface]:
    """Surfaces of ladders whose trunks are drawn again, shape by shape: forks of a trunk are not independent.

    `table` as for `surface`, with a column run: the trunk of a reading.
    """
    rng = np.random.default_rng(seed)
    runs, of = np.unique(table["run"], return_inverse=True)
    shape = np.array([(table["width"][i], table["depth"][i]) for i in (np.flatnonzero(of == r)[0] for r in range(len(runs)))])
    found = []
    for _ in range(draws):
        count = np.zeros(len(runs))
        for s in np.unique(shape, axis=0):
            mine = np.flatnonzero((shape == s).all(axis=1))
            np.add.at(count, rng.choice(mine, len(mine)), 1)
        found.append(surface(table, count[of.reshape(-1)]))
    return found


def parabola(log_lr: Array, log_loss: Array) -> tuple[float, float] | None:
    """One cell's own minimum (log lr, log loss) by a parabola; None where it does not turn up.

    Raises nothing: fewer than three learning rates, or a downward curve, have no minimum.
    """
    if len(np.unique(log_lr)) < 3:
        return None
    q, b, c = np.polyfit(log_lr - log_lr.mean(), log_loss, 2)
    if q <= 0:
        return None
    at = -b / (2 * q)
    return float(at + log_lr.mean()), float(c - b * b / (4 * q))
