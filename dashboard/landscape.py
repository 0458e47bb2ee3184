"""What the Landscape page knows of a stage's readings: axes, what is brushed, what matters, a map of two settings.

Pure: tables in, values out. A brush is a filter by axis name: a range of numbers, or a set of names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tunnel.space import DIMENSIONS

LOSS = "loss"
APART = 1.02  # values nearer than this factor are one: a decay is rounded to whole batches  *assumed*
BINS = 20  # of a setting's values, equally many trials in each: a parabola keeps 99% of its share  *derived*
PER_BIN = 5  # trials at least  *assumed*
FOLDS = 10  # of the jackknife  *assumed*
Z = 1.645  # of a 90% interval  *derived*
GRID = 41  # points of a map's side
LEAST = 8  # readings that a map takes  *assumed*
SUPPORT = 0.35  # of one reading's weight: where fewer lie near, a map says nothing  *assumed*
RIDGE = 1e-6

Ends = tuple[float, float]
Brush = Mapping[str, Ends | frozenset[str]]


@dataclass(frozen=True)
class Axis:
    """A setting, or the loss, as a line from the lowest value that was tried to the highest, or of names."""

    name: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    names: tuple[str, ...] = ()

    def at(self, values: pd.Series) -> np.ndarray:
        """Where values lie on it, in [0, 1]; NaN for what it does not hold."""
        if self.names:
            return (
                values.astype(str)
                .map({n: i / max(len(self.names) - 1, 1) for i, n in enumerate(self.names)})
                .to_numpy(float)
            )
        low, high, x = (np.log(v) if self.log else v for v in (self.low, self.high, values.to_numpy(float)))
        return np.asarray((x - low) / (high - low))

    def value(self, at: float) -> float:
        """The number at a place on it."""
        if self.log:
            return float(self.low * (self.high / self.low) ** at)
        return self.low + at * (self.high - self.low)


def axes_of(rows: pd.DataFrame, first: Sequence[str] = ()) -> dict[str, Axis]:
    """The settings in which readings differ, those of `first` before the others, and the loss last."""
    order = [*first, *(k for k in DIMENSIONS if k not in first and k != "flops")]
    found = {k: axis(k, rows[k]) for k in order if k in rows and varies(rows[k])}
    losses = rows[LOSS].dropna() if len(rows) else pd.Series(dtype=float)
    if varies(losses):
        found[LOSS] = axis(LOSS, losses)
    return found


def varies(values: pd.Series) -> bool:
    if not pd.api.types.is_numeric_dtype(values):
        return bool(values.nunique() > 1)
    low, high = values.min(), values.max()
    return bool(high > low * APART) if low > 0 else bool(high > low)


def axis(name: str, values: pd.Series) -> Axis:
    if not pd.api.types.is_numeric_dtype(values):
        return Axis(name, names=tuple(sorted(set(values.dropna().astype(str)))))
    low, high = float(values.min()), float(values.max())
    row = DIMENSIONS.get(name)
    return Axis(name, low, high, low > 0 and (name == LOSS or (row is not None and (row.log or row.kind == "float"))))


# brushes


def kept(rows: pd.DataFrame, brush: Brush) -> np.ndarray:
    """Which rows lie inside all ranges of a brush."""
    keep = np.ones(len(rows), bool)
    for name, want in brush.items():
        if name not in rows:
            continue
        if isinstance(want, frozenset):
            keep &= rows[name].astype(str).isin(want).to_numpy()
        else:
            keep &= rows[name].between(*want).to_numpy()
    return keep


def said(brush: Brush) -> tuple[str, ...]:
    """A brush as texts for the address; `read` is its inverse.

    >>> said({"lr": (0.003, 0.01), "decay_shape": frozenset({"linear"})})
    ('lr:0.003:0.01', 'decay_shape=linear')
    """
    return tuple(
        f"{k}={','.join(sorted(v))}" if isinstance(v, frozenset) else f"{k}:{v[0]:.6g}:{v[1]:.6g}"
        for k, v in brush.items()
    )


def read(texts: Iterable[str], axes: Mapping[str, Axis]) -> dict[str, Ends | frozenset[str]]:
    """A brush from the address; what it says of other axes, or wrongly, is left out."""
    found: dict[str, Ends | frozenset[str]] = {}
    for text in texts:
        name, _, names = text.partition("=")
        if name in axes and axes[name].names:
            found[name] = frozenset(names.split(",")) & frozenset(axes[name].names)
            continue
        name, *ends = text.split(":")
        try:
            low, high = map(float, ends)
        except ValueError:
            continue
        if name in axes and not axes[name].names and low <= high:
            found[name] = (low, high)
    return found


def brushed(boxes: Iterable[Mapping[str, Sequence[float]]], axes: Sequence[Axis]) -> dict[str, Ends | frozenset[str]]:
    """What boxes drawn over parallel axes ask for: each of all axes that it covers, which stand at 0, 1, 2 ..."""
    found: dict[str, Ends | frozenset[str]] = {}
    for box in boxes:
        left, right, low, high = min(box["x"]), max(box["x"]), min(box["y"]), max(box["y"])
        for a in (a for i, a in enumerate(axes) if left <= i <= right):
            if a.names:
                steps = max(len(a.names) - 1, 1)
                found[a.name] = frozenset(n for i, n in enumerate(a.names) if low <= i / steps <= high)
            else:
                found[a.name] = (a.value(low), a.value(high))
    return found


# what matters


@dataclass(frozen=True)
class Share:
    """How much of the differences in log loss one setting alone explains: in [0, 1], with its 90% interval."""

    name: str
    value: float
    low: float
    high: float


def importance(rows: pd.DataFrame, axes: Sequence[Axis]) -> list[Share]:
    """Each setting's share, the largest first; none where there are too few readings to say.

    Epsilon squared: the variance between groups of equal values (or of equally many neighbours) less what chance gives,
    over all. Intervals by a jackknife of `FOLDS` parts. What is left belongs to settings together, and to noise.
    """
    done = rows[rows[LOSS].notna()]
    if len(done) < 2 * PER_BIN:
        return []
    y = np.log(done[LOSS].to_numpy(float))
    fold = np.random.default_rng(0).permutation(len(y)) % FOLDS
    found = []
    for a in (a for a in axes if a.name != LOSS):
        group = groups(a.at(done[a.name]))
        value = explained(group, y)
        without = np.array([explained(group[fold != i], y[fold != i]) for i in range(FOLDS)])
        half = Z * float(np.sqrt((FOLDS - 1) / FOLDS * ((without - without.mean()) ** 2).sum()))
        found.append(Share(a.name, value, max(value - half, 0.0), min(value + half, 1.0)))
    return sorted(found, key=lambda s: -s.value)


def groups(at: np.ndarray) -> np.ndarray:
    """A group's number for each reading: equal values, or equally many neighbours where there are more than `BINS`."""
    levels, group = np.unique(at, return_inverse=True)
    bins = min(BINS, max(len(at) // PER_BIN, 2))
    if len(levels) <= bins:
        return group
    edges = np.quantile(at, np.linspace(0, 1, bins + 1)[1:-1])
    return np.searchsorted(edges, at, side="right")


def explained(group: np.ndarray, y: np.ndarray) -> float:
    n, total = len(y), float(((y - y.mean()) ** 2).sum())
    count = np.bincount(group)
    mean = np.bincount(group, y) / np.maximum(count, 1)
    inside, k = float(((y - mean[group]) ** 2).sum()), int((count > 0).sum())
    if not total > 0 or n <= k:
        return 0.0
    return float(np.clip((total - inside - (k - 1) * inside / (n - k)) / total, 0.0, 1.0))


# a map


@dataclass(frozen=True)
class Map:
    """The loss over two settings: at `x` by `y` values; NaN where too few readings lie near."""

    x: np.ndarray
    y: np.ndarray
    loss: np.ndarray


def smoothed(rows: pd.DataFrame, x: Axis, y: Axis) -> Map | None:
    """A plane through the neighbours' log losses at each point (Gaussian weights, Scott's width); None where there are
    too few readings."""
    done = rows[rows[LOSS].notna()]
    if len(done) < LEAST or min(done[a.name].nunique() for a in (x, y)) < 2 or x.names or y.names:
        return None
    u, v, log = x.at(done[x.name]), y.at(done[y.name]), np.log(done[LOSS].to_numpy(float))
    z, side = log - log.mean(), np.linspace(0, 1, GRID)
    wide = len(done) ** (-1 / 6)
    near = [np.exp(-0.5 * ((k - side[:, None]) / (wide * k.std())) ** 2) for k in (v, u)]  # (points, readings) each

    def total(f: np.ndarray) -> np.ndarray:
        """The weighted sum over all readings, at every point of the map."""
        return np.asarray((near[0] * f) @ near[1].T)

    basis = (np.ones_like(u), u, v)
    left = np.array([[total(f * g) for f in basis] for g in basis]).transpose(2, 3, 0, 1) + RIDGE * np.eye(3)
    right = np.array([total(f * z) for f in basis]).transpose(1, 2, 0)
    plane = np.linalg.solve(left, right[..., None])[..., 0]
    level = plane[..., 0] + plane[..., 1] * side[None, :] + plane[..., 2] * side[:, None]
    level = np.clip(level, z.min(), z.max()) + log.mean()
    level[total(basis[0]) < SUPPORT] = np.nan
    across, along = (np.array([one.value(t) for t in side]) for one in (x, y))
    return Map(across, along, np.exp(level))
