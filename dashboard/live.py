"""What goes on in a study now: states, rungs, running trials and their losses, workers, what diverged, last events.

Read as in `load`: nothing is written, what does not change is cached, and what cannot be read is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import ledger, load
from dashboard.address import trial_of
from dashboard.figures import shape_name
from dashboard.records import stamp
from dashboard.style import nats, short
from tunnel.folder.store import Store
from tunnel.plan import settings
from tunnel.sweeps.attempts import DONE, IDLE
from tunnel.sweeps.status import proxies_of

STATES = ("planned", *DONE, "failed", "running")
TRACE = 60  # losses of a sparkline  *assumed*
TRACED = 1000  # losses of a running trial that are remembered, one a look  *assumed*
EVENTS = 30  # that are listed
LONG = 30.0  # seconds of silence after which a sweep that should speak each second is called silent  *assumed*


# states and rungs


def states(root: Path, status: dict[str, Any]) -> pd.DataFrame:
    """Trials by state, one row a stage: those of `STATES`, and `done`, the share of the planned ones."""
    rows = []
    for name, own in status["stages"].items():
        counts = counted(ledger.asks(root, name))
        done = min(own["done"] / own["planned"], 1.0) if own["planned"] else 0.0
        rows.append({"stage": name, "done": done, "planned": own["planned"], **{s: counts[s] for s in STATES[1:]}})
    return pd.DataFrame(rows, columns=["stage", "done", *STATES])


def counted(asks: Mapping[int, Mapping[str, Any]]) -> Counter[str]:
    """A stage's trials by state; one that was tried again counts once, as it ended last."""
    again = {t["retry_of"] for t in asks.values()}
    return Counter(t["state"] for number, t in asks.items() if number not in again)


def rungs(readings: pd.DataFrame) -> pd.DataFrame:
    """Readings by stage, shape and rung: finished, diverged, the best loss and its lr."""
    rows = proxies_of(readings)
    if not len(rows):
        return pd.DataFrame()
    key = ["stage", "width", "depth", "D"]
    found = rows.groupby(key, sort=False).agg(
        finished=("status", lambda s: int((s == "complete").sum())),
        diverged=("status", lambda s: int((s == "diverged").sum())),
        best=("loss", "min"),
    )
    done = rows[rows.loss.notna()]
    lr = done.loc[done.groupby(key).loss.idxmin()].set_index(key).lr if len(done) else pd.Series(dtype=float)
    found = found.assign(lr=lr).reset_index()
    shapes = [shape_name(w, d) for w, d in zip(found.width, found.depth, strict=True)]
    order = rows.groupby("stage").started.min().rank()  # the study's own
    found = found.assign(shape=shapes, at=found.stage.map(order)).sort_values(["at", "width", "depth", "D"])
    return found[["stage", "shape", "D", "finished", "diverged", "best", "lr"]].reset_index(drop=True)


# running trials


class Traces:
    """The losses that were seen of running trials, by stage and number; forgotten when they no longer run."""

    def __init__(self) -> None:
        self.lock, self.seen = Lock(), dict[tuple[str, str, int], dict[float, float]]()

    def look(self, root: Path, progress: dict[str, Any]) -> None:
        stage, name = progress["stage"], str(root)
        with self.lock:
            for number, r in progress["running"].items():
                if r["loss"] is not None:
                    mine = self.seen.setdefault((name, stage, int(number)), {})
                    mine[float(r["tokens"])] = float(r["loss"])
                    while len(mine) > TRACED:
                        mine.pop(next(iter(mine)))
            running = {(name, stage, int(n)) for n in progress["running"]}
            self.seen = {k: v for k, v in self.seen.items() if k[0] != name or k in running}

    def of(self, root: Path, stage: str, number: int) -> dict[float, float]:
        with self.lock:
            return dict(self.seen.get((str(root), stage, number), {}))


@st.cache_resource(show_spinner=False)
def traces() -> Traces:
    return Traces()


def trace(root: Path, stage: str, number: int, trunk: str | None) -> pd.DataFrame:
    """A running trial's training losses so far by tokens: its trunk's curve as it was kept, and what was seen since."""
    seen = traces().of(root, stage, number)
    kept = load.curve(root, trunk) if trunk else None
    before = kept[["tokens", "loss"]] if kept is not None else pd.DataFrame({"tokens": [], "loss": []})
    last = float(before.tokens.max()) if len(before) else -1.0
    after = pd.DataFrame([(t, x) for t, x in sorted(seen.items()) if t > last], columns=["tokens", "loss"])
    return pd.concat([before, after], ignore_index=True).dropna() if len(before) else after


def running(root: Path, progress: dict[str, Any]) -> pd.DataFrame:
    """The trials in progress, one a row: what, phase, share done, loss, a sparkline of it, device seconds held."""
    traces().look(root, progress)
    stage = progress["stage"]
    held = {s.get("trial"): s.get("seconds") for s in progress.get("held", []) if isinstance(s, dict)}
    rows = []
    for number, r in progress["running"].items():
        curve = trace(root, stage, int(number), r.get("trunk"))
        rows.append(
            {
                "trial": trial_of(stage, int(number)),
                "what": r["what"],
                "phase": r.get("phase", "starting"),
                "done": min(r["tokens"] / r["of"], 1.0) if r["of"] else 0.0,
                "tokens": f"{short(r['tokens'])} of {short(r['of'])}",
                "loss": r["loss"],
                "falls": list(thinned(curve.loss)),
                "seconds": held.get(int(number)),
            }
        )
    columns = ["trial", "what", "phase", "done", "tokens", "loss", "falls", "seconds"]
    return pd.DataFrame(rows, columns=columns).astype({"loss": float, "seconds": float})


def thinned(losses: pd.Series) -> pd.Series:
    """At most `TRACE` of them, the last included; without the first steps' fall, which would flatten the rest."""
    rest = losses.iloc[len(losses) // 20 :]
    return rest.iloc[:: -max(len(rest) // TRACE, 1)].iloc[::-1]


# workers


def workers(progress: dict[str, Any]) -> tuple[int, int] | None:
    """How many workers there are, and how many of them have trials; None where the sweep does not say."""
    spans = [s for s in progress.get("held", []) if isinstance(s, dict)]
    idle = next((s for s in spans if s.get("state") == IDLE), None)
    return (int(idle.get("workers", 0)), min(len(progress["running"]), int(idle.get("workers", 0)))) if idle else None


# what diverged


def diverged(readings: pd.DataFrame) -> pd.DataFrame:
    """Readings that diverged, the newest first, and why in words."""
    rows = readings[readings.status == "diverged"]
    if not len(rows):
        return pd.DataFrame()
    done = readings[readings.loss.notna()]
    best = done.loc[done.groupby(["width", "depth"]).loss.idxmin()].set_index(["width", "depth"]).lr
    found = [
        {
            "trial": trial_of(r.stage, r.trial),
            "shape": shape_name(r.width, r.depth),
            "lr": r.lr,
            "after": r.diverged_at,
            "why": why(r, best.get((r.width, r.depth))),
            "started": r.started,
        }
        for r in each(rows)
    ]
    table = pd.DataFrame(found).sort_values("started", ascending=False, ignore_index=True)
    return table.drop_duplicates("trial")  # its forks share the trunk that went astray


def each(rows: pd.DataFrame) -> Iterator[Any]:
    """Its rows, with their columns as attributes."""
    return rows.itertuples()


def why(r: Any, best: float | None) -> str:
    """What is known of a divergence: when, and how the settings lie to those that went well."""
    at = r.diverged_at if pd.notna(r.diverged_at) else None
    when = "it is not known when"
    if at is not None:
        phase = "in warmup" if at < r.warmup else "in the stable phase" if at < r.decay_start else "in the decay"
        when = f"{phase}, after {short(at)} of {short(r.D)} tokens"
    told = [when]
    if best:
        ratio = r.lr / best
        near = "close to" if 0.8 < ratio < 1.25 else f"{ratio:.2g} ×"
        told.append(f"at {near} the best lr of its shape")
    if pd.notna(r.clip_rate):
        told.append(f"{r.clip_rate:.0%} of the steps clipped")
    if pd.notna(r.spikes):
        told.append(f"{int(r.spikes)} spikes")
    return "; ".join(told)


# events


def events(root: Path, readings: pd.DataFrame) -> pd.DataFrame:
    """The last things that happened, the newest first: readings, trials that ended, stages that began, commands."""
    at = (stamp(root / "attempts.jsonl"), stamp(root / "audit.jsonl"), stamp(root / "study.resolved.json"))
    found = [*happened(str(root), at), *measured(readings)]
    table = pd.DataFrame(found, columns=["when", "what", "about", "trial"])
    table = table.assign(when=ledger_times(table["when"])).dropna(subset="when")
    return table.sort_values("when", ascending=False, ignore_index=True).iloc[:EVENTS]


def ledger_times(texts: pd.Series) -> pd.Series:
    """UTC times as such; none where a file holds something else."""
    return pd.to_datetime(texts, utc=True, format="ISO8601", errors="coerce")


def measured(readings: pd.DataFrame) -> Iterator[tuple[str, str, str, str]]:
    for r in each(readings.sort_values("started").iloc[-2 * EVENTS :]):
        try:
            ended = datetime.fromisoformat(r.started) + timedelta(seconds=r.seconds)
        except (ValueError, TypeError, OverflowError):
            continue
        shape = f"{shape_name(r.width, r.depth)}, lr {r.lr:.3g}, D {short(r.D)}"
        said = f"loss {nats(r.loss)}" if pd.notna(r.loss) else "diverged"
        yield ended.isoformat(), "reading", f"{shape}: {said}", trial_of(r.stage, r.trial)


@st.cache_data(max_entries=load.KEPT, show_spinner=False)
def happened(root: str, at: tuple[load.Stamp, ...]) -> list[tuple[str, str, str, str]]:
    """What other files than the records tell, the newest `EVENTS` of each kind."""
    folder, found = Path(root), list[tuple[str, str, str, str]]()
    ended = [s for s in ledger.spans_of(Store(folder)) if s.when]
    for s in ended[-EVENTS:]:
        if s.trial is None:
            found.append((s.when, "session ended", f"stage {s.stage}, {s.workers} workers", ""))
        else:
            found.append(
                (s.when, f"trial {s.state}", f"held a device for {s.seconds:.1f} s", trial_of(s.stage, s.trial))
            )
    for e in ledger.deeds(folder).lines[-EVENTS:]:
        found.append((str(e.get("when")), str(e.get("what")), f"by {e.get('user')}@{e.get('host')}", ""))
    resolved = load.part(folder, "study.resolved.json", (), []) or {}
    for name, stage in (resolved.get("stages") or {}).items():
        if isinstance(stage, dict) and stage.get("when"):
            found.append((str(stage["when"]), "stage began", f"{name}: {handed(stage)}", ""))
    return found


def handed(stage: dict[str, Any]) -> str:
    values = settings(stage.get("handed_on") or {})
    told = [f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()]
    return f"was handed {', '.join(told)}" if told else "from the study's own settings"
