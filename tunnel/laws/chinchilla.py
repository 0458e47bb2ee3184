"""L(N, D) = E + A/N^alpha + B/D^beta.

N non-embedding parameters, D training tokens, L and E in nats per token, A in nats·parameters^alpha, B in
nats·tokens^beta. Source: Hoffmann et al. 2022 (arXiv 2203.15556, Eq. 10); objective and golden numbers:
SCIENCE.md §4.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tunnel.fitting import forms
from tunnel.laws import DELTA, Array, Fit, Misfit, Table, columns, usable_rows

KIND = "loss"
FORM = forms.Form("chinchilla", (("N", "A", "alpha"), ("D", "B", "beta")), floor=True)
COLUMNS = FORM.needed
PARAMS = FORM.params


def answers(table: Table, targets: Table) -> str:
    """Why this law cannot answer the targets: it can answer any N and D."""
    return "" if {"N", "D"} <= set(targets) else "the targets have no N and D"


def select(table: Table, targets: Table | None = None) -> Array:
    """Indices of the rows it is fitted to: all that have N, D and loss."""
    return np.flatnonzero(usable_rows(table, COLUMNS))


def fit(table: Table, delta: float | Misfit = DELTA) -> Fit:
    """E, A, B ≥ 0, alpha, beta at the minimum of Σ Huber(δ) of log L − log L̂; hostile tables get a status."""
    return forms.fit(FORM, table, delta)


def predict(params: Mapping[str, float], table: Table) -> Array:
    """Loss (nats per token) at the table's N and D."""
    return forms.predict(FORM, params, table)


def refit(table: Table, start: Fit, weights: Array | None = None, losses: Array | None = None) -> Array:
    """Parameters (draws, 5) under row weights (draws, n) or re-measured losses (draws, n)."""
    return forms.refit(FORM, columns(table), start, weights, losses)


def optimal(params: Mapping[str, float], flops: float | Array) -> tuple[Array, Array]:
    """Compute-optimal N and D for a budget at C = 6ND (derived: ∂L/∂log N = ∂L/∂log D on N·D = C/6)."""
    alpha, beta, room = params["alpha"], params["beta"], np.asarray(flops, float) / 6
    g = (alpha * params["A"] / (beta * params["B"])) ** (1 / (alpha + beta))
    return g * room ** (beta / (alpha + beta)), room ** (alpha / (alpha + beta)) / g
