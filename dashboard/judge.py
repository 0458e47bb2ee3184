"""What the page Valleys & transfer shows: verdicts as `tunnel verdict` gives them, and the seeds' readings behind them.

Where verdict.json is there, it is what is shown; before, the same functions are asked about the readings so far.
The coordinate check trains, so it is the command's alone. Nothing here touches the disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from dashboard import load
from tunnel.errors import UserError
from tunnel.run import fingerprint
from tunnel.study import Study
from tunnel.verdicts import cells, verdict

UNITS = {"width": "channels", "depth": "layers", "D": "tokens", "B": "tokens"}  # of an axis
Found = Mapping[str, Any]  # verdict.json's value of a setting under one rule


@dataclass(frozen=True)
class Judged:
    """Verdicts by setting; `kept` where verdict.json has them, else made of the readings so far.

    `old`: they rest on other readings than the folder holds now. `why`: there are none, for this reason.
    """

    by_setting: Mapping[str, Found]
    kept: bool = False
    old: bool = False
    why: str = ""

    def by_rules(self, setting: str) -> dict[str, Found]:
        """A setting's verdicts by rule, the study's own first."""
        own = self.by_setting[setting]
        return {own["rules"]: own, **own["compared"]}


@dataclass(frozen=True)
class Line:
    """Sizes of one axis under one rule, everything else equal: `told` is their part of the verdict."""

    rules: str
    axis: str
    told: Found
    seeds: tuple[cells.Place | None, ...]  # for each minimum, the readings behind it
    context: Mapping[str, Any]  # the other settings' values, where the readings tell them

    @property
    def place(self) -> str:
        """Where it lies: what all its sizes share."""
        return ", ".join(f"{k} {v:,.0f}" for k, v in self.told["fixed"].items())


def judged(seen: load.Opened) -> Judged:
    """The verdicts to show, or why there are none."""
    if seen.verdict:
        return Judged(seen.verdict, kept=True, old=is_old(seen))
    if seen.asked is None:
        return Judged({}, why="The study's question cannot be read.")
    try:
        return Judged(judged_at(str(seen.root), seen.at, seen.asked, seen.readings))
    except UserError as e:
        return Judged({}, why=e.rule)


def is_old(seen: load.Opened) -> bool:
    """Whether `tunnel verdict` would make verdict.json again."""
    now = fingerprint([seen.resting_on, verdict.METHOD])
    return any(v["readings_hash"] != now for v in (seen.verdict or {}).values())


@st.cache_data(max_entries=32, show_spinner="Judging the readings …")
def judged_at(root: str, at: tuple[load.Stamp, ...], _asked: Study, _readings: pd.DataFrame) -> dict[str, Found]:
    """`verdict.verdicts` of readings, without the coordinate check. Raises UserError where nothing can be judged."""
    rows = verdict.judged_rows(_asked, _readings)
    by_rules = verdict.by_rules(_asked, rows)
    settings = [s for s in verdict.SETTINGS if any(s in found for found in by_rules.values())]
    return {s: own_first(_asked.rules, {r: f[s] for r, f in by_rules.items() if s in f}) for s in settings}


def own_first(rules: str, found: Mapping[str, Found]) -> Found:
    own = rules if rules in found else next(iter(found))
    return {**found[own], "rules": own, "compared": {r: f for r, f in found.items() if r != own}}


@st.cache_data(max_entries=32, show_spinner=False)
def places_at(
    root: str, at: tuple[load.Stamp, ...], setting: str, _asked: Study, _readings: pd.DataFrame
) -> dict[str, list[cells.Place]]:
    """The cells behind a setting's verdicts, by rule."""
    rows = verdict.judged_rows(_asked, _readings)
    return {str(r): cells.places(own, setting) for r, own in rows.groupby("rules")}


def lines(seen: load.Opened, told: Judged, setting: str, axis: str) -> list[Line]:
    """Every line of a setting along an axis, the study's own rule first, then by reach."""
    found = [
        (rules, one)
        for rules, own in told.by_rules(setting).items()
        for first in [own["over"].get(axis)]
        if first is not None
        for one in [first, *first.get("lines", [])]
    ]
    places: dict[str, list[cells.Place]] = {}
    if seen.asked is not None and found:
        try:
            places = places_at(str(seen.root), seen.at, setting, seen.asked, seen.readings)
        except UserError:
            places = {}
    return [line(rules, axis, setting, one, places.get(rules, [])) for rules, one in found]


def line(rules: str, axis: str, setting: str, told: Found, places: Sequence[cells.Place]) -> Line:
    seeds = tuple(next((p for p in places if is_of(p, m)), None) for m in told["minima"])
    first = next((p for p in seeds if p is not None), None)
    names = [c for c in cells.CONTEXT if c not in ("lr", setting)]
    return Line(rules, axis, told, seeds, dict(zip(names, first.context, strict=True)) if first else {})


def is_of(p: cells.Place, minimum: Found) -> bool:
    """Whether these are the readings that a minimum was found in."""
    same = all(p.at[k] == minimum[k] for k in cells.AXES) and len(p.cell.x) == len(minimum["values"])
    return same and np.allclose(np.exp(p.cell.means), minimum["losses"], rtol=1e-9)
