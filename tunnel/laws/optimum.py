"""lr*(N, D) and batch_tokens*(N, D): the settings at which the loss of a table that varies both is lowest.

    lr* = lr·N^lr_N·D^lr_D        batch* = batch·N^batch_N·D^batch_D        (lr peak; batch and D in tokens)

One joint surface of all runs, or the line through each (N, D) cell's own smoothed optimum (valleys/ways): what gives
away less on cells that were left out (valleys/heldout) is taken. Sources: SCIENCE.md §3-4; the form, Step Law
(arXiv 2503.04715).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tunnel import laws
from tunnel.laws import DELTA, Array, Fit, Table, columns, usable_rows
from tunnel.valleys import heldout, ways
from tunnel.valleys.heldout import DRAWS, Chosen, Told
from tunnel.valleys.ways import COLUMNS, SETTINGS, TOUCHING, Lines, Rows

KIND = "settings"
PARAMS = ("lr", "lr_N", "lr_D", "batch", "batch_N", "batch_D")
ANSWER = ("lr", "lr_low", "lr_high", "batch_tokens", "batch_low", "batch_high", "regret_percent")


def answers(table: Table, targets: Table) -> str:
    """Empty where the table varies lr and the targets have N and D."""
    if not {"N", "D"} <= set(targets):
        return "the targets have no N and D"
    lacking = [c for c in COLUMNS if c not in table]
    return f"the table has no column {lacking[0]}" if lacking else ""


def select(table: Table, targets: Table | None = None) -> Array:
    """Indices of the rows that have N, D, loss, lr and batch_tokens: a diverged row's loss is no number."""
    return np.flatnonzero(usable_rows(table, COLUMNS))


def fit(table: Table, delta: float = DELTA) -> Fit:
    """The six parameters of lr* and batch*; `objective` is the weighted sum of squared residuals of log L.

    A setting that does not vary keeps its value (exponents 0). "flat" names settings without curvature,
    "bound hit" those whose optimum lies outside the range tried.
    """
    return chosen(columns(table), delta)[0]


def predict(params: Mapping[str, float], table: Table) -> Array:
    """Optimal (lr, batch_tokens) per row, shape (rows, 2), at the table's N and D."""
    n, d = np.log(np.asarray(table["N"], float)), np.log(np.asarray(table["D"], float))
    pairs = (("lr", "lr_N", "lr_D"), ("batch", "batch_N", "batch_D"))
    return np.stack([np.exp(np.log(params[c]) + params[a] * n + params[b] * d) for c, a, b in pairs], axis=1)


def chosen(table: Table, delta: float) -> tuple[Fit, Chosen | None]:
    """The fit, and the way it was found; without one where there are too few points."""
    rows, why = ways.rows_of(table)
    known = None if rows is None else heldout.choose(rows)
    if rows is None or known is None:
        n = len(select(table)) if set(COLUMNS) <= set(table) else 0
        why = why or f"{n} rows show no optimum of {' or '.join(SETTINGS)}"
        return Fit("optimum", dict.fromkeys(PARAMS, np.nan), np.nan, delta, "too few points", why, n), None
    return described(rows, known.lines, delta), known


def described(rows: Rows, lines: Lines, delta: float) -> Fit:
    """The lines as a Fit with a status."""
    with np.errstate(over="ignore"):
        values = np.column_stack([np.exp(lines.line[:, 0]), lines.line[:, 1:]]).ravel().tolist()
    best, edges = lines.at(rows.x[:, :2]), []
    for j in rows.varied:
        log = rows.x[:, 2 + j]
        if (best[:, j] < log.min() - TOUCHING).all() or (best[:, j] > log.max() + TOUCHING).all():
            edges.append(SETTINGS[j])
    fixed = [s for j, s in enumerate(SETTINGS) if j not in rows.varied]
    status, reason = "converged", lines.reason
    if lines.flat:
        status, reason = "flat", f"the data shows no curvature in {', '.join(lines.flat)}: widen the range"
    elif edges:
        status, reason = "bound hit", f"the optimum of {', '.join(edges)} lies outside the range tried: widen the range"
    elif fixed:
        reason = f"{fixed[0]} does not vary: its value is kept"
    return Fit("optimum", dict(zip(PARAMS, values, strict=True)), lines.objective, delta, status, reason, len(rows.y))


def settings(
    table: Table, targets: Table, draws: int = DRAWS, seed: int = 0, delta: float = DELTA
) -> tuple[Fit, dict[str, Array], dict[str, tuple[float, float]]]:
    """The fit; per target the columns ANSWER; the parameters' intervals.

    90%: bootstrap by run, hold-outs, rival ways (valleys/heldout). `regret_percent`: the loss expected to be
    given away.
    A setting that does not vary in the table has low = value = high. NaN, and no intervals, where there are too few
    points.
    """
    told = report(table, targets, delta, draws, seed)
    return told["fit"], told["answer"], told["intervals"]


def answer_of(told: Told) -> dict[str, Array]:
    logs = np.stack([told.best, told.best - told.half, told.best + told.half], axis=2)  # (k, setting, value low high)
    with np.errstate(over="ignore"):
        values = np.exp(logs).reshape(len(logs), 6).T
    return dict(zip(ANSWER, [*values, 100 * told.regret], strict=True))


def ranges_of(found: Fit, told: Told) -> dict[str, tuple[float, float]]:
    """90% of every parameter by bootstrap, about its value."""
    each = told.draws.reshape(-1, len(PARAMS))
    halves = (np.quantile(each, [0.05, 0.95], axis=0) - np.median(each, axis=0)).T.tolist()
    out = {}
    for name, (low, high) in zip(PARAMS, halves, strict=True):
        value, scale = found.params[name], name in ("lr", "batch")  # positive: its interval is one of its logarithm
        with np.errstate(over="ignore"):
            out[name] = (
                (value * float(np.exp(low)), value * float(np.exp(high))) if scale else (value + low, value + high)
            )
    return out


def report(table: Table, targets: Table, delta: float = DELTA, draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """What `tunnel fit --law optimum` says beside the fit's own keys, and under `answer` the targets' columns.

    `backtest`: every hold-out; `chosen_by`: the way taken and the scores (% given away near the fit); `rejected`.
    """
    table = columns(table)
    found, known = chosen(table, delta)
    if known is None:
        answer = {name: np.full(laws.rows_of(columns(targets)), np.nan) for name in ANSWER}
        return {"fit": found, "answer": answer, "intervals": {}, "backtest": [], "rejected": {}, "chosen_by": None}
    told = heldout.told(known, columns(targets), draws, seed)
    return {
        "fit": found,
        "answer": answer_of(told),
        "intervals": ranges_of(found, told),
        "backtest": held_out(known),
        "rejected": known.rejected,
        "chosen_by": {"way": str(known.way), "scores": {str(w): 100 * s for w, s in known.scores.items()}},
    }


def held_out(known: Chosen) -> list[dict[str, object]]:
    """Every hold-out as the chosen way sees it."""
    out: list[dict[str, object]] = []
    for ms in heldout.folds_of(known.misses[known.way]):
        off = np.array([m.error for m in ms]) / np.log(2)
        out.append(
            {
                "law": "optimum",
                "axis": ms[0].axis,
                "left_out": ms[0].fold,
                "cases": len(ms),
                "mean_regret_percent": 100 * float(np.mean([m.regret for m in ms])),
                "max_regret_percent": 100 * float(np.max([m.regret for m in ms])),
                "lr_octaves": float(np.sqrt(np.mean(off[:, 0] ** 2))),
                "batch_octaves": float(np.sqrt(np.mean(off[:, 1] ** 2))),
                "distance_decades": float(np.mean([m.distance for m in ms])),
            }
        )
    return out
