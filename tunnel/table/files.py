"""The runs table (contract 4) as a file: CSV or Parquet in, checked columns out; and the predictions' way back."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tunnel.errors import UserError
from tunnel.laws import Array

Paths = str | os.PathLike[str]

LARGEST = 2**30  # bytes; assumed: a table of runs is megabytes, a gigabyte is another file by mistake
# contract 4's columns that the laws read
NUMBERS = ("N", "D", "loss", "C", "lr", "batch_tokens", "weight", "width", "depth", "N_embed", "N_total")
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
        if not (np.isfinite(frame["C"]) & (frame["C"] > 0)).all():
            raise UserError("N·D is too large, or too small, for a number", file=path, key="C")
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
            return _parquet(path)
        _no_name_twice(path)
        frame = pd.read_csv(path, encoding="utf-8-sig", skipinitialspace=True)
    except pd.errors.EmptyDataError:
        raise UserError("the file is empty", file=path) from None
    except UnicodeDecodeError:
        raise UserError("is not UTF-8", file=path, key=f"line {_no_text(path)}") from None
    except (csv.Error, pd.errors.ParserError, ValueError, OSError) as error:
        raise UserError(f"cannot be read as a table: {error}", file=path) from None
    if not isinstance(frame.index, pd.RangeIndex):  # pandas would take the first column for the rows' names
        raise UserError("rows have more fields than the header has names", file=path)
    return frame


def _parquet(path: Path) -> pd.DataFrame:
    """The columns alone: what pandas noted beside them is the file's word, and may be anything."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.read_table(path).to_pandas(ignore_metadata=True)
    except pa.ArrowException as error:  # those that are no ValueError too
        raise ValueError(error) from None


def _no_text(path: Path) -> int:
    """The first line that is not UTF-8."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1  # a character that goes over the end of a line


def _no_name_twice(path: Path) -> None:
    """UserError where a CSV's header has a name twice, which pandas would rename in silence."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        header = [name.strip() for name in next(csv.reader(file), [])]
    twice = [name for name, times in Counter(header).items() if name and times > 1]
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
    if column.dtype.kind in "mM":  # pandas would count a date's nanoseconds
        column = column.astype(object)
    values = pd.to_numeric(column, errors="coerce").to_numpy(float, na_value=np.nan)
    blank = column.isna().to_numpy().copy()
    if column.dtype == object or isinstance(column.dtype, pd.StringDtype):
        blank |= column.map(lambda v: isinstance(v, str) and not v.strip()).to_numpy(bool)
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
            raise UserError(rule, file=path, key=f"{name}, row {row}", value=plain(column.iloc[at]))
    return values


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


def may_write(out: Paths, *read: Paths | None) -> None:
    """Raises UserError where a table may not be written: over a link, a device, or one that is read."""
    path = Path(out)
    if not path.parent.is_dir():
        raise UserError("no such folder", file=path.parent, key="--out")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UserError("is a symbolic link" if path.is_symlink() else "is not a file", file=path, key="--out")
    if path.exists() and any(p is not None and os.path.exists(p) and path.samefile(p) for p in read):
        raise UserError("is a table that is read", file=path, key="--out")


def write(frame: pd.DataFrame, out: Paths) -> None:
    """Writes a table as its suffix says (.parquet, else CSV), whole or not at all."""
    may_write(out)
    path = Path(out)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            frame.to_parquet(part, index=False)
        else:
            frame.to_csv(part, index=False)
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise UserError(f"cannot be written: {error.strerror}", file=path, key="--out") from None


def original(path: Paths | None, targets: pd.DataFrame) -> pd.DataFrame:
    """The targets' own columns as they were in the file (without a C that we derived)."""
    assert path is not None
    own = _load(Path(path))
    own.columns = pd.Index([str(c).strip() for c in own.columns])
    return own


def plain(value: Any) -> Any:
    """Plain JSON types; a number that JSON does not have (NaN, infinity) is null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)
