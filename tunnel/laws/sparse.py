"""L = E + A/(N^alpha·R^gamma) + B/D^beta with R = N_total/N: one law for dense bodies and mixtures of experts.

N non-embedding parameters that a token goes through, N_total with every expert, D training tokens, L and E in nats per
token. It is Chinchilla's law at N·R^g with g = gamma/alpha, what an idle expert is worth: at g = 0 only the active
parameters count, at g = 1 all count alike; below 0 it is not searched. The form is *assumed*: near the readings' own
sparsity any smooth law of N and N_total is one power of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tunnel.fitting import forms
from tunnel.fitting.models import HIGHEST, LOWEST
from tunnel.laws import DELTA, Array, Fit, Misfit, Table, columns, take, usable_rows

KIND = "loss"
RATIO = "N_total/N"
FORM = forms.Form("sparse", (("N", "A", "alpha"), ("D", "B", "beta")), floor=True, beside=(RATIO, "gamma"))
COLUMNS = ("N", "N_total", "D", "loss")
PARAMS = FORM.params


def answers(table: Table, targets: Table) -> str:
    """Empty where the readings differ in N_total/N, and the targets have what the law reads."""
    if not differ(table):
        return "the readings have no N_total that is not one and the same multiple of N"
    lacking = [c for c in COLUMNS[:-1] if c not in targets]
    return f"the targets have no {lacking[0]}" if lacking else ""


def differ(table: Table) -> bool:
    """Whether a table has several N_total/N, which tell gamma from the rest."""
    rows = select(table)
    return len(rows) > 1 and forms.levels(with_ratio(take(table, rows))[RATIO]) > 1


def with_ratio(table: Table) -> dict[str, Array]:
    """The table with R; without N_total it is the same table."""
    table = columns(table)
    return {**table, RATIO: table["N_total"] / table["N"]} if {"N", "N_total"} <= set(table) else table


def select(table: Table, targets: Table | None = None) -> Array:
    """Indices of the rows it is fitted to: all that have N, N_total, D and loss."""
    return np.flatnonzero(usable_rows(table, COLUMNS))


def fit(table: Table, delta: float | Misfit = DELTA) -> Fit:
    """E, A, B ≥ 0 and the exponents at the minimum of the misfit of log L."""
    if not differ(table):
        n = len(select(table))
        return forms.nothing("sparse", PARAMS, delta, "no two N_total/N among the rows: they identify gamma", n)
    found = FORM.fit(with_ratio(table), delta)
    if not found.usable or LOWEST * 1.01 < found.params["gamma"] < HIGHEST * 0.99:
        return found
    why = f"gamma = {found.params['gamma']:.3g} is a bound of the search: idle experts show no worth"
    return replace(found, status="bound hit", reason="; ".join(filter(None, (found.reason, why))))


def predict(params: Mapping[str, float], table: Table) -> Array:
    """Loss (nats per token) at the table's N, N_total and D."""
    return FORM.predict(params, with_ratio(table))


def refit(table: Table, start: Fit, weights: Array | None = None, losses: Array | None = None) -> Array:
    """Parameters (draws, 6) under row weights (draws, n) or re-measured losses (draws, n)."""
    return FORM.refit(with_ratio(table), start, weights, losses)


def worth(params: Mapping[str, float]) -> float:
    """g: what an idle parameter is worth of an active one, as a power."""
    return params["gamma"] / params["alpha"]
