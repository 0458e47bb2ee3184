"""A stage's space as numbers: settings in the unit cube, and scales (what makes a trial large and dear) as logs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunnel.space import SCALES, Axis, Choice, Range
from tunnel.valleys.valley import Array

POOL = 128  # settings looked at  *assumed*
PLACES = 16  # scales looked at, besides the lowest  *assumed*

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Cube:
    """`goal`: the scales that are 0, the upper ends of those it does not name; `scales`: which axes are scales."""

    axes: Mapping[str, Axis]
    goal: Mapping[str, float]
    scales: tuple[str, ...] = SCALES

    @property
    def settings(self) -> list[str]:
        return [k for k in self.axes if k not in self.scales]

    @property
    def d(self) -> int:
        return sum(corners(self.axes[k]) for k in self.settings)

    def ranges(self) -> dict[str, Range]:
        """The scales that are searched."""
        return {k: a for k, a in self.axes.items() if k in self.scales and isinstance(a, Range)}

    def u(self, params: Params) -> Array:
        """Settings from 0 to 1 (d); a category has a corner for each of its values."""
        return np.concatenate([coded(self.axes[k], params[k]) for k in self.settings] or [np.zeros(0)])

    def s(self, params: Params) -> Array:
        """Logs of the scales over the goal's (k)."""
        return np.array([math.log(params[k] / self.goal.get(k, a.high)) for k, a in self.ranges().items()])

    def params(self, u: Array, place: Params) -> dict[str, Any]:
        """The inverse: a candidate with the settings u at a place."""
        found, at = dict(place), 0
        for k in self.settings:
            n = corners(self.axes[k])
            found[k] = decoded(self.axes[k], u[at : at + n])
            at += n
        return found

    def pool(self, seed: int) -> Array:
        """Settings (POOL, d) all over the cube, as candidates can have them."""
        return np.array([self.u(self.params(u, {})) for u in spread(self.d, POOL, seed)])

    def places(self, seed: int) -> list[dict[str, Any]]:
        """Scales all over their ranges, the lowest first, each once."""
        ranges = self.ranges()
        rows = np.vstack([np.zeros(len(ranges)), spread(len(ranges), PLACES, seed)])
        each = [{k: decoded(a, r[i : i + 1]) for i, (k, a) in enumerate(ranges.items())} for r in rows]
        return list({tuple(p.values()): p for p in each}.values())


def spread(d: int, count: int, seed: int) -> Array:
    """Points (count, d) that fill the unit cube evenly: multiples of the generalized golden ratio's inverse powers.

    Source: Martin Roberts, "The unreasonable effectiveness of quasirandom sequences" (2018).
    """
    g = 2.0
    for _ in range(40):
        g = (1 + g) ** (1 / (d + 1))
    shift = np.random.default_rng([seed, d]).random(d)
    return np.asarray((shift + np.arange(1, count + 1)[:, None] * g ** -np.arange(1.0, d + 1)) % 1.0)


def corners(axis: Axis) -> int:
    return len(axis.values) if isinstance(axis, Choice) else 1


def coded(axis: Axis, value: Any) -> Array:
    if isinstance(axis, Choice):
        return np.eye(len(axis.values))[axis.values.index(value)]
    low, high, x = (math.log(v) for v in (axis.low, axis.high, value)) if axis.log else (axis.low, axis.high, value)
    return np.array([(x - low) / (high - low)])


def decoded(axis: Axis, u: Array) -> Any:
    if isinstance(axis, Choice):
        return axis.values[int(np.argmax(u))]
    low, high = (math.log(axis.low), math.log(axis.high)) if axis.log else (axis.low, axis.high)
    x = low + float(u[0]) * (high - low)
    x = min(max(math.exp(x) if axis.log else x, axis.low), axis.high)
    if axis.step is None:
        return x
    most = int((axis.high - axis.low) // axis.step)
    return int(axis.low) + min(round((x - axis.low) / axis.step), most) * axis.step
