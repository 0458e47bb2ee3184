"""What a stage may ask: its axes as Optuna's ranges, the samplers by name, and what is known before it is asked."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

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
from tunnel.space import DIMENSIONS, Axis, Choice, Scalar
from tunnel.study import Stage

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

GRID_POINTS = 5  # of a range without a step, in a grid  *assumed*
RANDOM_START = 8  # trials before TPE or GP model anything, and CMA-ES goes on from them  *assumed*
LEARNING = ("tpe", "gp", "cmaes", "pareto")  # from what they are told; the others' candidates are known beforehand


def distribution(axis: Axis, kind: str) -> BaseDistribution:
    if isinstance(axis, Choice):
        return CategoricalDistribution(list(axis.values))
    if kind == "int":
        return IntDistribution(int(axis.low), int(axis.high), log=axis.log, step=1 if axis.log else axis.step or 1)
    return FloatDistribution(axis.low, axis.high, log=axis.log)


def distributions(axes: Mapping[str, Axis]) -> dict[str, BaseDistribution]:
    return {k: distribution(a, DIMENSIONS[k].kind) for k, a in axes.items()}


def listed_distributions(stage: Stage, candidates: Sequence[Mapping[str, Scalar]]) -> dict[str, BaseDistribution]:
    """Ranges that just hold a ladder's candidates, so that their trials are stored like any others."""
    found: dict[str, BaseDistribution] = {}
    for name in candidates[0]:
        values = [c[name] for c in candidates]
        if any(isinstance(v, str) for v in values):
            known = stage.axes.get(name) or Choice(tuple(sorted({str(v) for v in values})))
            found[name] = distribution(known, "choice")
        elif all(isinstance(v, int) for v in values):
            found[name] = IntDistribution(min(values), max(values))  # type: ignore[arg-type]
        else:
            found[name] = FloatDistribution(min(values), max(values))  # type: ignore[arg-type]
    return found


def sampler(
    name: str, seed: int, asked: Sequence[FrozenTrial] = (), axes: Mapping[str, Axis] | None = None
) -> BaseSampler:
    """The sampler by the study file's name, every option that Optuna 5.0 changed passed explicitly.

    A random stream begins anew with every process, so the number of trials `asked` so far is part of its seed; CMA-ES
    begins anew too, around the best of them. `axes`: what is searched, which only `pareto` must know.
    """
    new = (seed + 100_003 * len(asked)) % 2**32
    told = [t for t in asked if t.state == TrialState.COMPLETE]
    makers: dict[str, Callable[[], BaseSampler]] = {
        "tpe": lambda: TPESampler(seed=new, multivariate=True, constant_liar=True, n_startup_trials=RANDOM_START),
        "gp": lambda: GPSampler(seed=new, n_startup_trials=RANDOM_START),
        "cmaes": lambda: CmaEsSampler(seed=new, source_trials=told if len(told) >= RANDOM_START else None),
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
