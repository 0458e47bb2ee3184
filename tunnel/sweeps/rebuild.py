"""What was asked, found again in what was measured: for a database that is corrupt, was lost, or is an old copy.

A list, and a sampler that learns nothing, ask the same again whenever they are asked, and their records answer. The
candidates of one that learns are read back from the records, up to rounding, and asked anew: the same runs answer.
"""

from __future__ import annotations

import logging
import math
import os
import sqlite3
from collections.abc import Collection, Iterable
from contextlib import closing
from typing import Any

from tunnel import plan
from tunnel.errors import LONGEST_VALUE
from tunnel.folder import database
from tunnel.folder.store import Store, flat
from tunnel.folder.trouble import behind, sqlite_code
from tunnel.proposals import LEARNING
from tunnel.run import Record
from tunnel.sampler import Runs, key, states
from tunnel.space import Choice, Range, Scalar
from tunnel.study import Stage, Study

log = logging.getLogger(__name__)
ELSEWHERE = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL)  # the fault is not the database's
BESIDE = ("", "-journal", "-wal", "-shm")  # SQLite would play an old journal back into a new database


def mended(keep: Store, stages: Iterable[str]) -> str | None:
    """Moves a corrupt optuna.db aside, and says so; returns its new name. Only for the one that holds the study."""
    path = keep.path(database.SQLITE)
    why = unreadable(keep, stages) if path.exists() else None
    if why is None:
        return None
    number = len(list(keep.root.glob(f"{path.name}.corrupt-*[0-9]"))) + 1
    aside = path.with_name(f"{path.name}.corrupt-{number}")
    for end in BESIDE:
        if (beside := path.with_name(path.name + end)).exists():
            os.replace(beside, aside.with_name(aside.name + end))
    log.warning("%s is corrupt (%s): kept as %s; a new one is filled from the records", path, why, aside.name)
    return aside.name


def unreadable(keep: Store, stages: Iterable[str]) -> str | None:
    """Why the database cannot be read: its structure is broken, or Optuna cannot make trials of it; None where it can.

    Raises what it gets where it is locked, of another version, or on a disk that fails.
    """
    try:
        with closing(sqlite3.connect(keep.path(database.SQLITE), timeout=database.WAIT_SECONDS)) as db:
            db.text_factory = bytes
            (found,) = db.execute("PRAGMA integrity_check(1)").fetchone()
        if found != b"ok":
            return found.decode(errors="replace").splitlines()[-1]
        for stage in stages:
            states(keep.root, stage)
    except Exception as e:
        broken = isinstance(e, ValueError) or any(isinstance(b, sqlite3.Error) for b in behind(e))  # no JSON, no UTF-8
        if not broken or sqlite_code(e) in ELSEWHERE:
            raise
        return " ".join(str(e.__cause__ or e).split())[:LONGEST_VALUE]
    return None


def lost(asked: Study, stage: Stage, keep: Store, known: Collection[str], runs: Runs) -> list[dict[str, Scalar]]:
    """A stage's measured candidates that its database does not know, in the order in which they were measured.

    `known`: the fingerprints of all that it asked; `runs`: what is planned of a candidate at a seed.
    """
    if not stage.searches or stage.sampler.name not in LEARNING:
        return []
    names = (p.stem for p in keep.path("records").glob("*.json"))
    unknown = [r for fp in names if fp not in known and (r := keep.record(fp)) is not None]
    shared = set(keep.shared().get(stage.name, ()))
    trunks: dict[str, list[Record]] = {}
    for r in sorted(unknown, key=lambda r: (r.started, r.D)):
        if r.stage == stage.name or r.fingerprint_of in shared:
            trunks.setdefault(r.run.trunk.until(0).fingerprint, []).append(r)
    found: dict[Any, tuple[dict[str, Scalar], set[int]]] = {}
    for records in trunks.values():
        params, seed = candidate(asked, stage, records), records[0].run.trunk.seed - asked.seed
        if {r.fingerprint_of for r in records} <= {r.fingerprint for r in runs(params, seed).runs}:
            found.setdefault(key(params), (params, set()))[1].add(seed)
    if found:
        log.warning("stage %s: %d candidates are taken from its records", stage.name, len(found))
    per = len(stage.budget.seeds)  # `pareto` asks for a candidate again at other seeds, as another one
    return [params for params, seeds in found.values() for _ in range(math.ceil(len(seeds) / per))]


def candidate(asked: Study, stage: Stage, records: list[Record]) -> dict[str, Scalar]:
    """The inverse of `plan.trial`, up to rounding: what was asked for these readings of one trunk."""
    row = flat(max(records, key=lambda r: r.D))
    shape = records[0].run.trunk.shape
    shortest = min(plan.lengths(asked, stage, shape, row))
    fractions = {"warmup": row["warmup"] / shortest, "decay": decay(records)}
    fractions["upcycle_at"] = row["upcycle_at"] / shortest
    return {name: within(axis, row.get(name, 0.0), fractions.get(name)) for name, axis in stage.axes.items()}


def decay(records: list[Record]) -> float:
    """A fraction that rounds to every reading's decay."""
    low, high = 0.0, 1.0
    for r in records:
        half = r.run.trunk.settings.batch_tokens / 2
        low, high = max(low, (r.run.decay_tokens - half) / r.D), min(high, (r.run.decay_tokens + half) / r.D)
    return (low + high) / 2


def within(axis: Range | Choice, value: Scalar, fraction: float | None) -> Scalar:
    """A value on its axis; a length as a fraction, unless the axis is in tokens."""
    if isinstance(axis, Choice) and fraction is not None:
        return min(axis.values, key=lambda v: abs(float(v) - (float(value) if float(v) >= 1 else fraction)))
    if isinstance(axis, Choice) or isinstance(value, str):
        return value
    if fraction is not None and axis.high < 1:
        value = fraction
    nearest = min(max(value, axis.low), axis.high)
    return int(nearest) if isinstance(value, int) else nearest
