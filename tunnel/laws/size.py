"""L(N) = A·N^-a at one D, the target's own.

N non-embedding parameters, L in nats per token. For ladders whose short rungs lie outside L(N, D): reach the
target's D with every shape and extrapolate in N only. Source: SCIENCE.md §9 (measured there: 2.97·N^-0.0399,
−0.6% at the target).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tunnel.fitting import forms
from tunnel.laws import DELTA, Array, Fit, Misfit, Table, columns, take, usable_rows

KIND = "loss"
ONE_D = True
FORM = forms.Form("size", (("N", "A", "a"),), floor=False)
COLUMNS = ("N", "D", "loss")
PARAMS = FORM.params

SAME_D = 0.01  # rows within 1% of the target's D are at it; assumed: wider than rounding to whole batches
SIZES = 2  # distinct N that make a line (a hold-out needs no more; an interval does); derived


def answers(table: Table, targets: Table) -> str:
    """Empty where all targets have one D and at least SIZES sizes were read at it."""
    if not {"N", "D"} <= set(targets) or "D" not in table:
        return "the targets or the readings have no D"
    goal = np.asarray(targets["D"], float)
    if len(goal) and goal.max() > goal.min() * (1 + SAME_D):
        return "the targets have several D, this law holds at one"
    sizes = len(forms.distinct(table["N"][select(table, targets)], SAME_D))
    return "" if sizes >= SIZES else f"{sizes} sizes were read at the target's D, {SIZES} make a line"


def select(table: Table, targets: Table | None = None) -> Array:
    """Indices of the rows at the targets' D; without targets, at the longest D that most sizes reached."""
    if not {"N", "D", "loss"} <= set(table):
        return np.zeros(0, int)
    rows = np.flatnonzero(usable_rows(table, COLUMNS))
    d = np.asarray(table["D"], float)
    if targets is not None and len(targets["D"]):
        return rows[np.abs(np.log(d[rows] / float(np.asarray(targets["D"])[0]))) <= np.log1p(SAME_D)]
    best, most = rows[:0], SIZES
    rows = rows[np.argsort(d[rows], kind="stable")]
    for level in forms.distinct(d[rows], SAME_D):  # ascending: of equally many sizes the longest D wins
        start, end = np.searchsorted(d[rows], [level, level * (1 + SAME_D)], side="left")
        sizes = len(forms.distinct(np.asarray(table["N"], float)[rows[start:end]], SAME_D))
        if sizes >= most:
            best, most = np.sort(rows[start:end]), sizes
    return best


def fit(table: Table, delta: float | Misfit = DELTA) -> Fit:
    """A and a on the rows at one D (see select)."""
    table = columns(table)
    rows = select(table)
    found = FORM.fit(take(table, rows), delta)
    if not len(rows):
        return replace(found, reason=f"no D was read at {SIZES} sizes, which identify a")
    return found


def predict(params: Mapping[str, float], table: Table) -> Array:
    """Loss (nats per token) at the table's N, at the D of the fit."""
    return FORM.predict(params, table)


def refit(table: Table, start: Fit, weights: Array | None = None, losses: Array | None = None) -> Array:
    """Parameters (draws, 2) under row weights (draws, n) or losses (draws, n) of the selected rows."""
    return FORM.refit(table, start, weights, losses)
