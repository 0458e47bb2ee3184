"""L(N) = E + A·N^-α at one D, the target's own, with α held near what larger models showed.

N non-embedding parameters, L in nats per token. E holds what more parameters cannot buy at this D. Few shapes do not
identify three parameters, so α has a normal prior: minimised is Σ w·(log L − log L̂)²/2 + σ²/2·((α − α₀)/s)², a maximum
a posteriori at noise σ. Source: SCIENCE.md §4 (at one D, L(N, D) is this), §3-5 for α.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tunnel.fitting import forms
from tunnel.laws import DELTA, Array, Fit, Misfit, Table, columns, misfit_of, size, take

KIND = "loss"
ONE_D = True
FREE = 2  # parameters that the readings alone decide: the prior holds the third
COLUMNS = ("N", "D", "loss")
PARAMS = ("E", "A", "alpha")
FORM = forms.Form("floor", (("N", "A", "alpha"),), floor=True)

ALPHA = 0.29  # prior's centre: MiniCPM's average  *from paper*
SPREAD = 0.10  # prior's width: Chinchilla .35, Step Law's and OLMo's tables .2 to .35  *assumed*
NOISE = 0.003  # of log loss: a seed at the size of a demo, 0.24%  *measured*, SCIENCE.md §5
GRID = np.linspace(0.02, 0.60, 117)
SIZES = FREE

select = size.select


def answers(table: Table, targets: Table) -> str:
    """Empty where all targets have one D and at least SIZES sizes were read at it."""
    reason = size.answers(table, targets)
    if reason:
        return reason
    sizes = len(forms.distinct(table["N"][select(table, targets)], size.SAME_D))
    return "" if sizes >= SIZES else f"{sizes} sizes were read at the target's D, a floor takes {SIZES}"


def fit(table: Table, delta: float | Misfit = DELTA) -> Fit:
    """E, A and α on the rows at one D (see select)."""
    table = columns(table)
    rows = take(table, select(table))
    if len(forms.distinct(rows["N"], size.SAME_D) if len(rows.get("N", ())) else ()) < SIZES:
        return forms.nothing("floor", PARAMS, delta, f"{SIZES} sizes at one D are needed", 0)
    found = solve(rows["N"], np.log(rows["loss"])[None], weights_of(rows)[None])[0]
    params = dict(zip(PARAMS, map(float, found), strict=True))
    left = misfit_of(delta).total(np.log(rows["loss"] / predict(params, rows)), weights_of(rows))
    edge = not GRID[0] < params["alpha"] < GRID[-1]
    reason = f"alpha {params['alpha']:.2f} lies at the search's bound" if edge else ""
    status = "bound hit" if edge else "converged"
    return Fit("floor", params, float(left), delta, status, reason, len(rows["N"]))


def predict(params: Mapping[str, float], table: Table) -> Array:
    """Loss (nats per token) at the table's N, at the D of the fit."""
    return FORM.predict(params, table)


def refit(table: Table, start: Fit, weights: Array | None = None, losses: Array | None = None) -> Array:
    """Parameters (draws, 3) under row weights (draws, n) or losses (draws, n) of the selected rows."""
    table = columns(table)
    own = weights_of(table)
    draws = len(weights) if weights is not None else len(losses) if losses is not None else 1
    y = np.log(table["loss"])[None] if losses is None else np.log(losses)
    w = own[None] if weights is None else own * weights
    shape = (draws, len(own))
    return solve(table["N"], np.broadcast_to(y, shape), np.broadcast_to(w, shape))


def weights_of(table: Table) -> Array:
    return table["weight"] if "weight" in table else np.ones(len(table["N"]))


def solve(n: Array, y: Array, w: Array) -> Array:
    """(draws, 3) parameters from N (k), log losses (draws, k) and weights (draws, k): a search in α, linear inside."""
    scale = np.exp(np.log(n).mean())
    cost = np.stack([_inside(n / scale, y, w, a)[2] for a in GRID], axis=1)
    at = np.clip(cost.argmin(axis=1), 1, len(GRID) - 2)
    draw = np.arange(len(at))
    left, middle, right = (cost[draw, at + i] for i in (-1, 0, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        shift = 0.5 * (left - right) / (left - 2 * middle + right)
    alpha = GRID[at] + np.clip(np.nan_to_num(shift), -1, 1) * (GRID[1] - GRID[0])
    e, a, _ = _inside(n / scale, y, w, alpha[:, None])
    return np.stack([e, a * scale**alpha, alpha], axis=1)


def _inside(n: Array, y: Array, w: Array, alpha: Array | float) -> tuple[Array, Array, Array]:
    """E, A ≥ 0 by relative least squares at given α, and the penalised objective (draws each)."""
    p = n ** -np.asarray(alpha) * np.ones_like(y)
    v = w * np.exp(-2 * y)
    s, sp, spp = v.sum(1), (v * p).sum(1), (v * p * p).sum(1)
    sy, spy = (v * np.exp(y)).sum(1), (v * p * np.exp(y)).sum(1)
    det = np.maximum(s * spp - sp * sp, 1e-300)
    e, a = (spp * sy - sp * spy) / det, (s * spy - sp * sy) / det
    a = np.where(e < 0, spy / spp, a)
    e = np.maximum(e, 0.0)
    e, a = np.where(a < 0, sy / s, e), np.maximum(a, 0.0)
    with np.errstate(divide="ignore"):
        left = y - np.log(e[:, None] + a[:, None] * p)
    prior = ((np.asarray(alpha) - ALPHA) / SPREAD) ** 2
    return e, a, (w * left**2).sum(1) / 2 + NOISE**2 / 2 * np.broadcast_to(prior, (len(y), 1)).reshape(len(y), -1)[:, 0]
