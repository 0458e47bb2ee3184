"""What a recommendation rests on: the target, the ladder's fit and rows, and what earlier stages handed on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from tunnel import tuned
from tunnel.answers import ladder
from tunnel.folder import store
from tunnel.folder.store import Store
from tunnel.space import Scalar
from tunnel.study import Stage, Study, Target
from tunnel.verdicts import horizon


@dataclass(frozen=True)
class Basis:
    """`rows`: the readings that the law rests on; `ways`: how the ladder trains best; `handed`: what it was handed."""

    asked: Study
    keep: Store
    goal: Target
    readings: pd.DataFrame
    fit: dict[str, Any]
    stage: Stage
    rows: pd.DataFrame
    ways: dict[str, tuned.Setting]
    handed: dict[str, Any]

    @property
    def evidence(self) -> dict[str, dict[str, Any]]:
        """What each searched setting rests on: of the stage that found it last."""
        return {**self.handed["evidence"], **{k: s.as_dict() for k, s in self.ways.items()}}

    @property
    def handed_on(self) -> dict[str, Scalar]:
        return self.handed["handed_on"]


def basis(asked: Study, keep: Store, goal: Target, readings: pd.DataFrame, fit: dict[str, Any] | None = None) -> Basis:
    """`fit`: the ladder's for a goal that is no target of the study. Raises UserError as `ladder.fitted` does."""
    fit = ladder.fitted(asked, keep, goal.name) if fit is None else fit
    stage = ladder.stage_of(asked)
    rows = ladder.rows_used(asked, keep, readings, stage)
    ways = tuned.settled(horizon.own(asked, keep, readings, stage), stage)
    handed = store.read_json(keep.path("study.resolved.json"), {})["stages"][stage.name]
    return Basis(asked, keep, goal, readings, fit, stage, rows, ways, handed)
