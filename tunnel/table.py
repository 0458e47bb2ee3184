"""The runs table (contract 4): CSV or Parquet in, checked columns out; and the whole of `tunnel fit RUNS`."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tunnel import laws
from tunnel.backtests import backtest, doubts, intervals, rows
from tunnel.errors import UserError
from tunnel.laws import DELTA, MISFITS, Array, Fit, Misfit, misfit_of, optimum
from tunnel.valleys import allocate

Paths = str | os.PathLike[str]

LARGEST = 2**30  # bytes; assumed: a table of runs is megabytes, a gigabyte is another file by mistake
# contract 4's columns that the laws read
NUMBERS = ("N", "D", "loss", "C", "lr", "batch_tokens", "weight", "width", "depth", "N_embed")
MARKING = ("warmup", "unique_tokens")  # read where they are numbers: rows are marked by them, no law needs them
NEEDED = ("N", "D", "loss")
TARGETS = ("N", "D")
POSITIVE = set(NUMBERS) - {"weight"}  # their logarithm is taken; a weight may be 0


def read(
    path: Paths,
    columns: Mapping[str, str] | None = None,
    drop: Sequence[str] = (),
    needed: Sequence[str] = NEEDED,
) -> pd.DataFrame:
    """A runs table with the names of contract 4, every number checked; C = 6ND where there is none.

    columns: {name of contract 4: column of the file}; drop: columns whose non-zero rows are left out (how
    many: `frame.attrs["dropped"]`). Rows keep the file's order. Anything that is not such a table (missing,
    over 1 GB, empty, a column lacking, text, negative, infinite, NaN) raises UserError: one line with file,
    column, row, rule and value.
    """
    frame = _load(Path(path))
    frame = _rename(frame, path, columns or {})
    frame, dropped = _drop(frame, path, drop)
    lacking = [name for name in needed if name not in frame.columns]
    if lacking:
        raise UserError("no such column in the table", file=path, key=lacking[0], choices=frame.columns)
    if not len(frame):
        raise UserError("the table has no rows" + (f" ({dropped} dropped)" if dropped else ""), file=path)
    frame = frame.copy()
    for name in NUMBERS:
        if name in frame.columns:
            frame[name] = _numbers(frame, name, path, name in needed)
    if {"N", "D"} <= set(frame.columns):
        six = 6.0 * frame["N"] * frame["D"]  # derived: 2 forward, 4 backward; in floats, integers overflow
        frame["C"] = frame["C"].fillna(six) if "C" in frame.columns else six
        if not np.isfinite(frame["C"]).all():
            raise UserError("N·D is too large for a number", file=path, key="C")
    if "weight" in frame.columns:
        frame["weight"] = frame["weight"].fillna(1.0)
    frame.attrs["dropped"] = dropped
    return frame


def _load(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise UserError("no such file" if not path.exists() else "not a file", file=path)
    if path.stat().st_size > LARGEST:
        raise UserError("larger than 1 GB", file=path, value=path.stat().st_size)
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            return pd.read_parquet(path)
        _no_name_twice(path)
        return pd.read_csv(path, encoding="utf-8-sig", skipinitialspace=True)
    except pd.errors.EmptyDataError:
        raise UserError("the file is empty", file=path) from None
    except UnicodeDecodeError:
        raise UserError("not a UTF-8 text", file=path) from None
    except (
        pd.errors.ParserError,
        ValueError,
        OSError,
    ) as error:  # pyarrow's errors are ValueErrors and OSErrors
        raise UserError(f"cannot be read as a table: {error}", file=path) from None


def _no_name_twice(path: Path) -> None:
    """UserError where a CSV's header has a name twice, which pandas would rename in silence."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        header = [name.strip() for name in next(csv.reader(file), [])]
    twice = [name for name in dict.fromkeys(header) if name and header.count(name) > 1]
    if twice:
        raise UserError("two columns have this name", file=path, key=twice[0])


def _rename(frame: pd.DataFrame, path: Paths, columns: Mapping[str, str]) -> pd.DataFrame:
    frame.columns = pd.Index([str(c).strip() for c in frame.columns])
    for name, source in columns.items():
        if source not in frame.columns:
            raise UserError(f"--columns {name}={source}: no such column", file=path, choices=frame.columns)
    renamed = {source: name for name, source in columns.items()}
    # a column that already has the name gives way: the user said which one is meant
    frame = frame.drop(columns=[n for n in columns if n in frame.columns and n not in columns.values()])
    frame = frame.rename(columns=renamed)
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise UserError("two columns have this name", file=path, key=str(twice[0]))
    return frame


def _drop(frame: pd.DataFrame, path: Paths, drop: Sequence[str]) -> tuple[pd.DataFrame, int]:
    keep = np.ones(len(frame), bool)
    for name in drop:
        if name not in frame.columns:
            raise UserError(f"--drop {name}: no such column", file=path, choices=frame.columns)
        flags = _numbers(frame, name, path, needed=False, signed=True)
        keep &= (np.nan_to_num(flags) == 0) if len(flags) else True
    return frame[keep], int((~keep).sum())


def _numbers(frame: pd.DataFrame, name: str, path: Paths, needed: bool, signed: bool = False) -> Array:
    """A column as floats; UserError with the row where one is no number, missing, infinite, not positive."""
    column = frame[name]
    values = pd.to_numeric(column, errors="coerce").to_numpy(float, na_value=np.nan)
    blank = column.isna().to_numpy().copy()
    if column.dtype == object or isinstance(column.dtype, pd.StringDtype):
        blank |= column.astype(str).str.strip().eq("").to_numpy()
    checks = [(np.isnan(values) & ~blank, "must be a number"), (np.isinf(values), "must be finite")]
    if needed:
        checks.insert(0, (blank, "must not be missing"))
    if not signed:
        low = values <= 0 if name in POSITIVE else values < 0
        checks.append((low, "must be above 0" if name in POSITIVE else "must not be negative"))
    for bad, rule in checks:
        if bad.any():
            at = int(np.argmax(bad))
            row = int(frame.index[at]) + 1 if isinstance(frame.index[at], (int, np.integer)) else at + 1
            raise UserError(rule, file=path, key=f"{name}, row {row}", value=_plain(column.iloc[at]))
    return values


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
        written = _original(predict, targets).assign(**answer)
        report["predictions"] = [{str(k): v for k, v in row.items()} for row in written.to_dict("records")]
        if out is not None:
            write(written, out)
            report["out"] = str(out)
    plain: dict[str, Any] = _plain(report)
    return plain


def _misfit(name: str, delta: float) -> Misfit:
    """The named loss of a fit with δ as asked; least squares has none."""
    return MISFITS[name] if name == "squares" else replace(MISFITS[name], delta=delta)


def as_columns(frame: pd.DataFrame) -> dict[str, Array]:
    """The columns that laws read, as arrays: the numbers of contract 4, and run as integers."""
    marking = [c for c in MARKING if c in frame.columns and pd.api.types.is_numeric_dtype(frame[c])]
    table = {c: frame[c].to_numpy(float, na_value=np.nan) for c in (*NUMBERS, *marking) if c in frame.columns}
    if "run" in frame.columns:
        codes = pd.factorize(frame["run"].astype(str))[0]
        missing = frame["run"].isna().to_numpy()  # a row without a run is its own
        own = codes.max(initial=0) + 1 + np.arange(len(frame))
        table["run"] = np.where(missing, own, codes).astype(float)
    return table


def write(frame: pd.DataFrame, out: Paths) -> None:
    """Writes a table as its suffix says (.parquet, else CSV), whole or not at all."""
    path = Path(out)
    if not path.parent.is_dir():
        raise UserError("no such folder", file=path.parent, key="--out")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            frame.to_parquet(part, index=False)
        else:
            frame.to_csv(part, index=False)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"cannot be written: {error.strerror}", file=path, key="--out") from None


def _original(path: Paths | None, targets: pd.DataFrame) -> pd.DataFrame:
    """The targets' own columns as they were in the file (without a C that we derived)."""
    assert path is not None
    own = _load(Path(path))
    own.columns = pd.Index([str(c).strip() for c in own.columns])
    return own


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


def _plain(value: Any) -> Any:
    """Plain JSON types; a number that JSON does not have (NaN, infinity) is null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)
