"""Two ways from a runs table to lines of log lr* and log batch* in (log N, log D): one joint surface, or cells.

`joint`: one quadratic surface of log L (`valleys.joint`). `cells`: the optimum of every (N, D) cell's own smoothed
surface (`bowls`), edges refused, and the line that gives away least on those surfaces: lr* and batch* run together
along a valley's floor, so an optimum counts by its curvature.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tunnel import laws
from tunnel.laws import Array, Table, columns, take, usable_rows
from tunnel.valleys import bowls, joint, valley

COLUMNS = ("N", "D", "loss", "lr", "batch_tokens")
SETTINGS = ("lr", "batch_tokens")
LEAST = 1e-4  # floor on the joint surface's curvature: 0.002% of the loss an octave off, below seed noise  *derived*
TOUCHING = 1e-6  # relative; edges of a range are compared to rounding
MOST_ROWS = 6000  # a larger table is thinned to this, so that the command takes seconds  *assumed*
CELLS = 4  # cells with an optimum that a line is drawn through, at the least: its 3 coefficients and one  *derived*
ROBUST = 1.5  # median distances from the line at which a cell's optimum begins to count less  *assumed*
PASSES = 6  # of that


@dataclass(frozen=True)
class Way:
    """How the lines are found: joint or cells; a row's weight falls by e for each `near` (log loss) above the best."""

    name: str
    near: float

    def __str__(self) -> str:
        return f"{self.name} near {100 * self.near:g}%"


WAYS = (Way("joint", 0.05), Way("joint", 0.02), Way("cells", 0.005), Way("cells", 0.01), Way("cells", 0.02))


@dataclass(frozen=True)
class Rows:
    """A table's rows as logs: x (n, 4) of N, D, lr, batch; y of loss; whose cell, whose run; which settings vary."""

    x: Array
    y: Array
    weight: Array
    run: Array
    cell: Array
    varied: tuple[int, ...]

    @property
    def places(self) -> Array:
        """log N, log D of every cell (cells, 2)."""
        return self.x[np.unique(self.cell, return_index=True)[1], :2]

    def of(self, keep: Array) -> Rows:
        """Some of the rows; cells are numbered anew."""
        cell = np.unique(self.cell[keep], return_inverse=True)[1].reshape(-1)
        return Rows(self.x[keep], self.y[keep], self.weight[keep], self.run[keep], cell, self.varied)


@dataclass(frozen=True)
class Lines:
    """log settings as lines in (1, log N, log D), (2, 3); `H` (2, 2) the curvature of log loss about them."""

    line: Array
    H: Array
    objective: float
    flat: tuple[str, ...] = ()
    reason: str = ""

    def at(self, places: Array) -> Array:
        """log lr, log batch (k, 2) at log N, log D (k, 2)."""
        return np.asarray(self.line[:, 0] + places @ self.line[:, 1:].T)


def rows_of(table: Table) -> tuple[Rows | None, str]:
    """The table's usable rows, at most MOST_ROWS; or None, and why there is nothing to find."""
    table = columns(table)
    lacking = [c for c in COLUMNS if c not in table]
    if lacking:
        return None, f"no column {lacking[0]}"
    table = take(table, np.flatnonzero(usable_rows(table, COLUMNS)))
    if laws.rows_of(table) > MOST_ROWS:
        order = np.lexsort((table["loss"], table["batch_tokens"], table["lr"], table["D"], table["N"]))
        table = take(table, order[np.linspace(0, len(order) - 1, MOST_ROWS).astype(int)])
    x = np.stack([np.log(table[c]) for c in COLUMNS if c != "loss"], axis=1)
    y = np.log(table["loss"])
    varied = tuple(j for j in range(2) if len(y) and np.ptp(x[:, 2 + j]) > TOUCHING)
    if not varied:
        return None, "neither lr nor batch_tokens varies" if len(y) else "0 rows with all of " + ", ".join(COLUMNS)
    weight = table["weight"] if "weight" in table else np.ones(len(y))
    keys = np.round(x[:, :2] / 0.01).astype(np.int64)  # N and D within 1% are one cell  *assumed*
    cell = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
    return Rows(x, y, weight, laws.runs_of(table), cell, varied), ""


@dataclass(frozen=True)
class Drawn:
    """A bootstrap's lines (draws, 2, 3), and the curvature about each (draws, 2, 2)."""

    line: Array
    H: Array

    def at(self, places: Array) -> Array:
        """log lr, log batch (draws, k, 2) at log N, log D (k, 2)."""
        return np.asarray(self.line[:, None, :, 0] + np.einsum("kp,sjp->skj", places, self.line[:, :, 1:]))


@dataclass(frozen=True)
class Surface:
    """The joint surface of some rows: settings, places, levels; how deep its valleys are elsewhere (`joint.growth`)."""

    rows: Rows
    near: float
    known: joint.Rows
    growth: Mapping[str, float]

    def lines(self, weight: Array | None = None) -> Lines | None:
        """The settings' lines; None where the rows are too few, or no setting has three values."""
        if not self.known.names:
            return None
        weight = self.rows.weight if weight is None else self.rows.weight * weight
        found = joint.fit(self.known, weight, self.growth, self.near)
        return None if found is None else lines_of(self.rows, found)

    def drawn(self, draws: int, seed: int) -> Drawn:
        """Lines of runs that weigh differently."""
        return spread((self.lines(w) for w in valley.weights(self.rows.run, draws, seed)), joint.widening(self.known))

    def of(self, cells: Array) -> Surface:
        """From the rows of some cells alone; the growth stays that of all: of valleys' depth, not of their place."""
        some = self.rows.of(np.isin(self.rows.cell, cells))
        return Surface(some, self.near, known_of(some), self.growth)


def known_of(rows: Rows) -> joint.Rows:
    table = {k: np.exp(rows.x[:, j]) for j, k in enumerate(("N", "D", *SETTINGS))}
    return joint.rows_of({**table, "loss": np.exp(rows.y), "run": rows.run}, tuple(SETTINGS[j] for j in rows.varied))


def surface(rows: Rows, near: float) -> Surface:
    known = known_of(rows)
    return Surface(rows, near, known, joint.growth(known, near) if known.names else {})


def lines_of(rows: Rows, found: joint.Joint) -> Lines:
    """A joint surface's minimum, its curvature floored."""
    found, flat = found.floored(LEAST)
    solved = found.solved(found.names)
    assert solved is not None, "a floored surface has a minimum"
    line, h = np.zeros((2, 3)), np.zeros((2, 2))
    line[:, 0] = rows.x[:, 2:].mean(axis=0)
    where = [SETTINGS.index(k) for k in found.names]
    h[np.ix_(where, where)] = found.H
    for j, (level, *powers) in zip(where, solved[0].tolist(), strict=True):
        over = dict(zip(found.places, powers, strict=True))
        slopes = [over.get(k, 0.0) for k in ("N", "D")]
        middle = [found.centre[k] for k in ("N", "D")]
        line[j] = [found.centre[SETTINGS[j]] + level - np.dot(slopes, middle), *slopes]
    two = [SETTINGS[j] for j in rows.varied if SETTINGS[j] not in found.names]  # two values show no curvature
    return Lines(line, h, found.noise**2 * len(rows.y), tuple(sorted({*flat, *two})))


@dataclass(frozen=True)
class Cells:
    """The optima of cells: `index` of the table's, places (k, 3), log settings (k, v), curvatures (k, v, v), the
    group drawn together (k).
    """

    rows: Rows
    index: Array
    place: Array
    best: Array
    H: Array
    group: Array
    objective: float
    reason: str

    def lines(self, weight: Array | None = None) -> Lines | None:
        """Through the optima, what is given away on the cells' own surfaces being least; far ones count less."""
        if len(self.best) < CELLS:
            return None
        used = [0, *(j for j in (1, 2) if np.ptp(self.place[:, j]) > TOUCHING)]
        centre = self.place.mean(axis=0) * [0, 1, 1]
        z, v = (self.place - centre)[:, used], self.best.shape[1]
        w = np.ones(len(z)) if weight is None else weight
        h, robust = self.H / np.median(self.H[:, 0, 0]), np.ones(len(z))
        for _ in range(PASSES):
            left = np.einsum("c,ci,cab,cj->aibj", w * robust, z, h, z).reshape(v * len(used), -1)
            right = np.einsum("c,ci,cab,cb->ai", w * robust, z, h, self.best).ravel()
            answer = np.linalg.lstsq(left, right, rcond=1e-10)[0].reshape(v, -1)
            e = self.best - z @ answer.T
            far = np.sqrt(np.einsum("ca,cab,cb->c", e, h, e))
            robust = 1 / np.maximum(far / (ROBUST * np.median(far) + 1e-12), 1.0)
        line, full = np.zeros((2, 3)), np.zeros((2, 2))
        line[:, 0] = self.rows.x[:, 2:].mean(axis=0)  # a setting that does not vary
        where = list(self.rows.varied)
        line[np.ix_(where, used)] = answer
        line[where, 0] -= line[where, 1:] @ centre[1:]
        full[np.ix_(where, where)] = np.median(self.H, axis=0)
        return Lines(line, full, self.objective, (), self.reason)

    def drawn(self, draws: int, seed: int) -> Drawn:
        """Lines of cells that weigh differently; those that share runs weigh alike."""
        count = len(np.unique(self.group))
        wide = np.sqrt(count / max(count - 3, 1))  # three coefficients are used up  *derived*
        return spread((self.lines(w) for w in valley.weights(self.group, draws, seed)), wide)

    def of(self, cells: Array) -> Cells:
        """Some of the cells."""
        keep = np.isin(self.index, cells)
        own = {k: getattr(self, k)[keep] for k in ("index", "place", "best", "H", "group")}
        return replace(self, **own)


def bowls_of(rows: Rows, near: float) -> list[bowls.Bowl | None]:
    """Every cell's own smoothed surface; None where its rows are too few."""
    order = np.argsort(rows.cell, kind="stable")
    each = np.split(order, np.cumsum(np.bincount(rows.cell))[:-1])
    settings = [2 + j for j in rows.varied]
    return [bowls.bowl(rows.x[i][:, settings], rows.y[i], rows.weight[i], near) for i in each]


def cells(rows: Rows, found: Sequence[bowls.Bowl | None]) -> Cells:
    """The optima of the cells that have one."""
    good = {i: b for i, b in enumerate(found) if b is not None and not b.edge}
    index = np.array(list(good), int)
    refused = len(found) - len(good)
    place = np.column_stack([np.ones(len(found)), rows.places])[index]
    v = len(rows.varied)
    pairs = np.unique(np.stack([rows.run, rows.cell]), axis=1)
    shared = len(np.unique(pairs[0])) < pairs.shape[1]  # a run with several readings: forks, which differ in D alone
    group = np.unique(place[:, 1].round(6), return_inverse=True)[1] if shared else index
    best = np.array([b.best for b in good.values()]).reshape(-1, v)
    h = np.array([b.H for b in good.values()]).reshape(-1, v, v)
    said = f"{refused} of {len(found)} cells refused: too few runs, or their best at an edge of what was tried"
    return Cells(rows, index, place, best, h, group, float(sum(b.left for b in good.values())), said if refused else "")


def spread(lines: Iterable[Lines | None], wide: float) -> Drawn:
    """A bootstrap's lines, as wide about their middle as few runs ask."""
    kept = [f for f in lines if f is not None]
    each = np.array([f.line for f in kept])
    middle = np.median(each, axis=0)
    return Drawn(middle + wide * (each - middle), np.array([f.H for f in kept]))


def all_of(rows: Rows, smooth: Mapping[float, Sequence[bowls.Bowl | None]]) -> dict[Way, tuple[Surface | Cells, Lines]]:
    """Every way that finds lines, with what they are drawn from; `smooth`: the cells' own surfaces by `near`."""
    out: dict[Way, tuple[Surface | Cells, Lines]] = {}
    for way in WAYS:
        source = surface(rows, way.near) if way.name == "joint" else cells(rows, smooth[way.near])
        lines = source.lines()
        if lines is not None:
            out[way] = source, lines
    return out
