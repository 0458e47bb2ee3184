"""A folder's records as a table that follows them: each is read once, and at first the columns that a sweep left."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Lock
from typing import Any

import pandas as pd

from tunnel.errors import UserError
from tunnel.folder import store
from tunnel.folder.store import READING, Store

Stamp = tuple[int, int]  # bytes, and time of change in ns
Row = dict[str, Any]


class Records:
    """One folder's. Threads share it: whoever looks first reads."""

    def __init__(self, root: Path) -> None:
        self.keep, self.lock = Store(root), Lock()
        self.stamps: dict[str, Stamp] = {}  # by file
        self.rows: dict[str, Row | None] = {}  # None: it cannot be read
        self.shared: Stamp | None = None
        self.table, self.broken = self.keep.table([]), list[str]()

    def look(self) -> tuple[pd.DataFrame, list[str]]:
        """The readings as `Store.readings` has them, and the names of the records that cannot be read."""
        with self.lock:
            there, shared = stamps(self.keep.path("records")), stamp(self.keep.path("shared.json"))
            if (there, shared) != (self.stamps, self.shared):
                known = self.rows if self.stamps else columnar(self.keep, there)
                self.rows = {n: known[n] if self.same(n, at, known) else self.read(n) for n, at in there.items()}
                self.stamps, self.shared = there, shared
                rows = [row for row in self.rows.values() if row is not None]
                self.table = self.keep.table(sorted(rows, key=lambda r: (r["started"], r["D"])))
                self.broken = sorted(n for n, row in self.rows.items() if row is None)
            return self.table.copy(deep=False), self.broken

    def same(self, name: str, at: Stamp, known: dict[str, Row | None]) -> bool:
        return name in known and self.stamps.get(name, at) == at

    def read(self, name: str) -> Row | None:
        try:
            return store.flat(store.read_record(self.keep.path("records", name)))
        except (UserError, OSError):
            return None


def columnar(keep: Store, there: dict[str, Stamp]) -> dict[str, Row | None]:
    """The rows of readings.parquet whose records did not change since it was written; none where it is not whole."""
    path = keep.path("readings.parquet")
    written = stamp(path)
    try:
        kept = pd.read_parquet(path, columns=READING) if written and path.is_file() else None
    except (OSError, ValueError):  # pyarrow's complaints, a column that an older version had not
        kept = None
    if kept is None or written is None:
        return {}
    rows: list[Row] = kept.to_dict("records")  # type: ignore[assignment]
    named = {f"{row['fingerprint']}.json": row for row in rows}
    return {n: row for n, row in named.items() if n in there and there[n][1] <= written[1]}


def stamps(folder: Path) -> dict[str, Stamp]:
    """The JSON files of a folder; none where there is no folder."""
    try:
        found = [(e.name, e.stat()) for e in os.scandir(folder) if e.name.endswith(".json")]
    except OSError:
        return {}
    return {name: (s.st_size, s.st_mtime_ns) for name, s in found}


def stamp(path: Path) -> Stamp | None:
    """A file's size and time of change; None where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
