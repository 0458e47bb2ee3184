"""One trial: a trunk is trained once, and a decay is forked off it for every reading.

A fork starts from the trunk's whole state and leaves it untouched, so that a fork equals the same run from scratch.
What was measured is not measured again; what was interrupted goes on from the last checkpoint.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from tunnel import families
from tunnel.errors import Stopped
from tunnel.families import Arrays, Grown, State
from tunnel.folder import checkpoint, environment, store
from tunnel.folder.store import Store
from tunnel.run import Record, RunSpec, Trial, TrunkSpec
from tunnel.schedule import warmup_multiplier
from tunnel.training.data import Corpus

SAVE_SECONDS = 60.0  # at most this much training is lost to a kill
SAVE_MOST = 3.0  # seconds of these, that a save may take; where it takes longer, saves are as much rarer  *assumed*
LOOK_SECONDS = 0.5  # between looks for the file that asks everybody to stop
SLICE_SECONDS = 2.0  # a slice's least length; a long run reports every 2% of what it has run


@dataclass(frozen=True)
class Progress:
    """Where a trial is, between slices."""

    phase: Literal["trunk", "decay"]
    tokens: int  # consumed by the model that trains
    loss: float | None  # of the last steps, on training data


@dataclass(frozen=True)
class Step:
    """A trial wants one step of its model; who drives it answers whether the model lives."""

    grown: Grown
    multiplier: float


Event = Progress | Record
Made = Callable[[TrunkSpec, Corpus | None], Grown]
Said = TypeVar("Said")
End = TypeVar("End")


def grow(trial: Trial, keep: Store, corpus: Corpus | None, made: Made | None = None) -> Iterator[Event]:
    """Trains a trial, a slice at a time; yields its progress, and a Record per run, in the order of the forks.

    `made`: where its model comes from; its family otherwise. Raises Stopped where the folder's file `stop` asks for
    it; what was trained until then is kept.
    """
    return alone(stepwise(trial, keep, corpus, made=made))


def alone(steps: Generator[Said | Step, bool | None, End]) -> Generator[Said, None, End]:
    """Answers a trial's steps one by one; yields what else it says, returns what it returns."""
    answer = None
    while True:
        try:
            said = steps.send(answer)
        except StopIteration as end:
            return end.value
        answer = None
        if isinstance(said, Step):
            answer = said.grown.step(said.multiplier)
        else:
            yield said


def stepwise(
    trial: Trial, keep: Store, corpus: Corpus | None, packed: int = 0, made: Made | None = None
) -> Generator[Event | Step, bool | None, None]:
    """What `grow` does, but for the steps: these it asks for. `packed`: how many trials share them (see `pack`)."""
    work = Work(trial, keep, corpus, packed, made)
    for run in trial.runs:
        recorded = keep.record(run.fingerprint)
        if recorded is not None:
            yield recorded
            continue
        work.reading = run.fingerprint
        if not work.ready:
            yield from work.prepare()
        if work.dead_at is None and not work.left_in_decay(run):
            yield from work.trunk(run.decay_start)
        loss = None
        if work.dead_at is None:
            loss = yield from work.decay(run)
        yield work.measured(run, loss)


class Work:
    """One trial being trained: its model, where its trunk is, what was trained and how long it took."""

    def __init__(
        self, trial: Trial, keep: Store, corpus: Corpus | None, packed: int = 0, made: Made | None = None
    ) -> None:
        self.trial, self.keep, self.corpus, self.packed = trial, keep, corpus, packed
        self.family = families.load(trial.trunk.family)
        self.made: Made = made or self.family.grown
        self.name, self.batch = trial.trunk.fingerprint, trial.trunk.settings.batch_tokens
        self.grown: Grown | None = None
        self.ready, self.others = not trial.trunk.needs, dict[str, State]()
        self.trained, self.reading = 0, ""  # tokens since the last record, and for whose
        self.started, self.clock = store.now(), time.monotonic()
        self.saved_at = self.sliced_at = self.begun = self.looked_at = self.clock
        self.rolling: tuple[str, int] | None = None  # a checkpoint that is no fork point: whose, and its tokens
        self.dead_at: int | None = None  # tokens at which the trunk diverged
        self.stopping, self.curve, self.saving = False, ("", 0), 0.0

    def prepare(self) -> Generator[Progress | Step, bool | None, None]:
        """Has the other runs that the trunk needs."""
        for use, run in self.trial.trunk.needs.items():
            found = yield from self.state_of(run)
            if found is None:
                self.dead_at = 0
                return
            self.others[use] = found
        self.ready, self.clock = True, time.monotonic()  # what they took is no part of a reading's seconds

    def state_of(self, run: RunSpec) -> Generator[Progress | Step, bool | None, State | None]:
        """The last state of another run, trained where it is not kept; None where it diverges."""
        kept = self.keep.load_state(run.state, run.tokens)
        if kept is None or kept[1]["tokens"] != run.tokens:
            trial = Trial(stage=self.trial.stage, number=self.trial.number, runs=(run,))
            other = Work(trial, self.keep, self.corpus)
            yield from other.last(run)
            if other.dead_at is not None:
                return None
            kept = self.keep.load_state(run.state, run.tokens)
        return kept

    def last(self, run: RunSpec) -> Generator[Progress | Step, bool | None, None]:
        """Trains a run for the sake of its last state, and keeps that."""
        yield from self.prepare()
        if self.dead_at is None and not self.left_in_decay(run):
            yield from self.trunk(run.decay_start)
        if self.dead_at is None and run.decay_tokens:
            if (yield from self.decay(run)) is None:
                self.dead_at = run.tokens
            else:
                self.save(run.fingerprint)

    def on_trunk(self, at: int) -> Grown:
        """The model on its trunk, where the last fork or an earlier process left it, at most `at` tokens in."""
        trunk = self.trial.trunk
        before = (at, *(j.at for j in reversed(trunk.source.then) if j.at < at))  # data joined: the trunk goes on
        states = (self.keep.load_state(trunk.until(t).fingerprint, t) for t in before)
        return self.resumed(next((s for s in states if s is not None), None))

    def resumed(self, kept: tuple[Arrays, dict[str, Any]] | None) -> Grown:
        """The model in a kept state, or at its start; a process that goes on counts what the one before had trained."""
        first = self.grown is None
        if self.grown is None or kept is None:
            self.grown = self.made(self.trial.trunk, self.corpus)
            self.grown.begin(self.others)
        if kept is not None:
            self.grown.restore(*kept)
            if kept[1].get("rolling"):
                self.rolling = (kept[1]["rolling"], self.grown.tokens)
            if first and kept[1].get("reading") == self.reading:  # and not another trial's, that has the same trunk
                self.trained, self.clock = kept[1].get("trained", 0), self.clock - kept[1].get("seconds", 0.0)
        return self.grown

    def left_in_decay(self, run: RunSpec) -> bool:
        """Goes on in the middle of a decay, where an earlier process left it."""
        kept = self.keep.load_state(run.fingerprint, run.tokens)
        if kept is not None:
            self.resumed(kept)
        return kept is not None

    def trunk(self, until: int) -> Generator[Progress | Step, bool | None, None]:
        """Trains warmup and stable up to a fork point, and keeps the state there."""
        grown = self.on_trunk(until)
        grown.mix_in((), 0)
        self.curve, warmup = (self.name, grown.tokens), self.trial.trunk.settings.warmup
        while grown.tokens < until and self.dead_at is None:
            if not (yield Step(grown, warmup_multiplier(grown.tokens, self.batch, warmup))):
                self.dead_at = grown.tokens
            self.trained += self.batch
            if self.dead_at is None and self.due_to_save():
                self.roll(self.trial.trunk.until(grown.tokens).fingerprint)
            if self.due_to_report():
                self.draw()
                yield progress("trunk", grown)
        if grown.rows:
            self.draw()
        if self.dead_at is None:
            self.save(self.trial.trunk.until(grown.tokens).fingerprint)
            self.drop_rolling()

    def decay(self, run: RunSpec) -> Generator[Progress | Step, bool | None, float | None]:
        """Trains the decay of one run off the trunk; returns its held-out loss, None where it diverged."""
        grown = self.grown
        assert grown is not None
        assert run.decay_start <= grown.tokens
        grown.mix_in(run.mix, run.decay_start)
        grown.rows.clear()
        self.curve, alive = (run.fingerprint, grown.tokens if grown.tokens > run.decay_start else 0), True
        while alive and grown.tokens < run.tokens:
            alive = bool((yield Step(grown, run.multiplier(grown.tokens))))
            self.trained += self.batch
            if alive and self.due_to_save():
                self.roll(run.fingerprint)
            if self.due_to_report():
                self.draw()
                yield progress("decay", grown)
        self.draw()
        loss = grown.evaluate(self.pause) if alive else math.inf
        return loss if math.isfinite(loss) else None

    def measured(self, run: RunSpec, loss: float | None) -> Record:
        """Writes and returns the record of a run."""
        trunk, s = run.trunk, run.trunk.settings
        n = self.family.count(trunk.shape, trunk.body)
        bytes_per_token = self.corpus.bytes_per(trunk.source) if self.corpus is not None else 1.0
        clock = time.monotonic()
        record = Record(
            fingerprint_of=run.fingerprint,
            run=run,
            stage=self.trial.stage,
            trial=self.trial.number,
            status="diverged" if loss is None else "complete",
            N=n,
            N_total=None if trunk.shape.mixture is None else self.family.total(trunk.shape, trunk.body),
            D=run.tokens,
            C=families.compute(run),
            flops=families.flops(run),
            loss=loss,
            bpb=None if loss is None or families.hides(trunk.family) else loss / math.log(2) / bytes_per_token,
            tokens_trained=self.trained,
            diverged_at=(self.dead_at or self.grown.tokens) if loss is None and self.grown is not None else None,
            tau=s.batch_tokens / (s.lr * s.weight_decay * run.tokens) if s.weight_decay else None,
            slices={} if loss is None or self.grown is None else self.grown.slices(),
            **({} if loss is None or trunk.task is None else self.grown.scored()),  # type: ignore[union-attr]
            final={} if loss is None or self.grown is None else checkpoint.digests(*self.grown.state()),
            stability=None if loss is None or self.grown is None else self.grown.stability(),
            started=self.started,
            seconds=(clock - self.clock) / max(self.packed, 1),  # its share
            packed=self.packed,
            halved_at=None if self.grown is None else self.grown.halved_at,
            host=socket.gethostname(),
            versions=environment.versions(),
            environment=environment.keep(self.keep.root),
        )
        if loss is not None and self.trial.keeps:
            self.save(run.fingerprint)
        record = self.keep.write_record(record)
        if self.rolling is not None and self.rolling[0] == run.fingerprint:
            self.drop_rolling()
        self.trained, self.started, self.clock = 0, store.now(), clock
        return record

    def due_to_save(self) -> bool:
        """Once in `SAVE_SECONDS`, and where everybody is asked to stop."""
        clock = time.monotonic()
        if clock - self.looked_at > LOOK_SECONDS:
            self.looked_at = clock
            self.stopping = self.keep.stopping()
        return self.stopping or clock - self.saved_at > SAVE_SECONDS * max(1.0, self.saving / SAVE_MOST)

    def pause(self) -> None:
        """Between two parts of an evaluation, which may be long: what was trained before it must not be lost."""
        if self.due_to_save():
            self.roll(self.curve[0])

    def due_to_report(self) -> bool:
        clock = time.monotonic()
        due = clock - self.sliced_at > max(SLICE_SECONDS, 0.02 * (clock - self.begun))
        if due:
            self.sliced_at = clock
        return due

    def draw(self) -> None:
        """Writes the curve of what trains: its name, and the tokens from which this process trained it."""
        assert self.grown is not None
        name, since = self.curve
        self.keep.write_curve(name, self.grown.rows, since)

    def save(self, name: str, rolling: bool = False) -> None:
        assert self.grown is not None
        arrays, meta = self.grown.state()
        spent = {"trained": self.trained, "seconds": time.monotonic() - self.clock, "reading": self.reading}
        self.keep.save_state(name, self.grown.tokens, arrays, {**meta, **spent, "rolling": name if rolling else ""})

    def roll(self, name: str) -> None:
        """Keeps the state between fork points, and only the last one of these. Raises Stopped where that is asked."""
        assert self.grown is not None
        here, clock = (name, self.grown.tokens), time.monotonic()
        self.save(name, rolling=True)
        self.saving = time.monotonic() - clock
        self.draw()
        if self.rolling != here:
            self.drop_rolling()
        self.rolling, self.saved_at = here, time.monotonic()
        if self.stopping:
            raise Stopped("the sweep was asked to stop; the same command goes on")

    def drop_rolling(self) -> None:
        trunk, runs = self.trial.trunk, self.trial.runs
        stay = {(trunk.until(r.decay_start).fingerprint, r.decay_start) for r in runs}
        stay |= {(r.fingerprint, r.tokens) for r in runs if self.trial.keeps}
        if self.rolling is not None and self.rolling not in stay:
            self.keep.forget_state(*self.rolling)
        self.rolling = None


def packable(a: TrunkSpec, b: TrunkSpec) -> bool:
    """Whether two trunks can share their steps (`tunnel.training.pack`): one model, batches of one size, no dropout.

    Peak lr, warmup, weight decay, betas, epsilon, clip, seed and data are each trunk's own.
    """

    def alike(trunk: TrunkSpec) -> tuple[object, ...]:
        s = trunk.settings
        return trunk.family, trunk.rules, trunk.shape, trunk.body, s.batch_tokens, s.micro_batch_tokens, s.precision

    alone = any(t.family != "gpt" or t.needs or t.settings.dropout for t in (a, b))
    return not alone and alike(a) == alike(b)


def progress(phase: Literal["trunk", "decay"], grown: Grown) -> Progress:
    return Progress(phase, grown.tokens, grown.rows[-1][1] if grown.rows else None)
