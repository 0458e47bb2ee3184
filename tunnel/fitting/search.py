"""Where the engine starts: a grid over the exponents, coefficients ≥ 0 projected out; and what fits about as well.

Variable projection (SCIENCE.md §4): inside each cell of the grid the coefficients are found by IRLS on log
residuals, so that only the exponents are searched; the best cells are then polished jointly (`powers`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations, product

import numpy as np

from tunnel.fitting.models import Model
from tunnel.fitting.powers import box, polish
from tunnel.laws import Array, Misfit

STARTS = 12  # the grid's best cells, polished beside its local minima, and
FINAL = 16  # of what that finds the best, polished to the end; measured here: benchmarks/fit.py --hostile
SAME = 0.03  # exponents within 3% are one optimum, where the first polish has stopped; assumed
LOOSE = 1e-4  # relative gain at which a first polish stops; assumed
MANY_ROWS = 20_000  # up to so many, four basins are followed to the end on every row, beyond one; assumed
SEARCH_ROWS = 400  # rows on which basins are told apart, and
GRID_ROWS = 120  # on which the grid is laid: where a fit starts; measured here: benchmarks/fit.py


@dataclass(frozen=True)
class Solution:
    """One optimum: theta (e, a_k, α_k; without e where the law has no floor), its objective, what fits as well.

    `exponents`: per term, the lowest and highest value that fits within noise of the optimum, all else
    refitted (K, 2); `floors`: the same for E, whose low is 0 where no floor fits as well (None: no floor).
    """

    theta: Array
    objective: float
    exponents: Array
    floors: tuple[float, float] | None


def solve(model: Model, z: Array, y: Array, w: Array, misfit: Misfit, pinned: float | None = None) -> Solution:
    """The global optimum: grid over the exponents, coefficients projected out, then a joint polish.

    z (K, n) centred logs, y (n,) log losses, w (n,) weights ≥ 0; `pinned` holds E. Variable projection: SCIENCE.md §4.
    """
    few = _thin(z, y, w, SEARCH_ROWS)
    coarse = replace(misfit, delta=max(misfit.delta, _spread(few[1]) * 1e-3))
    theta, value, shape = _search(model, *_thin(*few, GRID_ROWS), coarse)
    best = np.unique(np.concatenate([_basins(value, shape), np.argsort(value, kind="stable")[:STARTS]]))
    pin = np.zeros(theta.shape[1], bool)
    held, starts = _profile_starts(model, theta, value)
    if pinned is not None:
        pin[0], theta[:, 0], starts[:, 0] = True, pinned, pinned
        held = held | pin
    tried = [polish(model, theta[best], *few, misfit, LOOSE, pin, anneal=way) for way in (True, False)]
    profile, level = polish(model, starts, *few, misfit, LOOSE, held)
    tried.append((profile, level))
    points, found = (np.concatenate(rows) for rows in zip(*tried, strict=True))
    points, found = polish(model, _apart(model, points, found)[:FINAL], *few, misfit, held=pin, anneal=False)
    at = int(np.argmin(found))
    ranges = _ranges(model, points[at], float(found[at]), profile, level, held, len(few[1]))
    if len(few[1]) < len(y):  # many rows: the basins were found on some of them, the optimum is that of all
        best = np.argsort(found, kind="stable")[: 4 if len(y) <= MANY_ROWS else 1]
        points, found = polish(model, points[best], z, y, w, misfit, held=pin)
        at = int(np.argmin(found))
    return Solution(points[at], float(found[at]), *ranges)


def _apart(model: Model, points: Array, value: Array) -> Array:
    """The points, best first, without those whose exponents a better one has within SAME."""
    points = points[np.argsort(value, kind="stable")]
    places = np.round(np.log(points[:, -model.k :]) / SAME)
    return points[np.sort(np.unique(places, axis=0, return_index=True)[1])]


def _profile_starts(model: Model, theta: Array, value: Array) -> tuple[Array, Array]:
    """Masks of what is held, and starts (S, P): each exponent at each value of the grid, and E at nothing."""
    size = theta.shape[1]
    starts, held = [], []
    for j in range(size - model.k, size):
        for level in np.unique(theta[:, j]):
            cells = np.flatnonzero(theta[:, j] == level)
            starts.append(theta[cells[np.argmin(value[cells])]])
            held.append(np.arange(size) == j)
    if model.floor:
        starts.append(np.r_[0.0, theta[np.argmin(value), 1:]])
        held.append(np.arange(size) == 0)
    return np.array(held), np.array(starts)


def _ranges(
    model: Model, best: Array, objective: float, points: Array, level: Array, held: Array, rows: int
) -> tuple[Array, tuple[float, float] | None]:
    """What fits about as well as the optimum: of each exponent, and of the floor."""
    size = len(best)
    room = 2.7 / max(rows - size, 1)  # chi-squared, 1 degree, 90%, of n·Δf/f; derived
    good = level <= objective * (1 + room)
    points, held = np.concatenate([best[None], points[good]]), np.concatenate([np.ones((1, size), bool), held[good]])
    ranges = np.array([[points[held[:, j], j].min(), points[held[:, j], j].max()] for j in range(size - model.k, size)])
    return ranges, (float(points[:, 0].min()), float(points[:, 0].max())) if model.floor else None


def _thin(z: Array, y: Array, w: Array, most: int) -> tuple[Array, Array, Array]:
    """At most so many rows, evenly through the sorted table (so that row order does not matter)."""
    if len(y) <= most:
        return z, y, w
    order = np.lexsort((y, *z))
    pick = order[np.linspace(0, len(y) - 1, most).astype(int)]
    return z[:, pick], y[pick], w[pick]


def _spread(y: Array) -> float:
    return float(np.ptp(y)) if len(y) else 0.0


def _search(model: Model, z: Array, y: Array, w: Array, misfit: Misfit) -> tuple[Array, Array, tuple[int, ...]]:
    """The full theta (G, P) of the grid's cells with the best coefficients ≥ 0, the objective (G,), the shape.

    Inside: IRLS on log residuals; each pass is a weighted least squares with coefficients ≥ 0 for L̂·(1 + r).
    """
    theta, shape = model.cells(z)
    basis, shift = model.basis(theta, z)
    fitted = np.broadcast_to(np.exp(y), (len(theta), len(y)))
    r = np.zeros_like(fitted)
    for delta in (np.inf, np.inf, *(misfit.delta * by for by in (30, 6, 1, 1, 1, 1))):
        weight = replace(misfit, delta=delta).slopes(r, w)[2] / fitted**2
        weighted = basis * weight[:, None]
        rhs = (weighted @ (fitted * (1 + r))[:, :, None])[:, :, 0]
        coefficients = _nonnegative(weighted @ basis.transpose(0, 2, 1), rhs)
        fitted = np.maximum((coefficients[:, None] @ basis)[:, 0], np.exp(y.min() - 5))
        r = y - np.log(fitted)
    low, high = box(model, z, y)
    return np.clip(model.scaled(theta, coefficients * np.exp(-shift)), low, high), misfit.total(r, w), shape


def _nonnegative(gram: Array, rhs: Array) -> Array:
    """Least squares with coefficients ≥ 0 (G, m) from normal equations: exact, tries every subset."""
    count, size = rhs.shape
    best, answer = np.full(count, np.inf), np.zeros((count, size))
    for chosen in (list(s) for length in range(1, size + 1) for s in combinations(range(size), length)):
        sub = gram[:, chosen][:, :, chosen]
        sub = sub + np.eye(len(chosen)) * (1e-12 * np.einsum("rii->r", sub) + 1e-300)[:, None, None]
        x = np.linalg.solve(sub, rhs[:, chosen, None])[:, :, 0]
        value = -(x * rhs[:, chosen]).sum(axis=1)
        take = (x >= 0).all(axis=1) & (value < best)
        best = np.where(take, value, best)
        answer[np.ix_(take, chosen)] = x[take]
        answer[np.ix_(take, [j for j in range(size) if j not in chosen])] = 0.0
    return answer


def _basins(value: Array, shape: tuple[int, ...]) -> Array:
    """Indices of the grid's local minima."""
    grid = value.reshape(shape)
    padded = np.pad(grid, 1, constant_values=np.inf)
    low = np.ones(shape, bool)
    for offset in product((0, 1, 2), repeat=len(shape)):
        low &= grid <= padded[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))]
    return np.flatnonzero(low.ravel())
