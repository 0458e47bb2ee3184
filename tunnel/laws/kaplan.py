"""L(N, D) = ((A/N)^(alpha/beta) + B/D)^beta + E.

N non-embedding parameters, D training tokens, A in parameters, B in tokens, L and E in nats per token: too little data
and too few parameters limit one another, where Chinchilla's add. Source: Kaplan et al. 2020 (arXiv 2001.08361,
Eq. 1.5), with a floor as in SCIENCE.md §4.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tunnel.fitting import forms
from tunnel.laws import DELTA, Array, Fit, Misfit, Table, columns, usable_rows

KIND = "loss"
FORM = forms.Form("kaplan", (("N", "A", "alpha"), ("D", "B", "beta")), floor=True, norm=True)
COLUMNS = FORM.needed
PARAMS = FORM.params


def answers(table: Table, targets: Table) -> str:
    """Why this law cannot answer the targets: it can answer any N and D."""
    return "" if {"N", "D"} <= set(targets) else "the targets have no N and D"


def select(table: Table, targets: Table | None = None) -> Array:
    """Indices of the rows it is fitted to: all that have N, D and loss."""
    return np.flatnonzero(usable_rows(table, COLUMNS))


def fit(table: Table, delta: float | Misfit = DELTA) -> Fit:
    """E, A, B ≥ 0, alpha, beta at the minimum of the misfit of log L; hostile tables get a status."""
    return forms.fit(FORM, table, delta)


def predict(params: Mapping[str, float], table: Table) -> Array:
    """Loss (nats per token) at the table's N and D."""
    return forms.predict(FORM, params, table)


def refit(table: Table, start: Fit, weights: Array | None = None, losses: Array | None = None) -> Array:
    """Parameters (draws, 5) under row weights (draws, n) or re-measured losses (draws, n)."""
    return forms.refit(FORM, columns(table), start, weights, losses)
