"""attempts.jsonl: what a study's sweeps held of the devices, a line per span; append-only, the driver its only writer.

A span is a trial's from its start to its end, or that of the workers who had none (`idle`). Spans that are open lie in
progress.json, which is written every second; what a killed driver left there is closed by the next one.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import FiniteFloat, TypeAdapter, ValidationError

from tunnel.folder import store
from tunnel.folder.store import Store
from tunnel.study import Study

DONE = ("complete", "pruned", "diverged")
IDLE = "idle"
INTERRUPTED = "interrupted"  # the driver stopped, or died; what the trial had trained is gone on with


@dataclass(frozen=True)
class Span:
    """Device seconds: wall time × the devices that a worker takes, shared by the trials of a hand."""

    session: str  # one stage in one driver's life; its idle span closes it
    stage: str
    trial: int | None
    state: str  # complete | pruned | diverged | failed | interrupted | idle, and running where it is open
    seconds: FiniteFloat
    trained: FiniteFloat = (
        0.0  # seconds of the records that it wrote, as they say; a resumed run's hold those before, too
    )
    when: str = ""  # its end, UTC
    workers: int = 0  # of an idle span: how many there were


SPAN = TypeAdapter(Span)


def closed(keep: Store) -> list[Span]:
    """The file's spans, oldest first; a line that a dying disk or driver tore is passed over."""
    path = keep.path("attempts.jsonl")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return [s for s in map(parsed, lines) if s is not None]


def spans(keep: Store) -> list[Span]:
    """All spans, those of a driver at work, or dead, included."""
    done = closed(keep)
    held = (store.read_json(keep.path("progress.json")) or {}).get("held", [])
    ended = {s.session for s in done if s.state == IDLE}
    known = {(s.session, s.trial) for s in done}
    left = [s for s in map(span_of, held) if s is not None]
    return done + [s for s in left if s.session not in ended and (s.session, s.trial) not in known]


def settle(keep: Store) -> None:
    """Closes what a dead driver left open; for the one that holds the study."""
    left = spans(keep)[len(closed(keep)) :]
    append(keep, [Span(**{**asdict(s), "state": s.state if s.state == IDLE else INTERRUPTED}) for s in left])


def append(keep: Store, new: Iterable[Span]) -> None:
    """Adds lines, in one write: a kill tears none but the last."""
    text = "".join(json.dumps({**asdict(s), "when": s.when or store.now()}, allow_nan=False) + "\n" for s in new)
    if not text:
        return
    path: Path = keep.path("attempts.jsonl")
    with open(path, "ab+") as f:
        if f.tell() and os.pread(f.fileno(), 1, f.tell() - 1) != b"\n":
            text = "\n" + text  # after a torn line
        f.write(text.encode())


def parsed(line: str) -> Span | None:
    try:
        return span_of(json.loads(line))
    except ValueError:
        return None


def span_of(found: Any) -> Span | None:
    try:
        return SPAN.validate_python(found)
    except ValidationError:
        return None


def earlier(asked: Study, done: Iterable[Span], proxies: pd.DataFrame) -> float:
    """Device seconds of the records that no span tells of: they are older than the file."""
    told: dict[str, float] = defaultdict(float)
    for span in done:
        told[span.stage] += span.trained
    if not len(proxies):
        return 0.0
    devices = {s.name: asked.resources_of(s).devices for s in asked.stage}
    recorded = proxies.groupby("stage").seconds.sum().items()
    return sum(max(float(s) - told[str(stage)], 0.0) * devices.get(str(stage), 1.0) for stage, s in recorded)


def beside(done: Iterable[Span]) -> tuple[int, float]:
    """How many whole trials there were, and the device seconds that they took beside their training."""
    whole = [s for s in done if s.state in DONE]
    return len(whole), sum(max(s.seconds - s.trained, 0.0) for s in whole)


class Meter:
    """One stage in this driver's life: who holds the workers, by the monotonic clock, whatever the day jumps to."""

    def __init__(self, stage: str, devices: float) -> None:
        self.stage, self.devices, self.session = stage, devices, secrets.token_hex(6)
        self.hands: list[set[int]] = []  # the trials of each worker at work
        self.held: dict[int, float] = {}  # device seconds by trial
        self.trained: dict[int, float] = {}  # seconds of their new records
        self.idle, self.workers, self.at = 0.0, 0, time.monotonic()

    def tick(self) -> None:
        """Accounts for the time since the last tick."""
        clock = time.monotonic()
        passed, self.at = (clock - self.at) * self.devices, clock
        for hand in self.hands:
            for number in hand:
                self.held[number] += passed / len(hand)
        self.idle += passed * (self.workers - len(self.hands))

    @property
    def seconds(self) -> float:
        """Device seconds of what is not ended."""
        return sum(self.held.values()) + self.idle

    def handed(self, numbers: Collection[int]) -> None:
        """A worker starts with these trials; one of a worker that died may be among them, again."""
        self.tick()
        self.hands = [left for hand in self.hands if (left := hand - set(numbers))] + [set(numbers)]
        self.held |= {n: self.held.get(n, 0.0) for n in numbers}
        self.workers = max(self.workers, len(self.hands))

    def measured(self, number: int, seconds: float) -> None:
        """A trial wrote a record of so many seconds."""
        self.trained[number] = self.trained.get(number, 0.0) + seconds

    def ended(self, number: int, state: str) -> Span:
        self.tick()
        span = self.span(number, state)
        self.hands = [left for hand in self.hands if (left := hand - {number})]
        self.held.pop(number, None)
        self.trained.pop(number, None)
        return span

    def open(self, state: str) -> list[Span]:
        """The spans of what is not ended, with the idle one last."""
        self.tick()
        idle = Span(self.session, self.stage, None, IDLE, self.idle, workers=self.workers)
        return [*(self.span(n, state) for n in self.held), idle]

    def span(self, number: int, state: str) -> Span:
        return Span(self.session, self.stage, number, state, self.held.get(number, 0.0), self.trained.get(number, 0.0))
