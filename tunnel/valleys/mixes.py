"""What a decay's own data does: forks off one trunk that differ in their data alone, compared with each other.

All that the trunk brings, its seed too, is the same in both, so that a pair tells what two runs could not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tunnel.quantiles import student
from tunnel.space import MIX
from tunnel.valleys.valley import DRAWS, QUANTILES, SURE, Array, Dip

LEVELS = 8  # shares that are told one by one; of more, places along the curve  *assumed*
PLACES = 4  # along the curve, beyond the least share  *assumed*
MANY = 6  # shares, from which on a cubic is fitted  *assumed*
GRID = 501  # places among which the best share is sought
SAME = 1e-9


@dataclass(frozen=True)
class Change:
    """By how much y changes from share `base` to `share`, with a 90% interval; None where nothing tells the noise."""

    share: float
    base: float
    change: float
    low: float | None
    high: float | None
    pairs: int  # of forks with and without
    trunks: int  # that they leave, which are independent


def changes(table: Mapping[str, Array]) -> list[Change]:
    """The change of y by share against the least one; empty where no two forks differ in their share alone.

    `table`: share, y (n); group: forks that differ in nothing else; trunk: which they leave. Trunks that have both
    are paired; where each share was tried once, as a search does, a curve is drawn through all.
    """
    t = within(table)
    levels = np.unique(t["share"])
    if len(levels) < 2:
        return []
    if len(levels) <= LEVELS:
        return [c for level in levels[1:] if (c := paired(t, float(levels[0]), float(level))) is not None]
    bent = curve(t)
    shares = np.linspace(levels[0], levels[-1], PLACES + 1)[1:].tolist()
    return [bent.change(s, float(levels[0])) for s in shares] if bent is not None else []


def columns(rows: pd.DataFrame) -> list[str]:
    """The columns of readings that say what sources their decays were given, each a share."""
    return [k for k in rows.columns if k.startswith(f"{MIX}.")]


def table(rows: pd.DataFrame, name: str, y: Array) -> dict[str, Array]:
    """Readings as `changes` takes them, for one of `columns`."""
    same = ["run", "D", "decay", "decay_shape", "half_life", "min_ratio", *(k for k in columns(rows) if k != name)]
    group = rows[same].astype(str).agg(" ".join, axis=1) if len(rows) else rows["run"]
    return {"share": rows[name].to_numpy(float), "y": y, "group": group.to_numpy(str), "trunk": rows.run.to_numpy(str)}


def within(table: Mapping[str, Array]) -> dict[str, Array]:
    """The rows of groups in which the share varies."""
    _, of = np.unique(table["group"], return_inverse=True)
    spread = np.array([np.ptp(table["share"][of == g]) for g in range(of.max() + 1)]) if len(of) else np.zeros(0)
    keep = spread[of] > SAME
    return {k: np.asarray(v)[keep] for k, v in table.items()}


def paired(t: Mapping[str, Array], base: float, share: float) -> Change | None:
    """By pairs: each trunk's mean difference is one draw, and Student's t tells how far their mean may be off.

    Where one trunk alone has them, the noise is that about the curve through its forks.
    """
    per_trunk: dict[str, list[float]] = {}
    for group in np.unique(t["group"]):
        mine = t["group"] == group
        here, there = (t["y"][mine & (np.abs(t["share"] - s) < SAME)] for s in (base, share))
        if len(here) and len(there):
            per_trunk.setdefault(str(t["trunk"][mine][0]), []).append(float(there.mean() - here.mean()))
    if not per_trunk:
        return None
    means, pairs = np.array([np.mean(d) for d in per_trunk.values()]), sum(map(len, per_trunk.values()))
    mean, n = float(means.mean()), len(means)
    half = student(0.95, n - 1) * float(means.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    if n == 1 and (bent := curve(t)) is not None:
        known = bent.change(share, base)
        half = math.nan if known.high is None else known.high - known.change
    low, high = (None, None) if math.isnan(half) else (mean - half, mean + half)
    return Change(share, base, mean, low, high, pairs, n)


@dataclass(frozen=True)
class Curve:
    """y = its group's own level + Σ_k c_k·s^k; `cov` of c, `free` degrees of freedom, `of` pairs and trunks."""

    c: Array
    cov: Array
    free: int
    shares: Array  # those that were tried
    of: tuple[int, int]

    def at(self, share: Array | float) -> Array:
        """The powers of shares (..., k)."""
        return np.asarray(share)[..., None] ** np.arange(1, len(self.c) + 1)

    def change(self, share: float, base: float) -> Change:
        row = self.at(share) - self.at(base)
        value = float(row @ self.c)
        if self.free < 1:
            return Change(share, base, value, None, None, *self.of)
        half = student(0.95, self.free) * math.sqrt(max(float(row @ self.cov @ row), 0.0))
        return Change(share, base, value, value - half, value + half, *self.of)

    def least(self, c: Array) -> tuple[Array, Array]:
        """Where curves (n, k) are least, and whether inside what was tried."""
        places = np.linspace(self.shares[0], self.shares[-1], GRID)
        low = np.argmin(np.atleast_2d(c) @ self.at(places).T, axis=1)
        return places[low], (low > 0) & (low < GRID - 1)


def curve(t: Mapping[str, Array], degree: int = 3) -> Curve | None:
    """A curve through the forks of each group, every group at a level of its own; None where no group has two shares.

    A parabola, where readings are many a cubic: a decay without the trunk's data loses more than one with a little.
    """
    t = within(t)
    shares, (groups, of) = np.unique(t["share"]), np.unique(t["group"], return_inverse=True)
    if len(shares) < 2:
        return None

    def inside(v: Array) -> Array:
        """What a group's own level leaves."""
        return v - (np.bincount(of, v) / np.bincount(of))[of]

    pairs = len(t["y"]) - len(groups)
    degree = min(degree, len(shares) - 1, 3 if len(shares) >= MANY and pairs >= 3 + MANY - 2 else 2)
    design = np.column_stack([inside(t["share"] ** k) for k in range(1, degree + 1)])
    y = inside(t["y"])
    c = np.linalg.lstsq(design, y, rcond=None)[0]
    free = pairs - degree
    noise = float(((y - design @ c) ** 2).sum() / free) if free > 0 else 0.0
    return Curve(c, noise * np.linalg.pinv(design.T @ design), free, shares, (pairs, len(np.unique(t["trunk"]))))


def best(t: Mapping[str, Array], seed: int = 0) -> Dip | None:
    """The share at which y is least; None where too few were tried for a parabola's noise to show.

    The interval is of the readings' noise, as draws of the curve have it, and of the curve's own form, as the places
    differ when one share is left out (jackknife). A decay with none of the trunk's data is left out where it can be: 2%
    of it spare a quarter of what is forgotten, which no such curve follows  *measured here* (studies/LOG.md).
    """
    some = np.asarray(t["share"]) < 1 - SAME
    if len(np.unique(t["share"][some])) > 2:
        t = {k: np.asarray(v)[some] for k, v in t.items()}
    found = curve(t)
    if found is None or found.free < 1 or len(found.c) < 2:
        return None
    rng = np.random.default_rng(seed)
    wide = np.sqrt(found.free / rng.chisquare(found.free, DRAWS))[:, None]
    drawn = found.c + rng.multivariate_normal(np.zeros(len(found.c)), found.cov, DRAWS, method="svd") * wide
    at, inside = (float(x[0]) for x in found.least(found.c))
    places, within_range = found.least(drawn)
    if not inside:
        return Dip(at, float(found.shares[0]), float(found.shares[-1]), False)
    form = student(0.95, len(found.shares) - 1) * jackknife(t, found)
    low, high = (at + math.copysign(math.hypot(q - at, form), s) for q, s in zip(ends(places), (-1, 1), strict=True))
    return Dip(at, low, high, bool(within_range.mean() >= SURE))


def ends(places: Array) -> tuple[float, float]:
    low, high = np.quantile(places, QUANTILES).tolist()
    return low, high


def jackknife(t: Mapping[str, Array], whole: Curve) -> float:
    """The standard deviation of the best share, by leaving out one share at a time; 0 where three are all."""
    found = []
    for share in whole.shares:
        less = curve({k: np.asarray(v)[np.abs(t["share"] - share) > SAME] for k, v in t.items()}, len(whole.c))
        if less is not None and len(less.c) == len(whole.c):
            found.append(float(whole.least(less.c)[0][0]))
    n = len(found)
    return math.sqrt((n - 1) / n * float(((np.array(found) - np.mean(found)) ** 2).sum())) if n > 1 else 0.0
