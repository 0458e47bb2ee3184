"""Which rows a law is fitted to: what lies outside every law, with the reason, and the windows that are tried.

A row is *marked*, never dropped: a window says which rows a fit sees, and the window is chosen by backtest together
with form and loss, before the answer is seen. Source: SCIENCE.md §4 (within 10, 5, 2% of each budget's minimum
L(N, D) misses Porian's larger budgets by 5-10, 3.6-6.2, 1.0-2.4%), §9 (short runs before the decrements fall).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tunnel import laws
from tunnel.backtests import noise
from tunnel.fitting import forms
from tunnel.laws import Array, Table, columns, take, usable_rows

BUDGET = 1.05  # readings up to this factor dearer count as one budget; assumed: wider than rounding to whole batches
# a run this share of log loss above one with no more N and D is no noise; assumed: seeds are under 1% (SCIENCE.md §5)
WORSE = 0.05
WRONG = 0.5  # so far above the reading itself is wrong, whatever the law; assumed: a collapse, not a poor setting
ABOVE = "its loss is {:.0f}% above that of a run of no more N and D: diverged, spiked or badly set"
RISING = "the loss falls faster later on: before the decrements fall no sum of powers holds"
# D over a column: less than -bound, or more than bound, is outside
SHARES = (
    ("batch_tokens", -500.0, "{:.0f} steps, under 500: a transient"),  # measured, SCIENCE.md §9
    ("warmup", -4.0, "its warmup is 1/{:.2g} of its tokens: under-warmed"),  # assumed: at 1/4 the trunk hardly began
    ("unique_tokens", 4.0, "its data is repeated {:.3g} times, past 4"),  # from paper, SCIENCE.md §3
)
STEEPER = 1.1  # a later decrement per doubling this much larger than the first is no noise; assumed
VISIBLE = 0.01  # of the loss that such a decrement must be; assumed: above seed noise
SAME_N = 1e-2  # rows whose N agree within this are of one size; assumed
OCTAVE = 0.4  # lengths within this share are compared as one; assumed: between shorter ones noise decides
CELLS = 1500  # levels per axis that are told apart in a large table; assumed: finer than any sweep
MOST_SHOWN = 1000  # marked rows that a report lists one by one; assumed


@dataclass(frozen=True)
class Mark:
    """A row that lies outside the laws, and why; `outlier`: the reading itself is wrong, not only its place."""

    row: int
    reason: str
    outlier: bool


@dataclass(frozen=True)
class Window:
    """A rule for the rows that a fit sees: `within` of the best loss for the money, marked rows in or out.

    `by_noise`: they weigh as the repeats say (`noise.weights`).
    """

    name: str
    within: float = np.inf  # log loss above the cheapest way to be there
    marked: bool = False
    by_noise: bool = False

    def of(self, table: Table) -> dict[str, Array]:
        """What a fit sees of a table."""
        weights = noise.weights(table, ~outliers(table)) if self.by_noise else np.ones(0)
        if (weights != 1).any():
            table = {**table, "weight": weights * table.get("weight", 1.0)}
        return take(table, self.rows(table))

    def rows(self, table: Table) -> Array:
        """Indices of the rows inside the window; marks and minima are those of this table alone."""
        keep = usable_rows(table, ("N", "D", "loss"))
        if not keep.any():
            return np.flatnonzero(keep)
        if not self.marked:
            keep &= ~marked(table)
        if np.isfinite(self.within):
            keep &= excess(table, keep) <= self.within
        return np.flatnonzero(keep)


ALL = Window("all rows", marked=True)
# widest first; within 10, 5, 2%: from paper's tables, SCIENCE.md §4
WINDOWS = (
    ALL,
    Window("unmarked rows"),
    Window("unmarked rows, weighted by their noise", by_noise=True),
    Window("rows within 10% of the best at their cost", 0.10),
    Window("rows within 5% of the best at their cost", 0.05),
    Window("rows within 2% of the best at their cost", 0.02),
)


def window(name: str) -> Window:
    """The window of that name; KeyError where there is none."""
    return {w.name: w for w in WINDOWS}[name]


def excess(table: Table, among: Array | None = None) -> Array:
    """Log loss above the lowest of the rows (of `among`, a mask) that cost no more; 0 at a budget's minimum."""
    table = columns(table)
    order = np.argsort(table["C"], kind="stable")
    cost, loss = table["C"][order], table["loss"][order]
    best = np.minimum.accumulate(loss if among is None else np.where(among[order], loss, np.inf))
    out = np.empty(len(loss))
    with np.errstate(divide="ignore", invalid="ignore"):
        out[order] = np.log(loss / best[np.searchsorted(cost, cost * BUDGET, side="right") - 1])
    return out


def marked(table: Table) -> Array:
    """Mask of the rows that any rule marks."""
    return np.any([found for found, _, _ in _rules(table)], axis=0)


def outliers(table: Table) -> Array:
    """Mask of the rows whose reading is wrong: nothing should be forecast from or judged by them."""
    return np.any([found for found, _, outlier in _rules(table) if outlier], axis=0)


def marks(table: Table, most: int = MOST_SHOWN) -> tuple[Mark, ...]:
    """The first marked rows with their reasons, by row."""
    rules = _rules(table)
    shown = np.flatnonzero(np.any([found for found, _, _ in rules], axis=0))[:most]
    return tuple(
        Mark(
            int(row),
            "; ".join(reason(int(row)) for found, reason, _ in rules if found[row]),
            any(outlier and found[row] for found, _, outlier in rules),
        )
        for row in shown
    )


Rule = tuple[Array, Callable[[int], str], bool]


def _telling(says: str, values: Array) -> Callable[[int], str]:
    """The reason of a row: the sentence with the row's own number in it."""
    return lambda row: says.format(values[row])


def _rules(table: Table) -> list[Rule]:
    """Mask, reason by row, and whether the reading is wrong: one entry per rule."""
    table = columns(table)
    above = _above(table)
    rising = _rising(table, above <= WORSE)
    worse = 100 * np.expm1(above)
    found: list[Rule] = [
        (above > WRONG, _telling(ABOVE, worse), True),
        ((above > WORSE) & (above <= WRONG), _telling(ABOVE, worse), False),
        (rising, _telling(RISING, above), False),
    ]
    for name, most, says in SHARES:
        if name in table and table[name].dtype.kind == "f":
            with np.errstate(divide="ignore", invalid="ignore"):
                share = table["D"] / table[name]
            outside = np.nan_to_num(share) > most if most > 0 else np.nan_to_num(share, posinf=np.inf) < -most
            found.append((outside & np.isfinite(share), _telling(says, share), False))
    return found


def _levels(values: Array) -> Array:
    """The place of each value among the column's levels: its own where they are few, else in equal steps of log."""
    logs = np.log(values)
    distinct, place = np.unique(np.round(logs, 6), return_inverse=True)
    if len(distinct) <= CELLS:
        return place
    return np.minimum(((logs - logs.min()) / np.ptp(logs) * CELLS).astype(int), CELLS - 1)


def _above(table: Table) -> Array:
    """How far a row's log loss lies above the lowest with no more N and no more D; every law falls in both."""
    rows = np.flatnonzero(usable_rows(table, ("N", "D", "loss")))
    out = np.zeros(laws.rows_of(table))
    if len(rows) < 2:
        return out
    n, d, y = _levels(table["N"][rows]), _levels(table["D"][rows]), np.log(table["loss"][rows])
    grid = np.full((n.max() + 1, d.max() + 1), np.inf)
    np.minimum.at(grid, (n, d), y)
    lowest = np.minimum.accumulate(np.minimum.accumulate(grid, axis=0), axis=1)
    out[rows] = y - lowest[n, d]
    return out


def _rising(table: Table, sound: Array) -> Array:
    """Rows of a size before its steepest stretch: E + B/D^beta falls less and less per doubling of D.

    `sound`: mask of the rows to look at; a spike would make the fall after it look steep.
    """
    out = np.zeros(laws.rows_of(table), bool)
    rows = np.flatnonzero(usable_rows(table, ("N", "D", "loss")) & sound)
    if len(rows) < 3:
        return out
    d, loss = np.log(table["D"][rows]), table["loss"][rows]
    sizes = np.searchsorted(forms.distinct(table["N"][rows], SAME_N), table["N"][rows], side="right")
    order = np.argsort(sizes, kind="stable")
    for size in np.split(order, np.flatnonzero(np.diff(sizes[order])) + 1):
        starts = np.log(forms.distinct(np.exp(d[size]), OCTAVE))
        if len(starts) < 3:
            continue
        level = np.searchsorted(starts, d[size], side="right") - 1
        first = size[np.lexsort((loss[size], level))]
        first = first[np.unique(np.sort(level), return_index=True)[1]]  # the best of each length
        drop, stretch = -np.diff(loss[first]), np.diff(d[first])
        fall = drop / stretch
        at = int(np.argmax(fall))
        if fall[at] > STEEPER * fall[0] and drop[at] > VISIBLE * loss[first[at]]:
            out[rows[size[level < at]]] = True
    return out
