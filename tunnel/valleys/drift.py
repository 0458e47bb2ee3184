"""Does a setting's best value stay where it is? Valleys along an axis, compared: penalty, drift, law, verdict.

A cell is one shape at one D and batch, read at several values of one setting and by several seeds. Its valley is a
parabola of log loss in log value, weighted about its own minimum, so that a skewed valley is off by as much in every
cell. Its draws move the cell's means by the seeds' noise, whose covariance over the values is pooled over all cells of
a rung: three seeds of one cell say too little about their own scatter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

Array = np.ndarray

OCTAVE = math.log(2)
REACH = 0.75 * OCTAVE  # a reading's weight falls as a Gaussian of this width about the minimum  *assumed*
PARABOLA = OCTAVE  # beyond this from the minimum the readings themselves say how much is lost  *assumed*
LEAST_VALUES = 3  # of a setting: a parabola has three coefficients  *derived*
LEAST_LIMIT = 1e-3  # of the loss given away: 0.1%, or the seeds' noise where that is more (SCIENCE §3)  *from paper*
SURE = 0.8  # of the draws must turn up before a minimum is believed  *assumed*
DRAWS = 600  # the 90% quantile is then known to about 5% of the spread  *derived*
UPPER = 0.90  # of a penalty's upper bound (SCIENCE §3)
INTERVAL = (0.05, 0.95)  # 90%
SEED_NOISE = 2.4e-3  # of log loss, where nothing read tells it: our demo's size (SCIENCE §5)  *from paper*
STRAIGHT = 0.1 * OCTAVE  # no line through minima is believed more closely  *assumed*
FEW = 10.0  # degrees of freedom that a noise borrowed from other cells is given  *assumed*
TINY = 1e-5  # of log loss: no reading is believed more finely  *assumed*


@dataclass(frozen=True)
class Cell:
    """One shape's readings at one D and batch, along one setting."""

    x: Array  # (values) log of the setting, rising
    y: Array  # (seeds, values) log loss; nan where it was not read
    above: bool = False  # a larger value diverged: the range is closed on that side

    @cached_property
    def means(self) -> Array:
        """(values) log loss, each seed's own level taken out: seeds need not have read every value."""
        return self.fitted[0]

    @cached_property
    def residuals(self) -> Array:
        """(seeds, values) what is left of y beside the values' and the seeds' means; nan where it was not read."""
        return self.fitted[1]

    @cached_property
    def count(self) -> Array:
        """(values) seeds that read each."""
        return np.isfinite(self.y).sum(0)

    @cached_property
    def fitted(self) -> tuple[Array, Array]:
        seeds, values = self.y.shape
        row, column = np.nonzero(np.isfinite(self.y))
        design = np.zeros((len(row), values + seeds))
        design[np.arange(len(row)), column] = design[np.arange(len(row)), values + row] = 1.0
        found = np.linalg.lstsq(design, self.y[row, column], rcond=1e-10)[0]
        means = found[:values] + found[values:].mean()
        left = np.full_like(self.y, np.nan)
        left[row, column] = self.y[row, column] - design @ found
        return means, left


# noise: how the means would have come out with other seeds


@dataclass(frozen=True)
class Noise:
    """Covariance of one seed's readings over a setting's values, pooled over cells; `seeded` where seeds tell it."""

    x: Array  # (columns)
    blocks: Array  # (blocks, columns): blocksᵀ·blocks is the covariance
    freedom: float
    seeded: bool

    @property
    def typical(self) -> float:
        """One seed's standard deviation at the median value."""
        return math.sqrt(float(np.median((self.blocks**2).sum(0))))

    def draws(self, cell: Cell, rng: np.random.Generator) -> Array:
        """(DRAWS, values) shifts of the cell's means; heavier-tailed where the noise itself is little known."""
        columns = np.abs(self.x[None, :] - cell.x[:, None]).argmin(1)
        moved = rng.normal(size=(DRAWS, len(self.blocks))) @ self.blocks[:, columns]
        unsure = np.sqrt(self.freedom / rng.chisquare(self.freedom, (DRAWS, 1)))
        return unsure * moved / np.sqrt(np.maximum(cell.count, 1))


def noise_of(cells: Sequence[Cell], spare: float | None = None) -> Noise:
    """The pooled noise of cells of one rung: from their seeds; with one seed each, `spare`, the noise of cells like
    them, or else what the valleys' parabolas leave over."""
    x = np.unique(np.concatenate([c.x.round(9) for c in cells]))
    blocks, extra = [], np.zeros(len(x))
    freedom, seeds = 0, 0
    for c in cells:
        at = np.searchsorted(x, c.x.round(9))
        wide = np.zeros((len(c.y), len(x)))
        wide[:, at] = np.nan_to_num(c.residuals)
        blocks.append(wide[np.isfinite(c.y).sum(1) > 1])
        extra[at] += np.maximum(c.count - 1, 0)
        freedom += max(int(c.count.sum()) - len(c.x) - len(c.y) + 1, 0)
        seeds += len(c.y) - 1
    if not freedom:
        return unseeded(cells, x) if spare is None else Noise(x, np.diag(np.full(len(x), max(spare, TINY))), FEW, False)
    found = np.vstack(blocks)
    known = extra > 0
    scale = extra * freedom / extra.sum()  # the seeds' levels took their share of the freedom
    found[:, known] /= np.sqrt(scale[known])
    typical = math.sqrt(float(np.median((found[:, known] ** 2).sum(0))))
    found[:, ~known] = 0.0
    alone = np.diag(np.where(known, TINY, max(typical, TINY)))  # values that one seed read scatter by themselves
    return Noise(x, np.vstack([found, alone]), max(seeds, 1), True)


def unseeded(cells: Sequence[Cell], x: Array) -> Noise:
    """What the parabolas leave over, as if it were all noise."""
    square = freedom = 0.0
    for c in cells:
        fit = parabola(c.x, c.means)
        square += fit.square
        freedom += fit.freedom
    std = math.sqrt(square / freedom) if freedom > 0.5 else SEED_NOISE
    return Noise(x, np.diag(np.full(len(x), max(std, TINY))), max(freedom, 1.0), False)


# one valley


@dataclass(frozen=True)
class Parabola:
    at: float  # the minimum; nan where it does not turn up
    solve: Array  # (3, values): coefficients of centred readings
    centre: float
    square: float  # weighted squares left over ...
    freedom: float  # ... and the readings that are left to make them


def parabola(x: Array, y: Array) -> Parabola:
    """The parabola about its own minimum: weights and minimum are found together, from the least reading on."""
    centre = float(x[int(np.argmin(y))])
    for _ in range(20):
        weight = np.exp(-(((x - centre) / REACH) ** 2) / 2)
        design = np.column_stack([np.ones(len(x)), x - centre, (x - centre) ** 2])
        gram = design.T @ (design * weight[:, None])
        solve = np.linalg.pinv(gram) @ (design * weight[:, None]).T
        _, b, q = solve @ y
        if q <= 0:
            break
        step = float(np.clip(centre - b / (2 * q), x[0], x[-1])) - centre
        if abs(step) < 1e-4:
            break
        centre += step
    used = float(np.trace(np.linalg.pinv(gram) @ (design.T @ (design * (weight**2)[:, None]))))
    left = float((weight * (y - design @ (solve @ y)) ** 2).sum())
    at = centre - b / (2 * q) if q > 0 else math.nan
    return Parabola(float(at), solve, centre, left, max(float(weight.sum()) - used, 0.0))


@dataclass(frozen=True)
class Valley:
    """A cell's minimum, with draws of everything; `fault` says why it is none."""

    cell: Cell
    best: float  # log value
    h: float  # curvature: log loss per squared log value
    log_loss: float
    edge: bool
    fault: str
    bests: Array  # (draws)
    hs: Array
    means: Array  # (draws, values), the minimum taken out

    @property
    def interval(self) -> tuple[float, float]:
        low, high = np.quantile(self.bests, INTERVAL)
        return float(low), float(high)

    def loses(self, at: Array | float, drawn: bool = True) -> Array:
        """Log loss above the minimum at log values `at`, one per draw (or once, of the point estimate)."""
        bests, hs = (self.bests, self.hs) if drawn else (np.array([self.best]), np.array([self.h]))
        means = self.means if drawn else (self.cell.means - self.log_loss)[None, :]
        at = np.broadcast_to(np.asarray(at, float), bests.shape)
        found = hs * (at - bests) ** 2
        beyond = (np.abs(at - bests) > PARABOLA) & (at >= self.cell.x[0]) & (at <= self.cell.x[-1])
        for i in np.nonzero(beyond)[0]:
            found[i] = max(float(np.interp(at[i], self.cell.x, means[i])), 0.0)
        return np.where(self.cell.above & (at > self.cell.x[-1]), np.inf, found)


def valley(cell: Cell, noise: Noise, rng: np.random.Generator) -> Valley:
    """The minimum of a cell; `fault` names an edge or a missing curvature."""
    fit = parabola(cell.x, cell.means)
    y = np.vstack([cell.means, cell.means + noise.draws(cell, rng)])
    c, b, q = (y @ fit.solve.T).T
    turned = q > 0
    lowest, most = cell.x[0], cell.x[-1]
    ends = np.where(b > 0, lowest, most)  # a draw that does not turn up is best at the lower end
    curved = np.where(turned, q, 1.0)
    bests = np.clip(fit.centre - b / (2 * curved), lowest - OCTAVE, most if cell.above else most + OCTAVE)
    bests = np.where(turned, bests, ends)
    least = np.where(turned, c - b**2 / (4 * curved), y.min(1))
    hs = np.maximum(q, 0.0)
    where = int(np.argmin(cell.means))
    down = bool(where == 0 or fit.at < lowest)
    up = bool((where == len(cell.x) - 1 or fit.at > most) and not cell.above)
    fault = "edge below" if down else "edge above" if up else ""
    if not fault and not (turned[0] and turned.mean() >= SURE):
        fault = "no curvature"
    means = y[1:] - least[1:, None]
    return Valley(cell, float(bests[0]), float(hs[0]), float(least[0]), down or up, fault, bests[1:], hs[1:], means)


# along an axis


@dataclass(frozen=True)
class Penalty:
    """% of the loss given away; inf where it diverges."""

    percent: float
    high: float  # 90% upper bound


def penalty(large: Valley, at: float, ats: Array) -> Penalty:
    """What `large` gives away at log value `at`, whose draws are `ats`."""
    point = 100 * float(np.expm1(large.loses(at, drawn=False)[0]))
    high = 100 * float(np.expm1(np.quantile(large.loses(ats), UPPER, method="higher")))
    return Penalty(point, max(high, point))


def line(x: Array, y: Array, weight: Array) -> Array:
    """(a, b) of y = a + b·x for each row of y."""
    design = np.column_stack([np.ones(len(x)), x]) * np.sqrt(weight)[:, None]
    return np.linalg.lstsq(design, (y * np.sqrt(weight)).T, rcond=None)[0].T


@dataclass(frozen=True)
class Along:
    """Valleys at rising sizes of one axis, and what they say; see `compared`."""

    verdict: str
    reason: str
    penalty: Penalty | None = None
    limit: float = 100 * LEAST_LIMIT  # percent
    octaves: tuple[float, float, float] | None = None  # drift per 10× of the axis, and its 90% interval
    law: tuple[float, float] | None = None  # log value = a + b·log size
    law_penalty: Penalty | None = None  # of the law fitted without the largest size, there

    def numbers(self) -> dict[str, Any]:
        """Plain JSON values."""
        drift, low, high = self.octaves or (None, None, None)
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "penalty_percent": self.penalty and finite(self.penalty.percent),
            "penalty_high": self.penalty and finite(self.penalty.high),
            "limit_percent": self.limit,
            "drift_octaves": drift,
            "low": low,
            "high": high,
            "law": self.law and dict(zip("ab", self.law, strict=True)),
            "law_penalty_percent": self.law_penalty and finite(self.law_penalty.percent),
            "law_penalty_high": self.law_penalty and finite(self.law_penalty.high),
        }


def finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def compared(sizes: Array, valleys: Sequence[Valley], noise: Sequence[float], names: Sequence[str]) -> Along:
    """The verdict over rising `sizes`; `noise` is each cell's relative seed noise, `names` what a reason calls them.

    transfers: the smallest size's best value gives away, at every larger one, at most max(0.1%, noise) at its 90% upper
    bound. drifts by this law: the line through the smaller sizes' minima does so at the held-out largest. refused: an
    edge, no curvature, or noise that leaves open whether it transfers; noise that leaves only the law open does not.
    """
    faults = [f"{v.fault} at {n}" for v, n in zip(valleys, names, strict=True) if v.fault]
    if faults:
        return Along("refused", f"{', '.join(faults)}: widen the range")
    x, y = np.log(sizes), np.array([v.bests for v in valleys]).T
    points = np.array([[v.best for v in valleys]])
    weight = 1 / (y.var(0) + STRAIGHT**2)
    law = line(x, points, weight)[0]
    limits = [100 * max(LEAST_LIMIT, s) for s in noise]
    given = [penalty(v, valleys[0].best, valleys[0].bests) for v in valleys[1:]]
    worst = max(range(len(given)), key=lambda i: given[i].high / limits[i + 1])
    limit = limits[worst + 1]
    found = Along(
        "does not transfer",
        said(given[worst], limit, "the smallest size's best value"),
        penalty=given[worst],
        limit=limit,
        octaves=octaves(x, points[0], y, weight),
        law=(float(law[0]), float(law[1])),
    )
    if given[worst].high <= limit:
        return replace(found, verdict="transfers")
    open_ = given[worst].percent <= limit
    if len(sizes) < 3:
        more = "more seeds would settle it" if open_ else "a third size would let a law be tried"
        verdict = "refused" if open_ else "does not transfer"
        return replace(found, verdict=verdict, reason=f"{found.reason}; {more}")
    ahead = line(x[:-1], np.vstack([points[:, :-1], y[:, :-1]]), weight[:-1]) @ [1.0, x[-1]]
    held = penalty(valleys[-1], float(ahead[0]), ahead[1:])
    why = said(held, limits[-1], "the law, at the held-out largest size,")
    found = replace(found, law_penalty=held, reason=f"{found.reason}; {why}")
    if held.high <= limits[-1]:
        return replace(found, verdict="drifts by this law")
    if open_:
        return replace(found, verdict="refused", reason=f"not settled: {found.reason}; more seeds would settle it")
    if held.percent <= limits[-1]:
        return replace(found, reason=f"{found.reason}; more seeds would settle whether that law holds")
    return found


def said(p: Penalty, limit: float, what: str) -> str:
    if not math.isfinite(p.percent):
        return f"{what} diverges"
    return f"{what} gives away {p.percent:.2g}% (90% upper bound {p.high:.2g}%; the limit is {limit:.2g}%)"


def octaves(x: Array, point: Array, draws: Array, weight: Array) -> tuple[float, float, float]:
    """Octaves per tenfold size with the 90% interval, widened where the minima do not lie on a line (Birge)."""
    a, b = line(x, point[None], weight)[0]
    slopes = line(x, draws, weight)[:, 1]
    left = float((weight * (point - a - b * x) ** 2).sum()) / max(len(x) - 2, 1)
    stretch = math.sqrt(max(left, 1.0)) if len(x) > 2 else 1.0
    low, high = np.quantile(slopes - slopes.mean(), INTERVAL) * stretch
    per = math.log(10) / OCTAVE
    return float(b * per), float((b + low) * per), float((b + high) * per)
