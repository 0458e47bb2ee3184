"""A folder's records as a table that follows them: each is read once, and at first the columns that a sweep left.

Every look is one at every file, in a folder of few. In one of many it is that now and then, and between only at the
folder's own time of change: a record is written once, and by a rename.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from threading import Lock
from typing import Any

import pandas as pd

from tunnel.errors import UserError
from tunnel.folder import store
from tunnel.folder.store import ON, READING, Store
from tunnel.space import MIX

Stamp = tuple[int, int]  # bytes, and time of change in ns
FEW = 5_000  # records whose files are all looked at, each time: 0.03 s  *measured here*
AGAIN = 300.0  # seconds between such looks at more, which take 7 µs a file  *assumed*
BY_SOURCE = (f"{MIX}.", ON)  # how the columns begin that only studies of several sources have
RACY = 1_000_000_000  # ns within which two changes of a folder may have one time  *assumed*


class Records:
    """One folder's. Threads share it: whoever looks first reads."""

    def __init__(self, root: Path) -> None:
        self.keep, self.lock = Store(root), Lock()
        self.frame = pd.DataFrame(columns=READING)  # of the records that can be read, by fingerprint
        self.bad = set[str]()  # names of those that cannot
        self.stamps = dict[str, Stamp]()  # of the files that were looked at, by name
        self.written = 0  # when the columns were that the table began with
        self.seen: tuple[int | None, Stamp | None] | None = None  # the folder's state that the table is of
        self.looked = time.monotonic()
        self.table, self.broken, self.at = self.keep.table([]), list[str](), 0

    def look(self) -> tuple[pd.DataFrame, list[str]]:
        """The readings as `Store.readings` has them, and the names of the records that cannot be read.

        `at` is another number wherever these are others.
        """
        with self.lock:
            folder, shared = self.keep.path("records"), stamp(self.keep.path("shared.json"))
            changed = folder_time(folder)
            due = time.monotonic() - self.looked > AGAIN
            quiet = changed is not None and time.time_ns() - changed > RACY and self.seen == (changed, shared)
            if len(self.frame) <= FEW or due or not quiet:
                before = (self.frame, self.bad)
                self.follow(folder, due)
                if self.frame is not before[0] or self.bad != before[1] or (self.seen or (0, 0))[1] != shared:
                    self.table, self.broken = with_shared(self.frame, self.keep), sorted(self.bad)
                    self.at = time.monotonic_ns()
                self.seen = (changed, shared)
            return self.table.copy(deep=False), self.broken

    def follow(self, folder: Path, due: bool) -> None:
        """Brings the table up to what the folder holds now."""
        names = records_in(folder)
        first = not len(self.frame) and not self.bad
        if first:
            self.frame, self.written = columnar(self.keep)
        there = dict[str, Stamp]()
        if len(names) <= FEW or due:
            there = stamps(folder)
            names, self.looked = set(there), time.monotonic()
        mine = [f"{fp}.json" for fp in self.frame.fingerprint.tolist()]
        known = {*mine, *self.bad}
        new = {n for n in names if n not in known or (n in there and not self.same(n, there[n]))}
        stay = names - new
        rows = {n: self.read(n) for n in sorted(new)}
        found = [row for row in rows.values() if row is not None]
        if found or known - stay:
            kept = self.frame[[n in stay for n in mine]]
            parts = [p for p in (kept, pd.DataFrame(found)) if len(p)]
            whole = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=READING)
            self.frame = whole.infer_objects().sort_values("fingerprint", ignore_index=True)
        self.bad = (self.bad & stay) | {n for n, row in rows.items() if row is None}
        self.stamps = {n: there.get(n, at) for n, at in self.stamps.items() if n in names} | there

    def same(self, name: str, at: Stamp) -> bool:
        return self.stamps[name] == at if name in self.stamps else at[1] <= self.written

    def read(self, name: str) -> dict[str, Any] | None:
        try:
            return store.flat(store.read_record(self.keep.path("records", name)))
        except (UserError, OSError):
            return None


def columnar(keep: Store) -> tuple[pd.DataFrame, int]:
    """The rows of readings.parquet, and when they were written; none where it is not whole."""
    path = keep.path("readings.parquet")
    written = stamp(path)
    try:
        kept = pd.read_parquet(path) if written and path.is_file() else None
    except (OSError, ValueError):  # pyarrow's complaints
        kept = None
    if kept is None or written is None or not set(READING) <= set(kept.columns):  # an older version's
        return pd.DataFrame(columns=READING), 0
    several = [k for k in kept.columns if k.startswith(BY_SOURCE)]
    return kept[[*READING, *several]].sort_values("fingerprint", ignore_index=True), written[1]


def with_shared(frame: pd.DataFrame, keep: Store) -> pd.DataFrame:
    """As `Store.table` has them: a source that a decay had none of as 0, and the stages that share a record."""
    mixes = [k for k in frame.columns if k.startswith(f"{MIX}.")]
    frame = frame.assign(**frame[mixes].fillna(0.0)) if mixes else frame
    asked = {stage: frozenset(fps) for stage, fps in keep.shared().items()}
    if not asked:
        return frame.assign(shared="")
    return frame.assign(shared=[" ".join(s for s in asked if fp in asked[s]) for fp in frame.fingerprint])


def records_in(folder: Path) -> set[str]:
    """The names of a folder's JSON files; none where there is no folder."""
    try:
        with os.scandir(folder) as found:
            return {e.name for e in found if e.name.endswith(".json")}
    except OSError:
        return set()


def stamps(folder: Path) -> dict[str, Stamp]:
    """The JSON files of a folder; none where there is no folder."""
    try:
        with os.scandir(folder) as found:
            there = [(e.name, e.stat()) for e in found if e.name.endswith(".json")]
    except OSError:
        return {}
    return {name: (s.st_size, s.st_mtime_ns) for name, s in there}


def folder_time(folder: Path) -> int | None:
    """When a file was last put into a folder, or taken out, in ns; None where there is no folder."""
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return None


def stamp(path: Path) -> Stamp | None:
    """A file's size and time of change; None where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
