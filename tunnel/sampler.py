"""Optuna's one home: what is asked next, and what became of it.

The Optuna study in the folder's `optuna.db` is the truth about what was asked; the driver is its only writer.
Records are the truth about what was measured, and `reconcile` brings the two together when a sweep starts.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    GridSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial, TrialState

from tunnel.run import Record, Trial
from tunnel.space import DIMENSIONS, Choice, Range, Scalar
from tunnel.study import Stage

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

GRID_POINTS = 5  # of a range without a step, in a grid  *assumed*
TPE_WINDOW = 8  # trials before TPE models anything  *assumed*
Outcome = Literal["complete", "diverged", "failed"]


@dataclass(frozen=True)
class Ask:
    """A candidate at a seed, by its Optuna number."""

    number: int
    params: dict[str, Scalar]
    seed: int


def distribution(axis: Range | Choice, kind: str) -> BaseDistribution:
    if isinstance(axis, Choice):
        return CategoricalDistribution(list(axis.values))
    if kind == "int":
        return IntDistribution(int(axis.low), int(axis.high), log=axis.log, step=1 if axis.log else axis.step or 1)
    return FloatDistribution(axis.low, axis.high, log=axis.log)


def listed_distributions(candidates: list[dict[str, Scalar]]) -> dict[str, BaseDistribution]:
    """Ranges that just hold a ladder's candidates, so that their trials are stored like any others."""
    found: dict[str, BaseDistribution] = {}
    for name in candidates[0]:
        values = [c[name] for c in candidates]
        if all(isinstance(v, int) for v in values):
            found[name] = IntDistribution(min(values), max(values))  # type: ignore[arg-type]
        else:
            found[name] = FloatDistribution(min(values), max(values))  # type: ignore[arg-type]
    return found


class Grid(GridSampler):
    def after_trial(self, *_: object, **__: object) -> None:
        """Nothing: the stage ends when its trials are asked; Optuna's own end is an error outside its own loop."""


def sampler(name: str, seed: int, distributions: dict[str, BaseDistribution], asked: int) -> BaseSampler:
    """Optuna's sampler by the study file's name, every option that 5.0 changed passed explicitly.

    A random stream begins anew with every process, so `asked`, the trials so far, is part of its seed; sobol and grid
    count in the database.
    """
    new = (seed + 100_003 * asked) % 2**32
    makers: dict[str, Callable[[], BaseSampler]] = {
        "tpe": lambda: TPESampler(seed=new, multivariate=True, constant_liar=True, n_startup_trials=TPE_WINDOW),
        "gp": lambda: GPSampler(seed=new, n_startup_trials=TPE_WINDOW),
        "cmaes": lambda: CmaEsSampler(seed=new),
        "sobol": lambda: QMCSampler(qmc_type="sobol", scramble=True, seed=seed, warn_independent_sampling=False),
        "random": lambda: RandomSampler(seed=new),
        "grid": lambda: Grid({k: grid(d) for k, d in distributions.items()}, seed=seed),
    }
    return makers[name]()


def grid(d: BaseDistribution) -> list[Any]:
    if isinstance(d, CategoricalDistribution):
        return list(d.choices)
    if isinstance(d, IntDistribution) and not d.log:
        return list(range(d.low, d.high + 1, d.step))
    assert isinstance(d, IntDistribution | FloatDistribution)
    a, b = (math.log(d.low), math.log(d.high)) if d.log else (d.low, d.high)
    points = [a + (b - a) * i / (GRID_POINTS - 1) for i in range(GRID_POINTS)]
    return [min(max(math.exp(p) if d.log else p, d.low), d.high) for p in points]


class Asker:
    """One stage's questions: asks candidates until all are asked, and is told what became of each."""

    def __init__(self, folder: Path, stage: Stage, candidates: list[dict[str, Scalar]] | None, seed: int) -> None:
        self.stage, self.candidates, self.seeds = stage, candidates, list(stage.budget.seeds)
        if candidates is None:
            self.distributions = {k: distribution(a, DIMENSIONS[k].kind) for k, a in stage.axes.items()}
        else:
            self.distributions = listed_distributions(candidates)
        folder.mkdir(parents=True, exist_ok=True)
        self.study = optuna.create_study(
            study_name=stage.name,
            storage=storage(folder),
            direction="minimize",
            load_if_exists=True,
        )
        self.study.sampler = sampler(stage.sampler.name, seed, self.distributions, len(self.trials()))
        self.study.set_metric_names(["loss"])
        self.asked: dict[int, optuna.Trial] = {}
        self.given_up: set[tuple[int, int]] = set()  # slots that the machine failed; another sweep asks them again
        count = stage.budget.trials if candidates is None else len(candidates)
        self.planned = count * len(self.seeds)
        self.slots = [(i, s) for i in range(count) for s in self.seeds]  # (candidate, seed)

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def answered(self) -> dict[tuple[int, int], FrozenTrial]:
        """The slots that are asked and not failed."""
        return {self.slot(t): t for t in self.trials() if t.state != TrialState.FAIL and "seed" in t.user_attrs}

    def slot(self, t: FrozenTrial) -> tuple[int, int]:
        """A trial's candidate and seed; a listed candidate by its values, since a revision may put others before it."""
        candidate = t.user_attrs.get("candidate", -1)
        if self.candidates is not None:
            candidate = self.candidates.index(t.params) if t.params in self.candidates else -1
        return candidate, t.user_attrs.get("seed", -1)

    def ask(self) -> Ask | None:
        """The next candidate, or None where all are asked."""
        taken = self.answered()
        free = next((s for s in self.slots if s not in taken and s not in self.given_up), None)
        if free is None:
            return None
        candidate, seed = free
        sibling = next((t for (c, _), t in taken.items() if c == candidate), None)
        fixed = sibling.params if sibling else self.retried(free) or (self.candidates and self.candidates[candidate])
        if fixed:
            self.study.enqueue_trial(dict(fixed))
        trial = self.study.ask(self.distributions)
        trial.set_user_attr("candidate", candidate)
        trial.set_user_attr("seed", seed)
        self.asked[trial.number] = trial
        return Ask(trial.number, dict(trial.params), seed)

    def retried(self, place: tuple[int, int]) -> dict[str, Scalar] | None:
        """The parameters of a failed ask of this slot: it is asked again as it was."""
        failed = [t for t in self.trials() if t.state == TrialState.FAIL and self.slot(t) == place]
        return failed[-1].params if failed else None

    def planned_as(self, number: int, trial: Trial) -> None:
        """Notes a trial's fingerprints and arithmetic, so that others can read the study without us."""
        mine = self.asked[number]
        mine.set_user_attr("runs", [r.fingerprint for r in trial.runs])
        mine.set_user_attr("trunk", trial.trunk.fingerprint)
        mine.set_user_attr("D", trial.runs[-1].tokens)

    def report(self, number: int, record: Record) -> None:
        """A reading of a living trial."""
        if record.loss is not None:
            self.asked[number].report(record.loss, record.D)

    def tell(self, number: int, outcome: Outcome, loss: float | None = None) -> None:
        """A trial's one final state: its last rung's loss; +inf with `diverged` where it diverged."""
        if outcome == "failed":
            self.given_up.add(self.slot(self.study.tell(number, state=TrialState.FAIL)))
        elif outcome == "diverged":
            self.asked[number].set_user_attr("diverged", True) if number in self.asked else None
            self.study.tell(number, math.inf)
        else:
            assert loss is not None
            self.study.tell(number, loss)
        self.asked.pop(number, None)

    def reconcile(self, record: Callable[[str], Record | None]) -> None:
        """Settles what a dead driver left running: told from its records, else failed and asked again."""
        for t in self.trials():
            if t.state not in (TrialState.RUNNING, TrialState.WAITING):
                continue
            if t.state == TrialState.WAITING:  # never handed out; only what runs can be told
                self.study.tell(self.study.ask(), state=TrialState.FAIL)
                continue
            found = [record(fp) for fp in t.user_attrs.get("runs", [])]
            last = found[-1] if found and all(found) else None
            if last is not None:
                self.tell(t.number, last.status, last.loss)
            else:
                self.study.tell(t.number, state=TrialState.FAIL)


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
            "state": "diverged" if t.user_attrs.get("diverged") or t.value == math.inf else names[t.state.name],
            "params": t.params,
            "value": t.value if t.value is not None and math.isfinite(t.value) else None,
            "runs": t.user_attrs.get("runs", []),
            "seed": t.user_attrs.get("seed"),
            "candidate": t.user_attrs.get("candidate"),
        }
        for t in found
    ]
