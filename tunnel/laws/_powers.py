"""The engine of the laws that are sums of powers: log L̂ = logsumexp(e, a₁ − α₁·z₁, a₂ − α₂·z₂, ...).

Written so, every coefficient is positive by construction, the terms' shares p = softmax are the derivatives, and
the exact Hessian of log L̂ is diag(p) − p·pᵀ. With centred logs z the five parameters of L(N, D) are well enough
conditioned for Newton's method, many fits at a time (a bootstrap is one call).

Objective everywhere: Σ w·Huber(δ) of y − log L̂, with y = log L; Huber = r²/2 inside δ, δ(|r| − δ/2) outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

Array = np.ndarray

LOWEST, HIGHEST = 1e-3, 4.0  # exponents; assumed: far outside anything measured (0.03-1.2), so a hit means no fit
DEEPEST = 25.0  # a term may fall e^-25 below the smallest loss; assumed: beyond double precision's notice
GRID = {1: 40, 2: 18}  # exponents tried per axis, for one and two powers; measured here: 18² finds every optimum
STARTS = 10  # cells of the grid that are polished; measured here: 4 suffice on all tables of shared/data
SEARCH_ROWS = 400  # rows that the grid looks at (it only finds the basin; the polish sees every row); assumed
BLOCK = 60_000  # numbers per array in one batch, so that a batch stays in the cache; measured here


@dataclass(frozen=True)
class Solution:
    """One optimum: theta (e, a_k, α_k; without e where the law has no floor), its objective, and what fits as well.

    `exponents` (cells, K) and `floors` (cells,) are the grid's cells whose objective is within noise of the optimum.
    """

    theta: Array
    objective: float
    exponents: Array
    floors: Array


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
    final = evaluate(polished[at : at + 1], *few, delta, floor).f[0]
    room = 2.7 / max(len(few[1]) - theta.shape[1], 1)  # chi-squared, 1 degree, 90%, of n·Δf/f; derived
    good = value <= final * (1 + room)
    floors = np.exp(theta[good, 0]) if floor else np.zeros(int(good.sum()))
    return Solution(polished[at], float(objective[at]), exponents[good], floors)


@dataclass(frozen=True)
class State:
    """Objective f (R,), gradient g (R, P), Hessian h and its majoriser m (R, P, P) of R fits at once."""

    f: Array
    g: Array
    h: Array
    m: Array


def log_loss(theta: Array, z: Array, floor: bool) -> Array:
    """log L̂ (R, n) of R parameter vectors (R, P) at z (K, n)."""
    k = len(z)
    e = int(floor)
    total = np.exp(theta[:, :1]) + np.zeros((1, z.shape[1])) if floor else 0.0
    for j in range(k):
        total = total + np.exp(theta[:, e + j, None] - theta[:, e + k + j, None] * z[j])
    return np.log(total)


def evaluate(theta: Array, z: Array, y: Array, w: Array, delta: float, floor: bool) -> State:
    """Objective with first and second derivatives; y and w are (n,) or (R, n)."""
    count, k, e = len(theta), len(z), int(floor)
    size = theta.shape[1]
    part = np.empty((count, size, z.shape[1]))  # first the terms, then their shares, then the Jacobian
    for j in range(k):
        np.exp(theta[:, e + j, None] - theta[:, e + k + j, None] * z[j], out=part[:, e + j])
    if floor:
        part[:, 0] = np.exp(theta[:, :1])
    total = part[:, : e + k].sum(axis=1)
    part[:, : e + k] /= total[:, None]
    for j in range(k):
        np.multiply(part[:, e + j], -z[j], out=part[:, e + k + j])
    r = y - np.log(total)
    c = np.clip(r, -delta, delta)
    wc = w * c
    f = (wc * (r - 0.5 * c)).sum(axis=1)
    g = -(part @ wc[:, :, None])[:, :, 0]
    flipped = part.transpose(0, 2, 1)
    h = (part * (w * (np.abs(r) <= delta) + wc)[:, None]) @ flipped
    m = (part * (w * np.abs(c) / np.maximum(np.abs(r), 1e-300))[:, None]) @ flipped
    if floor:
        h[:, 0, 0] += g[:, 0]
    for j in range(k):  # − Σ w·c·p times (1, −z; −z, z²)
        a, s = e + j, e + k + j
        h[:, a, a] += g[:, a]
        h[:, a, s] += g[:, s]
        h[:, s, a] += g[:, s]
        h[:, s, s] -= (wc * part[:, a] * z[j] ** 2).sum(axis=1)
    return State(f, g, h, m)


def polish(
    theta: Array, z: Array, y: Array, w: Array, delta: float, floor: bool, anneal: bool = True, tolerance: float = 1e-11
) -> tuple[Array, Array]:
    """Newton to the nearest optimum from each start (R, P), δ falling to its value; returns theta and objective.

    y and w are (n,) or (R, n). The step is damped in the metric of the IRLS majoriser, so it is invariant to units.
    """
    block = max(1, BLOCK // max(z.shape[1], 1))
    done = [
        _polish(theta[i : i + block], z, _slice(y, i, block), _slice(w, i, block), delta, floor, anneal, tolerance)
        for i in range(0, len(theta), block)
    ]
    return np.concatenate([t for t, _ in done]), np.concatenate([f for _, f in done])


def _slice(rows: Array, start: int, length: int) -> Array:
    return rows if rows.ndim == 1 else rows[start : start + length]


def _polish(
    theta: Array, z: Array, y: Array, w: Array, delta: float, floor: bool, anneal: bool, tolerance: float
) -> tuple[Array, Array]:
    theta = theta.copy()
    low, high = _box(theta.shape[1], len(z), np.atleast_2d(y), floor)
    stages = [(delta * 30, 1e-3), (delta * 6, 1e-3), (delta, tolerance)] if anneal else [(delta, tolerance)]
    value = np.zeros(len(theta))
    for stage, stop in stages:
        active = np.arange(len(theta))
        state, damp, calm = None, np.full(len(theta), 1e-2), np.zeros(len(theta), int)
        for _ in range(100):
            ya, wa = (rows if rows.ndim == 1 else rows[active] for rows in (y, w))
            now = theta[active]
            state = evaluate(now, z, ya, wa, stage, floor) if state is None else state
            value[active] = state.f
            trial = np.clip(now + _step(state, damp, now, low, high), low, high)
            then = evaluate(trial, z, ya, wa, stage, floor)
            better = then.f < state.f
            gain = np.where(better, state.f - then.f, 0.0)
            calm = np.where(gain <= stop * state.f, calm + 1, 0)
            damp = np.where(better, damp * 0.2, damp * 5)
            theta[active] = np.where(better[:, None], trial, now)
            state = _mix(better, then, state)
            value[active] = state.f
            go = (calm < (6 if stop < 1e-6 else 2)) & (damp < 1e8) & (state.f > 1e-26)
            if not go.any():
                break
            if not go.all():
                active, damp, calm = active[go], damp[go], calm[go]
                state = State(state.f[go], state.g[go], state.h[go], state.m[go])
    return theta, value


def _mix(better: Array, new: State, old: State) -> State:
    cube = better[:, None, None]
    return State(
        np.where(better, new.f, old.f),
        np.where(better[:, None], new.g, old.g),
        np.where(cube, new.h, old.h),
        np.where(cube, new.m, old.m),
    )


def _step(state: State, damp: Array, theta: Array, low: Array, high: Array) -> Array:
    """Newton's step with |eigenvalues|, in the metric of the majoriser; parameters pressed on a bound stay there."""
    size = theta.shape[1]
    held = ((theta <= low) & (state.g > 0)) | ((theta >= high) & (state.g < 0))
    free = ~held
    pair = free[:, :, None] & free[:, None, :]
    eye = np.eye(size)
    g = np.where(free, state.g, 0.0)
    scale = np.sqrt(np.maximum(np.einsum("rii->ri", state.m), 1e-250))
    cube = scale[:, :, None] * scale[:, None, :]
    m = np.where(pair, state.m / cube, 0.0) + eye * np.where(held, 1.0, 1e-10)[:, None]
    h = np.where(pair, state.h / cube, 0.0)
    root = np.linalg.inv(np.linalg.cholesky(m))
    values, vectors = np.linalg.eigh(root @ h @ root.transpose(0, 2, 1))
    turn = vectors.transpose(0, 2, 1) @ root  # rows: directions of the joint metric
    along = (turn @ (g / scale)[:, :, None])[:, :, 0] / (np.abs(values) + damp[:, None])
    step = -(turn.transpose(0, 2, 1) @ along[:, :, None])[:, :, 0] / scale
    return np.clip(np.where(free, step, 0.0), -2.0, 2.0)  # two e-folds at a time; assumed


def _box(size: int, k: int, y: Array, floor: bool) -> tuple[Array, Array]:
    low, high = np.full(size, y.min() - DEEPEST), np.full(size, y.max() + 3.0)
    if floor:
        high[0] = y.max()
    low[-k:], high[-k:] = LOWEST, HIGHEST
    return low, high


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
    """Exponents (G, K) of the grid, the full theta (G, P) with the best coefficients ≥ 0, and the objective (G,).

    Inside: IRLS on log residuals; each pass is a weighted least squares with coefficients ≥ 0 for L̂·(1 + r).
    """
    k = len(z)
    axis = np.geomspace(0.02, 2.5, GRID[k])  # exponents; assumed: what is published lies in 0.03-1.2
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
    low, high = _box(size + k, k, y[None], floor)
    return exponents, np.clip(np.concatenate([logs, exponents], axis=1), low, high), value


def _nonnegative(gram: Array, rhs: Array) -> Array:
    """Least squares with coefficients ≥ 0 (G, m) from normal equations: exact, by trying every set of positives."""
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
