"""Which rows are held out, by N, D and C, how far a target lies beyond a fit, and which hold-outs look like it.

Expanding windows: the largest N (D, C) left out, then the two largest, ... while at least half of the levels
remain. A hold-out by N or C leaves out the whole runs that it tests; one by D keeps the shorter forks of the
same trunks, for that is what a forecast in D starts from. Source: SCIENCE.md §4, §9.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tunnel import laws
from tunnel.fitting import forms
from tunnel.laws import Array, Table, columns, take, usable_rows

AXES = ("N", "D", "C")
LEVELS = 8  # up to 8 distinct values are levels; more are binned by factors of 2 from the top; assumed
CUTS = 4  # hold-outs per axis at most; assumed: a fourth window adds little to the third
ONE_SIDED = 2.0  # a target this many times further in N than in D (in decades) asks a question about N; assumed
INSIDE = 1.05  # targets up to this factor beyond the readings are inside; assumed: wider than rounding


@dataclass(frozen=True)
class Holdout:
    """A fold: rows to fit on and rows to predict (indices into the table), and what was left out."""

    axis: str
    label: str
    train: Array
    test: Array


def distance(train: Table, targets: Table) -> Array:
    """Decades (log10) beyond the fitted rows, per target: the largest over N, D, C; 0 inside."""
    train, targets = columns(train), columns(targets)
    out = np.zeros(laws.rows_of(targets))
    for axis in AXES:
        if axis in train and axis in targets and len(train[axis]):
            value = np.log10(targets[axis])
            high, low = np.log10(train[axis].max()), np.log10(train[axis].min())
            out = np.maximum(out, np.maximum(value - high, low - value))
    return np.where(out < 1e-9, 0.0, out)  # rounding in C = 6ND is no distance


def holdouts(table: Table, axes: tuple[str, ...] = AXES) -> tuple[Holdout, ...]:
    """All folds of a table, by axis; at least half of an axis' levels (and 2) stay in the fit."""
    table = columns(table)
    found = []
    runs = laws.runs_of(table)
    for axis in axes:
        if axis not in table or "loss" not in table:
            continue
        rows = np.flatnonzero(usable_rows(table, (axis, "loss")))
        starts = _starts(table[axis][rows]) if len(rows) else []
        for k in range(1, min(len(starts) // 2, CUTS) + 1):
            tested = table[axis] >= starts[-k] * (1 - 1e-12)
            left = np.isin(runs, runs[tested & np.isin(np.arange(len(runs)), rows)]) if axis != "D" else tested
            train, test = np.setdiff1d(rows, np.flatnonzero(left)), rows[tested[rows]]
            if len(train) and len(test):
                found.append(Holdout(axis, f"{axis} ≥ {starts[-k]:.4g} left out", train, test))
    return tuple(found)


def _starts(values: Array) -> list[float]:
    """Where the levels of an axis begin, ascending: distinct values, or factors of 2 from the top."""
    levels = forms.distinct(values, 0.01)
    if len(levels) <= LEVELS:
        return levels
    bins = np.floor(np.log2(values.max() / values) * (1 - 1e-12)).astype(int)
    return sorted(float(values[bins == b].min()) for b in np.unique(bins))


def question(table: Table, targets: Table | None) -> str:
    """Which hold-outs look like most of the targets: N, D or C (both), or "all" where nothing is asked."""
    if targets is None or not laws.rows_of(targets) or not {"N", "D"} <= set(targets):
        return "all"
    table, targets = columns(table), columns(targets)
    table = take(table, usable_rows(table, ("N", "D", "loss")))
    if not laws.rows_of(table):
        return "all"
    far = {a: np.maximum(np.log10(targets[a] / table[a].max()), 0.0) for a in AXES if a in table and a in targets}
    n, d, c = (far.get(a, np.zeros(laws.rows_of(targets))) for a in AXES)
    asked = np.full(len(n), "C", dtype="U3")
    asked[(d > 0) & (d >= ONE_SIDED * n)] = "D"
    asked[(n > 0) & (n >= ONE_SIDED * d)] = "N"
    asked[c > n + d + np.log10(INSIDE)] = "C"  # no reading is at their corner: the longest are none of the largest
    asked[np.maximum(np.maximum(n, d), c) < np.log10(INSIDE)] = "all"
    kinds, count = np.unique(asked, return_counts=True)
    most = int(count.argmax())
    return str(kinds[most]) if 2 * count[most] > len(asked) else "C"
