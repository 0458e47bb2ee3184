"""An Optuna study in memory, with its database behind it: read from memory, written to both.

One driver writes to a study, so what it wrote it need not read again. The database stays the truth on disk, and gets a
trial as one transaction, with all its attributes, when `keep` is called: a killed driver leaves a whole ask, or none.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Sequence
from heapq import nsmallest
from typing import Any

import optuna
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tunnel.errors import UserError

BEST = 25  # trials that TPE counts as good, at most: Optuna's default_gamma  *derived*


class Mirror(InMemoryStorage):
    """A study's trials by number. `window`: a sampler sees only so many of the last ones, and the best before them."""

    def __init__(self, database: BaseStorage, name: str, window: int | None = None) -> None:
        super().__init__()
        self.database, self.name, self.window = database, name, window
        kept = optuna.create_study(study_name=name, storage=database, direction="minimize", load_if_exists=True)
        kept.set_metric_names(["loss"])
        self.there = database.get_study_id_from_name(name)
        self.here = self.create_new_study([StudyDirection.MINIMIZE], name)
        self.ids: dict[int, int] = {}  # in the database, of the trials that can change
        for t in kept.get_trials(deepcopy=False):
            self.create_new_trial(self.here, without_notes(t))
            if not t.state.is_finished():
                self.ids[t.number] = database.get_trial_id_from_study_id_trial_number(self.there, t.number)

    def trials(self) -> list[FrozenTrial]:
        return super().get_all_trials(self.here, deepcopy=False)

    def keep(self, number: int) -> None:
        """Puts a trial into the database as it is by now; what follows is written to both."""
        there = self.database.create_new_trial(self.there, without_notes(self.get_trial(number)))
        if self.database.get_trial_number_from_id(there) != number:
            raise UserError("another process writes to this study's database", value=self.there)
        self.ids[number] = there

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        found = super().get_all_trials(study_id, deepcopy, states)
        if self.window is None or len(found) <= self.window:
            return found
        before = [t for t in found[: -self.window] if t.state == TrialState.COMPLETE]
        best = nsmallest(BEST, before, key=lambda t: t.values[0])
        return [*sorted(best, key=lambda t: t.number), *found[-self.window :]]

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        if trial_id in self.ids:
            self.database.set_trial_user_attr(self.ids[trial_id], key, value)
        super().set_trial_user_attr(trial_id, key, value)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self.database.set_trial_intermediate_value(self.ids[trial_id], step, intermediate_value)
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        if state.is_finished():
            self.database.set_trial_state_values(self.ids[trial_id], state, values)
        return super().set_trial_state_values(trial_id, state, values)


def without_notes(t: FrozenTrial) -> FrozenTrial:
    """A sampler's notes on a trial stay in its process: CMA-ES's are pickles, which nobody may read from a file."""
    found = copy.copy(t)
    found.system_attrs = {}
    return found
