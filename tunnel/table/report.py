"""The whole of `tunnel fit RUNS`: a law fitted to a runs table, with intervals, backtest and predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from tunnel import laws
from tunnel.backtests import backtest, doubts, intervals, rows
from tunnel.errors import UserError
from tunnel.laws import DELTA, MISFITS, Array, Fit, Misfit, misfit_of, optimum
from tunnel.table.files import TARGETS, Paths, as_columns, may_write, original, plain, read, write
from tunnel.valleys import allocate


def fit_report(
    path: Paths,
    law: str | None = None,
    delta: float = DELTA,
    columns: Mapping[str, str] | None = None,
    drop: Sequence[str] | None = None,
    predict: Paths | None = None,
    out: Paths | None = None,
    budget: allocate.Budget | None = None,
    misfit: str = "huber",
) -> dict[str, Any]:
    """All that `tunnel fit RUNS --json` prints, as plain values; with `predict` and `out` also writes the
    predictions.

    Keys: law, params, objective (Σ Huber(δ) of log L − log L̂), delta, status, reason, n, dropped, intervals
    {name: [low, high]} (90%), backtest, rejected, cautions, predictions. The form is chosen by backtest
    unless `law` names it. UserError on bad tables, an unknown law, δ not above 0.
    """
    if law is not None and law not in laws.names():
        raise UserError("no such law", key="--law", value=law, choices=laws.names())
    if not (np.isfinite(delta) and delta > 0):
        raise UserError("must be a number above 0", key="--delta", value=delta)
    if misfit not in laws.MISFITS:
        raise UserError("no such loss of a fit", key="--misfit", value=misfit, choices=laws.MISFITS)
    if budget is not None and law == "optimum":
        raise UserError("--budget needs a law of the loss", key="--law", value=law)
    if out is not None and predict is None:
        raise UserError("--out needs --predict, the table of targets", key="--out", value=str(out))
    if out is not None:
        may_write(out, path, predict)
    frame = read(path, columns, drop or ())
    targets = read(predict, needed=TARGETS) if predict is not None else None
    table = as_columns(frame)
    asked = as_columns(targets) if targets is not None else None
    if law == "optimum":
        report, answer = _optimum(table, asked, delta)
    else:
        report, answer = _loss(table, asked, law, _misfit(misfit, delta), budget)
    report["dropped"] = frame.attrs["dropped"]
    for mark in report.get("rows", {}).get("marked", []):
        mark["row"] = int(frame.index[mark["row"]]) + 1  # as the file counts them
    if targets is not None:
        written = original(predict, targets).assign(**answer)
        report["predictions"] = [{str(k): v for k, v in row.items()} for row in written.to_dict("records")]
        if out is not None:
            write(written, out)
            report["out"] = str(out)
    found: dict[str, Any] = plain(report)
    return found


def _misfit(name: str, delta: float) -> Misfit:
    """The named loss of a fit with δ as asked; least squares has none."""
    return MISFITS[name] if name == "squares" else replace(MISFITS[name], delta=delta)


def _loss(
    table: dict[str, Array],
    targets: dict[str, Array] | None,
    law: str | None,
    delta: Misfit,
    budget: allocate.Budget | None = None,
) -> tuple[dict[str, Any], dict[str, Array]]:
    """The report of a law of the loss, and predicted, low, high per target."""
    choice = backtest.choose(table, targets, delta) if law is None else None
    chosen = choice.candidate if choice else backtest.Candidate(law or "chinchilla", delta=delta)
    name, module = chosen.law, laws.get(chosen.law)
    question = targets if targets is None or not module.answers(table, targets) else None
    seen = chosen.rows(laws.columns(table), question)
    found = module.fit(seen, chosen.delta)
    report = _fit_keys(found)
    report["intervals"] = {}
    if found.usable:
        ranges = intervals.bootstrap(name, seen, found).ranges()
        at = found.params  # where the data has no noise, rounding may leave the estimate outside its draws
        report["intervals"] = {k: [min(low, at[k]), max(high, at[k])] for k, (low, high) in ranges.items()}
    report["backtest"] = backtest.report(chosen, table)
    report["rejected"] = dict(choice.rejected) if choice else {}
    report["chosen_by"] = (
        {"axis": choice.axis, "cases": choice.cases, "scores": dict(choice.scores)} if choice else None
    )
    report["tried"] = [
        {"law": c.law, "rows": c.window.name, "loss": c.loss, "score_percent": 100 * score, "chosen": c == chosen}
        for c, score in (choice.tried if choice else ())
    ]
    report["rows"] = {
        "window": chosen.window.name,
        "loss": chosen.loss,
        "used": found.n,
        "of": laws.rows_of(table),
        "outside": int(rows.marked(laws.columns(table)).sum()),
        "marked": [{"row": m.row, "reason": m.reason} for m in rows.marks(table)],
    }
    report["cautions"] = [f"{found.status}: {found.reason}"] if found.status != "converged" else []
    if budget is not None:
        report["optimal"] = allocate.optimal(chosen, table, budget)
    if "lr" not in module.COLUMNS and _several_settings(table):
        report["cautions"].append(
            f"rows of one N and D differ in lr or batch: {name} takes them all; keep each valley's minimum"
        )
    report["spread"] = doubts.spread(chosen, seen, found, targets)
    report["isoflop"] = doubts.minima(chosen, laws.columns(table))
    report["counts"] = doubts.counts(chosen, table)
    if targets is None:
        return report, {}
    answer, cautions, parts = _forecasts(chosen, choice, table, targets)
    report["cautions"] += cautions
    report["forecast_parts"] = parts
    if found.usable and hasattr(module, "beside"):  # what else a law says of a target: fan its lr*
        answer |= module.beside(seen, found, targets)
    return report, answer


def _several_settings(table: dict[str, Array]) -> bool:
    """Whether more than half of the (N, D) cells were read at several learning rates or batches."""
    given = [c for c in optimum.SETTINGS if c in table]
    cells = pd.DataFrame({c: table[c] for c in ("N", "D", *given)}).groupby(["N", "D"])
    return any(float((cells[c].nunique() > 1).mean()) > 0.5 for c in given)


def _forecasts(
    chosen: backtest.Candidate,
    choice: backtest.Choice | None,
    table: dict[str, Array],
    targets: dict[str, Array],
) -> tuple[dict[str, Array], list[str], list[object]]:
    """predicted, low, high per target; one forecast per D for a law that holds at one D."""
    name = chosen.law
    module = laws.get(name)
    count = laws.rows_of(targets)
    answer = {key: np.full(count, np.nan) for key in ("predicted", "low", "high")}
    cautions: list[str] = []
    parts: list[object] = []
    groups = (
        [np.flatnonzero(targets["D"] == d) for d in np.unique(targets["D"])]
        if laws.holds_at_one_d(name)
        else [np.arange(count)]
    )
    for group in groups:
        asked = laws.take(targets, group)
        why = module.answers(table, asked)
        if why:
            cautions.append(f"{name}: {why}")
            if laws.holds_at_one_d(name):
                continue  # it has no rows at this D; the others answer outside their warrant, and say so
        rivals = choice.rivals() if choice else {}
        own = choice.own if choice and not laws.holds_at_one_d(name) else ()
        forecast = intervals.forecast(chosen, table, asked, misses=own or None, rivals=rivals)
        for key, values in zip(answer, (forecast.value, forecast.low, forecast.high), strict=True):
            answer[key][group] = values
        parts.append(dict(forecast.parts))
    return answer, cautions, parts


def _optimum(
    table: dict[str, Array], targets: dict[str, Array] | None, delta: float
) -> tuple[dict[str, Any], dict[str, Array]]:
    """The report of the optimum law, and lr, batch_tokens with their 90% intervals per target."""
    asked = targets or {"N": table["N"][:1], "D": table["D"][:1]}
    told = optimum.report(table, asked, delta)
    found, answer = told.pop("fit"), told.pop("answer")
    report = _fit_keys(found) | told
    report["cautions"] = [f"{found.status}: {found.reason}"] if found.reason else []
    return report, answer if targets is not None else {}


def _fit_keys(found: Fit) -> dict[str, Any]:
    return {
        "law": found.law,
        "params": dict(found.params),
        "objective": found.objective,
        "delta": misfit_of(found.delta).delta,
        "above": misfit_of(found.delta).above,
        "status": found.status,
        "reason": found.reason,
        "n": found.n,
        "ranges": {k: list(v) for k, v in found.ranges.items()},
    }
