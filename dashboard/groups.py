"""Readings that may stand in one figure: a stage's, apart by all that it lists beside shapes, lrs, rungs and seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from dashboard import load
from dashboard.figures import shape_name
from dashboard.style import short
from tunnel.space import MIX
from tunnel.study import Stage

NAMES = {"batch_tokens": "B"}
ALL = "all"


def of(rows: pd.DataFrame, stage: Stage, decays: bool = True) -> dict[str, pd.DataFrame]:
    """A stage's readings by what it lists (rules, batches, its space, decays); one group where it lists none.

    Without `decays`, all forks of a trunk stay together.
    """
    said = pd.DataFrame({name: told(name, rows, stage) for name in apart(rows, stage, decays)}, index=rows.index)
    if not len(said.columns):
        return {ALL: rows}
    label = said.agg(", ".join, axis=1)
    return {name: rows[label == name] for name in dict.fromkeys(label)}


def apart(rows: pd.DataFrame, stage: Stage, decays: bool) -> list[str]:
    """The columns in which a stage's readings differ by its own word."""
    names = [] if stage.searches else ["rules", "batch_tokens", *stage.axes]
    if stage.decays and decays:
        names += ["decay", "decay_shape", "half_life", *(str(k) for k in rows if str(k).startswith(f"{MIX}."))]
    return [n for n in dict.fromkeys(names) if n in rows and rows[n].nunique() > 1]


def told(name: str, rows: pd.DataFrame, stage: Stage) -> pd.Series:
    """A column's values in words; a decay by the one that was asked, from which whole batches moved it."""
    values = rows[name]
    if name == "decay":
        asked = [d.decay for d in stage.decays if d.decay is not None]
        values = values.map(lambda v: nearest(v, asked) if len(asked) == len(stage.decays) else round(v, 2))
    named = NAMES.get(name, name)
    return values.map(lambda v: v if isinstance(v, str) else f"{named} {number(v)}").astype(str)


def number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else short(value)


def nearest(value: float, asked: Sequence[float]) -> float:
    return min(asked, key=lambda a: abs(math.log(a / value)))


def shapes(rows: pd.DataFrame) -> list[str]:
    """The shapes among readings, narrow and shallow first."""
    found = rows[["width", "depth"]].drop_duplicates().sort_values(["width", "depth"])
    return [shape_name(w, d) for w, d in found.itertuples(index=False)]


def lawful(done: pd.DataFrame, seen: load.Opened) -> pd.DataFrame:
    """The readings that a law is fitted to: of the study's own rules, each trunk's best decay at each rung."""
    own = done[done.rules == seen.asked.rules] if seen.asked else done
    return (own if len(own) else done).sort_values("loss").drop_duplicates(["run", "D"])
