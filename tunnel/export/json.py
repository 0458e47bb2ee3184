"""The neutral bundle: the recommendation itself, for a trainer that reads it with its own code."""

from __future__ import annotations

from typing import Any

from tunnel.export import hf
from tunnel.export._parts import Carried, Parts
from tunnel.run import RunSpec

CARRIES = ("everything, as data",)
TAKES = hf.TAKES
CANNOT_CARRY = ("nothing is applied by itself: the job reads recommendation.json and schedule.csv",)


def parts(recommendation: dict[str, Any], run: RunSpec, world: int = 1) -> Parts:
    """No files of its own: what every bundle holds says it all, exactly, for any family."""
    fields = {name: Carried("exact", "recommendation.json") for name in recommendation}
    batch = run.trunk.settings.batch_tokens
    return Parts(
        files={},
        fields={**fields, "schedule": Carried("exact", "schedule.csv")},
        multiplier=lambda step: run.multiplier(step * batch),
    )
