"""The full-size run, trained with exactly what was recommended by the trainer of the proxies; and the test of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from tunnel import families
from tunnel.answers import counterfactual, forecasts, ladder
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

        def begin() -> None:
            forecasts.begin(keep, goal.name, run.fingerprint)

        grown(asked, keep, [trial], address=address, watch=watch, begin=begin)
    record = keep.record(run.fingerprint)
    assert record is not None
    return record.model_dump(mode="json")


def contrast(
    asked: Study,
    keep: Store,
    target: str | None = None,
    *,
    hours: float | None = None,
    address: str | None = None,
    watch: sweep.Watch | None = None,
) -> dict[str, Any]:
    """Forecasts the loss at the recommended lr, half and double it, then trains all three, or goes on; the comparison.

    `hours`: of one device, that they may take. Raises UserError and Stopped as `train` does.
    """
    told = counterfactual.registered(asked, keep, target, hours)
    left = [t for t in counterfactual.trials(told) if keep.record(t.runs[0].fingerprint) is None]
    if left:
        grown(asked, keep, left, address=address, watch=watch)
    return counterfactual.judged(keep, told)


def grown(
    asked: Study,
    keep: Store,
    trials: Sequence[Trial],
    *,
    address: str | None,
    watch: sweep.Watch | None,
    begin: Callable[[], None] = lambda: None,
) -> None:
    """Trains full-size trials, `begin` being called when the folder is held and nothing has started."""
    work = backends.Work(str(keep.root.resolve()), asked.data, asked.model.seq_len, families.load(asked.family).reads)
    with keep.driver():
        corpus, source = work.corpus(), trials[0].trunk.source
        if corpus is not None and corpus.of(source).hash != data.identity(source):
            raise UserError("the corpus changed since the proxies read it", key="data.corpus", value=asked.data.corpus)
        queue = TargetQueue(trials, keep, watch)
        begin()
        backends.run(queue, work, asked.resources, address=address)
        keep.path("progress.json").unlink(missing_ok=True)
        keep.write_readings()
    if queue.error:
        raise Stopped(f"{trials[0].stage}: {queue.error}; the same command goes on from its last checkpoint")


class TargetQueue:
    """Trials that are known beforehand as a backend's queue."""

    def __init__(self, trials: Sequence[Trial], keep: Store, watch: sweep.Watch | None) -> None:
        self.keep, self.watch, self.error = keep, watch, ""
        self.waiting, self.flops = list(trials), {t.number: flops_of(t) for t in trials}
        self.live = sweep.Live(trials[0].stage, len(trials), sum(self.flops.values()))
        self.shown = 0.0

    def next(self) -> Trial | None:
        if not self.waiting:
            return None
        trial = self.waiting.pop(0)
        self.live.begin(trial.number, trial, self.flops[trial.number] / trial.trained)
        return trial

    def left(self) -> int:
        return len(self.waiting)

    def event(self, number: int, event: Event) -> bool:
        if isinstance(event, Progress):
            self.live.running[number] |= {"phase": event.phase, "tokens": event.tokens, "loss": event.loss}
        elif event.loss is not None:
            self.live.best = min(event.loss, self.live.best or event.loss)
        if self.watch is not None:
            self.watch(self.live)
        if time.monotonic() - self.shown > 1.0:
            self.shown = time.monotonic()
            store.write_json(self.keep.path("progress.json"), self.live.snapshot())
        return True

    def ended(self, number: int, error: str | None) -> None:
        self.error = self.error or error or ""
        self.live.running.pop(number)
        self.live.finished += 1
        self.live.done += self.flops[number]


def flops_of(trial: Trial) -> float:
    family = families.load(trial.trunk.family)
    return family.flops_per_token(trial.trunk.shape, trial.trunk.body) * trial.trained
