"""One stage as a backend's queue: what is asked is planned, handed out, judged and told."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tunnel import families, plan
from tunnel.answers.rolling import Rolling
from tunnel.folder import store
from tunnel.folder.store import Store
from tunnel.run import Record, Trial
from tunnel.sampler import Asker, Outcome, Slot, key
from tunnel.space import Range, Scalar
from tunnel.study import Stage, Study
from tunnel.sweeps import rebuild
from tunnel.sweeps.limits import Account
from tunnel.sweeps.status import Live, Watch
from tunnel.training.forks import Event, Progress
from tunnel.valleys import halving
from tunnel.valleys.halving import Halving


class StageQueue:
    """One stage as a backend's queue: asks through Optuna, plans, judges, tells."""

    def __init__(
        self,
        asked: Study,
        stage: Stage,
        handed: Mapping[str, Scalar],
        keep: Store,
        identity: str,
        account: Account,
        watch: Watch | None = None,
    ) -> None:
        self.study, self.stage, self.keep, self.identity, self.watch = asked, stage, keep, identity, watch
        self.account = account
        self.base = plan.values_of(asked, stage, handed)
        self.family, self.body = families.load(asked.family), plan.body_of(asked)
        self.middle = plan.sample_trials(asked, stage, handed)[0]
        self.planned: dict[Any, Trial] = {}
        self.halving = Halving(stage.halving)
        self.running: dict[int, Trial] = {}
        self.error = ""  # of the last one that failed
        self.records: dict[int, dict[str, Record]] = {}  # of the running trials, by fingerprint
        self.rolling = Rolling(keep, stage)
        self.asker = Asker(keep.root, stage, plan.candidates(asked, stage, handed), asked.seed)
        self.asker.reconcile(self.trial, keep.record)
        self.asker.remember(rebuild.lost(asked, stage, keep, self.asker.runs(), self.trial))
        self.live, self.shown = Live(stage.name), 0.0
        self.live.expected = lambda: account.left(self.waiting, self.left())
        self.waiting: dict[float, float] = {}  # FLOPs of what is still to be asked, by FLOPs per token
        known: dict[str, Record] = {}
        for t in self.asker.answered():
            trial = self.trial(t.params, t.user_attrs["seed"])
            records = self.measured(trial)
            known |= records
            self.halving.add(trial, records)
            loss = t.value if trial.rung in halving.losses(trial, records) else None
            self.live.finish(loss, t.user_attrs.get("diverged", False), self.flops(trial, records))
        self.share(known)
        self.live.reused = self.live.done
        self.recount()

    def trial(self, params: Mapping[str, Scalar], seed: int) -> Trial:
        """A candidate at a seed as it is planned, whatever its number."""
        asked = (key(params), seed)
        if asked not in self.planned:
            values = {**self.base, **params}
            self.planned[asked] = plan.trial(self.study, self.stage, values, seed=seed, corpus_hash=self.identity)
        return self.planned[asked]

    def measured(self, trial: Trial) -> dict[str, Record]:
        found = {r.fingerprint: self.keep.record(r.fingerprint) for r in trial.runs}
        return {fp: record for fp, record in found.items() if record is not None}

    def share(self, records: halving.Records) -> None:
        """Notes which of its readings another stage had measured."""
        theirs = [fp for fp, r in records.items() if r.stage != self.stage.name]
        if theirs:
            self.keep.share(self.stage.name, theirs)

    def per_token(self, trial: Trial) -> float:
        return self.family.flops_per_token(trial.trunk.shape, self.body)

    def flops(self, trial: Trial, records: halving.Records | None = None) -> float:
        """A whole trial's, or those of what is measured of it."""
        return self.per_token(trial) * (trial.trained if records is None else trained(trial, records))

    def expected(self, slot: Slot) -> Trial:
        """What is still to be asked, as far as its cost goes."""
        candidate, seed = self.asker.candidates[slot[0]], slot[1]
        searched = self.stage.searches  # all over its space a trial costs the same
        return self.middle if searched or candidate is None else self.trial(candidate, seed)

    def allowed(self) -> bool:
        """Whether the study's limits leave room for the next trial."""
        if not self.account.limited:
            return True
        trial, most = self.expected(self.asker.free[0]), self.stage.axes.get("flops")
        flops = most.high if isinstance(most, Range) else self.flops(trial) - self.flops(trial, self.measured(trial))
        return self.account.allow(flops, self.per_token(trial))

    def recount(self) -> None:
        """What the stage is known to take by now: stopped trials took less, and fans may have widened."""
        if self.live.planned != self.asker.planned:
            self.live.planned = self.asker.planned
            self.waiting = defaultdict(float)
            for trial in map(self.expected, self.asker.free):
                self.waiting[self.per_token(trial)] += self.flops(trial)
        running = sum(self.flops(t) for t in self.running.values())
        self.live.total = self.live.done + running + sum(self.waiting.values())

    def next(self) -> Trial | None:
        if not self.left() or not self.allowed():
            return None
        expected = self.expected(self.asker.free[0])
        ask = self.asker.ask(self.trial)
        assert ask is not None
        self.waiting[self.per_token(expected)] -= self.flops(expected)
        trial = self.trial(ask.params, ask.seed).model_copy(update={"number": ask.number})
        self.running[ask.number], self.records[ask.number] = trial, self.measured(trial)
        self.rolling.handed_out(trial)
        before = trained(trial, self.records[ask.number])
        self.live.begin(ask.number, trial, self.per_token(trial), before)
        self.recount()
        self.show()
        return trial

    def left(self) -> int:
        return len(self.asker.free)

    def handed(self, numbers: Sequence[int]) -> None:
        self.account.handed(numbers)

    def event(self, number: int, event: Event) -> bool:
        shown, trial, records = self.live.running[number], self.running[number], self.records[number]
        if isinstance(event, Progress):
            decays = sum(r.run.decay_tokens for r in records.values())
            own = max(event.tokens - trial.trunk.begun, 0)
            shown |= {"phase": event.phase, "loss": event.loss, "tokens": decays + own}
        else:
            if event.fingerprint_of not in records:
                self.account.measured(number, event)
            records[event.fingerprint_of] = event
            self.rolling.read(event, self.running.values())
            shown |= {"loss": event.loss, "tokens": trained(trial, records)}
            self.halving.add(trial, records)
            for rung, loss in halving.losses(trial, records).items():
                self.asker.report(number, rung, loss)
        self.show()
        return isinstance(event, Progress) or self.halving.goes_on(trial, records)

    def ended(self, number: int, error: str | None) -> None:
        trial, records = self.running.pop(number), self.records.pop(number)
        self.live.running.pop(number)
        if error is not None:
            self.asker.tell(number, "failed")
            self.account.over(number, "failed")
            self.live.failed += 1
            self.error = error
            return
        self.share(records)
        losses = halving.losses(trial, records)
        last = losses.get(trial.rung)  # None where it was stopped before
        diverged = losses[max(losses)] == math.inf
        outcome: Outcome = "diverged" if diverged else "pruned" if last is None else "complete"
        self.asker.tell(number, outcome, last, measured=records if last is None else None)
        self.account.over(number, outcome)
        self.live.finish(last, diverged, self.flops(trial, records))
        self.recount()
        self.show()

    def show(self, force: bool = False) -> None:
        """Tells the watcher, and the folder's readers once a second."""
        if self.watch is not None:
            self.watch(self.live)
        clock = time.monotonic()
        if force or clock - self.shown > 1.0:
            self.shown = clock
            store.write_json(self.keep.path("progress.json"), {**self.live.snapshot(), "held": self.account.open()})
            if not self.account.within():
                self.keep.path("stop").touch()


def trained(trial: Trial, records: halving.Records) -> int:
    """Tokens that the measured part of a trial took."""
    runs = tuple(r for r in trial.runs if r.fingerprint in records)
    return trial.model_copy(update={"runs": runs}).trained if runs else 0
