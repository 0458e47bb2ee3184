"""The engine of the laws: objective with derivatives, and Newton's method, of many fits at a time.

Objective everywhere: Σ w·ρ(y − log L̂) with y = log L, ρ a `Misfit` and log L̂ a model (`models`). With centred logs and
the exact Hessian the five parameters of L(N, D) are well enough conditioned for Newton's method, many fits at a time (a
bootstrap is one call).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tunnel.fitting.models import Model
from tunnel.laws import Array, Misfit

STEPS = 200  # assumed; most polishes end within 40
PATIENCE = 6  # steps without gain after which a polish ends; measured here: kinks of a small δ refuse some
FAINT = 1e-3  # a term that moves log L̂ by less, per unit of its exponent, has the units of one that does; assumed
BLOCK = 60_000  # numbers per array in one batch, so that a batch stays in the cache; measured here


@dataclass(frozen=True)
class State:
    """Objective f (R,), gradient g (R, P), Hessian h (R, P, P) and the step's units (R, P) of R fits at once."""

    f: Array
    g: Array
    h: Array
    unit: Array


def log_loss(model: Model, theta: Array, z: Array) -> Array:
    """log L̂ (R, n) of R parameter vectors (R, P) at z (k, n)."""
    return model.derive(theta, z)[0]


def evaluate(model: Model, theta: Array, z: Array, y: Array, w: Array, misfit: Misfit) -> State:
    """Objective with first and second derivatives; y and w are (n,) or (R, n)."""
    logs, jacobian, kept = model.derive(theta, z)
    r = y - logs
    slope, curve, weight = misfit.slopes(r, w)
    f = misfit.total(r, w)
    g = -(jacobian @ slope[:, :, None])[:, :, 0]
    flipped = jacobian.transpose(0, 2, 1)
    # ∂² log L̂ = (∂²L̂)/L̂ − J·Jᵀ
    h = (jacobian * (curve + slope)[:, None]) @ flipped - model.second(z, jacobian, kept, slope)
    unit = (jacobian**2 @ weight[:, :, None])[:, :, 0]
    unit[:, model.linear :] = np.maximum(unit[:, model.linear :], FAINT**2 * weight.sum(axis=1)[:, None])
    lost = ~np.isfinite(f)  # where every term is 0, or one overflows
    if lost.any():
        f[lost], g[lost], h[lost], unit[lost] = np.inf, 0.0, 0.0, 1.0
    return State(f, g, h, np.sqrt(np.maximum(unit, 1e-250)))


def polish(
    model: Model,
    theta: Array,
    z: Array,
    y: Array,
    w: Array,
    misfit: Misfit,
    tolerance: float = 1e-11,
    held: Array | bool = False,
    anneal: bool = True,
) -> tuple[Array, Array]:
    """Newton to the nearest optimum from each start (R, P); returns theta and objective.

    δ falls to its value, or (not `anneal`) has it from the start. y and w are (n,) or (R, n); parameters under the
    mask `held` (P,) or (R, P) keep their start. The step is damped in units of what each parameter moves, so it is
    invariant to the table's.
    """
    block = max(1, BLOCK // max(z.shape[1], 1))
    stages = _stages(misfit, tolerance)[0 if anneal else -1 :]
    masks = np.broadcast_to(held, theta.shape)
    done = []
    with np.errstate(all="ignore"):  # a trial that is lost is refused
        for i in range(0, len(theta), block):
            rows = slice(i, i + block)
            own = [v if v.ndim == 1 else v[rows] for v in (y, w)]
            done.append(_polish(model, theta[rows], z, own[0], own[1], stages, masks[rows]))
    return np.concatenate([t for t, _ in done]), np.concatenate([f for _, f in done])


def _stages(misfit: Misfit, tolerance: float) -> list[tuple[Misfit, float]]:
    """δ annealed, with the relative gain at which each stage stops; measured here."""
    wide = [(replace(misfit, delta=misfit.delta * by), 1e-3) for by in (30, 6)] if np.isfinite(misfit.delta) else []
    return [*wide, (misfit, tolerance)]


def _polish(
    model: Model, theta: Array, z: Array, y: Array, w: Array, stages: list[tuple[Misfit, float]], held: Array
) -> tuple[Array, Array]:
    lows, highs = (np.where(held, theta, b) for b in box(model, z, y))
    theta = np.clip(theta, lows, highs)
    value = np.zeros(len(theta))
    for stage, stop in stages:
        active = np.arange(len(theta))
        state, damp, calm = None, np.full(len(theta), 1e-2), np.zeros(len(theta), int)
        for _ in range(STEPS):
            ya, wa = (rows if rows.ndim == 1 else rows[active] for rows in (y, w))
            now, low, high = theta[active], lows[active], highs[active]
            state = evaluate(model, now, z, ya, wa, stage) if state is None else state
            value[active] = state.f
            step = _step(state, damp, now, low, high)
            left = -(state.g * step).sum(axis=1) - 0.5 * np.einsum("ri,rij,rj->r", step, state.h, step)
            trial = np.clip(now + step, low, high)
            then = evaluate(model, trial, z, ya, wa, stage)
            better = then.f < state.f
            gain = np.where(better, state.f - then.f, 0.0)
            calm = np.where(gain <= stop * state.f, calm + 1, 0)
            calm = np.where((left <= 1e-2 * stop * state.f) & (damp < 0.1), PATIENCE, calm)  # nothing more to be had
            damp = np.where(better, damp * 0.2, damp * 5)
            theta[active] = np.where(better[:, None], trial, now)
            state = _mix(better, then, state)
            value[active] = state.f
            go = (calm < (PATIENCE if stop < 1e-6 else 2)) & (damp < 1e8) & (state.f > 1e-26)
            if not go.any():
                break
            if not go.all():
                active, damp, calm = active[go], damp[go], calm[go]
                state = State(state.f[go], state.g[go], state.h[go], state.unit[go])
    return theta, value


def _mix(better: Array, new: State, old: State) -> State:
    cube = better[:, None, None]
    return State(
        np.where(better, new.f, old.f),
        np.where(better[:, None], new.g, old.g),
        np.where(cube, new.h, old.h),
        np.where(better[:, None], new.unit, old.unit),
    )


def _step(state: State, damp: Array, theta: Array, low: Array, high: Array) -> Array:
    """Newton's step with |eigenvalues|, damped in units of what each parameter moves, that ends inside the box.

    Parameters pressed on a bound stay; one that would cross a bound goes to it, and the others take account of that.
    """
    held = ((theta <= low) & (state.g > 0)) | ((theta >= high) & (state.g < 0)) | (low == high)
    scale = state.unit
    h = state.h / (scale[:, :, None] * scale[:, None, :])
    step = np.zeros_like(theta)
    todo = np.arange(len(theta))
    for _ in range(theta.shape[1]):
        free = ~held[todo]
        fixed = np.where(free, 0.0, step[todo] * scale[todo])
        g = state.g[todo] / scale[todo] + (h[todo] @ fixed[:, :, None])[:, :, 0]
        pair = free[:, :, None] & free[:, None, :]
        values, vectors = np.linalg.eigh(np.where(pair, h[todo], 0.0))
        along = (np.where(free, g, 0.0)[:, None] @ vectors)[:, 0] / (np.abs(values) + damp[todo, None])
        found = -(vectors @ along[:, :, None])[:, :, 0] / scale[todo]
        step[todo] = np.where(free, found, step[todo])
        out = free & ((theta[todo] + step[todo] < low[todo]) | (theta[todo] + step[todo] > high[todo]))
        step[todo] = np.clip(step[todo], low[todo] - theta[todo], high[todo] - theta[todo])
        held[todo] |= out
        todo = todo[out.any(axis=1)]
        if not len(todo):
            break
    return step


def box(model: Model, z: Array, y: Array) -> tuple[Array, Array]:
    """The lowest and highest theta (P,) of a search."""
    return model.box(float(np.exp(y.min())), float(np.exp(y.max())))
