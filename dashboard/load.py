"""What the dashboard knows of the disk: a folder's files as values, through the functions that the commands use.

Nothing is written. Every reader is cached by path, size and time of change; what is missing is None or empty, and
what cannot be read is named among `problems` instead of raised: a folder may be half copied, running, or gone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st
from sqlalchemy.exc import SQLAlchemyError

from dashboard.records import Records, folder_time, stamp
from tunnel import sampler, tuned
from tunnel.answers import comparisons, ladder
from tunnel.answers import forecasts as registered
from tunnel.answers import running as targets
from tunnel.errors import UserError
from tunnel.folder import store
from tunnel.folder.store import Store
from tunnel.study import Study
from tunnel.sweeps import sweep

UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, UserError, SQLAlchemyError)
KEPT = 512  # entries of each cache  *assumed*
FOLDERS = 64  # whose records stay in memory: 30 MB at 10,000  *assumed*
DEEP = 3  # folders that are looked through for studies: runs/project/study  *assumed*
FIT = ("minima", "surface", "lr_drift", "laws", "chosen", "holdouts", "forecast", "curve")
RECOMMENDATION = (
    "target",
    "settings",
    "groups",
    "forecast",
    "low",
    "high",
    "formula",
    "cautions",
    "rejected",
    "compute_ratio",
)
CHECK = ("target", "forecast", "low", "high", "measured", "error_percent", "inside")
VERDICT = ("verdict", "reason", "over", "noise", "rules", "compared", "readings_hash")  # of each setting
PENALTY = ("penalty_percent", "penalty_high", "limit_percent", "penalty_noise")
OVER = ("verdict", "reason", *PENALTY, "drift_octaves", "low", "high", "law", "fixed", "minima", "lines")  # of an axis

Stamp = tuple[int, ...] | None


@dataclass(frozen=True)
class Opened:
    """A study's folder as it is now. `problems` names what could not be read."""

    root: Path
    asked: Study | None
    readings: pd.DataFrame
    evidence: dict[str, dict[str, Any]]  # settings handed on, by the stage that handed them
    fit: dict[str, Any] | None
    recommendation: dict[str, Any] | None
    check: dict[str, Any] | None
    verdict: dict[str, dict[str, Any]] | None  # by setting
    at: tuple[Stamp, ...]  # what question and readings were read from
    resting_on: str | None  # what a fit made now would rest on: another one in a file means that the file is old
    problems: tuple[str, ...]

    @property
    def complete(self) -> pd.DataFrame:
        """The proxies' finished readings: the target's is the check's, and never a proxy."""
        r = self.readings
        return r[(r.status == "complete") & ~r.stage.astype(str).str.startswith("target:")]

    @property
    def compares(self) -> bool:
        """Whether the study has no target: it forecasts nothing, and compares what it trained."""
        return self.asked is not None and not self.asked.target


@dataclass(frozen=True)
class Alive:
    """A sweep in progress, by its own word; `running` where its process lives, `age` in seconds since it spoke."""

    progress: dict[str, Any]
    running: bool
    age: float

    @property
    def left(self) -> float | None:
        """Seconds left of this stage at its pace so far; None before there is one."""
        return self.progress["eta_seconds"]

    @property
    def share(self) -> float:
        """How much of this stage's FLOPs are done, in [0, 1]."""
        planned = self.progress["flops"]["planned"]
        return min(self.progress["flops"]["done"] / planned, 1.0) if planned else 0.0


def studies(folder: Path) -> dict[str, Path]:
    """The studies' folders by name, a path from `folder`: itself, or those within `DEEP` folders of it."""
    if (folder / "study.toml").is_file():
        return {folder.name: folder}
    found, level = dict[str, Path](), [folder]
    for _ in range(DEEP):
        inside = [p for each in level for p in folders(each)]
        own = [p for p in inside if (p / "study.toml").is_file()]
        found |= {str(p.relative_to(folder)): p for p in own}
        level = [p for p in inside if p not in set(own)]
    return dict(sorted(found.items()))


def folders(folder: Path) -> list[Path]:
    """Those within a folder that are not hidden; none where it cannot be read."""
    try:
        with os.scandir(folder) as found:
            return [Path(e) for e in found if not e.name.startswith(".") and e.is_dir()]
    except OSError:
        return []


def newest(found: dict[str, Path]) -> str:
    """The study that changed last."""
    return max(found, key=lambda name: folder_time(found[name] / "records") or 0)


def tree_stamp(folder: Path) -> Stamp:
    """How many files a folder holds, their size, and their last change."""
    try:
        found = [e.stat() for e in os.scandir(folder) if e.is_file() and not e.name.startswith(".")]
    except OSError:
        return None
    return len(found), sum(s.st_size for s in found), max((s.st_mtime_ns for s in found), default=0)


# the parts: cached


@st.cache_data(max_entries=KEPT, show_spinner=False)
def json_at(path: str, at: Stamp) -> Any:
    return store.read_json(Path(path))


@st.cache_data(max_entries=KEPT, show_spinner=False)
def asked_at(root: str, at: tuple[Stamp, ...]) -> Study:
    return sweep.frozen(Path(root))[0]


@st.cache_data(max_entries=KEPT, show_spinner=False)
def status_at(root: str, at: tuple[Any, ...]) -> dict[str, Any]:
    asked, keep = sweep.frozen(Path(root))
    return sweep.status(asked, Seen(keep.root))


@st.cache_resource(max_entries=FOLDERS, show_spinner=False)
def records(root: str) -> Records:
    return Records(Path(root))


def looked(root: Path) -> tuple[pd.DataFrame, list[str], Stamp]:
    """A study's readings, the names of the records that cannot be read, and a stamp of both."""
    mine = records(str(root))
    return *mine.look(), (mine.at,)


class Seen(Store):
    """A folder whose readings and curves are known already, for functions that ask for them."""

    def readings(self) -> pd.DataFrame:
        return records(str(self.root)).look()[0]

    def curve(self, name: str) -> pd.DataFrame | None:
        return curve_at(str(self.root), name, stamp(self.path("curves", f"{name}.parquet")))


@st.cache_resource(max_entries=FOLDERS, show_spinner="Reading the ladder's curves …")
def awaited_at(root: str, at: tuple[Stamp, ...]) -> targets.Awaited:
    return targets.awaited(sweep.frozen(Path(root))[0], Seen(root))


@st.cache_data(max_entries=32, show_spinner="Joining the forecasts …")
def forecasts_at(root: str, at: tuple[Stamp, ...]) -> dict[str, Any]:
    return registered.every(Seen(root))


@st.cache_data(max_entries=KEPT, show_spinner="Comparing …")
def comparison_at(root: str, at: tuple[Stamp, ...]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = comparisons.compared(sweep.frozen(Path(root))[0], Seen(Path(root)))["tables"]
    return found


@st.cache_data(max_entries=KEPT, show_spinner=False)
def curve_at(root: str, name: str, at: Stamp) -> pd.DataFrame | None:
    return Store(root).curve(name)


@st.cache_data(max_entries=KEPT, show_spinner=False)
def states_at(root: str, stage: str, at: Stamp) -> dict[str, str]:
    return {run: t["state"] for t in sampler.states(Path(root), stage) for run in t["runs"]}


# the whole


def opened(root: Path) -> Opened:
    """Everything that the pages show of a study, without its curves."""
    problems: list[str] = []
    asked = None
    question = (stamp(root / "study.toml"), stamp(root / "study.resolved.json"))
    try:
        asked = asked_at(str(root), question)
    except UNREADABLE as e:
        problems.append(f"study.toml: {said(e)}")
    readings, broken, measured = looked(root)
    problems += [f"records/{name} is not whole" for name in broken]
    resolved = part(root, "study.resolved.json", ("stages",), problems)
    ladders = [s.name for s in asked.stage if s.kind == "ladder"] if asked else []
    return Opened(
        root=root,
        asked=asked,
        readings=readings,
        evidence=handed_on(asked, resolved),
        fit=part(root, f"fits/{ladders[-1]}.json", FIT, problems) if ladders else None,
        recommendation=part(root, "recommendation.json", RECOMMENDATION, problems),
        check=part(root, "check.json", CHECK, problems),
        verdict=verdict_of(root, problems),
        at=(*question, measured),
        resting_on=resting_at(str(root), (*question, measured)) if asked else None,
        problems=tuple(problems),
    )


def part(root: Path, name: str, needs: tuple[str, ...], problems: list[str]) -> dict[str, Any] | None:
    """A JSON object of the folder with the keys that are shown; None, and a problem, where it is something else."""
    path = root / name
    try:
        found = json_at(str(path), stamp(path))
    except UNREADABLE as e:
        problems.append(f"{name}: {said(e)}")
        return None
    if found is not None and not isinstance(found, dict):
        problems.append(f"{name} is no object")
        return None
    missing = [] if found is None else [k for k in needs if k not in found]
    if missing:
        problems.append(f"{name} lacks {', '.join(missing)}")
        return None
    return found


@st.cache_data(max_entries=KEPT, show_spinner=False)
def resting_at(root: str, at: tuple[Stamp, ...]) -> str | None:
    """What a fit made now would rest on; None where that cannot be said."""
    try:
        return ladder.hash_of(asked_at(root, at[:2]), records(root).look()[0])
    except UNREADABLE:
        return None


def outdated(seen: Opened, found: dict[str, Any]) -> bool:
    """Whether a result rests on something else than the folder as it is now."""
    return seen.resting_on is not None and found.get("readings_hash") not in (None, seen.resting_on)


def newer(seen: Opened, name: str) -> bool:
    """Whether a proxy was read after a file of the folder was written, by the times that the records hold."""
    at, rows = stamp(seen.root / name), seen.complete
    began = pd.to_datetime(rows.started, utc=True, format="ISO8601", errors="coerce")
    ended = began + pd.to_timedelta(rows.seconds.astype(float), unit="s")
    return at is not None and bool((ended > pd.Timestamp(at[1], tz="UTC")).any())


def verdict_of(root: Path, problems: list[str]) -> dict[str, dict[str, Any]] | None:
    """verdict.json, where each of its settings has what is shown."""
    found = part(root, "verdict.json", (), problems)
    try:
        mine = [v for own in (found or {}).values() for v in (own, *own["compared"].values())]
        lacking = {k for own in (found or {}).values() for k in VERDICT if k not in own}
        lacking |= {k for v in mine for over in v["over"].values() for k in OVER if k not in over}
        lacking |= {"names of axes" for v in mine for axis in v["over"] if not axis.isidentifier()}
    except UNREADABLE:
        lacking = {"compared", "over"}
    if lacking:
        problems.append(f"verdict.json lacks {', '.join(sorted(lacking))}; `tunnel verdict` makes it again")
        return None
    return found or None


def handed_on(asked: Study | None, resolved: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Fitted settings by the stage that found them, from what a later stage was handed."""
    found: dict[str, dict[str, Any]] = {}
    for stage in asked.stage if asked else ():
        evidence = ((resolved or {}).get("stages", {}).get(stage.name) or {}).get("evidence", {})
        if len(stage.after) == 1:  # with several, a setting does not say which of them it came from
            found.setdefault(stage.after[0], evidence)
    return found


def comparison(seen: Opened) -> dict[str, dict[str, Any]]:
    """The tables that `tunnel compare` prints, by title; none where the folder cannot say."""
    try:
        return comparison_at(str(seen.root), seen.at)
    except UNREADABLE:
        return {}


def asks(root: Path) -> Stamp:
    """When the asks last changed; on a server, which shows it in no file, when the sweep last wrote beside them."""
    if not (root / "database.json").exists():
        return stamp(root / "optuna.db")
    beside = (stamp(root / name) for name in ("database.json", "progress.json", "readings.parquet"))
    return max((s for s in beside if s), key=lambda s: s[1], default=None)


def status(root: Path) -> dict[str, Any] | None:
    """What `tunnel status` prints; None where the folder cannot say."""
    database = asks(root)
    if database is not None and not database[0]:
        return None  # being created: opening it would write its tables
    names = ("study.toml", "study.resolved.json", "attempts.jsonl")
    at = (database, looked(root)[2], (root / "progress.json").exists(), *(stamp(root / n) for n in names))
    try:
        return status_at(str(root), at)
    except UNREADABLE:
        return None


def forecasts(root: Path) -> tuple[dict[str, Any] | None, str]:
    """What `tunnel check DIR --all` prints; None, and why, where the folder cannot say."""
    at = (stamp(root / registered.FILE), stamp(root / "target.json"), looked(root)[2])
    try:
        return forecasts_at(str(root), at), ""
    except UNREADABLE as e:
        return None, said(e)


def begun(root: Path) -> bool:
    """Whether a target of the study has begun to train."""
    return (root / "target.json").exists()


def target(root: Path) -> tuple[targets.Awaited, dict[str, Any]] | None:
    """The target that has begun, and where it stands (`running.standing`); None before, or where that is not told."""
    names = ("study.toml", "study.resolved.json", "recommendation.json", "target.json", registered.FILE)
    if not begun(root):
        return None
    try:
        found = awaited_at(str(root), (*(stamp(root / n) for n in names), tree_stamp(root / "records")))
        return found, targets.standing(Seen(root), found)
    except (*UNREADABLE, LookupError, ArithmeticError):  # a curve or a forecast of nonsense
        return None


def alive(root: Path) -> Alive | None:
    """The sweep that holds the folder, or that left its progress behind; None where there is neither."""
    try:
        progress = store.read_json(root / "progress.json")
        lock = store.other_driver(root / "driver.lock")
        if not isinstance(progress, dict) or not {"stage", "planned", "finished", "flops", "seconds", "running"} <= set(
            progress
        ):
            return None
        age = (datetime.now(UTC) - datetime.fromisoformat(progress["when"])).total_seconds()
        return Alive(progress, bool(lock) and store.alive(lock or {}), age)
    except UNREADABLE:
        return None


def of_stage(seen: Opened, stage: str) -> pd.DataFrame:
    """A stage's readings, with those that it shares: a record is kept once, under the stage that measured it."""
    return seen.readings[tuned.asked_by(seen.readings, stage)]


def states(root: Path, stage: str) -> dict[str, str]:
    """The states of a stage's trials, by their runs' fingerprints; empty where the folder cannot say."""
    database = asks(root)
    if database is None or not database[0]:
        return {}  # being created: opening it would write its tables
    try:
        return states_at(str(root), stage, database)
    except UNREADABLE:
        return {}


def curve(root: Path, name: str) -> pd.DataFrame | None:
    """A trunk's or a run's curve; None where it was not kept, or is being written."""
    try:
        return curve_at(str(root), name, stamp(root / "curves" / f"{name}.parquet"))
    except UNREADABLE:
        return None


def expert_load(root: Path, fingerprint: str) -> list[list[float]]:
    """By layer, the experts' shares of what a reading's model routed; empty where it has none, or kept none."""
    path = root / "records" / f"{fingerprint}.json"
    try:
        return list((json_at(str(path), stamp(path)).get("stability") or {}).get("expert_load", []))
    except UNREADABLE:
        return []


def said(e: BaseException) -> str:
    text = " ".join(str(e).split())
    return text if len(text) < 160 else text[:157] + "..."
