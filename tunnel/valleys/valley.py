"""Valleys: where the loss is least along a setting, from readings that lie around the minimum.

`bowl` serves a search (many settings, one shape); `surface` serves a ladder's fans (one setting, many shapes and
rungs). Both are linear least squares on log loss, so a bootstrap of hundreds of draws takes a moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from tunnel.quantiles import NORMAL, student

Array = np.ndarray

NEAR = 0.05  # of log loss: a reading's weight falls by e for each of these above the best  *assumed*
PER_DOUBLING = 0.25  # a reading's weight falls to this with every doubling of D away from the rung asked  *assumed*
FAR = 0.7  # of log lr, one octave: no cell's minimum is believed farther outside the fan  *assumed*
QUIET = 1e-4  # of log loss: no valley is believed to be read more finely  *assumed*
DRIFT = 0.1  # of log lr* per log N: a rule claims 0, and readings must overrule it  *assumed*
DRAWS = 400  # of the bootstrap
SURE = 0.8  # of the draws must be curved before a minimum is believed  *assumed*
QUANTILES = (0.05, 0.95)  # a 90% interval
STRAIGHT = 1e-6  # of a skew: below it a valley is a parabola  *derived* (rounding)


@dataclass(frozen=True)
class Dip:
    """A minimum along one logarithmic setting, with its 90% interval; `curved` where there really is one."""

    at: float
    low: float
    high: float
    curved: bool


@dataclass(frozen=True)
class Bowl:
    """The minimum over several settings: a dip along each that varies, the log loss at it, the readings' noise."""

    dips: Mapping[str, Dip]
    low: float
    noise: float


def bowl(x: Mapping[str, Array], y: Array, seed: int = 0) -> dict[str, Dip]:
    """The dips of `basin`; empty where there is none."""
    found = basin(x, y, seed=seed)
    return dict(found.dips) if found else {}


def basin(
    x: Mapping[str, Array], y: Array, run: Array | None = None, crossed: tuple[str, str] | None = None, seed: int = 0
) -> Bowl | None:
    """The minimum of y = c + Σ_k (b_k x_k + q_k x_k²), readings near the best weighing most.

    `x`: settings' logarithms, one array of n each; `y`: log losses (n); `run`: whose readings are drawn together;
    `crossed`: two settings that trade, with a term for their product. Settings that do not vary are left out; None
    where there are fewer than two readings per coefficient.
    """
    names = [k for k, v in x.items() if np.ptp(v) > 1e-9]
    pair = [names.index(k) for k in crossed or () if k in names]
    pair = pair if len(pair) == 2 else []
    if len(y) < 2 * len(names) + 2 + len(pair):
        return None
    centre = {k: float(np.mean(x[k])) for k in names}
    z = np.column_stack([x[k] - centre[k] for k in names]) if names else np.zeros((len(y), 0))
    columns = [f for i in range(len(names)) for f in (z[:, i], z[:, i] ** 2)]
    design = np.column_stack([np.ones(len(y)), *columns, *([z[:, pair].prod(axis=1)] if pair else [])])
    weight = np.exp(-(y - y.min()) / NEAR)
    _, of = np.unique(np.arange(len(y)) if run is None else run, return_inverse=True)
    count = int(of.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), DRAWS)[:, of.reshape(-1)]
    fits = np.array([least_squares(design, y, weight * d) for d in np.vstack([np.ones(len(y)), drawn])])
    b, q = fits[:, 1 : 1 + 2 * len(names) : 2], fits[:, 2 : 2 + 2 * len(names) : 2]
    curved, at = q > 0, -b / (2 * np.where(q > 0, q, np.nan))
    if pair:
        curved[:, pair], at[:, pair] = traded(b[:, pair], q[:, pair], fits[:, -1])
    dips = {k: dip_of(centre[k], at[:, i], curved[:, i], x[k]) for i, k in enumerate(names)}
    ends = [(float(x[k].min()), float(x[k].max())) for k in names]
    bottom = np.array([np.clip(dips[k].at, *end) - centre[k] for k, end in zip(names, ends, strict=True)])
    product = [bottom[pair].prod()] if pair else []
    row = np.array([1.0, *(f for v in bottom for f in (v, v**2)), *product])
    left = np.average((y - design @ fits[0]) ** 2, weights=weight) * len(y) / (len(y) - design.shape[1])
    return Bowl(dips, float(row @ fits[0]), float(np.sqrt(left)))


def traded(b: Array, q: Array, c: Array) -> tuple[Array, Array]:
    """Whether and where b·z + q·z² + c·z₁z₂ is least, for draws (n, 2) of b and q."""
    inner = 4 * q[:, 0] * q[:, 1] - c**2
    curved = (q[:, 0] > 0) & (inner > 0)
    at = np.column_stack([c * b[:, 1] - 2 * q[:, 1] * b[:, 0], c * b[:, 0] - 2 * q[:, 0] * b[:, 1]])
    return np.column_stack([curved, curved]), at / np.where(curved, inner, np.nan)[:, None]


def dip_of(centre: float, at: Array, curved: Array, x: Array) -> Dip:
    """A setting's dip from its minima (the fit first, then the draws)."""
    if not curved[0] or not curved[1:].any():
        return Dip(centre, float(x.min()), float(x.max()), False)
    low, high = np.quantile(centre + at[1:][curved[1:]], QUANTILES)
    return Dip(centre + float(at[0]), float(low), float(high), bool(curved[1:].mean() >= SURE))


def least_squares(design: Array, y: Array, weight: Array) -> Array:
    """Weighted least squares; the smallest solution where the rows do not decide."""
    root = np.sqrt(weight)
    return np.linalg.lstsq(design * root[:, None], y * root, rcond=1e-10)[0]


@dataclass(frozen=True)
class Surface:
    """Fans of one or more shapes: log loss = m_cell + h(N)·φ(x − x*) with x* = a + b·log N + c·log D + e·log B.

    φ(z) = z², or a steeper right side where `skew` s > 0: 2(e^(sz) − 1 − sz)/s² (LINEX: Varian 1975), z² for s → 0.
    A cell is a shape at a rung and a batch. `cells` holds one row per cell (N, D, width, depth, batch_tokens where
    known), `log_loss` its minimum, `dips` its log lr* on the line, `h` its curvature there; `curved` says whether the
    fans turned up on both sides at all. `noise` is the residuals' standard deviation, of log loss.
    """

    cells: Mapping[str, Array]
    log_loss: Array  # per cell
    dips: Array  # per cell
    h: Array  # per cell
    a: float
    b: float
    c: float
    curved: bool
    e: float = 0.0  # 0 where the batch does not vary
    log_batch: float = 0.0  # the readings' mean: what `log_lr` takes where it is told no batch
    skew: float = 0.0
    noise: float = 0.0

    def log_lr(self, n: Array | float, d: Array | float, batch: Array | float | None = None) -> Array:
        """log lr* at N, D and batch (tokens)."""
        log_batch = self.log_batch if batch is None else np.log(batch)
        return np.asarray(self.a + self.b * np.log(n) + self.c * np.log(d) + self.e * log_batch)

    def rise(self, z: Array) -> Array:
        """log loss above the minimum of the last cell (the largest shape, its longest rung), z of log lr beside it."""
        return self.h[-1] * bend(z, self.skew)


def bend(z: Array, skew: float) -> Array:
    """φ of `Surface`: 0, with slope 0 and second derivative 2, at z = 0."""
    if abs(skew) < STRAIGHT:
        return z**2
    return np.asarray(2 * (np.expm1(skew * z) - skew * z) / skew**2)


def surface(
    table: Mapping[str, Array],
    weight: Array | None = None,
    at: float | None = None,
    skew: float = 0.0,
    claim: float = 0.0,
) -> Surface:
    """Fits all fans of a table at once.

    `table`: columns N, D, lr, loss, width, depth, and batch_tokens where known, of one reading a row; `weight`: one
    per row, for a bootstrap; `at`: a D (tokens) that the fit is for: readings weigh less with every doubling away from
    it, since a valley's curvature and its drift are not the same on short and on long runs; `claim`: what the rule
    says of b, to within DRIFT.
    With a single lr per shape there is no curvature: the readings themselves are the minima.
    """
    y, (rows, cell) = np.log(table["loss"]), cells_of(table)
    count = len(rows["N"])
    first = np.array([int(np.argmax(cell == i)) for i in range(count)])
    best = np.array([y[cell == i].min() for i in range(count)])
    near = np.ones(len(y)) if at is None else PER_DOUBLING ** np.abs(np.log2(table["D"] / at))
    weight = (np.ones(len(y)) if weight is None else weight) * near * np.exp(-(y - best[cell]) / NEAR)
    axes = ["N", "D", *(["batch_tokens"] if varies(table) else [])]
    middle = np.array([np.log(table[k]).mean() for k in axes])
    place = np.column_stack([np.ones(len(y)), *(np.log(table[k]) - m for k, m in zip(axes, middle, strict=True))])
    x0 = float(np.log(table["lr"]).mean())
    x = np.log(table["lr"]) - x0
    curve = bend(x, skew)
    design = np.column_stack([cell[:, None] == np.arange(count), curve, curve * place[:, 1], x[:, None] * place])
    fit = least_squares(design, y, weight)
    left = weight * (y - design @ fit) ** 2
    noise = max(float(np.sqrt(left.sum() / weight.sum() * len(y) / max(len(y) - len(fit), 1))), QUIET)
    level, h = fit[:count], fit[count] + fit[count + 1] * place[first, 1]
    known = {"log_batch": float(middle[2]) if varies(table) else 0.0, "skew": skew, "noise": noise}
    turned = h > 0
    if not (turned.any() and np.ptp(x) > 1e-9 and len(y) > count):
        return Surface(rows, best, np.full(count, x0), np.zeros(count), x0, 0.0, 0.0, False, **known)
    slope = place[first] @ fit[count + 2 :]
    bottom = np.zeros(count)
    bottom[turned] = lowest(h[turned], slope[turned], skew)
    lows = np.where(turned, level + h * bend(bottom, skew) + slope * bottom, best)
    dip = np.clip(bottom, x.min() - FAR, x.max() + FAR)
    h = np.where(turned, h * np.exp(skew * dip), 0.0)  # from the curvature at the fan's middle to that at the minimum
    sure = (2 * h * x.std() / noise) ** 2 * near[first]  # one over the variance of a cell's minimum
    rule = np.eye(place.shape[1])[1]
    by = least_squares(np.vstack([place[first], rule]), np.append(dip, claim), np.append(sure, DRIFT**-2))
    a = x0 + by[0] - by[1:] @ middle
    dips = x0 + place[first] @ by
    b, c, e = (*by[1:], 0.0)[:3]
    return Surface(rows, lows, dips, h, float(a), float(b), float(c), True, float(e), **known)


def lowest(h: Array, slope: Array, skew: float) -> Array:
    """Where h·φ(x) + slope·x is least, for h > 0."""
    if abs(skew) < STRAIGHT:
        return -slope / (2 * h)
    return np.log(np.maximum(1 - skew * slope / (2 * h), 1e-3)) / skew  # the floor: far outside any fan


def varies(table: Mapping[str, Array]) -> bool:
    """Whether a table's readings have more than one batch."""
    return "batch_tokens" in table and np.ptp(np.log(table["batch_tokens"])) > 1e-9


def cells_of(table: Mapping[str, Array]) -> tuple[dict[str, Array], Array]:
    """Each shape at each rung and batch once (N, D, width, depth, batch_tokens where known), and every row's cell."""
    known = ["batch_tokens"] if "batch_tokens" in table else []
    keys = np.column_stack([table[k] for k in ("width", "depth", "D", *known)])
    _, first, cell = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    return {k: np.asarray(table[k])[first] for k in ("N", "D", "width", "depth", *known)}, cell.reshape(-1)


def rungs_of(table: Mapping[str, Array]) -> Array:
    """The rung of every row as a number from 0: a rung's D differs by rounding to whole batches, at most by one."""
    lengths = np.unique(table["D"])
    apart = np.diff(lengths) > (table["batch_tokens"].max() if varies(table) else 0.0)
    return np.searchsorted(lengths[1:][apart], table["D"], side="right")


def by_rung(table: Mapping[str, Array], weight: Array | None = None, skew: float = 0.0, claim: float = 0.0) -> Surface:
    """The longest rung's surface, with every other rung's minima from a surface of its own."""
    rung = rungs_of(table)
    lengths = [float(table["D"][rung == i].max()) for i in range(int(rung.max()) + 1)]
    found = [surface(table, weight, at, skew, claim) for at in lengths]
    rows, cell = cells_of(table)
    own = np.zeros(len(rows["N"]), int)
    own[cell] = rung
    low, dips, h = (np.array([getattr(found[r], k)[i] for i, r in enumerate(own)]) for k in ("log_loss", "dips", "h"))
    return replace(found[-1], log_loss=low, dips=dips, h=h)


def bootstrap(table: Mapping[str, Array], draws: int = 200, seed: int = 0, skew: float = 0.0) -> list[Surface]:
    """Surfaces of ladders whose trunks weigh differently (Bayesian bootstrap): forks of a trunk are not independent.

    `table` as for `surface`, with a column run: the trunk of a reading. The rule's claim is drawn too.
    """
    claims = np.random.default_rng([seed, 1]).normal(0.0, DRIFT, draws)
    each = zip(weights(table["run"], draws, seed), claims, strict=True)
    return [by_rung(table, w, skew, float(claim)) for w, claim in each]


def interval(value: float, draws: Array, widening: float) -> tuple[float, float]:
    """The 90% interval of a number: the draws' spread, about the value itself."""
    low, high = (value + widening * (np.quantile(draws, QUANTILES) - np.median(draws))).tolist()
    return low, high


def widening(table: Mapping[str, Array]) -> float:
    """How much wider than a bootstrap's spread an interval must be, where few trunks decide many coefficients.

    √(n/free) for the coefficients, Student's quantile over the normal's for the noise: n trunks of every shape's
    longest rung, less a level for each of these cells, a curvature and a place, and how both move with N.
    """
    rung, (_, shape) = rungs_of(table), np.unique(table["N"], return_inverse=True)
    last = np.zeros(int(shape.max()) + 1, int)
    np.maximum.at(last, shape, rung)
    longest = rung == last[shape]
    trunks = len(np.unique(table["run"][longest]))
    cells = len(np.unique(cells_of(table)[1][longest]))
    free = max(trunks - cells - (4 if len(np.unique(table["N"])) > 1 else 2) - varies(table), 1)
    return float(np.sqrt(trunks / free) * student(0.95, free) / NORMAL)


def weights(run: Array, draws: int, seed: int = 0) -> Array:
    """Exponential weights of rows (draws, rows), one draw for all rows of a run (Rubin 1981)."""
    rng = np.random.default_rng(seed)
    runs, of = np.unique(run, return_inverse=True)
    return np.array([rng.exponential(size=len(runs))[of.reshape(-1)] for _ in range(draws)])


def least_of(tried: Array, left: Array) -> float:
    """Which of evenly spaced values leaves the least; between them by a parabola."""
    i = int(np.argmin(left))
    if not 0 < i < len(tried) - 1:
        return float(tried[i])
    under, here, over = left[i - 1 : i + 2]
    bent = under - 2 * here + over
    return float(tried[i] + (0.5 * (under - over) / bent if bent > 0 else 0.0) * (tried[1] - tried[0]))


def parabola(log_lr: Array, log_loss: Array) -> tuple[float, float] | None:
    """One cell's own minimum (log lr, log loss) by a parabola; None where it does not turn up.

    Raises nothing: fewer than three learning rates, or a downward curve, have no minimum.
    """
    if len(np.unique(log_lr)) < 3:
        return None
    q, b, c = np.polyfit(log_lr - log_lr.mean(), log_loss, 2)
    if q <= 0:
        return None
    at = -b / (2 * q)
    return float(at + log_lr.mean()), float(c - b * b / (4 * q))
