"""L(C) = E + A·C^-a through the best reading of each budget.

C training FLOPs, L and E in nats per token. It knows nothing of N and D, so it answers only for targets on
the readings' own N-D path (contract 4). Source: Porian et al. 2024 (arXiv 2406.19146); accuracy: SCIENCE.md
§4.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tunnel.fitting import forms
from tunnel.laws import DELTA, Array, Fit, Misfit, Table, columns, take, usable_rows

KIND = "loss"
ON_PATH = True
FORM = forms.Form("frontier", (("C", "A", "a"),), floor=True)
COLUMNS = FORM.needed
PARAMS = FORM.params

# decades of N off the path at the target's C; assumed: an isoFLOP valley is flat within a factor 1.4
OFF_PATH = 0.15
MOST_OFF = 0.3  # decades, where the path itself is uncertain; assumed: a factor 2


def answers(table: Table, targets: Table) -> str:
    """Empty where every target lies on the readings' own path: log N a line in log C through the best."""
    if not {"N", "D"} <= set(targets) or not {"N", "D"} <= set(table):
        return "the path needs N and D"
    targets = columns(targets)
    best = take(table, select(table))
    if len(best["C"]) < 3:
        return f"{len(best['C'])} budgets make no path"
    c, n = np.log10(best["C"]), np.log10(best["N"])
    if np.ptp(c) == 0:
        return "one budget makes no path"
    slope, level = np.polyfit(c - c.mean(), n, 1)
    scatter = np.sqrt(((n - level - slope * (c - c.mean())) ** 2).sum() / (len(c) - 2))
    away = np.log10(targets["C"]) - c.mean()
    error = scatter * np.sqrt(1 / len(c) + away**2 / ((c - c.mean()) ** 2).sum())
    off = np.abs(np.log10(targets["N"]) - level - slope * away)
    worst = int(np.argmax(off - np.clip(2 * error, OFF_PATH, MOST_OFF)))
    if off[worst] > np.clip(2 * error[worst], OFF_PATH, MOST_OFF):
        return f"a target lies a factor {10 ** off[worst]:.2g} in N off the readings' own N-D path"
    return ""


def select(table: Table, targets: Table | None = None) -> Array:
    """Indices of the best reading per budget, where no smaller budget reached a lower loss."""
    table = columns(table)
    rows = np.flatnonzero(usable_rows(table, COLUMNS))
    if not len(rows):
        return rows
    c, loss = table["C"][rows], table["loss"][rows]
    budget = forms.budgets(c)
    order = np.lexsort((c, loss, budget))
    first = order[np.unique(budget[order], return_index=True)[1]]
    before = np.concatenate([[np.inf], np.minimum.accumulate(loss[first])[:-1]])
    return rows[first[loss[first] < before]]


def fit(table: Table, delta: float | Misfit = DELTA) -> Fit:
    """E, A ≥ 0 and a through the best reading per budget; n counts those."""
    table = columns(table)
    return FORM.fit(take(table, select(table)), delta)


def predict(params: Mapping[str, float], table: Table) -> Array:
    """Loss (nats per token) at the table's C (6ND where there is none)."""
    return FORM.predict(params, table)


def refit(table: Table, start: Fit, weights: Array | None = None, losses: Array | None = None) -> Array:
    """Parameters (draws, 3) under row weights (draws, n) or losses (draws, n) of the selected rows."""
    return FORM.refit(table, start, weights, losses)
