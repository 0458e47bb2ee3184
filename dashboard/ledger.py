"""A study's ledger: its trials with what they cost, the attempts at them, where they were measured, and who did what.

The commands' own functions, read as in `load`: nothing is written, all is cached, and what cannot be read is left out.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import load
from dashboard.records import stamp
from tunnel import sampler
from tunnel.answers import champions
from tunnel.folder import audit, environment
from tunnel.folder.chain import AUDIT, FORECASTS
from tunnel.folder.store import Store
from tunnel.run import fingerprint
from tunnel.study import Study
from tunnel.sweeps import attempts, status
from tunnel.sweeps.attempts import IDLE, Span

ATTEMPT = ["session", "stage", "trial", "state", "seconds", "trained", "when", "workers"]
HELD = ["stage", "state", "spans", "seconds", "cost"]
AND = ", "  # between the hosts of a trial
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a cell that begins so is run by spreadsheets


@dataclass(frozen=True)
class Ledger:
    trials: pd.DataFrame  # one row a trial, whatever became of it; `host` holds all of them
    attempts: pd.DataFrame  # `attempts.Span`s, open ones included
    held: pd.DataFrame  # by stage and state: spans, device seconds, money


def read(seen: load.Opened) -> Ledger:
    """A study's ledger as it is now; its tables are empty where the folder cannot say."""
    known = (stamp(seen.root / n) for n in ("attempts.jsonl", "progress.json"))
    return ledger_at(str(seen.root), (*seen.at, load.asks(seen.root), *known))


@st.cache_data(max_entries=32, show_spinner="Adding up …")
def ledger_at(root: str, at: tuple[load.Stamp, ...]) -> Ledger:
    readings = load.records(root).look()[0]
    try:
        asked = load.asked_at(root, at[:2])
    except load.UNREADABLE:
        return Ledger(pd.DataFrame(), pd.DataFrame(columns=ATTEMPT), pd.DataFrame(columns=HELD))
    spans = spans_of(Store(root))
    asked_of = {s.name: list(asks(Path(root), s.name).values()) for s in asked.stage}
    return Ledger(
        trials(asked, asked_of, readings, spans),
        pd.DataFrame([asdict(s) for s in spans], columns=ATTEMPT),
        held(asked, readings, spans),
    )


def spans_of(keep: Store) -> list[Span]:
    """All spans; only the closed ones where a driver's progress cannot be read."""
    try:
        return attempts.spans(keep)
    except load.UNREADABLE:
        pass
    try:
        return attempts.closed(keep)
    except load.UNREADABLE:
        return []


def asks(root: Path, stage: str) -> dict[int, dict[str, Any]]:
    """A stage's trials as they were asked, by number; nobody may change them."""
    return asks_at(str(root), stage, load.asks(root))


@st.cache_resource(max_entries=load.FOLDERS, show_spinner=False)
def asks_at(root: str, stage: str, at: load.Stamp) -> dict[int, dict[str, Any]]:
    return {t["number"]: t for t in asks_of(Path(root), stage)}


def asks_of(root: Path, stage: str) -> list[dict[str, Any]]:
    database = load.asks(root)
    if database is None or not database[0]:
        return []  # being created: opening it would write its tables
    try:
        return sampler.states(root, stage)
    except load.UNREADABLE:
        return []


def held(asked: Study, readings: pd.DataFrame, spans: Sequence[Span]) -> pd.DataFrame:
    """`tunnel status`'s bill, stage by stage."""
    proxies, rows = status.proxies_of(readings), list[dict[str, Any]]()
    for stage in dict.fromkeys([*(s.name for s in asked.stage), *(s.stage for s in spans)]):
        own = proxies[proxies.stage == stage]
        found = status.bill(asked, [s for s in spans if s.stage == stage], own)
        rows += [{"stage": stage, "state": state, **r} for state, r in found.items()]
    return pd.DataFrame(rows, columns=HELD)


def trials(
    asked: Study, asks: dict[str, list[dict[str, Any]]], readings: pd.DataFrame, spans: Iterable[Span]
) -> pd.DataFrame:
    """One row a trial: what it was, what became of it, what it took.

    `loss` is the last rung's; tokens, FLOPs and seconds are of what it trained itself, and not of what it shares.
    `device_seconds` is what its attempts held; where none were kept, its training.
    """
    table = pd.DataFrame([{"of": stage, "number": t["number"], **t} for stage, own in asks.items() for t in own])
    if not len(table):
        return table
    key = ["of", "number"]
    runs = table[[*key, "runs"]].explode("runs").dropna().merge(readings, left_on="runs", right_on="fingerprint")
    mine = runs[(runs.stage == runs.of) & (runs.trial == runs.number)]
    mine = mine.assign(flops=mine.flops / mine.D * mine.tokens_trained)
    sums = mine.groupby(key)[["tokens_trained", "flops", "seconds"]].sum()
    by = runs.sort_values("D").groupby(key)
    known = by.agg({**dict.fromkeys(["width", "depth", "lr"], "first"), "D": "last", "started": "min"})
    known = known.assign(readings=by.size(), host=by.host.agg(lambda h: AND.join(sorted(set(h)))))
    taken = pd.DataFrame([asdict(s) for s in spans if s.state != IDLE], columns=ATTEMPT)
    taken = taken.dropna(subset="trial").rename(columns={"stage": "of", "trial": "number", "seconds": "held"})
    tried = taken.astype({"number": int}).groupby(key).agg(held=("held", "sum"), attempts=("held", "size"))
    found = table.join(known, on=key).join(sums, on=key).join(tried, on=key)
    given = pd.DataFrame([{k: p.get(k) for k in ("width", "depth", "lr")} for p in table.params], index=table.index)
    found = found.fillna({k: given[k] for k in ("width", "depth", "lr")})
    device = found.of.map({s.name: asked.resources_of(s).devices for s in asked.stage})
    seconds = found.held.fillna(found.seconds * device)
    return pd.DataFrame(
        {
            "stage": found.of,
            "trial": found.number,
            "state": found.state,
            **{k: found[k] for k in ("width", "depth", "lr", "seed", "D")},
            "loss": found.value,
            "readings": found.readings.fillna(0).astype(int),
            "tokens": found.tokens_trained.fillna(0).astype(int),
            "flops": found.flops.fillna(0.0),
            "training_seconds": found.seconds.fillna(0.0),
            "device_seconds": seconds.fillna(0.0),
            "cost": [float(asked.price.cost(s)) for s in seconds.fillna(0.0)],
            "attempts": found.attempts.astype("Int64"),
            "retry_of": found.retry_of,
            "host": found.host,
            "started": found.started,
        }
    )


def sessions(spans: pd.DataFrame) -> pd.DataFrame:
    """One row a session, the newest first: a stage in one driver's life, and how much of it its workers worked."""
    if not len(spans):
        return pd.DataFrame()
    own = spans.assign(
        tries=spans.state != IDLE,
        lost=spans.state.isin(["failed", attempts.INTERRUPTED]),
        busy=spans.seconds.where(spans.state != IDLE, 0.0),
    )
    by = own.groupby(["session", "stage"], sort=False)
    found = by.agg(
        attempts=("tries", "sum"),
        lost=("lost", "sum"),
        workers=("workers", "max"),
        device_seconds=("seconds", "sum"),
        busy=("busy", "sum"),
        ended=("when", "max"),
    )
    found = found.assign(busy=found.busy / found.device_seconds.where(found.device_seconds > 0))
    return found.reset_index().iloc[::-1]


def hosts(readings: pd.DataFrame) -> pd.DataFrame:
    """One row a host: what it measured, how long it trained, and at what pace."""
    if not len(readings):
        return pd.DataFrame()
    own = readings.assign(
        trained=readings.flops / readings.D * readings.tokens_trained, diverged=readings.status == "diverged"
    )
    by = own.groupby("host", sort=False)
    found = by.agg(
        readings=("host", "size"),
        diverged=("diverged", "sum"),
        seconds=("seconds", "sum"),
        trained=("trained", "sum"),
        first=("started", "min"),
        last=("started", "max"),
    )
    pace = found.trained / found.seconds.where(found.seconds > 0)
    return found.assign(pace=pace).drop(columns="trained").sort_values("seconds", ascending=False).reset_index()


# who did what


@dataclass(frozen=True)
class Deeds:
    """The audit's lines, oldest first, `tunnel audit verify`'s word on it, and what else it takes to believe them."""

    lines: list[dict[str, Any]]
    verified: dict[str, Any] | None  # None where it cannot be read, and `problem` says why
    environments: pd.DataFrame
    promotions: list[dict[str, Any]]  # of the champions' file beside the study
    champion: int | None  # the number of the promotion that holds now
    problem: str = ""


def deeds(root: Path) -> Deeds:
    """Who did what to a study, and what became of the champion beside it."""
    file = champions.history(champion_file(root))
    at = (stamp(root / AUDIT), stamp(root / FORECASTS), load.tree_stamp(root / environment.FOLDER), stamp(file))
    return deeds_at(str(root), at)


@st.cache_data(max_entries=load.KEPT, show_spinner=False)
def deeds_at(root: str, at: tuple[load.Stamp, ...]) -> Deeds:
    folder, problems = Path(root), list[str]()
    lines, verified, promoted, champion = list[dict[str, Any]](), None, dict[int, dict[str, Any]](), None
    try:
        lines, verified = audit.shown(folder)["lines"], audit.verified(folder)
    except load.UNREADABLE as e:
        problems.append(f"{AUDIT}: {load.said(e)}")
    try:
        promoted, now = champions.promotions(champion_file(folder)), champions.current(champion_file(folder))
        champion = now["number"] if now else None
    except load.UNREADABLE as e:
        problems.append(load.said(e))
    kept = pd.DataFrame([{"hash": fingerprint(e), **e} for e in environment.all_kept(folder)])
    return Deeds(lines, verified, kept, list(promoted.values()), champion, "; ".join(problems))


def champion_file(root: Path) -> Path:
    """The champions' file beside a study, where `tunnel promote` keeps it unless it is told otherwise."""
    return root.parent / champions.FILE.name


# to take away


def csv(table: pd.DataFrame) -> bytes:
    """As CSV, with no cell that a spreadsheet would run."""
    texts = table.select_dtypes(exclude="number").columns
    safe = {k: table[k].map(lambda v: f"'{v}" if isinstance(v, str) and v.startswith(FORMULA) else v) for k in texts}
    return table.assign(**safe).to_csv(index=False).encode()


def parquet(table: pd.DataFrame) -> bytes:
    packed = io.BytesIO()
    table.to_parquet(packed, index=False)
    return packed.getvalue()
