"""What is asked next, and what became of it: Optuna's home, with `tunnel.mirror`, `proposals` and `pareto`.

The Optuna study in the folder's `optuna.db` is the truth about what was asked; the driver is its only writer.
Records are the truth about what was measured, and `reconcile` brings the two together when a sweep starts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from tunnel.folder import asks, database
from tunnel.folder.asks import Asked
from tunnel.mirror import Mirror
from tunnel.proposals import LEARNING, distributions, drawn, listed_distributions, sampler
from tunnel.run import Record, Trial
from tunnel.space import Scalar
from tunnel.study import Stage
from tunnel.valleys import fans
from tunnel.valleys.halving import losses

TPE_WINDOW = 500  # the last trials that TPE models, with the best before: else it slows down for ever  *measured here*
STREAMS = 100_003  # between the seeds of two candidates: a prime, so that studies' seeds do not meet  *assumed*
Outcome = Literal["complete", "pruned", "diverged", "failed"]
Runs = Callable[[Mapping[str, Scalar], int], Trial]  # of a candidate at a seed, as it is planned now


@dataclass(frozen=True)
class Ask:
    """A candidate at a seed, by its Optuna number."""

    number: int
    params: dict[str, Scalar]
    seed: int


Slot = tuple[Hashable, int]  # which candidate, and its seed: asked once, whatever became of the first ask


def key(params: Mapping[str, Scalar]) -> Hashable:
    return tuple(sorted(params.items()))


class Asker:
    """One stage's questions: asks candidates until all are asked, and is told what became of each.

    What stands and what is free is found in the study when it begins, and from then on known in memory.
    """

    def __init__(self, folder: Path, stage: Stage, candidates: list[dict[str, Scalar]] | None, seed: int) -> None:
        self.stage, self.listed, self.seeds, self.seed = stage, candidates, list(stage.budget.seeds), seed
        self.asked: dict[int, optuna.Trial] = {}
        self.reported: set[tuple[int, int]] = set()  # (number, D)
        self.given_up: set[Slot] = set()  # what the machine failed; another sweep asks it again
        self.stale: set[int] = set()  # finished trials of which a planned run is not measured
        folder.mkdir(parents=True, exist_ok=True)
        name = "random" if candidates is not None else stage.sampler.name  # a list leaves nothing to sample
        window = TPE_WINDOW if name == "tpe" else None
        self.mirror = Mirror(database.storage(folder), database.name(folder, stage.name), window)
        self.distributions = distributions(stage.axes) if candidates is None else {}
        learns, trials = name in LEARNING or candidates is not None, stage.budget.trials
        self.drawn = [] if learns else drawn(name, seed, self.distributions, trials)
        self.study = optuna.load_study(
            study_name=self.mirror.name,
            storage=self.mirror,
            sampler=sampler(name if learns else "random", seed, self.mirror.trials(), stage.axes),
        )
        self.index()

    def index(self) -> None:
        """Finds anew what was asked of each candidate, what stands, and what is free."""
        self.asks: dict[Hashable, list[int]] = {}  # a candidate's trials, whatever became of them
        self.standing: dict[Slot, FrozenTrial] = {}  # not failed; all planned of them is, or is being, measured
        for t in self.mirror.trials():
            if "seed" in t.user_attrs:
                self.asks.setdefault(self.slot(t)[0], []).append(t.number)
                if t.state != TrialState.FAIL and t.number not in self.stale:
                    self.standing[self.slot(t)] = t
        self.candidates: dict[Hashable, dict[str, Scalar] | None] = {}  # with what is known before it is asked
        self.free: deque[Slot] = deque()  # what is still to be asked by this sweep, in order
        self.fans: dict[Hashable, list[dict[str, Scalar]]] = {}
        if self.listed is None:
            self.add({**dict.fromkeys(range(self.stage.budget.trials)), **dict(enumerate(self.drawn))})
            return
        self.add({key(c): c for c in self.listed})
        for c in self.listed:
            self.fans.setdefault(fan_of(c), []).append(c)
        for fan in self.fans:
            self.widen(fan)

    def add(self, candidates: Mapping[Hashable, dict[str, Scalar] | None]) -> None:
        """Candidates go before all that waits."""
        self.candidates |= candidates
        slots = [(c, seed) for c in candidates for seed in self.seeds]
        self.free.extendleft(s for s in reversed(slots) if s not in self.standing and s not in self.given_up)
        if self.listed is not None:
            self.distributions = listed_distributions(self.stage, [c for c in self.candidates.values() if c])

    def widen(self, fan: Hashable) -> None:
        """What a fan needs beyond its edges; as costly as the rest of it, and the costly come first."""

        def loss(c: Mapping[str, Scalar], seed: int) -> float | None:
            return loss_of(self.standing.get((key(c), seed)))

        more = {key(c): c for c in fans.widened(self.fans[fan], self.seeds, loss, self.stage.widen)}
        if not more.keys() <= self.candidates.keys():
            self.add({k: c for k, c in more.items() if k not in self.candidates})

    def remember(self, found: Iterable[dict[str, Scalar]]) -> None:
        """Measured candidates that the study does not know (any more) are the next ones to be asked."""
        never = (c for c, params in self.candidates.items() if params is None and c not in self.asks)
        self.candidates |= dict(zip(never, found, strict=False))

    @property
    def planned(self) -> int:
        return len(self.candidates) * len(self.seeds)

    def slot(self, t: FrozenTrial) -> Slot:
        """A listed candidate goes by its values, since a revision may put others before it."""
        return t.user_attrs.get("candidate") if self.listed is None else key(t.params), planned_seed(t)

    def runs(self) -> set[str]:
        """The fingerprints of all that was asked, whatever became of it."""
        return {fp for t in self.mirror.trials() for fp in t.user_attrs.get("runs", ())}

    def answered(self) -> list[FrozenTrial]:
        """The trials that stand, of the slots that are planned now."""
        return [t for (c, seed), t in self.standing.items() if c in self.candidates and seed in self.seeds]

    def ask(self, runs: Runs | None = None) -> Ask | None:
        """The next candidate, or None where all are asked: until a trial that is out ends, or for good.

        With `runs`, the trial's fingerprints and arithmetic are noted, so that others can read the study without us.
        """
        if not self.free:
            return None
        slot = self.free.popleft()
        fixed = self.candidates[slot[0]]
        siblings = [self.mirror.get_trial(number) for number in self.asks.get(slot[0], ())]
        earlier = [t for t in siblings if self.slot(t) == slot]
        if self.listed is None and siblings:  # this slot as it was asked before, or its candidate at another seed
            fixed = (earlier or siblings)[-1].params
        if fixed:
            self.study.enqueue_trial(dict(fixed))
        elif self.stage.sampler.name == "tpe" and isinstance(slot[0], int):
            # a stream by the candidate: who was killed goes on as if undisturbed
            self.study.sampler = sampler("tpe", self.seed + STREAMS * slot[0])
        trial = self.study.ask(self.distributions)
        if self.listed is None:
            trial.set_user_attr("candidate", slot[0])
        if earlier:
            trial.set_user_attr("retry_of", earlier[-1].number)
        seed = earlier[-1].user_attrs["seed"] if earlier else self.fresh(trial.params, slot[1])
        if seed != slot[1]:
            trial.set_user_attr("planned_seed", slot[1])
        trial.set_user_attr("seed", seed)
        if runs is not None:
            planned = runs(trial.params, seed)
            trial.set_user_attr("runs", [r.fingerprint for r in planned.runs])
            trial.set_user_attr("trunk", planned.trunk.fingerprint)
            trial.set_user_attr("D", planned.rung)
        self.mirror.keep(trial.number)
        self.asked[trial.number] = trial
        self.asks.setdefault(slot[0], []).append(trial.number)
        self.standing[slot] = self.mirror.get_trial(trial.number)
        return Ask(trial.number, dict(trial.params), seed)

    def fresh(self, params: Mapping[str, Scalar], seed: int) -> int:
        """The seed of a new candidate: another one where `pareto` asks for the same again, or nothing is measured."""
        if self.stage.sampler.name != "pareto":
            return seed
        same = {t.user_attrs["seed"] for t in self.standing.values() if key(t.params) == key(params)}
        return max(*same, *self.seeds) + 1 if seed in same else seed

    def report(self, number: int, rung: int, loss: float) -> None:
        """A reading of a living trial: its loss at D = `rung`; said again, it is heard once."""
        if (number, rung) not in self.reported and math.isfinite(loss):
            self.reported.add((number, rung))
            self.asked[number].report(loss, rung)

    def tell(
        self, number: int, outcome: Outcome, loss: float | None = None, measured: Collection[str] | None = None
    ) -> None:
        """A trial's one final state: its last rung's loss; +inf with `diverged` where it diverged.

        `measured`: the fingerprints of one that was stopped at an earlier rung; no more is asked of it.
        """
        if number in self.asked:
            if outcome == "diverged":
                self.asked[number].set_user_attr("diverged", True)
            if measured is not None:
                self.asked[number].set_user_attr("measured", sorted(measured))
        if outcome == "failed":
            told = self.study.tell(number, state=TrialState.FAIL)
        elif outcome == "pruned":
            told = self.study.tell(number, state=TrialState.PRUNED)  # Optuna takes its last report for its value
        else:
            value = math.inf if outcome == "diverged" else loss
            assert value is not None
            told = self.study.tell(number, value)
        self.asked.pop(number, None)
        slot = self.slot(told)
        if outcome == "failed":
            self.given_up.add(slot)
            self.standing.pop(slot, None)
        else:
            self.standing[slot] = told
        if self.listed is not None and fan_of(told.params) in self.fans:
            self.widen(fan_of(told.params))

    def reconcile(self, runs: Runs, record: Callable[[str], Record | None]) -> None:
        """Settles what a dead driver left, and finds what is no longer whole.

        A trial left running is told from its records, else it has failed. A finished one of which a planned run has no
        record (a revision added a rung, somebody deleted a record) is asked again. `runs`: what is planned of a trial.
        """
        for t in self.mirror.trials():
            if t.state == TrialState.WAITING:  # 0.3 and before could be killed here; only what runs can be told
                self.study.tell(self.study.ask(), state=TrialState.FAIL)
            elif t.state == TrialState.RUNNING:
                trial = runs(t.params, t.user_attrs["seed"]) if "runs" in t.user_attrs else None
                found = {r.fingerprint: record(r.fingerprint) for r in trial.runs} if trial else {}
                loss = losses(trial, {k: r for k, r in found.items() if r}).get(trial.rung) if trial else None
                if loss is None or not all(found.values()):
                    self.study.tell(t.number, state=TrialState.FAIL)
                else:
                    self.tell(t.number, "diverged" if loss == math.inf else "complete", loss)
            elif t.state != TrialState.FAIL:
                needed = t.user_attrs.get("measured")
                needed = needed or [r.fingerprint for r in runs(t.params, t.user_attrs["seed"]).runs]
                if any(record(fp) is None for fp in needed):
                    self.stale.add(t.number)
        self.index()


def fan_of(c: Mapping[str, Scalar]) -> Hashable:
    """What a candidate shares with its fan: all but the lr."""
    return key({k: v for k, v in c.items() if k != "lr"})


def loss_of(t: FrozenTrial | None) -> float | None:
    """What a fan knows of a trial: a stopped one was no candidate for its minimum."""
    if t is None or t.state == TrialState.RUNNING:
        return None
    return math.inf if t.state == TrialState.PRUNED else t.value


def planned_seed(t: FrozenTrial | Asked) -> int:
    """The seed of a trial's slot; a candidate that is measured again has another one."""
    return int(t.user_attrs.get("planned_seed", t.user_attrs.get("seed", -1)))


def is_diverged(t: FrozenTrial | Asked) -> bool:
    """Only what was told counts: a driver may die between noting it and telling it."""
    told = t.state in (TrialState.COMPLETE, TrialState.PRUNED)
    return told and (bool(t.user_attrs.get("diverged")) or t.value == math.inf)


def states(folder: Path, stage: str) -> list[dict[str, Any]]:
    """A stage's trials as the database knows them: number, state, params, value, runs, seed. Empty before it began.

    Raises UserError where a server has them and does not answer.
    """
    names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "running"}
    return [
        {
            "number": t.number,
            "state": "diverged" if is_diverged(t) else names[t.state.name],
            "params": t.params,
            "value": t.value if t.value is not None and math.isfinite(t.value) else None,
            "runs": t.user_attrs.get("runs", []),
            "seed": planned_seed(t) if "seed" in t.user_attrs else None,
            "candidate": t.user_attrs.get("candidate"),
            "measured": t.user_attrs.get("measured"),
            "retry_of": t.user_attrs.get("retry_of"),
        }
        for t in asks.trials(folder, stage)
    ]
