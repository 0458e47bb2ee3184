"""Where the engine starts: a grid over the exponents, coefficients ≥ 0 projected out; and what fits about as
well.

Variable projection (SCIENCE.md §4): inside each cell of the grid the coefficients are found by IRLS on log
residuals, so that only the exponents are searched; the best cells are then polished jointly (_powers).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from tunnel.laws._powers import DEEPEST, Array, box, evaluate, polish

TRIED = (0.02, 2.5)  # exponents of the grid; assumed: what is published lies in 0.03-1.2
# exponents per axis for one and two powers; measured here: 18² finds every optimum of our tables
GRID = {1: 40, 2: 18}
# cells of the grid that are polished; measured here: all ten reach one optimum on Chinchilla's points
STARTS = 10
SEARCH_ROWS = 400  # rows that the grid looks at (it only finds the basin; the polish sees every row); assumed


@dataclass(frozen=True)
class Solution:
    """One optimum: theta (e, a_k, α_k; without e where the law has no floor), its objective, what fits as
    well.

    `exponents`: per term, the lowest and highest value that fits within noise of the optimum, all else
    refitted (K, 2); `floors`: the same for E, whose low is 0 where no floor fits as well (None: no floor).
    """

    theta: Array
    objective: float
    exponents: Array
    floors: tuple[float, float] | None


def solve(z: Array, y: Array, w: Array, delta: float, floor: bool = True) -> Solution:
    """The global optimum: grid over the exponents, coefficients projected out, then a joint polish.

    z (K, n) centred logs, y (n,) log losses, w (n,) weights ≥ 0. Variable projection: SCIENCE.md §4.
    """
    few = _thin(z, y, w)
    exponents, theta, value = _search(*few, max(delta, _spread(few[1]) * 1e-3), floor)
    best = np.unique(np.concatenate([_basins(value, len(z)), np.argsort(value)[:3]]))
    best = best[np.argsort(value[best], kind="stable")][:STARTS]
    polished, objective = polish(theta[best], *few, delta, floor)
    if len(few[1]) < len(y):  # many rows: the basin was found on some of them, the optimum is that of all
        keep = np.argsort(objective)[:1]
        polished, objective = polish(polished[keep], z, y, w, delta, floor)
    at = int(np.argmin(objective))
    return Solution(
        polished[at],
        float(objective[at]),
        *_profile(polished[at], exponents, theta, value, *few, delta, floor),
    )


def _profile(
    best: Array,
    exponents: Array,
    theta: Array,
    value: Array,
    z: Array,
    y: Array,
    w: Array,
    delta: float,
    floor: bool,
) -> tuple[Array, tuple[float, float] | None]:
    """What fits about as well: each exponent held at each value of the grid, E at nothing, the rest free."""
    k = len(z)
    size = len(best)
    starts, held = [], []
    for j in range(k):
        for level in np.unique(exponents[:, j]):
            cells = np.flatnonzero(exponents[:, j] == level)
            starts.append(theta[cells[np.argmin(value[cells])]])
            held.append(np.arange(size) == size - k + j)
    if floor:
        starts.append(np.r_[y.min() - DEEPEST, best[1:]])
        held.append(np.arange(size) == 0)
    found, objective = polish(np.array(starts), z, y, w, delta, floor, tolerance=1e-4, held=np.array(held))
    room = 2.7 / max(len(y) - size, 1)  # chi-squared, 1 degree, 90%, of n·Δf/f; derived
    good = objective <= evaluate(best[None], z, y, w, delta, floor).f[0] * (1 + room)
    found, held_at = np.concatenate([best[None], found[good]]), np.array(held)[good]
    ranges = np.empty((k, 2))
    for j in range(k):
        own = np.r_[True, held_at[:, size - k + j]]
        ranges[j] = found[own, size - k + j].min(), found[own, size - k + j].max()
    floors = np.exp(found[:, 0])
    return ranges, (float(floors.min()), float(floors.max())) if floor else None


def _thin(z: Array, y: Array, w: Array) -> tuple[Array, Array, Array]:
    """At most SEARCH_ROWS rows, evenly through the sorted table (so that row order does not matter)."""
    if len(y) <= SEARCH_ROWS:
        return z, y, w
    order = np.lexsort((y, *z))
    pick = order[np.linspace(0, len(y) - 1, SEARCH_ROWS).astype(int)]
    return z[:, pick], y[pick], w[pick]


def _spread(y: Array) -> float:
    return float(np.ptp(y)) if len(y) else 0.0


def _search(z: Array, y: Array, w: Array, delta: float, floor: bool) -> tuple[Array, Array, Array]:
    """Exponents (G, K) of the grid, the full theta (G, P) with the best coefficients ≥ 0, and the objective
    (G,).

    Inside: IRLS on log residuals; each pass is a weighted least squares with coefficients ≥ 0 for L̂·(1 + r).
    """
    k = len(z)
    axis = np.geomspace(*TRIED, GRID[k])
    exponents = np.array(list(product(axis, repeat=k)))
    size = k + int(floor)
    basis = np.empty((len(exponents), size, len(y)))
    if floor:
        basis[:, 0] = 1.0
    shift = np.empty((len(exponents), k))
    for j in range(k):
        v = -exponents[:, j, None] * z[j]
        shift[:, j] = v.max(axis=1)  # the largest is 1: no overflow, and ridge means the same for every term
        basis[:, size - k + j] = np.exp(v - shift[:, j, None])
    fitted = np.broadcast_to(np.exp(y), (len(exponents), len(y)))
    r = np.zeros_like(fitted)
    for width in (1e9, 1e9, 30 * delta, 6 * delta, delta, delta, delta, delta):
        weight = w / np.maximum(np.abs(r) / width, 1.0) / fitted**2
        weighted = basis * weight[:, None]
        rhs = (weighted @ (fitted * (1 + r))[:, :, None])[:, :, 0]
        coefficients = _nonnegative(weighted @ basis.transpose(0, 2, 1), rhs)
        fitted = np.maximum((coefficients[:, None] @ basis)[:, 0], np.exp(y.min() - 5))
        r = y - np.log(fitted)
    c = np.clip(r, -delta, delta)
    value = (w * c * (r - 0.5 * c)).sum(axis=1)
    logs = np.log(np.maximum(coefficients, np.exp(y.min() - 12)))
    logs[:, size - k :] -= shift
    low, high = box(size + k, k, y, floor)
    return exponents, np.clip(np.concatenate([logs, exponents], axis=1), low, high), value


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


def _basins(value: Array, k: int) -> Array:
    """Indices of the grid's local minima."""
    shape = (GRID[k],) * k
    cells = value.reshape(shape)
    padded = np.pad(cells, 1, constant_values=np.inf)
    low = np.ones(shape, bool)
    for offset in product((0, 1, 2), repeat=k):
        window = tuple(slice(o, o + GRID[k]) for o in offset)
        low &= cells <= padded[window]
    return np.flatnonzero(low.ravel())
