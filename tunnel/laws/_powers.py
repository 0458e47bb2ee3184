"""The engine of the laws that are sums of powers: log L̂ = logsumexp(e, a₁ − α₁·z₁, a₂ − α₂·z₂, ...).

Written so, every coefficient is positive by construction, the terms' shares p = softmax are the derivatives,
and the exact Hessian of log L̂ is diag(p) − p·pᵀ. With centred logs z the five parameters of L(N, D) are well
enough conditioned for Newton's method, many fits at a time (a bootstrap is one call).

Objective everywhere: Σ w·Huber(δ) of y − log L̂, with y = log L; Huber = r²/2 inside δ, δ(|r| − δ/2) outside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray

# exponents; assumed: far outside anything measured (0.03-1.2), so a hit means that there is no fit
LOWEST, HIGHEST = 1e-3, 4.0
DEEPEST = 25.0  # a term may fall e^-25 below the smallest loss; assumed: beyond double precision's notice
BLOCK = 60_000  # numbers per array in one batch, so that a batch stays in the cache; measured here


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
    theta: Array,
    z: Array,
    y: Array,
    w: Array,
    delta: float,
    floor: bool,
    tolerance: float = 1e-11,
    held: Array | None = None,
) -> tuple[Array, Array]:
    """Newton to the nearest optimum from each start (R, P), δ falling to its value; returns theta and
    objective.

    y and w are (n,) or (R, n); parameters under the mask `held` (R, P) keep their start. The step is damped
    in the metric of the IRLS majoriser, so it is invariant to units.
    """
    block = max(1, BLOCK // max(z.shape[1], 1))
    done = [
        _polish(theta[i : i + block], z, _slice(y, i, block), _slice(w, i, block), delta, floor, tolerance, mask)
        for i in range(0, len(theta), block)
        for mask in [None if held is None else held[i : i + block]]
    ]
    return np.concatenate([t for t, _ in done]), np.concatenate([f for _, f in done])


def _slice(rows: Array, start: int, length: int) -> Array:
    return rows if rows.ndim == 1 else rows[start : start + length]


def _polish(
    theta: Array,
    z: Array,
    y: Array,
    w: Array,
    delta: float,
    floor: bool,
    tolerance: float,
    held: Array | None,
) -> tuple[Array, Array]:
    theta = theta.copy()
    lows, highs = (np.broadcast_to(b, theta.shape) for b in box(theta.shape[1], len(z), y, floor))
    if held is not None:
        lows, highs = np.where(held, theta, lows), np.where(held, theta, highs)
    stages = [(delta * 30, 1e-3), (delta * 6, 1e-3), (delta, tolerance)]  # δ annealed; measured here
    value = np.zeros(len(theta))
    for stage, stop in stages:
        active = np.arange(len(theta))
        state, damp, calm = None, np.full(len(theta), 1e-2), np.zeros(len(theta), int)
        for _ in range(100):
            ya, wa = (rows if rows.ndim == 1 else rows[active] for rows in (y, w))
            now, low, high = theta[active], lows[active], highs[active]
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
    """Newton's step with |eigenvalues|, in the majoriser's metric; parameters pressed on a bound stay."""
    size = theta.shape[1]
    held = ((theta <= low) & (state.g > 0)) | ((theta >= high) & (state.g < 0)) | (low == high)
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


def box(size: int, k: int, y: Array, floor: bool) -> tuple[Array, Array]:
    low, high = np.full(size, y.min() - DEEPEST), np.full(size, y.max() + 3.0)
    if floor:
        high[0] = y.max()
    low[-k:], high[-k:] = LOWEST, HIGHEST
    return low, high
