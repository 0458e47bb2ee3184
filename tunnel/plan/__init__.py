"""From a study to what would run (`trials`) and what that costs (`costs`, at the `paces` that were measured)."""

from tunnel.plan.costs import handed_on, limits, plan, sample_trials, trials_planned
from tunnel.plan.lessons import RUN, settings, tasks_known, tasks_of
from tunnel.plan.paces import Paces
from tunnel.plan.trials import (
    Values,
    body_of,
    candidates,
    lengths,
    models,
    opened,
    shape_of,
    target_trial,
    trial,
    values_of,
)

__all__ = [
    "RUN", "Paces", "Values",
    "body_of", "candidates", "handed_on", "lengths", "limits", "models", "opened", "plan", "sample_trials",
    "settings", "shape_of", "target_trial", "tasks_known", "tasks_of", "trial", "trials_planned", "values_of",
]  # fmt: skip
