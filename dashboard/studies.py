"""All studies of a folder as a table: what runs, how far it is, what it cost, and what it found.

A study is summed up once and again when its files change; until that is done for all, a line holds what is quick.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import load, show
from dashboard.records import folder_time, stamp
from tunnel.study import Study
from tunnel.sweeps.status import proxies_of

COLUMNS = {  # of the table; numbers are NaN where there are none
    "study": "str",
    "state": "str",
    "done": "float",  # share of the planned trials
    "left": "float",  # seconds
    "readings": "int",
    "best": "float",
    "forecast": "float",
    "measured": "float",
    "error": "float",  # percent
    "verdict": "str",
    "seconds": "float",  # of devices
    "cost": "float",
    "currency": "str",
    "changed": "float",  # seconds since 1970
    "question": "str",
}
WATCHED = ("study.toml", "study.resolved.json", "attempts.jsonl", "recommendation.json", "check.json", "driver.lock")
Row = dict[str, Any]


class Summaries:
    """The studies that were summed up, and what of."""

    def __init__(self) -> None:
        self.lock, self.known = Lock(), dict[Path, tuple[object, Row]]()

    def look(self, name: str, root: Path, until: float) -> Row:
        """A study's line; after `until` on the monotonic clock only what is known, or quick, and then without state."""
        at = (folder_time(root / "records"), load.asks(root), *(stamp(root / n) for n in WATCHED))
        before = self.known.get(root)
        if before is None or before[0] != at:
            if time.monotonic() > until:
                return {"study": name, **quick(root), "state": ""}
            before = (at, summed(root))
            with self.lock:
                self.known[root] = before
        return {"study": name, **before[1], **now(root, before[1])}


@st.cache_resource(show_spinner=False)
def summaries() -> Summaries:
    return Summaries()


def table(found: Mapping[str, Path], seconds: float = float("inf")) -> pd.DataFrame:
    """One line a study, what runs first, then the last that changed; after `seconds` the rest has no state yet."""
    until, known = time.monotonic() + seconds, summaries()
    rows = [known.look(name, root, until) for name, root in found.items()]
    lines = pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
    return lines.sort_values("changed", ascending=False).sort_values(
        "state", key=lambda s: s != "running", kind="stable", ignore_index=True
    )


def summed(root: Path) -> Row:
    """What the study's files say; the same words and numbers as its own pages."""
    status, readings = load.status(root), proxies_of(load.records(str(root)).look()[0])
    found = quick(root) | {"state": show.state_of(status, None), "readings": int((readings.status == "complete").sum())}
    losses = readings[readings["task"].isna()].loss if "task" in readings else readings.loss  # a task's is another
    found["best"] = float(losses.min()) if found["readings"] else None
    if status:
        t = status["trials"]
        found["done"] = min((t["complete"] + t["pruned"] + t["diverged"]) / max(t["planned"], 1), 1.0)
        found |= {"left": status["eta_seconds"], "seconds": status["seconds"], "cost": float(status["cost"])}
        found["currency"] = status["currency"]
    return found


def quick(root: Path) -> Row:
    """What costs next to nothing: the answers, and the last change."""
    asked = asked_of(root)
    told, check = (load.part(root, f"{n}.json", need, []) for n, need in ANSWERS.items())
    at = [s[1] for n in ("study.toml", *WATCHED) if (s := stamp(root / n))] + [folder_time(root / "records") or 0]
    return {
        "done": None,
        "left": None,
        "readings": 0,
        "forecast": told["forecast"] if told else None,
        "measured": check["measured"] if check else None,
        "error": check["error_percent"] if check else None,
        "verdict": show.verdict(check, told, asked is not None and not asked.target),
        "currency": "",
        "changed": max(at) / 1e9,
        "question": asked.question if asked else "cannot be read",
    }


ANSWERS = {"recommendation": load.RECOMMENDATION, "check": load.CHECK}


def asked_of(root: Path) -> Study | None:
    try:
        return load.asked_at(str(root), (stamp(root / "study.toml"), stamp(root / "study.resolved.json")))
    except load.UNREADABLE:
        return None


def now(root: Path, known: Row) -> Row:
    """What changes by the second while a sweep runs."""
    alive = load.alive(root)
    if alive is None or not alive.running:
        return {"state": "interrupted" if known["state"] == "running" else known["state"], "left": None}
    return {"state": "running", "left": known["left"] if alive.left is None else max(alive.left, known["left"] or 0.0)}
