"""The full-size run: the target, trained with exactly what was recommended, by the trainer of the proxies."""

from __future__ import annotations

import time
from typing import Any

from tunnel import families
from tunnel.answers import forecasts, ladder
from tunnel.errors import Stopped, UserError
from tunnel.folder import store
from tunnel.folder.store import Store
from tunnel.run import RunSpec, Trial
from tunnel.study import Study
from tunnel.sweeps import backends, sweep
from tunnel.training import data
from tunnel.training.forks import Event, Progress


def train(
    asked: Study,
    keep: Store,
    target: str | None = None,
    *,
    address: str | None = None,
    watch: sweep.Watch | None = None,
) -> dict[str, Any]:
    """Trains the target as one Ray trial, or goes on with it; returns its record as a dictionary.

    Raises UserError where nothing was recommended or the data changed since, Stopped where it was interrupted.
    """
    goal = ladder.target_named(asked, target)
    name = "recommendation.json" if goal is asked.target[0] else f"recommendation.{goal.name}.json"
    told = store.read_json(keep.path(name))
    if told is None:
        raise UserError(
            "has no recommendation yet: `tunnel recommend` first", file=keep.root, key=f"target.{goal.name}"
        )
    run = RunSpec.model_validate(told["run"])
    trial = Trial(stage=f"target:{goal.name}", number=0, runs=(run,))
    if keep.record(run.fingerprint) is None:
        work = backends.Work(
            str(keep.root.resolve()), asked.data, asked.model.seq_len, families.load(asked.family).reads
        )
        with keep.driver():
            corpus = work.corpus()
            source = run.trunk.source
            if corpus is not None and corpus.of(source).hash != data.identity(source):
                raise UserError(
                    "the corpus changed since the proxies read it", key="data.corpus", value=asked.data.corpus
                )
            queue = TargetQueue(trial, asked, keep, watch)
            forecasts.begin(keep, goal.name, run.fingerprint)
            backends.run(queue, work, asked.resources, address=address, max_concurrent=1)
            keep.path("progress.json").unlink(missing_ok=True)
            keep.write_readings()
        if queue.error:
            raise Stopped(f"target {goal.name}: {queue.error}; the same command goes on from its last checkpoint")
    record = keep.record(run.fingerprint)
    assert record is not None
    return record.model_dump(mode="json")


class TargetQueue:
    """One trial as a backend's queue."""

    def __init__(self, trial: Trial, asked: Study, keep: Store, watch: sweep.Watch | None) -> None:
        self.trial, self.keep, self.watch, self.error = trial, keep, watch, ""
        family = families.load(asked.family)
        self.per_token = family.flops_per_token(trial.trunk.shape, trial.trunk.body)
        self.live = sweep.Live(trial.stage, 1, self.per_token * trial.trained)
        self.waiting, self.shown = True, 0.0

    def next(self) -> Trial | None:
        if not self.waiting:
            return None
        self.waiting = False
        self.live.begin(0, self.trial, self.per_token)
        return self.trial

    def left(self) -> int:
        return int(self.waiting)

    def event(self, number: int, event: Event) -> bool:
        if isinstance(event, Progress):
            self.live.running[0] |= {"phase": event.phase, "tokens": event.tokens, "loss": event.loss}
        else:
            self.live.best = event.loss
        if self.watch is not None:
            self.watch(self.live)
        if time.monotonic() - self.shown > 1.0:
            self.shown = time.monotonic()
            store.write_json(self.keep.path("progress.json"), self.live.snapshot())
        return True

    def ended(self, number: int, error: str | None) -> None:
        self.error = error or ""
        self.live.finished, self.live.running, self.live.done = 1, {}, self.live.total
