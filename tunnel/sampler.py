"""Optuna's one home: what is asked next, and what became of it.

The Optuna study in the folder's `optuna.db` is the truth about what was asked; the driver is its only writer.
Records are the truth about what was measured, and `reconcile` brings the two together when a sweep starts.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial, TrialState

from tunnel.pareto import ParetoSampler
from tunnel.run import Record, Trial
from tunnel.space import DIMENSIONS, Axis, Choice, Scalar
from tunnel.study import Stage
from tunnel.valleys import fans
from tunnel.valleys.halving import losses

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

GRID_POINTS = 5  # of a range without a step, in a grid  *assumed*
TPE_WINDOW = 8  # trials before TPE models anything  *assumed*
LEARNING = ("tpe", "gp", "cmaes", "pareto")  # from what they are told; the others' candidates are known beforehand
Outcome = Literal["complete", "pruned", "diverged", "failed"]
Runs = Callable[[Mapping[str, Scalar], int], Trial]  # of a candidate at a seed, as it is planned now


@dataclass(frozen=True)
class Ask:
    """A candidate at a seed, by its Optuna number."""

    number: int
    params: dict[str, Scalar]
    seed: int


def distribution(axis: Axis, kind: str) -> BaseDistribution:
    if isinstance(axis, Choice):
        return CategoricalDistribution(list(axis.values))
    if kind == "int":
        return IntDistribution(int(axis.low), int(axis.high), log=axis.log, step=1 if axis.log else axis.step or 1)
    return FloatDistribution(axis.low, axis.high, log=axis.log)


def distributions(axes: Mapping[str, Axis]) -> dict[str, BaseDistribution]:
    return {k: distribution(a, DIMENSIONS[k].kind) for k, a in axes.items()}


def listed_distributions(stage: Stage, candidates: list[dict[str, Scalar]]) -> dict[str, BaseDistribution]:
    """Ranges that just hold a ladder's candidates, so that their trials are stored like any others."""
    found: dict[str, BaseDistribution] = {}
    for name in candidates[0]:
        values = [c[name] for c in candidates]
        if any(isinstance(v, str) for v in values):
            found[name] = distribution(stage.axes[name], "choice")
        elif all(isinstance(v, int) for v in values):
            found[name] = IntDistribution(min(values), max(values))  # type: ignore[arg-type]
        else:
            found[name] = FloatDistribution(min(values), max(values))  # type: ignore[arg-type]
    return found


def sampler(name: str, seed: int, asked: int = 0, axes: Mapping[str, Axis] | None = None) -> BaseSampler:
    """The sampler by the study file's name, every option that Optuna 5.0 changed passed explicitly.

    A random stream begins anew with every process, so `asked`, the trials so far, is part of its seed. `axes`: what is
    searched, which only `pareto` must know.
    """
    new = (seed + 100_003 * asked) % 2**32
    makers: dict[str, Callable[[], BaseSampler]] = {
        "tpe": lambda: TPESampler(seed=new, multivariate=True, constant_liar=True, n_startup_trials=TPE_WINDOW),
        "gp": lambda: GPSampler(seed=new, n_startup_trials=TPE_WINDOW),
        "cmaes": lambda: CmaEsSampler(seed=new),
        "sobol": lambda: QMCSampler(qmc_type="sobol", scramble=True, seed=seed, warn_independent_sampling=False),
        "random": lambda: RandomSampler(seed=new),
        "pareto": lambda: ParetoSampler(distributions(axes or {}), axes or {}, seed),
    }
    return makers[name]()


def drawn(name: str, seed: int, distributions: dict[str, BaseDistribution], count: int) -> list[dict[str, Scalar]]:
    """The first candidates of a sampler that learns nothing: the same whenever, and in what order, they are asked."""
    if name == "grid":
        points = list(product(*map(grid, distributions.values())))
        random.Random(seed).shuffle(points)
        return [dict(zip(distributions, points[i % len(points)], strict=True)) for i in range(count)]
    study = optuna.create_study(sampler=sampler(name, seed))
    found = []
    for _ in range(count):
        trial = study.ask(distributions)
        found.append(dict(trial.params))
        study.tell(trial, 0.0)
    return found


def grid(d: BaseDistribution) -> list[Any]:
    if isinstance(d, CategoricalDistribution):
        return list(d.choices)
    if isinstance(d, IntDistribution) and not d.log:
        return list(range(d.low, d.high + 1, d.step))
    assert isinstance(d, IntDistribution | FloatDistribution)
    a, b = (math.log(d.low), math.log(d.high)) if d.log else (d.low, d.high)
    points = [a + (b - a) * i / (GRID_POINTS - 1) for i in range(GRID_POINTS)]
    return [min(max(math.exp(p) if d.log else p, d.low), d.high) for p in points]


Slot = tuple[Hashable, int]  # which candidate, and its seed: asked once, whatever became of the first ask


def key(params: Mapping[str, Scalar]) -> Hashable:
    return tuple(sorted(params.items()))


class Asker:
    """One stage's questions: asks candidates until all are asked, and is told what became of each."""

    def __init__(self, folder: Path, stage: Stage, candidates: list[dict[str, Scalar]] | None, seed: int) -> None:
        self.stage, self.listed, self.seeds = stage, candidates, list(stage.budget.seeds)
        self.asked: dict[int, optuna.Trial] = {}
        self.reported: set[tuple[int, int]] = set()  # (number, D)
        self.given_up: set[Slot] = set()  # what the machine failed; another sweep asks it again
        self.stale: set[int] = set()  # finished trials of which a planned run is not measured
        folder.mkdir(parents=True, exist_ok=True)
        self.study = optuna.create_study(
            study_name=stage.name,
            storage=storage(folder),
            direction="minimize",
            load_if_exists=True,
        )
        self.study.set_metric_names(["loss"])
        self.distributions: dict[str, BaseDistribution] = {}
        self.drawn: list[dict[str, Scalar]] = []  # of a search whose sampler learns nothing
        name = "random"  # a list leaves nothing to sample
        if candidates is None:
            self.distributions = distributions(stage.axes)
            if stage.sampler.name in LEARNING:
                name = stage.sampler.name
            else:
                self.drawn = drawn(stage.sampler.name, seed, self.distributions, stage.budget.trials)
        self.study.sampler = sampler(name, seed, len(self.trials()), stage.axes)

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def candidates(self) -> list[dict[str, Scalar]]:
        """A listed stage's: those of the study file, then those by which its fans widened themselves."""
        assert self.listed is not None
        losses = {(key(t.params), t.user_attrs["seed"]): loss_of(t) for t in self.current()}
        more = fans.widened(self.listed, self.seeds, lambda c, s: losses.get((key(c), s)), self.stage.widen)
        return [*self.listed, *more]

    def slots(self) -> dict[Slot, dict[str, Scalar] | None]:
        """All that this stage asks, in order, with its parameters where they are known before it is asked."""
        if self.listed is None:
            known = dict(enumerate(self.drawn))
            return {(i, s): known.get(i) for i in range(self.stage.budget.trials) for s in self.seeds}
        return {(key(c), s): c for c in self.candidates() for s in self.seeds}

    @property
    def planned(self) -> int:
        return len(self.slots())

    def current(self) -> list[FrozenTrial]:
        """The trials that stand: not failed, and all that is planned of them is measured or being measured."""
        asked = (t for t in self.trials() if t.state != TrialState.FAIL and "seed" in t.user_attrs)
        return [t for t in asked if t.number not in self.stale]

    def answered(self) -> dict[Slot, FrozenTrial]:
        """The slots that are asked and not failed; the last trial of each."""
        return {self.slot(t): t for t in self.current()}

    def slot(self, t: FrozenTrial) -> Slot:
        """A listed candidate goes by its values, since a revision may put others before it."""
        return t.user_attrs.get("candidate") if self.listed is None else key(t.params), planned_seed(t)

    def free(self) -> dict[Slot, dict[str, Scalar] | None]:
        """What is still to be asked by this sweep."""
        taken = self.answered()
        return {s: c for s, c in self.slots().items() if s not in taken and s not in self.given_up}

    def ask(self) -> Ask | None:
        """The next candidate, or None where all are asked: until a trial that is out ends, or for good."""
        slot, fixed = next(iter(self.free().items()), (None, None))
        if slot is None:
            return None
        siblings = [t for t in self.trials() if "seed" in t.user_attrs and self.slot(t)[0] == slot[0]]
        earlier = [t for t in siblings if self.slot(t) == slot]
        if self.listed is not None:
            self.distributions = listed_distributions(self.stage, self.candidates())
        elif siblings:  # this slot as it was asked before, or its candidate at another seed
            fixed = (earlier or siblings)[-1].params
        if fixed:
            self.study.enqueue_trial(dict(fixed))
        trial = self.study.ask(self.distributions)
        if self.listed is None:
            trial.set_user_attr("candidate", slot[0])
        if earlier:
            trial.set_user_attr("retry_of", earlier[-1].number)
        seed = earlier[-1].user_attrs["seed"] if earlier else slot[1] if fixed else self.fresh(trial.params, slot[1])
        if seed != slot[1]:
            trial.set_user_attr("planned_seed", slot[1])
        trial.set_user_attr("seed", seed)
        self.asked[trial.number] = trial
        return Ask(trial.number, dict(trial.params), seed)

    def fresh(self, params: Mapping[str, Scalar], seed: int) -> int:
        """The seed of a new candidate: another one where `pareto` asks for the same again, or nothing is measured."""
        same = {t.user_attrs["seed"] for t in self.current() if key(t.params) == key(params)}
        again = self.stage.sampler.name == "pareto" and seed in same
        return max(*same, *self.seeds) + 1 if again else seed

    def planned_as(self, number: int, trial: Trial) -> None:
        """Notes a trial's fingerprints and arithmetic, so that others can read the study without us."""
        mine = self.asked[number]
        mine.set_user_attr("runs", [r.fingerprint for r in trial.runs])
        mine.set_user_attr("trunk", trial.trunk.fingerprint)
        mine.set_user_attr("D", trial.rung)

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
            self.given_up.add(self.slot(self.study.tell(number, state=TrialState.FAIL)))
        elif outcome == "pruned":
            self.study.tell(number, state=TrialState.PRUNED)  # Optuna takes its last report for its value
        else:
            value = math.inf if outcome == "diverged" else loss
            assert value is not None
            self.study.tell(number, value)
        self.asked.pop(number, None)

    def reconcile(self, runs: Runs, record: Callable[[str], Record | None]) -> None:
        """Settles what a dead driver left, and finds what is no longer whole.

        A trial left running is told from its records, else it has failed. A finished one of which a planned run has no
        record (a revision added a rung, somebody deleted a record) is asked again. `runs`: what is planned of a trial.
        """
        for t in self.trials():
            if t.state == TrialState.WAITING:  # never handed out; only what runs can be told
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


def loss_of(t: FrozenTrial) -> float | None:
    """What a fan knows of a trial: a stopped one was no candidate for its minimum."""
    if t.state == TrialState.RUNNING:
        return None
    return math.inf if t.state == TrialState.PRUNED else t.value


def planned_seed(t: FrozenTrial) -> int:
    """The seed of a trial's slot; a candidate that is measured again has another one."""
    return int(t.user_attrs.get("planned_seed", t.user_attrs.get("seed", -1)))


def is_diverged(t: FrozenTrial) -> bool:
    """Only what was told counts: a driver may die between noting it and telling it."""
    told = t.state in (TrialState.COMPLETE, TrialState.PRUNED)
    return told and (bool(t.user_attrs.get("diverged")) or t.value == math.inf)


def storage(folder: Path) -> optuna.storages.BaseStorage:
    """The folder's SQLite database; writers wait half a minute for another's lock."""
    engine = {"connect_args": {"timeout": 30}}
    return optuna.storages.RDBStorage(f"sqlite:///{(folder / 'optuna.db').resolve()}", engine_kwargs=engine)


def states(folder: Path, stage: str) -> list[dict[str, Any]]:
    """A stage's trials as the database knows them: number, state, params, value, runs, seed. Empty before it began."""
    if not (folder / "optuna.db").exists():
        return []
    names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "running"}
    try:
        found = optuna.load_study(study_name=stage, storage=storage(folder)).get_trials(deepcopy=False)
    except KeyError:
        return []
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
        for t in found
    ]
