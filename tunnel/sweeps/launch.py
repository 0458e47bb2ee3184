"""The full-size run, trained with exactly what was recommended by the trainer of the proxies; and the test of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tunnel import families
from tunnel.answers import counterfactual, forecasts, recommend, running
from tunnel.errors import Stopped, UserError
from tunnel.folder import audit, store
from tunnel.folder.store import Store
from tunnel.run import RunSpec, Trial, TrunkSpec
from tunnel.study import Study
from tunnel.sweeps import backends, sweep
from tunnel.sweeps.alarm import Alarm
from tunnel.sweeps.status import Live
from tunnel.training.forks import Event, Progress


def train(
    asked: Study,
    keep: Store,
    target: str | None = None,
    *,
    seeds: Sequence[int] = (),
    workers: int = 1,
    address: str | None = None,
    watch: sweep.Watch | None = None,
) -> dict[str, Any]:
    """Trains the target on Ray, or goes on with it; returns its record as a dictionary.

    `workers`: how many share every batch, which is as recommended whatever their number. `seeds`: further ones, that
    the same run is trained at too, for `promote`; told as `seeds` {seed: loss}. Raises UserError where nothing was
    recommended or the data changed since, Stopped where it was interrupted.
    """
    goal, told = recommend.stored(asked, keep, target)
    run = RunSpec.model_validate(told["run"])
    runs = {s: run.replaced(trunk=run.trunk.replaced(seed=s)) for s in (run.trunk.seed, *seeds)}
    stage = f"target:{goal.name}"
    trials = [Trial(stage=stage, number=i, runs=(r,), keeps=r == run) for i, r in enumerate(runs.values())]
    left = [t for t in trials if keep.record(t.runs[0].fingerprint) is None]
    if left:

        def begin() -> None:
            forecasts.begin(keep, goal.name, run.fingerprint)

        watched = Alarm(asked, keep, list(runs.values()), partial(running.awaited, asked, keep, goal.name), watch)
        grown(asked, keep, left, address=address, watch=watched, begin=begin, workers=workers)
    records = {s: keep.record(r.fingerprint) for s, r in runs.items()}
    own = records[run.trunk.seed]
    assert own is not None
    losses = {str(s): r.loss for s, r in records.items() if r is not None}
    return {**own.model_dump(mode="json"), **({"seeds": losses} if seeds else {})}


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
        (own,) = (e for e in told if e["factor"] == 1.0)
        run = RunSpec.model_validate(own["spec"])
        watched = Alarm(asked, keep, [run], lambda r: running.expected(asked, keep, own["target"], r, own), watch)
        grown(asked, keep, left, address=address, watch=watched)
    return counterfactual.judged(keep, told)


def grown(
    asked: Study,
    keep: Store,
    trials: Sequence[Trial],
    *,
    address: str | None,
    watch: sweep.Watch | None,
    begin: Callable[[], None] = lambda: None,
    workers: int = 1,
) -> None:
    """Trains full-size trials, `begin` being called when the folder is held and nothing has started."""
    work = backends.Work.of(asked, keep)
    require_shareable(trials[0].trunk, workers)
    with keep.driver():
        corpus = work.corpus()
        if corpus is not None:
            corpus.hold(trials[0].runs)
        queue = TargetQueue(trials, keep, watch)
        begin()
        audit.note(keep.root, "trained", stage=trials[0].stage, runs=[t.runs[0].fingerprint for t in trials])
        several = workers > 1 or (asked.resources.recompute and work.reads)
        backends.run(queue, work, asked.resources, address=address, workers=workers if several else None)
        keep.path("progress.json").unlink(missing_ok=True)
        keep.write_readings()
    if queue.error:
        raise Stopped(f"{trials[0].stage}: {queue.error}; the same command goes on from its last checkpoint")


def require_shareable(trunk: TrunkSpec, workers: int) -> None:
    """Raises UserError where a trunk cannot be trained by so many processes."""
    if workers == 1:
        return
    sequences = trunk.settings.batch_tokens // trunk.body.seq_len
    if workers > sequences:
        raise UserError(f"is more than the {sequences} sequences of a batch", key="--workers", value=workers)
    if trunk.settings.dropout:
        raise UserError("needs dropout 0: a follower's random state is not kept", key="--workers", value=workers)
    if not families.load(trunk.family).reads:
        raise UserError(f"is too many: {trunk.family} trains in one process", key="--workers", value=workers)


class TargetQueue:
    """Trials that are known beforehand as a backend's queue."""

    def __init__(self, trials: Sequence[Trial], keep: Store, watch: sweep.Watch | None) -> None:
        self.keep, self.watch, self.error = keep, watch, ""
        self.waiting, self.flops = list(trials), {t.number: flops_of(t) for t in trials}
        self.live = Live(trials[0].stage, len(trials), sum(self.flops.values()))
        self.shown = 0.0

    def next(self) -> Trial | None:
        if not self.waiting:
            return None
        trial = self.waiting.pop(0)
        self.live.begin(trial.number, trial, self.flops[trial.number] / trial.trained)
        return trial

    def left(self) -> int:
        return len(self.waiting)

    def handed(self, numbers: Sequence[int]) -> None:
        """The limits are the proxies'; a target's time is its record's."""

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
