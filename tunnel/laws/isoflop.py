"""Compute budgets' minima: N*(C) = G·C^g, D*(C) = K·C^k, and L = (E + A·C^-a)·exp(h·(log N − log N*(C))²).

N non-embedding parameters, D training tokens, C training FLOPs, L and E in nats per token. Each budget's minimum is
that of a parabola of log L in log N through the readings near it alone; power laws go through the minima. Answers
for targets near that path. Biased where the grids of N drift with C, so it is reported beside the direct fit. Source:
Hoffmann et al. 2022 (arXiv 2203.15556, approach 2); SCIENCE.md §4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tunnel.fitting import forms, powers
from tunnel.laws import DELTA, Array, Fit, Misfit, Table, columns, misfit_of, usable_rows

KIND = "loss"
ON_PATH = True
FORM = forms.Form("isoflop", (("C", "A", "a"),), floor=True)
COLUMNS = ("N", "D", "C", "loss")
PARAMS = ("E", "A", "a", "G", "g", "K", "k", "h")
FREE = 6  # that a forecast near the path rests on: E, A, a, G, g, h

# log loss above a budget's lowest up to which a reading shapes its parabola; of 2 to 5% (SCIENCE.md §4), assumed
NEAR = 0.03
POINTS = 3  # readings that make a parabola; derived
BUDGETS = 4  # that make E, A and a; derived
FLATTEST = 1e-4  # of h; assumed: 0.005% of the loss a factor 2 in N off, below any noise


@dataclass(frozen=True)
class Valleys:
    """The budgets that have a minimum: their rows (indices), and why the others have none."""

    rows: tuple[Array, ...]
    refused: tuple[str, ...]


def answers(table: Table, targets: Table) -> str:
    """Empty where the targets lie no farther from N*(C) than the readings that shape the parabolas."""
    if not {"N", "D"} <= set(targets):
        return "the targets have no N and D"
    found = fit(table)
    if not found.usable:
        return found.reason
    targets = columns(targets)
    off = np.abs(np.log(targets["N"]) - np.log(found.params["G"]) - found.params["g"] * np.log(targets["C"]))
    reach = np.sqrt(NEAR / found.params["h"])
    return (
        "" if (off <= reach).all() else f"a target lies a factor {np.exp(off.max()):.2g} in N off the budgets' minima"
    )


def select(table: Table, targets: Table | None = None) -> Array:
    """Indices of the readings near the minima of budgets that have one."""
    found = valleys(columns(table)).rows
    return np.sort(np.concatenate(found)) if found else np.zeros(0, int)


def valleys(table: Table) -> Valleys:
    """Budgets with readings on both sides of their lowest, near it, that curve upwards."""
    rows = np.flatnonzero(usable_rows(table, COLUMNS))
    good, refused = [], []
    budget = forms.budgets(table["C"][rows]) if len(rows) else rows
    for level in np.unique(budget):
        own = rows[budget == level]
        own = own[np.argsort(table["N"][own], kind="stable")]
        why = _edge(table["N"][own], table["loss"][own])
        near = own if why else _near(own, np.log(table["loss"][own]))
        if not why and forms.levels(table["N"][near]) < POINTS:  # several readings of one size
            why = f"{forms.levels(table['N'][near])} sizes near the lowest, a parabola takes {POINTS}"
        if not why and _minima(table, [near], np.log(table["loss"])[None], _weights(table)[None])[2][0, 0] <= FLATTEST:
            why = "no curvature"
        if why:
            refused.append(f"C = {table['C'][own].min():.3g}: {why}")
        else:
            good.append(near)
    return Valleys(tuple(good), tuple(refused))


def _edge(n: Array, loss: Array) -> str:
    """Why a budget's readings, ascending in N, enclose no minimum."""
    if forms.levels(n) < POINTS:
        return f"{forms.levels(n)} sizes, a parabola takes {POINTS}"
    best = n[np.argmin(loss)]
    return "the lowest is at an edge of the sizes tried" if best in (n[0], n[-1]) else ""


def _near(rows: Array, y: Array) -> Array:
    """The rows, ascending in N, within NEAR of the lowest; its neighbours where there is no other on a side."""
    keep = y <= y.min() + NEAR
    best = int(np.argmin(y))
    keep[best - 1 : best + 2] = True
    return rows[keep]


def fit(table: Table, delta: float | Misfit = DELTA) -> Fit:
    """Each budget's minimum, then the power laws of N*, D* and L (misfit `delta`) in C; n counts the rows used."""
    table = columns(table)
    if not set(COLUMNS) <= set(table):
        lacking = next(c for c in COLUMNS if c not in table)
        return forms.nothing("isoflop", PARAMS, delta, f"the table has no column {lacking}", 0)
    found = valleys(table)
    count = sum(map(len, found.rows))
    left = "; ".join(found.refused[:3]) + (f"; and {len(found.refused) - 3} more" if len(found.refused) > 3 else "")
    if len(found.rows) < BUDGETS:
        why = f"{len(found.rows)} budgets have a minimum, {BUDGETS} are needed" + (f" ({left})" if left else "")
        return forms.nothing("isoflop", PARAMS, delta, why, count)
    minima = _minima(table, found.rows, np.log(table["loss"])[None], _weights(table)[None])
    law = FORM.fit({"C": _flops(table, found.rows), "loss": np.exp(minima[1][0])}, delta)
    params = dict(law.params) | dict(
        zip(PARAMS[3:], _lines(_flops(table, found.rows), minima)[0].tolist(), strict=True)
    )
    reason = "; ".join(filter(None, [law.reason, left and f"budgets left out: {left}"]))
    return Fit("isoflop", params, law.objective, delta, law.status, reason, count, law.ranges)


def predict(params: Mapping[str, float], table: Table) -> Array:
    """Loss (nats per token) at the table's N and C (6ND where there is none)."""
    table = columns(table)
    n, c = np.log(table["N"]), np.log(table["C"])
    off = n - np.log(params["G"]) - params["g"] * c
    return np.asarray(FORM.predict({p: params[p] for p in FORM.params}, table) * np.exp(params["h"] * off**2))


def optimal(params: Mapping[str, float], flops: float | Array) -> tuple[Array, Array]:
    """N* and D* of a budget (FLOPs, in the table's own count)."""
    c = np.asarray(flops, float)
    return params["G"] * c ** params["g"], params["K"] * c ** params["k"]


def refit(table: Table, start: Fit, weights: Array | None = None, losses: Array | None = None) -> Array:
    """Parameters (draws, 8) under row weights (draws, n) or losses (draws, n) of the selected rows."""
    table = columns(table)
    draws = len(weights) if weights is not None else len(losses) if losses is not None else 1
    rows = valleys(table).rows
    if len(rows) < BUDGETS:
        return np.full((draws, len(PARAMS)), np.nan)
    shape = (draws, len(table["loss"]))
    y = np.broadcast_to(np.log(table["loss"] if losses is None else losses), shape)
    w = np.broadcast_to(_weights(table) * (1.0 if weights is None else weights), shape)
    minima, c = _minima(table, rows, y, w), _flops(table, rows)
    centre = np.log(c).mean()
    theta = np.repeat(FORM.theta({p: start.params[p] for p in FORM.params}, centre), draws, axis=0)
    z = (np.log(c) - centre)[None]
    polished, _ = powers.polish(FORM.model, theta, z, minima[1], np.ones(len(c)), misfit_of(start.delta))
    return np.concatenate([FORM.natural(polished, centre), _lines(c, minima)], axis=1)


def _weights(table: Table) -> Array:
    return table["weight"] if "weight" in table else np.ones(len(table["loss"]))


def _flops(table: Table, rows: tuple[Array, ...]) -> Array:
    return np.array([np.exp(np.log(table["C"][own]).mean()) for own in rows])


def _minima(
    table: Table, rows: list[Array] | tuple[Array, ...], y: Array, w: Array
) -> tuple[Array, Array, Array, Array]:
    """log N*, log L*, h and log D* (draws, budgets) of the parabolas through each budget's rows; y, w (draws, n)."""
    out = np.empty((4, len(y), len(rows)))
    for j, own in enumerate(rows):
        n, d = np.log(table["N"][own]), np.log(table["D"][own])
        u = n - n.mean()
        basis = np.stack([np.ones_like(u), u, u**2])
        weighted = basis * (w[:, None, own] + 1e-9 * w[:, None, own].max(axis=2, keepdims=True))
        level, tilt, h = np.linalg.solve(weighted @ basis.T, (weighted @ y[:, own, None]))[:, :, 0].T
        at = np.clip(-tilt / (2 * np.maximum(h, FLATTEST)), u.min(), u.max())
        slope = (u @ (d - d.mean())) / (u @ u)  # −1 where C = 6ND
        out[:, :, j] = n.mean() + at, level + tilt * at + h * at**2, h, d.mean() + slope * at
    return out[0], out[1], out[2], out[3]


def _lines(c: Array, minima: tuple[Array, Array, Array, Array]) -> Array:
    """G, g, K, k, h (draws, 5): least squares of log N* and log D* on log C, and the budgets' median h."""
    x = np.log(c) - np.log(c).mean()
    found = []
    for values in (minima[0], minima[3]):
        power = (values @ x) / (x @ x)
        found += [np.exp(values.mean(axis=1) - power * np.log(c).mean()), power]
    return np.stack([*found, np.maximum(np.median(minima[2], axis=1), FLATTEST)], axis=1)
