"""An Optuna sampler that knows what things cost: where would a reading tell most about the goal, for its price?

The mathematics is `tunnel.valleys.front`; here Optuna's trials become readings, and places to measure candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from tunnel.space import SCALES, Axis
from tunnel.valleys import front
from tunnel.valleys.cube import Cube, Params
from tunnel.valleys.valley import Array

GROWN = 1.15  # beliefs are searched for again when there are so many times more readings  *assumed*


class ParetoSampler(BaseSampler):
    """Proposes the settings and scales whose reading settles most of what is best at the goal, per cost.

    `space`: the distributions that are asked; `axes`: the same as ranges and choices; `goal`: the scales that the
    question is about (else the upper end of each); `cost`: of a candidate, in any unit (else its flops, else all cost
    the same); `places`: the scales that can be had (else any). An infinite value is a run that diverged.
    """

    def __init__(
        self,
        space: Mapping[str, BaseDistribution],
        axes: Mapping[str, Axis],
        seed: int = 0,
        goal: Mapping[str, float] | None = None,
        cost: Callable[[Params], float] | None = None,
        places: Sequence[Mapping[str, float]] = (),
        scales: tuple[str, ...] = SCALES,
    ) -> None:
        self.space, self.seed = dict(space), seed
        self.cube = Cube(axes, goal or {}, scales)
        self.pool = self.cube.pool(seed)
        self.places = list(places) or self.cube.places(seed)
        cost = cost or (lambda params: float(params.get("flops", 1.0)))
        self.costs = np.array([cost(p) for p in self.places])
        self.known: tuple[int, front.Beliefs] | None = None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.space

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Of what is asked outside of the space: any value."""
        return RandomSampler(self.seed).sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        whole = [t for t in study.get_trials(deepcopy=False) if search_space.keys() <= t.params.keys()]
        told = [t for t in whole if t.state == TrialState.COMPLETE]
        out = [t for t in whole if t.state == TrialState.RUNNING and t.number != trial.number]
        if sum(map(finished, told)) < self.cube.d + 2:  # cheap ones all over the space
            return self.cube.params(self.pool[trial.number % len(self.pool)], self.places[int(np.argmin(self.costs))])
        rng = np.random.default_rng([self.seed, trial.number])
        scales = [self.cube.s(p) for p in self.places]
        u, i = front.next_place(self.surface(told, out), scales, self.costs, self.pool, rng)
        same = (t.params for t in told if np.array_equal(self.cube.u(t.params), u))  # again, to beat seed luck
        again = {k: v for k, v in next(same, {}).items() if k in self.cube.settings}
        return {**(again or self.cube.params(u, {})), **self.places[i]}

    def surface(self, told: Sequence[FrozenTrial], out: Sequence[FrozenTrial] = ()) -> front.Front:
        """What finished trials say; those that are out are believed to end as expected."""
        again = self.known is None or len(told) >= GROWN * self.known[0]
        y = np.array([math.log(t.value or 1.0) if finished(t) else math.inf for t in told])
        found = front.fit(self.readings(told, y), self.known[1] if self.known else None, search=again)
        if again:
            self.known = len(told), found.known
        if not out:
            return found
        expected = self.readings(out, np.zeros(len(out)))
        y = np.append(y, found.mean_at(expected.u, expected.s))
        return front.fit(self.readings([*told, *out], y), found.known, search=False)

    def readings(self, trials: Sequence[FrozenTrial], y: Array) -> front.Readings:
        u, s = (np.array([f(t.params) for t in trials]) for f in (self.cube.u, self.cube.s))
        return front.Readings(u, s, y)


def finished(t: FrozenTrial) -> bool:
    """Whether it ended with a loss; a diverged one was told as infinite."""
    return t.value is not None and 0 < t.value < math.inf
