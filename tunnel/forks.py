"""One trial: a trunk is trained once, and a decay is forked off it for every reading.

A fork starts from the trunk's whole state and leaves it untouched, so that a fork equals the same run from scratch.
What was measured is not measured again; what was interrupted goes on from the last checkpoint.
"""

from __future__ import annotations

import math
import platform
import socket
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

from tunnel import families, store
from tunnel.data import Corpus
from tunnel.families import Grown
from tunnel.run import Record, RunSpec, Trial
from tunnel.schedule import warmup_multiplier
from tunnel.store import Store

SAVE_SECONDS = 60.0  # at most this much training is lost to a kill
SLICE_SECONDS = 2.0  # a slice's least length; a long run reports every 2% of what it has run
RECORDED_VERSIONS = ("torch", "transformers", "optuna", "ray", "numpy")


@dataclass(frozen=True)
class Progress:
    """Where a trial is, between slices."""

    phase: Literal["trunk", "decay"]
    tokens: int  # consumed by the model that trains
    loss: float | None  # of the last steps, on training data


Event = Progress | Record


def grow(trial: Trial, keep: Store, corpus: Corpus | None) -> Iterator[Event]:
    """Trains a trial, a slice at a time; yields its progress, and a Record per run, shortest first."""
    work = Work(trial, keep, corpus)
    for run in trial.runs:
        recorded = keep.record(run.fingerprint)
        if recorded is not None:
            yield recorded
            continue
        if work.dead_at is None:
            yield from work.trunk(run.decay_start)
        loss = None
        if work.dead_at is None:
            loss = yield from work.decay(run)
        yield work.measured(run, loss)


class Work:
    """One trial being trained: its model, where its trunk is, what was trained and how long it took."""

    def __init__(self, trial: Trial, keep: Store, corpus: Corpus | None) -> None:
        self.trial, self.keep, self.corpus = trial, keep, corpus
        self.family = families.load(trial.trunk.family)
        self.name, self.batch = trial.trunk.fingerprint, trial.trunk.settings.batch_tokens
        self.grown: Grown | None = None
        self.trained = 0  # tokens since the last record
        self.started, self.clock = store.now(), time.monotonic()
        self.saved_at, self.sliced_at, self.begun = self.clock, self.clock, self.clock
        self.rolling: int | None = None  # tokens of a checkpoint that is no fork point
        self.dead_at: int | None = None  # tokens at which the trunk diverged

    def on_trunk(self, at: int) -> Grown:
        """The model on its trunk, where the last fork or an earlier process left it, at most `at` tokens in."""
        kept = self.keep.load_state(self.name, at)
        if self.grown is None or kept is None:
            self.grown = self.family.grown(self.trial.trunk, self.corpus)
        if kept is not None:
            self.grown.restore(*kept)
        return self.grown

    def trunk(self, until: int) -> Iterator[Progress]:
        """Trains warmup and stable up to a fork point, and keeps the state there."""
        grown = self.on_trunk(until)
        since, warmup = grown.tokens, self.trial.trunk.settings.warmup
        while grown.tokens < until and self.dead_at is None:
            if not grown.step(warmup_multiplier(grown.tokens, self.batch, warmup)):
                self.dead_at = grown.tokens
            self.trained += self.batch
            if self.due_to_save():
                self.roll(grown)
            if self.due_to_report():
                self.keep.write_curve(self.name, grown.rows, since)
                yield progress("trunk", grown)
        if grown.rows:
            self.keep.write_curve(self.name, grown.rows, since)
        if self.dead_at is None:
            self.keep.save_state(self.name, grown.tokens, *grown.state())
            self.drop_rolling()

    def decay(self, run: RunSpec) -> Generator[Progress, None, float | None]:
        """Trains the decay of one run off the trunk; returns its held-out loss, None where it diverged."""
        grown = self.grown
        assert grown is not None
        assert grown.tokens == run.decay_start
        grown.rows.clear()
        alive = True
        while alive and grown.tokens < run.tokens:
            alive = grown.step(run.multiplier(grown.tokens))
            self.trained += self.batch
            if self.due_to_report():
                self.keep.write_curve(run.fingerprint, grown.rows)
                yield progress("decay", grown)
        self.keep.write_curve(run.fingerprint, grown.rows)
        loss = grown.evaluate() if alive else math.inf
        return loss if math.isfinite(loss) else None

    def measured(self, run: RunSpec, loss: float | None) -> Record:
        """Writes and returns the record of a run."""
        trunk, s = run.trunk, run.trunk.settings
        n = self.family.count(trunk.shape, trunk.body)
        bytes_per_token = self.corpus.bytes_per_token if self.corpus is not None else 1.0
        clock = time.monotonic()
        record = Record(
            fingerprint_of=run.fingerprint,
            run=run,
            stage=self.trial.stage,
            trial=self.trial.number,
            status="diverged" if loss is None else "complete",
            N=n,
            D=run.tokens,
            C=6.0 * n * run.tokens,
            flops=self.family.flops_per_token(trunk.shape, trunk.body) * run.tokens,
            loss=loss,
            bpb=None if loss is None else loss / math.log(2) / bytes_per_token,
            tokens_trained=self.trained,
            diverged_at=(self.dead_at or self.grown.tokens) if loss is None and self.grown is not None else None,
            tau=s.batch_tokens / (s.lr * s.weight_decay * run.tokens) if s.weight_decay else None,
            started=self.started,
            seconds=clock - self.clock,
            host=socket.gethostname(),
            versions=versions(),
        )
        self.keep.write_record(record)
        self.trained, self.started, self.clock = 0, store.now(), clock
        return record

    def due_to_save(self) -> bool:
        return time.monotonic() - self.saved_at > SAVE_SECONDS

    def due_to_report(self) -> bool:
        clock = time.monotonic()
        due = clock - self.sliced_at > max(SLICE_SECONDS, 0.02 * (clock - self.begun))
        if due:
            self.sliced_at = clock
        return due

    def roll(self, grown: Grown) -> None:
        """Keeps the state between fork points, and only the last one of these."""
        self.keep.save_state(self.name, grown.tokens, *grown.state())
        self.drop_rolling()
        self.rolling, self.saved_at = grown.tokens, time.monotonic()

    def drop_rolling(self) -> None:
        if self.rolling is not None and self.rolling not in {r.decay_start for r in self.trial.runs}:
            self.keep.forget_state(self.name, self.rolling)
        self.rolling = None


def progress(phase: Literal["trunk", "decay"], grown: Grown) -> Progress:
    return Progress(phase, grown.tokens, grown.rows[-1][1] if grown.rows else None)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in RECORDED_VERSIONS:
        try:
            found[name] = version(name)
        except ImportError:  # a worker need not have them all
            continue
    return found
