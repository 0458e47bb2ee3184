"""What a stage found: each searched setting's best value with its interval and where it comes from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from tunnel import valley
from tunnel.space import SHAPE, Range, Scalar
from tunnel.study import Stage


@dataclass(frozen=True)
class Setting:
    """A value with a 90% interval, its source in words, and a caution where it rests on little."""

    value: Scalar
    low: Scalar | None
    high: Scalar | None
    source: str
    caution: str = ""
    readings: tuple[str, ...] = ()  # fingerprints of what it rests on

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def of_stage(readings: pd.DataFrame, stage: str) -> pd.DataFrame:
    """A stage's finished readings."""
    if not len(readings):
        return readings
    return readings[(readings.stage == stage) & (readings.status == "complete")]


def best(stage: Stage, readings: pd.DataFrame) -> dict[str, Setting]:
    """The settings a search hands on: all it searched except shape, from the valley's fitted minimum."""
    found = of_stage(readings, stage.name)
    axes = {k: a for k, a in stage.axes.items() if k not in SHAPE}
    if not len(found) or not axes:
        return {}
    numeric = {k: a for k, a in axes.items() if isinstance(a, Range)}
    frame = searched(found)
    winner = frame.iloc[int(frame.loss.to_numpy(float).argmin())]
    shapes = [k for k in SHAPE if k in stage.axes]
    bowl = valley.bowl(
        {k: np.log(frame[k].to_numpy(float)) for k in [*numeric, *shapes]}, np.log(frame.loss.to_numpy(float))
    )
    settings: dict[str, Setting] = {}
    for name, axis in axes.items():
        if name not in numeric:
            behind = (str(winner.fingerprint),)
            settings[name] = Setting(winner[name], None, None, f"best trial, stage {stage.name}", readings=behind)
            continue
        assert isinstance(axis, Range)
        settings[name] = from_bowl(name, axis, bowl.get(name), float(winner[name]), frame, stage)
    return settings


def searched(found: pd.DataFrame) -> pd.DataFrame:
    """The readings with warmup as it was asked: a logarithm needs it above 0."""
    return found.assign(warmup=found.warmup.clip(lower=1.0))


def from_bowl(
    name: str, axis: Range, dip: valley.Dip | None, winner: float, frame: pd.DataFrame, stage: Stage
) -> Setting:
    """The fitted minimum where there is one inside what was tried; else the best trial's value, with a caution."""
    low, high = float(frame[name].min()), float(frame[name].max())
    behind = tuple(frame.fingerprint)
    where = f"stage {stage.name}, {len(frame)} trials"
    if dip is not None and dip.curved and np.log(low) <= dip.at <= np.log(high):
        least, most = np.clip(np.exp([dip.low, dip.high]), low, high).tolist()
        return Setting(float(np.exp(dip.at)), least, most, f"valley's fitted minimum, {where}", "", behind)
    edge = dip is not None and dip.curved
    why = (
        "its fitted minimum lies outside the range: widen it"
        if edge
        else "no curvature along it: add trials or widen the range"
    )
    return Setting(winner, low, high, f"best trial (low and high: the range tried), {where}", f"{name}: {why}", behind)


def aspect(stage: Stage, readings: pd.DataFrame) -> Setting | None:
    """Width over depth that was best at equal FLOPs, from a stage that searched the shape; None where none was."""
    found = of_stage(readings, stage.name)
    axes = {k: a for k, a in stage.axes.items() if isinstance(a, Range)}
    if not set(SHAPE) <= set(axes) or not len(found):
        return None
    frame = searched(found).assign(aspect=lambda f: f.width / f.depth)
    names = ["aspect", *(k for k in axes if k not in SHAPE)]
    bowl = valley.bowl({k: np.log(frame[k].to_numpy(float)) for k in names}, np.log(frame.loss.to_numpy(float)))
    winner = float(frame.aspect.iloc[int(frame.loss.to_numpy(float).argmin())])
    low, high = float(frame.aspect.min()), float(frame.aspect.max())
    return from_bowl("aspect", Range(low, high, True), bowl.get("aspect"), winner, frame, stage)
