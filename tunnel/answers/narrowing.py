"""What readings that are not taken yet would leave of the 90% intervals at the target.

The fit's own bootstrap is the posterior; a reading that is not taken yet is linear in it, so what it would leave of the
variance of the forecast f is known beforehand:

    v = var'/var, var' = var(f) − cov(f, g)·(cov(g, g) + R)⁻¹·cov(g, f)        f: the law's forecast, over the draws;
    g: the law at the cells of the new readings, R: these readings' noise

Of the squares of the half-width's parts (`laws.intervals`) is left, with the target d' decades away instead of d:
v of the parameters', (1 − s + s·v)·((d₀ + d')/(d₀ + d))² of the hold-outs', ((d₀ + d')/(d₀ + d))² of the rivals',
(d'/d)² of the bend's, and all of the noise's.

s is the part of the hold-outs' squared errors that the readings' noise explains. The rest is model error: readings
nearer the target shrink it with the distance d, more of the same do not. lr* is narrowed by the fans' own minima.
Source: expected variance reduction, Bayesian design for one quantity (Chaloner & Verdinelli 1995).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tunnel import laws
from tunnel.answers import ladder
from tunnel.backtests import backtest, intervals
from tunnel.backtests.backtest import NEAR, Miss
from tunnel.quantiles import NORMAL
from tunnel.valleys import valley
from tunnel.valleys.valley import Array, Surface

Table = dict[str, Array]
FEW = 20  # resamples that say how the hold-outs' errors scatter: their spread is known to a sixth  *derived*
CLIP = (1.0, 99.0)  # percent of the draws: beyond them a draw counts as if it lay there  *assumed*


@dataclass(frozen=True)
class Width:
    """Half-widths of the 90% intervals at the target: of the log forecast, and of log lr*."""

    loss: float
    lr: float


@dataclass(frozen=True)
class Known:
    """What the ladder's readings say: the fit, and draws of what it does not know (draws, rows of a table)."""

    fit: dict[str, Any]
    table: Table  # the readings that the law rests on
    where: Table  # the target
    surface: Surface
    log_loss: Callable[[Table], Array]  # spread as the fit's intervals are
    log_lr: Callable[[Table], Array]
    noise: float  # of one reading's log loss
    shared: float  # the part of its variance that the forks of a trunk share
    explained: float  # the part of the hold-outs' squared errors that noise explains


def posterior(fit: dict[str, Any], table: Table, where: Table) -> Known:
    """The fit's bootstrap again, its draws spread as wide as the intervals that it told."""
    surface, draws = valley.by_rung(table), valley.bootstrap(table)
    lows, law = laws.columns(ladder.minima(surface)), laws.get(fit["chosen"])
    rows = laws.take(lows, law.select(lows, where))
    resamples = [ladder.minima(s) for s in draws]
    boot = intervals.bootstrap(fit["chosen"], rows, law.fit(rows), resamples=resamples, targets=where)
    params = {name: boot.draws[:, j, None] for j, name in enumerate(boot.names)}
    lines = np.array([[s.a, s.b, s.c] for s in draws if s.curved and surface.curved]).reshape(-1, 3)

    def log_loss(at: Table) -> Array:
        return clipped(np.log(law.predict(params, at)))

    def log_lr(at: Table) -> Array:
        return clipped(lines @ np.stack([np.ones(len(at["N"])), np.log(at["N"]), np.log(at["D"])]))

    told, lr, noise = part(fit["forecast"], "half_parameters"), fit["lr"], max(fit["noise"], valley.QUIET)
    half_lr = math.log(lr["high"] / lr["low"]) / 2
    return Known(
        fit=fit,
        table=table,
        where=where,
        surface=surface,
        log_loss=spread(log_loss, where, told),
        log_lr=spread(log_lr, where, half_lr),
        noise=noise,
        shared=common(table, surface),
        explained=explained(fit["chosen"], lows, where, noise / np.sqrt(np.bincount(valley.cells_of(table)[1]))),
    )


def explained(name: str, lows: Table, where: Table, scatter: Array, seed: int = 0) -> float:
    """The part of a law's squared hold-out errors that noise explains, in [0, 1].

    `scatter`: the standard deviation of each minimum's log loss. The law is held out again on minima that scatter so.
    """
    rng = np.random.default_rng(seed)
    resamples = [{**lows, "loss": lows["loss"] * np.exp(scatter * rng.normal(size=len(scatter)))} for _ in range(FEW)]
    axis = backtest.question(lows, where)

    def missed(table: Table) -> dict[Any, Miss]:
        found = backtest.own_misses(name, laws.columns(table), where, axis, near=backtest.NEAR_D)
        return {(m.axis, m.fold, m.row): m for m in found}

    ours, theirs = missed(lows), [missed(t) for t in resamples]
    apart = {k: [t[k].error for t in theirs if k in t] for k in ours}
    noise = backtest.score(tuple(replace(m, error=float(np.std(apart[k]))) for k, m in ours.items() if apart[k]))
    all_of_it = backtest.score(tuple(ours.values()))
    return min((noise / all_of_it) ** 2, 1.0) if all_of_it > 0 and math.isfinite(noise) else 0.0


def clipped(draws: Array) -> Array:
    """(draws, rows) with the few wild ones drawn in."""
    if not len(draws):
        return draws
    low, high = np.nanpercentile(draws, CLIP, axis=0)
    return np.clip(np.nan_to_num(draws, nan=np.nanmedian(draws)), low, high)


def spread(draws: Callable[[Table], Array], where: Table, half: float) -> Callable[[Table], Array]:
    """Draws about 0, scaled so that 90% of them lie within ±half at the target."""
    there = draws(where)
    own = float(there.std()) if len(there) else 0.0
    factor = half / NORMAL / own if own > 0 else 0.0

    def scaled(at: Table) -> Array:
        found = draws(at)
        return factor * (found - found.mean(axis=0)) if len(found) else found

    return scaled


def common(table: Table, surface: Surface) -> float:
    """The part of the noise's variance that the forks of a trunk share, in [0, 1]: their residuals' mean product."""
    _, cell = valley.cells_of(table)
    rise = surface.h[cell] * (np.log(table["lr"]) - surface.dips[cell]) ** 2
    left = np.where(rise < valley.NEAR, np.log(table["loss"]) - surface.log_loss[cell] - rise, 0.0)
    _, run = np.unique(table["run"], return_inverse=True)
    forks, sums = np.bincount(run.reshape(-1)), np.bincount(run.reshape(-1), left)
    squares = float((left**2).sum())
    pairs = float((forks * (forks - 1)).sum())
    if squares == 0 or pairs == 0:
        return 0.0
    return float(np.clip((float((sums**2).sum()) - squares) / pairs / (squares / len(left)), 0.0, 1.0))


def narrowed(known: Known, extra: Table) -> Width:
    """The half-widths that are expected when the ladder has these readings too (columns as its table's)."""
    told, lr = known.fit["forecast"], known.fit["lr"]
    now = Width(math.log(told["high"] / told["value"]), math.log(lr["high"] / lr["low"]) / 2)
    if not len(extra["N"]):
        return now
    both = {k: np.concatenate([known.table[k], v]) for k, v in extra.items()}
    cells, of = valley.cells_of(both)
    every = laws.columns({**cells, "loss": np.ones(len(cells["N"]))})
    used = laws.get(known.fit["chosen"]).select(every, known.where)
    new = Reading(known, cells, of, np.log(both["lr"]), np.arange(len(of)) >= len(known.table["N"]))
    mine = np.isin(new.at, used)
    left = new.remaining(known.log_loss, new.level, mine)
    far = float(backtest.distance(laws.take(every, used), known.where)[0])
    near = valley.PER_DOUBLING ** np.abs(np.log2(cells["D"][new.at] / both["D"].max()))
    lr_left = new.remaining(known.log_lr, new.place * near, np.ones(len(mine), bool))
    wide = min(valley.widening(both) / valley.widening(known.table), 1.0)
    return Width(joined(known, now.loss, left, far), now.lr * math.sqrt(lr_left) * wide)


def joined(known: Known, half: float, left: float, distance: float) -> float:
    """The half-width, where this part of the parameters' variance is left, and the target lies this far away."""
    told = known.fit["forecast"]
    d0, was, now = float(told["parts"].get("d0", NEAR)), told["distance"], min(distance, told["distance"])
    nearer = (d0 + now) / (d0 + was)
    scale = {
        "half_parameters": left,
        "half_holdouts": (1 - known.explained + known.explained * left) * nearer**2,
        "half_rivals": nearer**2,
        "half_bend": (now / was) ** 2 if was > 0 else 1.0,
    }
    gone = sum(part(told, name) ** 2 * (1 - share) for name, share in scale.items())
    return math.sqrt(max(half**2 - gone, 0.0))


def part(forecast: dict[str, Any], name: str) -> float:
    """A part of the half-width at the target, which is the last row that was asked."""
    return float(np.ravel(forecast["parts"].get(name, 0.0))[-1])


class Reading:
    """New readings by the cells they fall in: the information that they add on each cell's minimum, and on its place.

    A fan of n at log lrs x, curvature h, noise σ: place 4h²Σ(x − x̄)²/σ²; level one over σ²/n + (2h(x̄ − x*))²·var(x*).
    """

    def __init__(self, known: Known, cells: Table, of: Array, log_lr: Array, new: Array) -> None:
        self.known, self.at = known, np.unique(of[new])
        self.cells = laws.take(cells, self.at)
        dip = known.surface.log_lr(self.cells["N"], self.cells["D"])
        by_size = np.argsort(known.surface.cells["N"], kind="stable")
        sizes, bends = np.log(known.surface.cells["N"])[by_size], known.surface.h[by_size]
        bend = np.interp(np.log(self.cells["N"]), sizes, bends)
        prior = known.log_lr(self.cells).var(axis=0) if known.surface.curved else np.zeros(len(self.at))
        pairs = []
        for i, x0, h, var in zip(self.at, dip, bend, prior, strict=True):
            here = of == i
            pairs.append(np.subtract(self.told(log_lr[here], x0, h, var), self.told(log_lr[here & ~new], x0, h, var)))
        self.level, self.place = np.array(pairs).T

    def told(self, x: Array, dip: float, h: float, var: float) -> tuple[float, float]:
        if not len(x):
            return 0.0, 0.0
        noise = self.known.noise**2
        place = 4 * h**2 * float(((x - x.mean()) ** 2).sum()) / noise
        beside = (2 * h * (x.mean() - dip)) ** 2 * (1 / (1 / var + place) if var > 0 else 0.0)
        return 1 / (noise / len(x) + beside), place

    def remaining(self, draws: Callable[[Table], Array], information: Array, used: Array) -> float:
        """The part of the variance at the target that is left when these cells are measured."""
        used = used & (information > 0)
        if not used.any():
            return 1.0
        f, g = draws(self.known.where), draws(laws.take(self.cells, used))
        if not len(f) or not f.var() > 0:
            return 1.0
        sigma = information[used] ** -0.5
        shape = self.cells["width"][used] + 1j * self.cells["depth"][used]
        shared = np.where(np.equal.outer(shape, shape), self.known.shared, 0.0)
        noise = np.outer(sigma, sigma) * (shared + (1 - self.known.shared) * np.eye(len(sigma)))
        cross = g.T @ f[:, 0] / len(f)
        gain = float(cross @ np.linalg.solve(g.T @ g / len(f) + noise, cross))
        return max(1 - gain / float(f.var()), 0.0)
