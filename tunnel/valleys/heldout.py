"""Which way to lr* and batch* gives away least on cells it has not seen; from that its choice, interval and regret.

Expanding windows by N and by D (`backtest.holdouts`). A left-out cell is judged on its own smoothed surface, the same
for all ways; in a table whose (N, D) do not repeat, on the surface through all rows. Per target at distance d (decades
beyond the fit), with d₀ = backtest.NEAR:

    half² of log setting = max(t·c·(d₀ + d)/d₀, b)² + r²        regret = max(g·((d₀ + d)/d₀)², e)

c, g: root mean square error of the setting and mean regret of the hold-outs, scaled back to the fit's edge; t:
Student's quantile, its freedom the cells left out (folds, where no cell has a surface of its own); b, e: 90% half-width
and expected regret of a bootstrap by run; r: how far other ways lie that the hold-outs do not clearly reject (a
smoothing has a bias, which hold-outs smoothed alike do not show). Where no cell has its own surface the judge errs too:
then t·c·(d₀ + d)/d₀ and b join in quadrature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tunnel import laws
from tunnel.backtests import backtest
from tunnel.laws import Array, Table, columns
from tunnel.quantiles import student
from tunnel.valleys import bowls, ways
from tunnel.valleys.bowls import Bowl
from tunnel.valleys.ways import WAYS, Cells, Lines, Rows, Surface, Way

FEW = 160  # runs up to which the joint surface is the way unless hold-outs speak against it; SCIENCE.md §4
USUAL = {"joint": WAYS[0], "cells": WAYS[3]}  # of either kind, where hold-outs do not say more
JUDGE = (0.01, 0.02, 0.05)  # `near` of the surfaces that judge: the first with a minimum  *assumed*
RIVAL = 2.0  # a way whose hold-out regret is up to this times the chosen one's is not clearly worse  *assumed*
DRAWS = 200  # of the bootstrap: enough for a 5% and 95% quantile of a setting  *assumed*

Found = Mapping[Way, tuple[Surface | Cells, Lines]]
Smooth = Mapping[float, Sequence[Bowl | None]]


@dataclass(frozen=True)
class Miss:
    """A left-out cell as one way saw it: error (2) of log lr, log batch; regret (of log loss); distance in decades."""

    axis: str
    fold: str
    N: float
    D: float
    error: Array
    regret: float
    distance: float

    @property
    def back(self) -> float:
        """The factor that scales an error back to the fit's edge."""
        return backtest.NEAR / (backtest.NEAR + self.distance)


@dataclass(frozen=True)
class Chosen:
    """The way that was chosen, the lines of every way that finds some, what each misses on hold-outs, its score.

    `own`: whether left-out cells were judged on their own surfaces.
    """

    rows: Rows
    way: Way
    found: Found
    misses: Mapping[Way, tuple[Miss, ...]]
    scores: Mapping[Way, float]
    own: bool

    @property
    def lines(self) -> Lines:
        return self.found[self.way][1]

    @property
    def rejected(self) -> dict[str, str]:
        """The other ways, and why not."""
        if self.way not in self.scores:
            return {}
        own = f"{self.way} {100 * self.scores[self.way]:.2g}%"
        return {
            str(w): f"{w} gives away {100 * s:.2g}% near the fit, {own}"
            for w, s in self.scores.items()
            if w != self.way
        }


def choose(rows: Rows) -> Chosen | None:
    """The way that does best on the hold-outs, the usual one where these do not say; None where none finds lines."""
    smooth = {near: ways.bowls_of(rows, near) for near in {w.near for w in WAYS} | set(JUDGE)}
    found = ways.all_of(rows, smooth)
    if not found:
        return None
    each = zip(*(smooth[near] for near in JUDGE), strict=True)
    judge = [next((b for b in bowls if b is not None and not b.edge), None) for bowls in each]
    own = any(judge)
    misses = held_out(rows, found, judge if own else stand_ins(rows, found))
    scores = compared(misses)
    return Chosen(rows, decide(len(rows.y), found, scores, misses), found, misses, scores, own)


def stand_ins(rows: Rows, found: Found) -> list[Bowl | None]:
    """The surface that judges each cell where none has its own: the joint surface of all rows."""
    joint = next((lines for way, (_, lines) in found.items() if way.name == "joint"), None)
    if joint is None or joint.flat:
        return [None] * len(rows.places)
    v = list(rows.varied)
    return [bowls.parabola(best, joint.H[np.ix_(v, v)]) for best in joint.at(rows.places)[:, v]]


def held_out(rows: Rows, found: Found, judge: Sequence[Bowl | None]) -> dict[Way, tuple[Miss, ...]]:
    """What every way misses the left-out cells by."""
    place, v = rows.places, list(rows.varied)
    whole = columns({"N": np.exp(place[:, 0]), "D": np.exp(place[:, 1]), "loss": np.ones(len(place))})
    out: dict[Way, list[Miss]] = {way: [] for way in found}
    for fold in backtest.holdouts(whole, ("N", "D")):
        if np.ptp(np.log(whole[fold.axis][fold.train])) < ways.TOUCHING:
            continue  # one level shows no power
        asked = np.array([i for i in fold.test if judge[i] is not None], int)
        far = backtest.distance(laws.take(whole, fold.train), laws.take(whole, asked))
        for way, (source, _) in found.items():
            lines = source.of(fold.train).lines() if len(asked) else None
            for i, x, d in zip(asked, lines.at(place[asked]), far, strict=True) if lines else ():
                bowl = judge[i]
                assert bowl is not None
                error = np.zeros(2)
                error[v] = x[v] - bowl.best
                n, tokens = float(whole["N"][i]), float(whole["D"][i])
                out[way].append(
                    Miss(fold.axis, fold.label, n, tokens, error, float(bowl.rise(x[v][None])[0]), float(d))
                )
    return {way: tuple(m) for way, m in out.items()}


def folds_of(misses: Sequence[Miss]) -> list[list[Miss]]:
    out: dict[tuple[str, str], list[Miss]] = {}
    for m in misses:
        out.setdefault((m.axis, m.fold), []).append(m)
    return list(out.values())


def score(misses: Sequence[Miss]) -> float:
    """Mean regret scaled back to the fit's edge (of log loss), folds of equal weight; 0 without misses."""
    each = [float(np.mean([m.regret * m.back**2 for m in ms])) for ms in folds_of(misses)]
    return float(np.mean(each)) if each else 0.0


def compared(misses: Mapping[Way, Sequence[Miss]]) -> dict[Way, float]:
    """The score of every way that answers some hold-out, on the cells that all of those answer."""
    keys = {way: {(m.axis, m.fold, m.N, m.D) for m in ms} for way, ms in misses.items() if ms}
    common = set.intersection(*keys.values()) if keys else set()
    return {w: score([m for m in misses[w] if (m.axis, m.fold, m.N, m.D) in common]) for w in keys if common}


def decide(n: int, found: Found, scores: Mapping[Way, float], misses: Mapping[Way, tuple[Miss, ...]]) -> Way:
    """The way of the least score, unless the usual one for so many rows is nearly as good."""
    names = ("joint", "cells") if n <= FEW else ("cells", "joint")
    usual = next(w for name in names for w in (USUAL[name], *WAYS) if w in found and w.name == name)
    if not scores:
        return usual
    best = min(scores, key=lambda w: scores[w])
    folds = min(len(folds_of(misses[w])) for w in scores)
    margin = 1 + 2 / folds**2  # one fold is one draw, as in `backtest`
    return usual if scores.get(usual, np.inf) <= margin * scores[best] else best


@dataclass(frozen=True)
class Told:
    """Per target: log settings (k, 2), half-widths of their 90% intervals (k, 2), expected regret (k); lines drawn."""

    best: Array
    half: Array
    regret: Array
    draws: Array  # (draws, 2, 3)


def told(known: Chosen, targets: Table, draws: int = DRAWS, seed: int = 0) -> Told:
    """lr and batch at the targets, what is not known of them, and what that is expected to give away."""
    source, lines = known.found[known.way]
    place = np.stack([np.log(targets["N"]), np.log(targets["D"])], axis=1)
    best, each = lines.at(place), source.drawn(draws, seed)
    drawn = each.at(place)
    low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
    misses = known.misses[known.way]
    folds = folds_of(misses)
    here = columns({"N": np.exp(known.rows.places[:, 0]), "D": np.exp(known.rows.places[:, 1])})
    grown = 1 + backtest.distance(here, targets) / backtest.NEAR
    off = [np.mean([(m.error * m.back) ** 2 for m in ms], axis=0) for ms in folds] or [np.zeros(2)]
    freedom = len({(m.N, m.D) for m in misses}) if known.own else len(folds)
    seen = student(0.95, max(freedom, 1)) * np.sqrt(np.mean(off, axis=0)) * grown[:, None]
    own = score(misses)
    rivals = [w for w, s in known.scores.items() if s <= RIVAL * known.scores[known.way]]
    apart = np.max([np.zeros_like(best), *(np.abs(known.found[w][1].at(place) - best) for w in rivals)], axis=0)
    boot = (high - low) / 2
    half = np.sqrt((np.maximum(seen, boot) ** 2 if known.own else seen**2 + boot**2) + apart**2)
    away = drawn - np.median(drawn, axis=0)
    expected = 0.5 * np.einsum("ski,sij,skj->k", away, each.H, away) / len(away)
    return Told(best, half, np.maximum(expected, own * grown**2), each.line)
