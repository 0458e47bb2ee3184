"""From readings to cells and valleys: what is equal, what varies, and how far seeds scatter.

A cell is one shape at one D and batch with all settings equal but the one asked; a line is cells along one axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tunnel.valleys import drift, mixes, stability
from tunnel.valleys.drift import Cell, Valley

AXES = {"width": "width", "depth": "depth", "D": "D", "B": "batch_tokens"}  # their names in answers, and in readings
SETTINGS = ("lr", "weight_decay", "decay", "warmup", "beta2", "half_life", "min_ratio")
CONTEXT = (*SETTINGS, "decay_shape")  # what must be equal along a line, but for the setting asked
ALIKE = 1.05  # lengths that whole batches rounded apart are one length  *assumed*
Floors = Mapping[tuple[float, ...], stability.Floor]  # by (width, depth, D, B)


def comparable(rows: pd.DataFrame) -> pd.DataFrame:
    """Readings in which lengths that rounding to whole batches set apart are one; a decay's data is of its shape."""
    shares = mixes.columns(rows)
    if shares:
        rows = rows.assign(decay_shape=rows[["decay_shape", *shares]].astype(str).agg(" ".join, axis=1))
    batch = float(rows.batch_tokens.max())
    slack = {"D": batch, "warmup": batch, "decay": batch / float(rows.D.min())}
    return rows.assign(**{k: alike(rows[k].to_numpy(float), s) for k, s in slack.items()})


def alike(values: np.ndarray, slack: float) -> np.ndarray:
    """Values with those that differ by 5% and one batch at most replaced by the largest of them.

    >>> alike(np.array([124_928.0, 126_976.0, 249_856.0]), 2048).tolist()
    [126976.0, 126976.0, 249856.0]
    """
    known = np.unique(values)
    group = np.zeros(len(known), int)
    first = known[0]
    for i in range(1, len(known)):
        apart = known[i] > first * ALIKE + slack
        first = known[i] if apart else first
        group[i] = group[i - 1] + apart
    largest = np.array([known[group == g].max() for g in group])
    return largest[np.searchsorted(known, values)]


@dataclass(frozen=True)
class Place:
    """A cell and where it lies: `at` has an entry per axis, `context` the other settings' values."""

    at: dict[str, float]
    context: tuple[Any, ...]
    cell: Cell
    valley: Valley | None = None
    noise: float = 0.0  # relative seed noise, one standard deviation

    @property
    def name(self) -> str:
        return f"{self.at['width']:.0f}×{self.at['depth']:.0f}, D {self.at['D']:,.0f}, B {self.at['B']:,.0f}"


def places(rows: pd.DataFrame, setting: str) -> list[Place]:
    """A setting's cells of at least three values; of another setting than lr, each value stands at its best lr."""
    context = [c for c in CONTEXT if c not in ("lr", setting)]
    found = []
    for key, own in grouped(rows[rows[setting] > 0], [*AXES.values(), *context]):
        cell = cell_of(own if setting == "lr" else at_best_lr(own, setting), setting)
        if cell is not None:
            found.append(Place(dict(zip(AXES, map(float, key[:4]), strict=True)), key[4:], cell))
    return found


def grouped(rows: pd.DataFrame, by: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Rows with equal values of `by`, an unknown value being one too."""
    for key, own in rows.groupby(list(by), dropna=False):
        assert isinstance(key, tuple)
        yield key, own


def cell_of(own: pd.DataFrame, setting: str) -> Cell | None:
    dead = own[own.status == "diverged"][setting]
    alive = own[~own[setting].isin(dead)]
    table = alive.astype({"loss": float}).pivot_table(index="seed", columns=setting, values="loss")
    if table.shape[1] < drift.LEAST_VALUES:
        return None
    x = np.log(table.columns.to_numpy(float))
    return Cell(x, np.log(table.to_numpy(float)), bool((np.log(dead.to_numpy(float)) > x[-1]).any()))


def at_best_lr(own: pd.DataFrame, setting: str) -> pd.DataFrame:
    """Each seed's loss at each value of `setting`, at the bottom of its valley along lr."""
    rows = []
    for (value, seed), part in grouped(own, [setting, "seed"]):
        read = part[part.status == "complete"].groupby("lr").loss.min()
        if len(read):
            loss = math.exp(bottom(np.log(read.index.to_numpy(float)), np.log(read.to_numpy(float))))
            rows.append({setting: value, "seed": seed, "status": "complete", "loss": loss})
    return pd.DataFrame(rows, columns=[setting, "seed", "status", "loss"])


def bottom(x: np.ndarray, y: np.ndarray) -> float:
    """The least log loss along log lr: the parabola's where it turns up inside what was read."""
    if len(x) < drift.LEAST_VALUES:
        return float(y.min())
    fit = drift.parabola(x, y)
    c, b, q = fit.solve @ y
    return float(c - b * b / (4 * q)) if x[0] < fit.at < x[-1] else float(y.min())


def valleys(found: list[Place], known: Floors) -> list[Place]:
    """The places with their valleys; noise is pooled over the places of one D and batch."""
    seeded = [p.cell for p in found if len(p.cell.y) > 1]
    spare = drift.noise_of(seeded).typical if seeded else None
    pools = {}
    for key in {(p.at["D"], p.at["B"]) for p in found}:
        pools[key] = drift.noise_of([p.cell for p in found if (p.at["D"], p.at["B"]) == key], spare)
    made = []
    for i, p in enumerate(found):
        v = drift.valley(p.cell, pools[p.at["D"], p.at["B"]], np.random.default_rng([0, i]))
        made.append(Place(p.at, p.context, p.cell, v, nearest_floor(p.at, known)))
    return made


# noise


def floors(rows: pd.DataFrame) -> Floors:
    """The noise floor by (width, depth, D, B), where seeds tell it."""
    found = {}
    for key, own in grouped(rows[rows.status == "complete"], list(AXES.values())):
        groups = [g.loss.to_numpy(float) for _, g in grouped(own, CONTEXT)]
        floor = stability.noise_floor(groups)
        if floor is not None:
            found[tuple(map(float, key))] = floor
    return found


def nearest_floor(at: dict[str, float], known: Floors) -> float:
    """A place's own noise, or the median of those most like it: equal D and batch, equal D, any; 0 where none is."""
    key = tuple(at.values())
    for same in ((0, 1, 2, 3), (2, 3), (2,), ()):
        like = [f.relative for k, f in known.items() if all(k[i] == key[i] for i in same)]
        if like:
            return float(np.median(like))
    return 0.0


# lines: one axis, everything else equal


def varied(rows: pd.DataFrame, setting: str) -> bool:
    """Whether a stage read several values of a setting with all else equal."""
    others = ["stage", "seed", *AXES.values(), *(c for c in CONTEXT if c != setting)]
    return bool((rows.groupby(others, dropna=False)[setting].nunique() > 1).any())


def lines(axis: str, found: Sequence[Place]) -> list[list[Place]]:
    groups: dict[Any, list[Place]] = {}
    for p in found:
        groups.setdefault((*(v for k, v in p.at.items() if k != axis), p.context), []).append(p)
    return [sorted(g, key=lambda p: p.at[axis]) for g in groups.values() if len(g) > 1]
