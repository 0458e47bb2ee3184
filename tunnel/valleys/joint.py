"""One surface over learning rate, batch, weight decay and horizon: where the best of each lies, and how it moves.

    log L = level(N, D) + N^γ·D^δ·(½·uᵀHu + uᵀK(1, log N, log D))        u = log lr, log B, log λ, as far as each varies

One quadratic (SCIENCE.md §4), so every question is linear algebra: the settings in `free` are best, the others held, at
u_free = −H_ff⁻¹(K_f·(1, log N, log D) + H_fh·u_held). No sign is assumed. γ and δ let valleys be deeper on long runs
than on short ones: with one depth for all, a fan that lies beside the minimum would feign a drift. Serves a study's
horizon (`verdicts.horizon`), a table's best lr and batch (`laws.optimum`) and its best aspect (`laws.allocate`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tunnel.quantiles import NORMAL, TYPICAL, student
from tunnel.valleys import valley
from tunnel.valleys.valley import Array

SETTINGS = ("lr", "batch_tokens", "weight_decay")
CURVED = 3  # values of a setting that show a curvature; two show a slope only  *derived*
GROWTHS = np.linspace(-0.8, 0.8, 9)  # of γ and δ tried: between 1/5 and 5 times as deep per e² of D  *assumed*
SPARE = 1.5  # rows per coefficient, at the least  *assumed*
REPEATS = (
    3.0  # rows per cell that give every cell a level of its own; with fewer it is quadratic in log N, log D  *assumed*
)
MOST_NUMBERS = 2_000_000  # of a level per cell (16 MB); beyond it too  *assumed*
HUBER = 1.345  # robust standard deviations: 95% efficient under a normal  *derived*
PASSES = 3  # of reweighting


@dataclass(frozen=True)
class Rows:
    """Readings as logs. `names`: u's settings; `places`: what their optimum moves with; the same for every draw."""

    logs: dict[str, Array]
    names: tuple[str, ...]
    places: tuple[str, ...]
    cell: Array  # (n): a group (N, and settings of two values, which have levels of their own) at a rung
    level: Array  # (n, cells), or (n, 6) where cells do not repeat
    levels: int  # that trunks must decide
    y: Array  # log loss
    run: Array

    @property
    def first(self) -> Array:
        """A row of each cell."""
        return np.unique(self.cell, return_index=True)[1]

    @property
    def free(self) -> int:
        """Trunks, less the coefficients that trunks must decide: all but those of D, which their forks share."""
        v, moved = len(self.names), len([k for k in self.places if k != "D"])
        return len(np.unique(self.run)) - v * (v + 1) // 2 - v * (1 + moved) - self.levels


@dataclass(frozen=True)
class Joint:
    """The fitted surface: H (v, v), K (v, 1 + places), about `centre`, the means of the logs.

    `low`: per cell, log loss where all settings are best; NaN where there is no such point. `noise`: of log loss.
    """

    names: tuple[str, ...]
    places: tuple[str, ...]
    centre: Mapping[str, float]
    H: Array
    K: Array
    low: Array
    noise: float

    def solved(self, free: Sequence[str]) -> tuple[Array, Array] | None:
        """The free settings' lines over the places (f, 1 + p) and over the held settings (f, h); None: no minimum."""
        f = [self.names.index(k) for k in free]
        held = [i for i in range(len(self.names)) if i not in f]
        inner = self.H[np.ix_(f, f)]
        if np.linalg.eigvalsh(inner).min() <= 0:
            return None
        return -np.linalg.solve(inner, self.K[f]), -np.linalg.solve(inner, self.H[np.ix_(f, held)])

    def exponents(self, free: Sequence[str]) -> dict[str, dict[str, float]] | None:
        """How each free setting's optimum moves with each place and each held setting (powers); None: no minimum."""
        found = self.solved(free)
        if found is None:
            return None
        along = [*self.places, *(k for k in self.names if k not in free)]
        table = np.hstack([found[0][:, 1:], found[1]]).tolist()
        return {k: dict(zip(along, row, strict=True)) for k, row in zip(free, table, strict=True)}

    def best(self, free: Sequence[str], at: Mapping[str, float]) -> dict[str, float] | None:
        """The logs of the free settings' best; `at`: logs of the places and of the held settings. None: no minimum."""
        found = self.solved(free)
        if found is None:
            return None
        place = np.array([1.0, *(at[k] - self.centre[k] for k in self.places)])
        held = np.array([at[k] - self.centre[k] for k in self.names if k not in free])
        u = found[0] @ place + found[1] @ held
        return {k: float(v) + self.centre[k] for k, v in zip(free, u, strict=True)}

    def floored(self, least: float) -> tuple[Joint, list[str]]:
        """The surface with curvatures of at least `least`, and the settings along which it was less."""
        values, vectors = np.linalg.eigh(self.H)
        flat = [self.names[int(np.abs(vectors[:, k]).argmax())] for k in np.flatnonzero(values < least)]
        return replace(self, H=(vectors * np.maximum(values, least)) @ vectors.T), flat


def rows_of(table: Mapping[str, Array], settings: Sequence[str] = SETTINGS) -> Rows:
    """A table's logs; columns N, D, loss, run (the trunk), and the settings where above 0."""
    known = [k for k in ("N", "D", *settings) if k in table and bool((table[k] > 0).all())]
    logs = {k: np.log(table[k]) for k in known}
    values = {k: len(np.unique(logs[k].round(6))) for k in settings if k in logs}
    pairs = [k for k, n in values.items() if n == CURVED - 1]
    rung = valley.rungs_of(table)
    group = numbered(logs["N"], *(logs[k] for k in pairs))
    cell = numbered(group, rung)
    moved = [k for k, several in (("N", np.ptp(logs["N"]) > 0), ("D", rung.max() > 0)) if several]
    cells = int(cell.max()) + 1
    if len(cell) >= REPEATS * cells and len(cell) * cells <= MOST_NUMBERS:
        level = np.column_stack([hats(logs["D"], rung, group == i) for i in range(group.max() + 1)])
        levels = int(group.max() + 1)
    else:
        level = quadratic(*(logs[k] - logs[k].mean() for k in (*moved, *pairs)), rows=len(cell))
        levels = level.shape[1]
    return Rows(
        logs=logs,
        names=tuple(k for k, n in values.items() if n >= CURVED),
        places=(*moved, *pairs),
        cell=cell,
        level=level,
        levels=levels,
        y=np.log(table["loss"]),
        run=table["run"],
    )


def numbered(*columns: Array) -> Array:
    """A number from 0 for every row, the same where all columns are."""
    keys = np.column_stack(columns).round(6)
    return np.asarray(np.unique(keys, axis=0, return_inverse=True)[1]).reshape(-1)


def quadratic(*places: Array, rows: int) -> Array:
    """1, the places and their products, (rows, ...)."""
    products = [places[i] * places[j] for i in range(len(places)) for j in range(i, len(places))]
    return np.column_stack([np.ones(rows), *places, *products])


def hats(log_d: Array, rung: Array, here: Array) -> Array:
    """A group's level, piecewise linear in log D through its rungs, whose readings' D is rounded to whole batches."""
    knots = np.array([log_d[here & (rung == r)].mean() for r in np.unique(rung[here])])
    if len(knots) == 1:
        return here[:, None].astype(float)
    i, each = np.clip(np.searchsorted(knots, log_d) - 1, 0, len(knots) - 2), np.arange(len(log_d))
    share = (log_d - knots[i]) / (knots[i + 1] - knots[i])
    found = np.zeros((len(log_d), len(knots)))
    found[each, i], found[each, i + 1] = 1 - share, share
    return found * here[:, None]


def growth(rows: Rows, near: float = valley.NEAR) -> dict[str, float]:
    """γ and δ, as far as N and D vary: one after the other those that leave the least."""
    found: dict[str, float] = {}
    for k in (k for k in rows.places if k in ("D", "N")):
        tried = [fit(rows, growth={**found, k: float(g)}, near=near) for g in GROWTHS]
        left = np.array([s.noise**2 for s in tried if s is not None])
        found[k] = valley.least_of(GROWTHS, left) if len(left) == len(GROWTHS) else 0.0
    return found


def fit(
    rows: Rows, weight: Array | None = None, growth: Mapping[str, float] | None = None, near: float = valley.NEAR
) -> Joint | None:
    """The surface by robust least squares; None where the readings are too few.

    `weight`: one per row, for a bootstrap; `growth`: γ and δ by the names of their places, 0 where not said; `near`: of
    log loss, a reading's weight falls by e for each of these above its cell's best.
    """
    centre = {k: float(v.mean()) for k, v in rows.logs.items()}
    u = np.column_stack([rows.logs[k] - centre[k] for k in rows.names])
    place = np.column_stack([np.ones(len(u)), *(rows.logs[k] - centre[k] for k in rows.places)])
    v = u.shape[1]
    depth = np.exp(sum(g * (rows.logs[k] - centre[k]) for k, g in (growth or {}).items()) + np.zeros(len(u)))
    pairs = [(i, j) for i in range(v) for j in range(i, v)]
    square = [u[:, i] * u[:, j] * (0.5 if i == j else 1.0) for i, j in pairs]
    bowl = np.column_stack([*square, *(u[:, i, None] * place for i in range(v))])
    design = np.column_stack([depth[:, None] * bowl, rows.level])
    if len(u) < SPARE * design.shape[1] or rows.free < 1:
        return None
    best = np.full(int(rows.cell.max()) + 1, np.inf)
    np.minimum.at(best, rows.cell, rows.y)
    weight = (np.ones(len(u)) if weight is None else weight) * np.exp(-(rows.y - best[rows.cell]) / near)
    robust = np.ones(len(u))
    for _ in range(PASSES):
        found = valley.least_squares(design, rows.y, weight * robust)
        r = np.abs(rows.y - design @ found)
        robust = 1 / np.maximum(r / (HUBER * TYPICAL * np.median(r) + valley.QUIET), 1.0)
    left = float(weight @ (rows.y - design @ found) ** 2 / weight.sum())
    h = np.empty((v, v))
    for (i, j), value in zip(pairs, found, strict=False):
        h[i, j] = h[j, i] = value
    k = found[len(pairs) : len(pairs) + v * place.shape[1]].reshape(v, -1)
    low = np.full(len(best), np.nan)
    if np.linalg.eigvalsh(h).min() > 0:
        tilt = place[rows.first] @ k.T
        drop = 0.5 * (tilt * np.linalg.solve(h, tilt.T).T).sum(axis=1)
        low = rows.level[rows.first] @ found[len(pairs) + k.size :] - depth[rows.first] * drop
    noise = float(np.sqrt(left * len(u) / (len(u) - design.shape[1])))
    return Joint(rows.names, rows.places, centre, h, k, low, noise)


def bootstrap(rows: Rows, draws: int, growth: Mapping[str, float] | None = None, seed: int = 0) -> list[Joint]:
    """Surfaces of readings whose trunks weigh differently."""
    found = (fit(rows, w, growth) for w in valley.weights(rows.run, draws, seed))
    return [s for s in found if s is not None]


def widening(rows: Rows) -> float:
    """As `valley.widening`: few trunks, many coefficients."""
    trunks = len(np.unique(rows.run))
    return float(np.sqrt(trunks / max(rows.free, 1)) * student(0.95, max(rows.free, 1)) / NORMAL)
