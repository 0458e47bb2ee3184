"""Valleys: where the loss is least along a setting, from readings that lie around the minimum.

`bowl` serves a search (many settings, one shape); `surface` serves a ladder's fans (one setting, many shapes and
rungs). Both are linear least squares on log loss, so a bootstrap of hundreds of draws takes a moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

Array = np.ndarray

NEAR = 0.05  # of log loss: a reading's weight falls by e for each of these above the best  *assumed*
PER_DOUBLING = 0.25  # a reading's weight falls to this with every doubling of D away from the rung asked  *assumed*
FAR = 0.7  # of log lr, one octave: no cell's minimum is believed farther outside the fan  *assumed*
QUIET = 1e-4  # of log loss: no valley is believed to be read more finely  *assumed*
DRIFT = 0.1  # of log lr* per log N: a rule claims 0, and readings must overrule it  *assumed*
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
    """Fans of one or more shapes: log loss = m_cell + h(N)·(x − x*)² with x* = a + b·log N + c·log D.

    A cell is a shape at a rung. `cells` holds one row per cell (N, D, width, depth), `log_loss` its minimum, `h` its
    curvature, and `curved` says whether the fans turned up on both sides at all.
    """

    cells: Mapping[str, Array]
    log_loss: Array  # per cell
    h: Array  # per cell
    a: float
    b: float
    c: float
    curved: bool

    def log_lr(self, n: Array | float, d: Array | float) -> Array:
        """log lr* at N and D."""
        return np.asarray(self.a + self.b * np.log(n) + self.c * np.log(d))


def surface(table: Mapping[str, Array], weight: Array | None = None, at: float | None = None) -> Surface:
    """Fits all fans of a ladder at once.

    `table`: columns N, D, lr, loss, width, depth of one reading a row; `weight`: one per row, for a bootstrap; `at`: a
    D (tokens) that the fit is for: readings weigh less with every doubling away from it, since a valley's curvature
    and its drift are not the same on short and on long runs.
    With a single lr per shape there is no curvature: the readings themselves are the minima.
    """
    n, d, x = np.log(table["N"]), np.log(table["D"]), np.log(table["lr"])
    y = np.log(table["loss"])
    rows, cell = cells_of(table)
    count = len(rows["N"])
    best = np.array([y[cell == i].min() for i in range(count)])
    weight = (np.ones(len(y)) if weight is None else weight) * np.exp(-(y - best[cell]) / NEAR)
    if at is not None:
        weight = weight * PER_DOUBLING ** np.abs(np.log2(table["D"] / at))
    x, middle = x - x.mean(), x.mean()
    n, d = n - n.mean(), d - d.mean()
    dummies = (cell[:, None] == np.arange(count)).astype(float)
    design = np.column_stack([dummies, x**2, x**2 * n, x, x * n, x * d])
    fit = least_squares(design, y, weight)
    q, q_n, p, p_n, p_d = fit[count:]
    left = weight * (y - design @ fit) ** 2
    noise = max(np.sqrt(left.sum() / weight.sum() * len(y) / max(len(y) - len(fit), 1)), QUIET)
    first = np.array([int(np.argmax(cell == i)) for i in range(count)])
    h, slope = q + q_n * n[first], p + p_n * n[first] + p_d * d[first]
    if not ((h > 0).any() and np.ptp(x) > 1e-9 and len(y) > count):
        return Surface(rows, best, np.zeros(count), float(middle), 0.0, 0.0, False)
    turned = h > 0
    dip = np.clip(-slope[turned] / (2 * h[turned]), x.min() - FAR, x.max() + FAR)
    sure = (2 * h[turned] * x.std() / noise) ** 2  # one over the variance of a cell's minimum
    if at is not None:
        sure = sure * PER_DOUBLING ** np.abs(np.log2(rows["D"][turned] / at))
    line = np.column_stack([np.ones(turned.sum()), n[first][turned], d[first][turned]])
    a, b, c = least_squares(np.vstack([line, [0, 1, 0]]), np.append(dip, 0.0), np.append(sure, DRIFT**-2))
    lows = fit[:count] + np.where(turned, -(slope**2) / (4 * np.where(turned, h, 1.0)), 0.0)
    a += middle - b * np.log(table["N"]).mean() - c * np.log(table["D"]).mean()
    return Surface(rows, np.where(turned, lows, best), np.maximum(h, 0.0), float(a), float(b), float(c), True)


def cells_of(table: Mapping[str, Array]) -> tuple[dict[str, Array], Array]:
    """Each shape at each rung once (N, D, width, depth), and every row's cell."""
    keys = np.column_stack([table["width"], table["depth"], table["D"]])
    _, first, cell = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    return {k: np.asarray(table[k])[first] for k in ("N", "D", "width", "depth")}, cell.reshape(-1)


def by_rung(table: Mapping[str, Array], weight: Array | None = None) -> Surface:
    """The longest rung's surface, with every other rung's minima from a surface of its own."""
    rungs = np.unique(table["D"])
    found = [surface(table, weight, at) for at in rungs]
    log_loss, h = found[-1].log_loss.copy(), found[-1].h.copy()
    for at, s in zip(rungs, found, strict=True):
        here = s.cells["D"] == at
        log_loss[here], h[here] = s.log_loss[here], s.h[here]
    return replace(found[-1], log_loss=log_loss, h=h)


def bootstrap(table: Mapping[str, Array], draws: int = 200, seed: int = 0) -> list[Surface]:
    """Surfaces of ladders whose trunks weigh differently (Bayesian bootstrap): forks of a trunk are not independent.

    `table` as for `surface`, with a column run: the trunk of a reading.
    """
    rng = np.random.default_rng(seed)
    runs, of = np.unique(table["run"], return_inverse=True)
    return [by_rung(table, rng.exponential(size=len(runs))[of.reshape(-1)]) for _ in range(draws)]


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
