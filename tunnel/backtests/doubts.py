"""What is told beside a fit: how it depends on loss and floor, its budgets' minima, which count is stabler.

None of it changes the fit. Sources: SCIENCE.md §4 (the spread over losses and floors; isoFLOP beside the direct fit),
issue 4 (both counting conventions).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tunnel import laws
from tunnel.backtests import backtest
from tunnel.backtests.backtest import Candidate
from tunnel.laws import MISFITS, Array, Fit, Table, columns, misfit_of

COUNTED = 0.01  # counts that differ by less, on every row, are one; assumed: rounding


def spread(chosen: Candidate, seen: Table, found: Fit, targets: Table | None) -> list[dict[str, Any]]:
    """Where the rows do not identify E: the fit by Huber's loss and by least squares, E free and held at both ends.

    Keys: loss, floor (free, or where it was held), params, predicted (per target). Where these disagree, so much is
    unknown.
    """
    form = getattr(laws.get(chosen.law), "FORM", None)
    if "E" not in found.ranges or form is None or form.law != chosen.law or set(form.params) != set(found.params):
        return []
    out = []
    for misfit in dict.fromkeys((misfit_of(chosen.delta), MISFITS["huber"], MISFITS["squares"])):
        for floor in (None, *dict.fromkeys(found.ranges["E"])):
            fit = form.fit(seen, misfit, floor)
            out.append(
                {
                    "loss": Candidate(chosen.law, delta=misfit).loss,
                    "floor": "free" if floor is None else floor,
                    "params": dict(fit.params),
                    "predicted": None if targets is None else form.predict(fit.params, targets).tolist(),
                }
            )
    return out


def minima(chosen: Candidate, table: Table) -> dict[str, Any]:
    """The budgets' minima beside a direct fit: status, reason, n, params of N*, D*, L*; empty where it is the fit."""
    if chosen.law == "isoflop":
        return {}
    found = laws.get("isoflop").fit(table)
    return {"status": found.status, "reason": found.reason, "n": found.n, "params": dict(found.params)}


def counts(chosen: Candidate, table: Table) -> dict[str, Any]:
    """Which way to count is stabler: what a law misses the hold-outs by, for N and for C; no key where one is known.

    N without embeddings (column N) or with (N_embed), asked of the chosen law; C = 6ND or the table's own, asked of the
    frontier. Scores are relative errors at the fit's edge, as in the choice of the form.
    """
    table = columns(table)
    own = {k: v for k, v in table.items() if k != "N_embed"}
    six = 6 * table["N"] * table["D"]
    out = {}
    if "N_embed" in table and _apart(table["N_embed"], table["N"]):
        whole = own | {"N": table["N_embed"], "C": table["C"] * table["N_embed"] / table["N"]}
        law = Candidate("chinchilla", delta=chosen.delta) if chosen.law == "frontier" else chosen
        out["N"] = _compared(law, {"without embeddings": own, "with embeddings": whole})
    if _apart(table["C"], six):
        out["C"] = _compared(Candidate("frontier"), {"6ND": own | {"C": six}, "as given": own})
    return out


def _apart(one: Array, other: Array) -> bool:
    with np.errstate(all="ignore"):
        far = np.abs(np.log(one / other))
    return bool(np.isfinite(far).all() and far.max(initial=0) > COUNTED)


def _compared(law: Candidate, ways: Mapping[str, Table]) -> dict[str, Any]:
    """The law, its score (percent) under each way, and the way of the lowest."""
    scores = {k: 100 * backtest.score(backtest.own_misses(law, t, None, "all")) for k, t in ways.items()}
    known = {k: v for k, v in scores.items() if np.isfinite(v)}
    return {"law": law.law, "score_percent": scores, "stabler": min(known, key=lambda k: known[k]) if known else None}
