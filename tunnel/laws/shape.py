"""L = E + Σ c_k·k^-a_k over k = width, depth, N, D: as many terms as vary.

width and depth in units and layers, N non-embedding parameters, D training tokens, L and E in nats per token. For
readings of several aspect ratios: N alone cannot tell a wide shape from a deep one. A column that does not vary has no
term (c = a = 0). Source: SCIENCE.md §4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tunnel.fitting import forms
from tunnel.laws import DELTA, Array, Fit, Misfit, Table, columns, take, usable_rows

KIND = "loss"
FORM = forms.Form("shape", tuple((k, f"c_{k}", f"a_{k}") for k in ("width", "depth", "N", "D")), floor=True)
COLUMNS = FORM.needed
PARAMS = FORM.params


def answers(table: Table, targets: Table) -> str:
    """Empty where the readings vary in width or depth, and the targets have what they vary in."""
    lacking = [c for c in COLUMNS if c not in table]
    if lacking:
        return f"the readings have no {lacking[0]}"
    found = form(take(table, select(table))).needed
    if not {"width", "depth"} & set(found):
        return "the readings vary neither in width nor in depth"
    lacking = [c for c in found if c not in targets and c != "loss"]
    return f"the targets have no {lacking[0]}" if lacking else ""


def select(table: Table, targets: Table | None = None) -> Array:
    """Indices of the rows it is fitted to: all that have width, depth, N, D and loss."""
    return np.flatnonzero(usable_rows(table, COLUMNS))


def form(table: Table) -> forms.Form:
    """The terms of the columns that have the three levels which, beside a floor, identify a power."""
    return forms.Form(
        "shape", tuple(t for t in FORM.terms if t[0] in table and forms.levels(table[t[0]]) > 2), floor=True
    )


def fit(table: Table, delta: float | Misfit = DELTA) -> Fit:
    """E, and the coefficients ≥ 0 and exponents of what varies, at the minimum of the misfit of log L."""
    table = columns(table)
    table = take(table, select(table))
    own = form(table)
    if not {"width", "depth"} & set(own.needed):
        why = "fewer than 3 widths and fewer than 3 depths among the rows that have N, D, width, depth and loss"
        return forms.nothing("shape", PARAMS, delta, why, len(table.get("loss", ())))
    found = own.fit(table, delta)
    absent = np.nan if not found.usable else 0.0
    return replace(found, params={p: found.params.get(p, absent) for p in PARAMS})


def predict(params: Mapping[str, float], table: Table) -> Array:
    """Loss (nats per token) at the table's width, depth, N and D (those that have a term)."""
    return _used(params).predict(params, table)


def refit(table: Table, start: Fit, weights: Array | None = None, losses: Array | None = None) -> Array:
    """Parameters (draws, 9) under row weights (draws, n) or re-measured losses (draws, n)."""
    used = _used(start.params)
    found = used.refit(table, start, weights, losses)
    out = np.zeros((len(found), len(PARAMS)))
    out[:, [PARAMS.index(p) for p in used.params]] = found
    return out


def _used(params: Mapping[str, float]) -> forms.Form:
    """The terms that have an exponent (one that is 0 in every draw has none)."""
    return forms.Form("shape", tuple(t for t in FORM.terms if np.any(np.asarray(params[t[2]]) != 0)), floor=True)
