"""A running full-size run beside its forecast and the ladder's normalised curves: does it stay inside their bundle?

Divided by its final loss and drawn over progress, a well-tuned run's loss is nearly that of every other one (arXiv
2507.02119). What is left of the differences moves with N, and is common to the runs that read their data in one order:
the bundle is, of every order and progress, a line in log N through the ladder's curves, as wide as they scatter about
it. The run's own final loss is not known yet, so the forecast stands for it, and its interval widens the bundle.

Two things are asked, of slices of progress: does the loss lie where forecast and ladder say (`level`), and does it go
on as it began (`course`), which needs no forecast and is the sharper one. How many widths a run of the ladder's own
kind strays is read off the ladder: every shape in turn is left out, and judged by the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunnel.quantiles import NORMAL, student

SLICES = (8, 40)  # of progress, at least and at most  *assumed*
ROWS = 3.0  # of a ladder's curve, per slice: a row is the mean of about 10 steps, a slice the median of its rows
LEAST = 6  # curves that a bundle needs  *assumed*
SETTLED = 3  # slices after which a run's own course is known  *assumed*
FALSE = 0.05  # of runs of the ladder's own kind leave the bundle
RARE = 1.96 / NORMAL  # a 90% interval holds 95% when it is so much wider  *derived*
SHARPEST = 1e-4  # of log loss: a line through a few smooth curves is not known better  *assumed*
MOST = math.log(10.0)  # of log loss, that is told of a run that diverges
DIFFER = 0.01  # of log D: readings of one rung, whose batches differ, end within it  *assumed*


@dataclass(frozen=True)
class Curve:
    """A run's training loss over tokens, of trunk and decay as one; `final`: its held-out loss (nats per token)."""

    N: float
    D: float
    decay_start: float
    warmup: float
    seed: int
    tokens: np.ndarray
    loss: np.ndarray
    final: float

    @property
    def order(self) -> tuple[int, int]:
        """Runs of one seed and D read the same data at the same progress."""
        return self.seed, round(math.log(self.D) / DIFFER)

    def progress(self, tokens: np.ndarray, knee: float) -> np.ndarray:
        """In [0, 1], so that every decay begins at `knee`."""
        return np.interp(tokens, [0.0, self.decay_start, self.D], [0.0, knee, 1.0])

    def sliced(self, count: int, knee: float) -> np.ndarray:
        """Log of loss over final loss, the median of each slice; NaN in the warmup, and where there are no rows."""
        if not len(self.tokens):
            return np.full(count, np.nan)
        step = np.median(np.diff(self.tokens)) if len(self.tokens) > 1 else 0.0
        middle = self.progress(self.tokens - step / 2, knee)
        which = np.minimum((middle * count).astype(int), count - 1)
        found, ratio = np.full(count, np.nan), np.log(np.nan_to_num(self.loss, nan=np.inf) / self.final)
        reached = float(self.progress(self.tokens[-1:] + step, knee)[0]) * count  # a slice that still grows waits
        for k in range(math.ceil(float(self.progress(np.array([self.warmup]), knee)[0]) * count), count):
            if k + 1 <= reached + 1e-9 and (which == k).any():
                found[k] = np.median(ratio[which == k])
        return found


@dataclass(frozen=True)
class Bundle:
    """The ladder's normalised curves by slice of progress: of every order a line in log N, and their scatter.

    Arrays are (slices,), or (orders, slices): `level` at log N = 0, `count` of curves and their mean log N, `at`.
    """

    orders: tuple[tuple[int, int], ...]
    slope: np.ndarray
    spread: np.ndarray  # of log N within the orders, summed squares
    within: np.ndarray  # variance about an order's line
    level: np.ndarray
    count: np.ndarray
    at: np.ndarray

    @classmethod
    def of(cls, curves: Sequence[Curve], y: np.ndarray) -> Bundle:
        """`y`: the curves' slices (curves, slices)."""
        orders = tuple(sorted({c.order for c in curves}))
        of = np.array([orders.index(c.order) for c in curves])
        n, known = np.log([[c.N] for c in curves]), np.isfinite(y)
        member = (of == np.arange(len(orders))[:, None]).astype(float)
        many = member @ known
        at, mean = (member @ np.where(known, v, 0.0) / np.maximum(many, 1) for v in (n + 0 * y, y))
        several = known & (many[of] > 1)
        x, off = (np.where(several, v, 0.0) for v in (n - at[of], y - mean[of]))
        spread = (x**2).sum(0)
        slope = np.divide((x * off).sum(0), spread, out=np.zeros(y.shape[1]), where=spread > 1e-9)
        squares = ((off - slope * x) ** 2).sum(0)
        free = several.sum(0) - (many > 1).sum(0) - (spread > 1e-9)
        return cls(orders, slope, spread, pooled(squares, free), mean - slope * at, many, at)

    def told(self, order: tuple[int, int], N: float) -> tuple[np.ndarray, np.ndarray]:
        """What a run's normalised curve should be: log ratio and its standard deviation; NaN where nothing is known."""
        if order in self.orders:
            i = self.orders.index(order)
            count, at, more = self.count[i], self.at[i], np.zeros_like(self.within)
            level = np.where(count > 0, self.level[i], np.nan)
        else:
            (level, more), count = self.another(order), self.count.sum(0)
            at = (self.at * self.count).sum(0) / np.maximum(count, 1)
        far = np.divide((math.log(N) - at) ** 2, self.spread, out=np.zeros(len(at)), where=self.spread > 1e-9)
        variance = self.within * (1 + 1 / np.maximum(count, 1) + far) + more
        return level + self.slope * math.log(N), np.sqrt(np.maximum(variance, SHARPEST**2))

    def another(self, order: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """The level in an order that the ladder lacks, by a line in log D through those it has; and its variance."""
        level, squares, free, wide = (np.zeros(self.level.shape[1]) for _ in range(4))
        d, patterns = DIFFER * np.array([o[1] for o in self.orders]), self.count > 0
        for known in np.unique(patterns, axis=1).T:
            at = (patterns == known[:, None]).all(0)  # slices in which the same orders are known
            if not known.any():
                level[at] = np.nan
                continue
            line = len(set(d[known])) > 2
            design = np.stack([np.ones(known.sum()), (d[known] - d[known].mean()) * line], axis=1)
            here = np.array([1.0, (DIFFER * order[1] - d[known].mean()) * line])
            inverse = np.linalg.pinv(design.T @ design)
            fit = inverse @ design.T @ self.level[known][:, at]
            level[at], wide[at] = here @ fit, 1 + here @ inverse @ here
            squares[at] = ((self.level[known][:, at] - design @ fit) ** 2).sum(0)
            free[at] = known.sum() - 1 - line
        return level, pooled(squares, free) * wide


def pooled(squares: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Variances by slice, each with its neighbours; NaN where nothing is left to estimate one from."""
    sums = (np.convolve(v, np.ones(3), "same") for v in (squares, free))
    total, of = (s[: len(squares)] for s in sums)
    return np.divide(total, of, out=np.full(len(squares), np.nan), where=of > 0.5)


@dataclass(frozen=True)
class Strayed:
    """How far out a run lies at every slice, in half-widths of the bundle: beyond ±1 it is out.

    `level`: of the bundle; `course`: of its own course so far, off which it lies by `apart` (log of loss). A spike of
    one slice counts nothing: what is held against a run is the lesser of two slices in a row.
    """

    level: np.ndarray
    course: np.ndarray
    apart: np.ndarray

    @classmethod
    def of(cls, off: np.ndarray, sd: np.ndarray, wide: float, up: float = 0.0, down: float = 0.0) -> Strayed:
        """`off`: log of loss over what was told; `wide`: half-widths per standard deviation; `up`, `down`: forecast."""
        level = off / np.hypot(wide * sd, np.where(off > 0, up, down))
        apart, course = np.full(len(off), np.nan), np.full(len(off), np.nan)
        for k in range(len(off)):
            before = np.flatnonzero(np.isfinite((off + sd)[: max(k - 1, 0)]))
            if len(before) >= SETTLED:
                apart[k] = off[k] - np.median(off[before])
                course[k] = apart[k] / (wide * math.hypot(sd[k], math.sqrt((sd[before] ** 2).mean())))
        return cls(lasting(level), lasting(course), apart)

    @property
    def most(self) -> float:
        return float(max(np.abs(self.level).max(), np.abs(self.course).max()))


def lasting(out: np.ndarray) -> np.ndarray:
    """The lesser of each slice and the one before, where both lie on one side; else 0."""
    before = np.concatenate([[np.nan], out[:-1]])
    least = np.sign(out) * np.fmin(np.abs(out), np.abs(before))
    return np.where(np.sign(out) == np.sign(before), least, 0.0)


def widths(curves: Sequence[Curve], y: np.ndarray, by: str) -> list[float]:
    """How many standard deviations the curves of the first and the last shape (`by` N), or of every order, stray.

    Each is judged by the others: as the target is, at a size that they do not reach.
    """
    kinds = [getattr(c, by) for c in curves]
    folds = {min(kinds), max(kinds)} if by == "N" else set(kinds)
    found = []
    for left in sorted(folds):
        rest = [i for i, kind in enumerate(kinds) if kind != left]
        if not rest:
            return []
        bundle = Bundle.of([curves[i] for i in rest], y[rest])
        for c, own in ((c, own) for c, own, kind in zip(curves, y, kinds, strict=True) if kind == left):
            told, sd = bundle.told(c.order, c.N)
            if np.isfinite(own - told + sd).sum() > SETTLED:
                found.append(Strayed.of(own - told, sd, 1.0).most)
    return found


def threshold(most: Sequence[float]) -> float | None:
    """Standard deviations that all but `FALSE` of further runs stay within, were their logarithms normal."""
    if len(most) < LEAST:
        return None
    logs = np.log(np.maximum(most, 1e-3))
    far = student(1 - FALSE, len(logs) - 1) * math.sqrt(1 + 1 / len(logs))
    return float(np.exp(logs.mean() + far * logs.std(ddof=1)))


def fineness(curves: Sequence[Curve]) -> int:
    """Into how many slices progress is cut, so that most have some rows of most curves."""
    rows = float(np.median([len(c.tokens) for c in curves])) if curves else 0.0
    return int(np.clip(rows / ROWS, *SLICES))


@dataclass(frozen=True)
class Band:
    """A run's bundle; `reason` says why there is none. Arrays are by slice, `ends` in tokens."""

    ends: np.ndarray
    told: np.ndarray  # log of loss over final loss
    sd: np.ndarray
    wide: float  # half-widths per standard deviation
    up: float  # the forecast's own half-widths, of log loss
    down: float
    forecast: float
    curves: int
    reason: str = ""

    def nats(self) -> dict[str, np.ndarray]:
        """What the loss should be in every slice, and the bundle's edges (nats per token)."""
        middle = self.forecast * np.exp(self.told)
        low, high = (np.hypot(self.wide * self.sd, half) for half in (self.down, self.up))
        return {"expected": middle, "low": middle * np.exp(-low), "high": middle * np.exp(high)}


def band(curves: Sequence[Curve], run: Curve, low: float, high: float) -> Band:
    """The bundle of the ladder's well-tuned curves for a run, whose `final` is its forecast, within `low` to `high`."""
    knee, count = run.decay_start / run.D, fineness(curves)
    ends = np.interp(np.arange(1, count + 1) / count, [0.0, knee, 1.0], [0.0, run.decay_start, run.D])
    halves = RARE * math.log(high / run.final), RARE * math.log(run.final / low)
    if len(curves) < LEAST:
        reason = f"{len(curves)} of the ladder's well-tuned runs have curves, and a bundle needs {LEAST}"
        nothing = np.full(count, np.nan)
        return Band(ends, nothing, nothing, math.nan, *halves, run.final, len(curves), reason)
    y = np.array([c.sliced(count, knee) for c in curves])
    bundle = Bundle.of(curves, y)
    told, sd = bundle.told(run.order, run.N)
    ways = ("N",) if run.order in bundle.orders else ("order", "N")
    wide = next((w for by in ways if (w := threshold(widths(curves, y, by))) is not None), math.nan)
    few = "the ladder's curves are too few to say how widely they scatter"
    reason = "" if np.isfinite(wide * sd).any() else few
    return Band(ends, told, sd, wide, *halves, run.final, len(curves), reason)


def judged(bundle: Band, run: Curve, batch_tokens: int) -> dict[str, Any]:
    """Where a run stands: JSON values, losses in nats per token, None where nothing is known.

    `alarm`: at which tokens and step it left the bundle, `by` level or course, and by how many percent it then lay
    above (or below: negative); `course`: the final loss that it is on course for, with a 90% interval; `slices`: each
    at its middle.
    """
    y = run.sliced(len(bundle.ends), run.decay_start / run.D)
    off = y - bundle.told
    out = Strayed.of(off, bundle.sd, bundle.wide, bundle.up, bundle.down)
    known, alarm = np.flatnonzero(np.isfinite(off + bundle.wide * bundle.sd)), None
    if out.most > 1:
        k = int(np.flatnonzero(np.fmax(np.abs(out.level), np.abs(out.course)) > 1)[0])
        by = "level" if abs(out.level[k]) > 1 else "course"
        percent = 100 * math.expm1(min(off[k] if by == "level" else out.apart[k], MOST))
        step = int(bundle.ends[k - 1]) // batch_tokens  # of the two in a row the first
        alarm = {"tokens": step * batch_tokens, "step": step, "percent": percent, "by": by}
    columns = {
        "tokens": (bundle.ends + np.concatenate([[0.0], bundle.ends[:-1]])) / 2,
        "loss": bundle.forecast * np.exp(y),
        **bundle.nats(),
    }
    return {
        "tokens": int(run.tokens[-1]) if len(run.tokens) else 0,
        "of": int(run.D),
        "progress": float(run.tokens[-1] / run.D) if len(run.tokens) else 0.0,
        "off_percent": 100 * math.expm1(min(off[known[-1]], MOST)) if len(known) else None,
        "inside": alarm is None if len(known) > 1 else None,
        "alarm": alarm,
        "course": course(off[known], bundle.sd[known], bundle) if len(known) else None,
        "slices": [{k: finite(v[i]) for k, v in columns.items()} for i in range(len(bundle.ends))],
        "curves": bundle.curves,
        "reason": bundle.reason,
    }


def course(off: np.ndarray, sd: np.ndarray, bundle: Band) -> dict[str, float]:
    """The final loss that a run is on course for, from forecast and slices so far, with a 90% interval (nats).

    A run's slices err alike, so that many of them say no more than one; what 95% of runs stay within is `wide`
    standard deviations.
    """
    before = ((bundle.up + bundle.down) / 2 / RARE / NORMAL) ** 2
    weights = 1 / sd**2
    own = len(sd) / weights.sum() * (bundle.wide / 1.96) ** 2
    value = (weights @ np.clip(off, -1, 1) / weights.sum()) * before / (before + own)
    half = NORMAL * math.sqrt(before * own / (before + own))
    return {k: bundle.forecast * math.exp(value + h) for k, h in (("value", 0.0), ("low", -half), ("high", half))}


def finite(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None
