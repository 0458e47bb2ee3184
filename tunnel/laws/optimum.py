"""lr*(N, D) and batch_tokens*(N, D): the settings at which the loss of a table that varies both is lowest.

    lr* = lr·N^lr_N·D^lr_D        batch* = batch·N^batch_N·D^batch_D        (lr peak; batch and D in tokens)

Few runs: one quadratic surface of log L in (log lr, log batch) whose minimum moves linearly with log N and
log D. Many runs: the minimum of each (N, D) cell's own smoothed surface, then a line through those. Sources:
SCIENCE.md §4; the form with N and D, Step Law (arXiv 2503.04715). Issue 4 deepens it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tunnel import laws
from tunnel.laws import DELTA, Array, Fit, Table, columns, take, usable_rows
from tunnel.laws.intervals import student

KIND = "settings"
COLUMNS = ("N", "D", "loss", "lr", "batch_tokens")
PARAMS = ("lr", "lr_N", "lr_D", "batch", "batch_N", "batch_D")
SETTINGS = ("lr", "batch_tokens")

FEW = 160  # runs up to which one joint surface is used; SCIENCE.md §4
CELL = 12  # runs in an (N, D) cell for a surface of its own: twice its 6 coefficients; assumed
# rows this far (log loss) above their cell's best weigh half: a valley is a parabola only near its minimum;
# assumed
NEAR = 0.05
# floor on d² log L / d(log setting)²; assumed: 1e-4·(ln 2)²/2 = 0.002% per octave², below seed noise
LEAST_CURVATURE = 1e-4
TOUCHING = 1e-6  # relative; edges of a range are compared to rounding
MOST_NUMBERS = 2_000_000  # of a design with a level per cell (16 MB); beyond it the level is quadratic; assumed
MOST_ROWS = 2000  # a larger table enters the bootstrap thinned to this, the spread scaled by sqrt(rows); assumed
DRAWS = 200  # bootstrap draws; assumed: enough for a 5% and 95% quantile of a setting


@dataclass(frozen=True)
class Surface:
    """log L = level + ½·uᵀHu + uᵀK(1, log N, log D), u the varied log settings; minimum −H⁻¹K(1, ·, ·)."""

    varied: tuple[int, ...]  # which of SETTINGS vary
    curvature: Array  # (v, v)
    slope: Array  # (v, 3): constant, log N, log D
    centre: Array  # (4,): of log N, log D, log lr, log batch


def answers(table: Table, targets: Table) -> str:
    """Empty where the table varies lr and the targets have N and D."""
    if not {"N", "D"} <= set(targets):
        return "the targets have no N and D"
    lacking = [c for c in COLUMNS if c not in table]
    return f"the table has no column {lacking[0]}" if lacking else ""


def select(table: Table, targets: Table | None = None) -> Array:
    """Indices of the rows that have N, D, loss, lr and batch_tokens."""
    return np.flatnonzero(usable_rows(table, COLUMNS))


def fit(table: Table, delta: float = DELTA) -> Fit:
    """The six parameters of lr* and batch*; `objective` is the sum of squared residuals of log L (weighted).

    A setting that does not vary keeps its value (exponents 0). "flat" names settings without curvature,
    "bound hit" those whose optimum lies outside the range tried.
    """
    table = columns(table)
    nothing = dict.fromkeys(PARAMS, np.nan)
    lacking = [c for c in COLUMNS if c not in table]
    if lacking:
        return Fit("optimum", nothing, np.nan, delta, "too few points", f"no column {lacking[0]}", 0)
    table = take(table, select(table))
    n = laws.rows_of(table)
    varied = _varied(table)
    if not varied:
        return Fit("optimum", nothing, np.nan, delta, "too few points", "neither lr nor batch_tokens varies", n)
    x, y, weight = _logs(table)
    need = _design(x, x.mean(axis=0), varied, _cells(x)).shape[1] if n else 1
    if n < need:
        return Fit("optimum", nothing, np.nan, delta, "too few points", f"{n} rows for {need} coefficients", n)
    line, objective, flat = _optimum(x, y, weight, varied)
    return _describe(table, line, objective, flat, varied, delta, n)


def predict(params: Mapping[str, float], table: Table) -> Array:
    """Optimal (lr, batch_tokens) per row, shape (rows, 2), at the table's N and D."""
    n, d = np.log(np.asarray(table["N"], float)), np.log(np.asarray(table["D"], float))
    pairs = (("lr", "lr_N", "lr_D"), ("batch", "batch_N", "batch_D"))
    return np.stack([np.exp(np.log(params[c]) + params[a] * n + params[b] * d) for c, a, b in pairs], axis=1)


def settings(
    table: Table, targets: Table, draws: int = DRAWS, seed: int = 0, delta: float = DELTA
) -> tuple[Fit, dict[str, Array], dict[str, tuple[float, float]]]:
    """The fit; per target lr, lr_low, lr_high, batch_tokens, batch_low, batch_high; the parameters'
    intervals.

    90%, bootstrap by run. A setting that does not vary in the table has low = value = high. NaN, and no
    intervals, where there are too few points.
    """
    table, targets = columns(table), columns(targets)
    found = fit(table, delta)
    names = ("lr", "lr_low", "lr_high", "batch_tokens", "batch_low", "batch_high")
    if not found.usable:
        return found, {name: np.full(laws.rows_of(targets), np.nan) for name in names}, {}
    lines, widen = _redrawn(take(table, select(table)), draws, seed)
    at = np.stack([np.ones(laws.rows_of(targets)), np.log(targets["N"]), np.log(targets["D"])])
    low, high = np.percentile(lines @ at, [5, 95], axis=0)
    half = widen * (high - low) / 2
    best = np.log(predict(found.params, targets)).T
    out: dict[str, Array] = {}
    for j, (value, under, over) in enumerate((names[:3], names[3:])):
        out[value] = np.exp(best[j])
        out[under], out[over] = np.exp(best[j] - half[j]), np.exp(best[j] + half[j])
    return found, out, _ranges(found, lines, widen)


def _redrawn(table: Table, draws: int, seed: int) -> tuple[Array, float]:
    """log settings as lines (draws, 2, 3) under re-weighted runs, and how much wider their spread is."""
    rng = np.random.default_rng(seed)
    rows = laws.rows_of(table)
    varied = _varied(table)
    if rows > MOST_ROWS:
        table = take(table, np.sort(rng.choice(rows, MOST_ROWS, replace=False)))
    x, y, weight = _logs(table)
    runs = np.unique(laws.runs_of(table), return_inverse=True)[1]
    count = int(runs.max()) + 1
    share = rng.exponential(size=(draws, count))
    share *= count / share.sum(axis=1, keepdims=True)
    lines = np.array([_optimum(x, y, weight * one[runs], varied)[0] for one in share])
    free = max(len(y) - 2 * len(PARAMS), 1)
    few = student(0.95, free) / 1.6449  # few rows: Student's quantile over the normal's; derived
    return lines, few * float(np.sqrt(len(y) / free * len(y) / rows))


def _ranges(found: Fit, lines: Array, widen: float) -> dict[str, tuple[float, float]]:
    low, high = np.percentile(lines.reshape(len(lines), 6), [5, 95], axis=0)
    half = widen * (high - low) / 2
    out = {}
    for name, h in zip(PARAMS, half.tolist(), strict=True):
        value = found.params[name]
        scale = name in ("lr", "batch")  # positive: its interval is one of its logarithm
        with np.errstate(over="ignore"):
            factor = float(np.exp(h))
        out[name] = (value / factor, value * factor) if scale else (value - h, value + h)
    return out


def _logs(table: Table) -> tuple[Array, Array, Array]:
    """x (n, 4): log N, log D, log lr, log batch; y log loss; weights, halved NEAR above the cell's best."""
    x = np.stack([np.log(table[c]) for c in ("N", "D", "lr", "batch_tokens")], axis=1)
    y = np.log(table["loss"])
    weight = np.array(table["weight"]) if "weight" in table else np.ones(len(y))
    cells = _cells(x)
    best = np.full(int(cells.max()) + 1 if len(cells) else 0, np.inf)
    np.minimum.at(best, cells, y)
    return x, y, weight / (1 + ((y - best[cells]) / NEAR) ** 2)


def _cells(x: Array) -> Array:
    """An integer per row, equal for rows of one (N, D) within 1%."""
    keys = np.round(x[:, :2] / 0.01).astype(np.int64)
    return np.asarray(np.unique(keys, axis=0, return_inverse=True)[1]).reshape(-1)


def _varied(table: Table) -> tuple[int, ...]:
    return tuple(j for j, name in enumerate(SETTINGS) if len(table[name]) and np.ptp(np.log(table[name])) > TOUCHING)


def _optimum(x: Array, y: Array, weight: Array, varied: tuple[int, ...]) -> tuple[Array, float, list[str]]:
    """log settings as lines in (1, log N, log D), (2, 3); the objective; the settings without curvature."""
    if len(y) > FEW:
        found = _many(x, y, weight, varied)
        if found is not None:
            return found
    surface, objective, flat = _surface(x, y, weight, varied, _cells(x))
    line = np.zeros((2, 3))
    line[:, 0] = surface.centre[2:]
    line[list(varied)] += -np.linalg.solve(surface.curvature, surface.slope)
    line[:, 0] -= line[:, 1:] @ surface.centre[:2]
    return line, objective, flat


def _design(x: Array, centre: Array, varied: tuple[int, ...], cells: Array) -> Array:
    """Columns: ½u², u·u', u·(1, log N, log D), then the level: per cell where they repeat, or quadratic."""
    z = x - centre
    u = [z[:, 2 + j] for j in varied]
    place = [np.ones(len(z)), *(z[:, j] for j in (0, 1) if np.ptp(z[:, j]) > TOUCHING)]
    square = [u[a] * u[b] * (0.5 if a == b else 1.0) for a in range(len(u)) for b in range(a, len(u))]
    tilt = [v * p for v in u for p in place]
    count = int(cells.max()) + 1
    if len(z) >= 3 * count and count * len(z) <= MOST_NUMBERS:  # a level per cell is exact; it needs repeats
        level = list((cells[:, None] == np.arange(count)).T.astype(float))
    else:
        level = place + [place[a] * place[b] for a in range(1, len(place)) for b in range(a, len(place))]
    return np.stack(square + tilt + level, axis=1)


def _surface(
    x: Array, y: Array, weight: Array, varied: tuple[int, ...], cells: Array
) -> tuple[Surface, float, list[str]]:
    """The surface by robust least squares (Huber at 1.345 robust deviations: 95% efficient, derived)."""
    centre = (weight[:, None] * x).sum(axis=0) / weight.sum()
    design = _design(x, centre, varied, cells)
    robust = np.ones(len(y))
    for _ in range(5):
        root = np.sqrt(weight * robust)
        answer = np.linalg.lstsq(design * root[:, None], y * root, rcond=1e-10)[0]
        r = y - design @ answer
        sigma = 1.4826 * np.median(np.abs(r)) + 1e-12
        robust = 1 / np.maximum(np.abs(r) / (1.345 * sigma), 1.0)
    v = len(varied)
    h = np.empty((v, v))
    pairs = [(a, b) for a in range(v) for b in range(a, v)]
    for (a, b), value in zip(pairs, answer, strict=False):
        h[a, b] = h[b, a] = value
    values, vectors = np.linalg.eigh(h)
    flat = [SETTINGS[varied[int(np.argmax(np.abs(vectors[:, k])))]] for k in range(v) if values[k] < LEAST_CURVATURE]
    h = (vectors * np.maximum(values, LEAST_CURVATURE)) @ vectors.T
    slope = np.zeros((v, 3))
    given = [0, *(1 + j for j in (0, 1) if np.ptp(x[:, j]) > TOUCHING)]
    slope[:, given] = answer[len(pairs) : len(pairs) + v * len(given)].reshape(v, len(given))
    return Surface(varied, h, slope, centre), float((weight * robust * r**2).sum()), flat


def _many(x: Array, y: Array, weight: Array, varied: tuple[int, ...]) -> tuple[Array, float, list[str]] | None:
    """The line through each cell's own smoothed optimum, edges refused; None under four cells."""
    cells = _cells(x)
    found, place, trust, objective = [], [], [], 0.0
    for rows in np.split(np.argsort(cells, kind="stable"), np.cumsum(np.bincount(cells))[:-1]):
        if len(rows) < CELL or any(len(np.unique(x[rows, 2 + j])) < 3 for j in varied):
            continue
        surface, value, flat = _surface(x[rows], y[rows], weight[rows], varied, np.zeros(len(rows), int))
        best = surface.centre[[2 + j for j in varied]] - np.linalg.solve(surface.curvature, surface.slope[:, 0])
        inside = all(x[rows, 2 + j].min() <= b <= x[rows, 2 + j].max() for j, b in zip(varied, best, strict=True))
        if not flat and inside:
            found.append(best)
            place.append([1.0, *x[rows][0, :2]])
            trust.append(len(rows) / max(value, 1e-12))  # 1/variance of the cell's residuals
            objective += value
    if len(found) < 4:
        return None
    at, best_of = np.array(place), np.array(found)
    centre = at.mean(axis=0) * [0, 1, 1]
    used = [0, *(j for j in (1, 2) if np.ptp(at[:, j]) > TOUCHING)]
    root = np.sqrt(np.clip(np.array(trust) / np.median(trust), 0.25, 4.0))[:, None]  # no cell decides alone; assumed
    line = np.zeros((2, 3))
    answer = np.linalg.lstsq((at - centre)[:, used] * root, best_of * root, rcond=1e-10)[0]
    line[:, 0] = x[:, 2:].mean(axis=0)  # a setting that does not vary
    line[np.ix_(list(varied), used)] = answer.T
    line[:, 0] -= line[:, 1:] @ centre[1:]
    return line, objective, []


def _describe(
    table: Table,
    line: Array,
    objective: float,
    flat: list[str],
    varied: tuple[int, ...],
    delta: float,
    n: int,
) -> Fit:
    with np.errstate(over="ignore"):
        params = dict(zip(PARAMS, [np.exp(line[0, 0]), *line[0, 1:], np.exp(line[1, 0]), *line[1, 1:]], strict=True))
    best = np.log(predict(params, table))
    edges = []
    for j in varied:
        log = np.log(table[SETTINGS[j]])
        if (best[:, j] < log.min() - TOUCHING).all() or (best[:, j] > log.max() + TOUCHING).all():
            edges.append(SETTINGS[j])
    status, reason = "converged", ""
    fixed = [s for j, s in enumerate(SETTINGS) if j not in varied]
    if flat:
        status, reason = (
            "flat",
            f"the data shows no curvature in {', '.join(sorted(set(flat)))}: widen the range",
        )
    elif edges:
        status, reason = (
            "bound hit",
            f"the optimum of {', '.join(edges)} lies outside the range tried: widen the range",
        )
    elif fixed:
        reason = f"{fixed[0]} does not vary: its value is kept"
    return Fit("optimum", {k: float(v) for k, v in params.items()}, objective, delta, status, reason, n)
