"""Plotly's axes as what a drawing needs of them: where a value lies, and where the ticks stand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dashboard.style import log_ticks, short

ROOM = 0.06  # of a range, at both ends of what is drawn
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Axis:
    """One axis, from `start` to `end` in pixels. `low` and `high` are log10 on a log axis, counts of categories."""

    name: str
    title: str
    log: bool
    low: float
    high: float
    start: float
    end: float
    ticks: tuple[tuple[float, str], ...]
    labelled: bool
    names: Mapping[str, int]

    def at(self, value: Any) -> float | None:
        """A value's pixel; None where it has none."""
        if isinstance(value, str):
            value = self.names.get(value)
        if value is None or not np.isfinite(value) or (self.log and value <= 0):
            return None
        return self.along(math.log10(value) if self.log else float(value))

    def held(self, value: Any) -> float:
        """A value's pixel; the axis' start where it has none, such as an interval's end below zero on a log axis."""
        found = self.at(value)
        return self.start if found is None else found

    def along(self, x: float) -> float:
        return self.start + (self.end - self.start) * (x - self.low) / ((self.high - self.low) or 1.0)

    def ticks_on(self) -> list[tuple[float, str]]:
        """The ticks that lie on it, each at its place along it."""
        room = 1e-6 * (self.high - self.low)
        at = [(math.log10(v) if self.log else v, text) for v, text in self.ticks]
        return [(x, text) for x, text in at if self.low - room <= x <= self.high + room]


def axes_of(fig: go.Figure, which: str, start: float, end: float) -> dict[str, Axis]:
    """A figure's x or y axes by plotly's name (x, x2), laid out between two pixels."""
    found = {}
    for key in fig.layout:
        if not str(key).startswith(f"{which}axis"):
            continue
        name, said = str(key).replace("axis", ""), fig.layout[key]
        values = [v for mate in mates(fig, which, name) for v in values_of(fig, which, mate)]
        names = categories(said, values)
        low, high = ends_of(fig, which, name, values, names)
        domain = said.domain or (0.0, 1.0)
        ticks = tuple(ticks_of(said, low, high, names))
        place = (start + (end - start) * domain[0], start + (end - start) * domain[1])
        labelled = said.showticklabels is not False
        found[name] = Axis(name, said.title.text or "", said.type == "log", low, high, *place, ticks, labelled, names)
    return found


def mates(fig: go.Figure, which: str, name: str) -> list[str]:
    """The axes that share their range with one."""
    told = {str(k).replace("axis", ""): fig.layout[k] for k in fig.layout if str(k).startswith(f"{which}axis")}
    head = told[name].matches or name
    return [n for n, a in told.items() if (a.matches or n) == head]


def values_of(fig: go.Figure, which: str, name: str) -> list[Any]:
    """All that is drawn along an axis, the ends of error bars too."""
    found: list[Any] = []
    for t in fig.data:
        if (t[f"{which}axis"] or which) != name or t[which] is None:
            continue
        found += list(t[which])
        bars = t[f"error_{which}"]
        if bars.array is not None:
            up, down = bars.array, bars.arrayminus if bars.arrayminus is not None else bars.array
            pairs = [(v, u, d) for v, u, d in zip(t[which], up, down, strict=True) if not isinstance(v, str)]
            found += [w for v, u, d in pairs if v is not None for w in (v + u, v - d)]
    return found


def categories(said: Any, values: Iterable[Any]) -> dict[str, int]:
    """Names along an axis, in their order."""
    named = said.categoryarray if said.categoryarray is not None else [v for v in values if isinstance(v, str)]
    return {str(name): i for i, name in enumerate(dict.fromkeys(named))}


def ends_of(
    fig: go.Figure, which: str, name: str, values: Sequence[Any], names: Mapping[str, int]
) -> tuple[float, float]:
    """An axis' range: what the figure says, its own or that of an axis it matches, or what holds all values."""
    told = [fig.layout[f"{which}axis{m[1:]}"] for m in mates(fig, which, name)]
    for axis in told:
        if axis.range is not None:
            return float(axis.range[0]), float(axis.range[1])
    if names:
        return -0.5, len(names) - 0.5
    log = told[0].type == "log"
    known = np.array([v for v in values if v is not None], float)
    known = known[np.isfinite(known) & ((known > 0) | (not log))]
    if not len(known):
        return 0.0, 1.0
    known = np.log10(known) if log else known
    low, high = float(known.min()), float(known.max())
    room = ROOM * (high - low) or 0.05 * abs(high) or 0.5
    if told[0].rangemode == "tozero" and low >= 0:
        return 0.0, high + room
    return low - room, high + room


def ticks_of(said: Any, low: float, high: float, names: Mapping[str, int]) -> list[tuple[float, str]]:
    if names:
        return [(i, name) for name, i in names.items()]
    if said.tickvals is not None:
        texts = said.ticktext if said.ticktext is not None else [plain(v, 0) for v in said.tickvals]
        return [(float(v), str(t)) for v, t in zip(said.tickvals, texts, strict=True)]
    if said.type == "log":
        found: dict[str, Any] = dict(log_ticks(10**low, 10**high))
        return [(float(v), str(t)) for v, t in zip(found["tickvals"], found["ticktext"], strict=True)]
    step = step_of(high - low)
    digits = next(i for i in range(300) if abs(step * 10**i - round(step * 10**i)) < 1e-6)
    values = [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    write = (lambda v: short(v)) if "s" in (said.tickformat or "") else (lambda v: plain(v, digits))
    return [(v, write(v) + (said.ticksuffix or "")) for v in values]


def step_of(reach: float) -> float:
    """A round distance between about six ticks.

    >>> step_of(1.0), step_of(37.0)
    (0.2, 10.0)
    """
    rough = (reach or 1.0) / 6
    size = 10.0 ** math.floor(math.log10(rough))
    return next(s * size for s in STEPS if s * size >= rough * 0.999)


def plain(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}".replace("-", "−") if float(value) or digits else "0"
