"""Whether 90% intervals hold 90% of larger runs: benchmarks/coverage.py TABLE... [--studies DIR...] [--ladders 20].

A TABLE is a path, with the columns it is read by where they have other names:

    points.csv:N=n,D=t,C=flops,by=condition     runs.csv:drop=excluded      runs.csv:keep=in_fit

Each table is fitted on its cheaper (smaller, shorter) part and asked for the rest: all larger readings, and the best of
each budget alone. Printed: coverage with a cluster bootstrap over tables (rows of a table share a fit), mean width over
an oracle's (the narrowest constant factor that would have covered 90%), the interval score, by distance, against plain
bootstrap of the same form, and with the width calibrated on all other tables. Exit 1 where 90% lies outside the
bootstrap's interval, or a width is more than twice the oracle's.

Our own ladders are judged alike: a DIR is a study's folder, whose ladder is fitted as `tunnel fit` does it, without its
largest shape, its largest two or its longest rung, and asked for the valleys' minima there. Simulated ladders are a
control that cannot tell a width: they are the law itself, which an interval that holds on real runs doubts; asked is
that 90% lie inside.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pandas as pd

from tunnel import laws, table
from tunnel.answers import ladder as ladder_of
from tunnel.backtests import backtest, intervals, rows
from tunnel.errors import UserError
from tunnel.laws import take
from tunnel.quantiles import LEVEL, NORMAL
from tunnel.study import Target
from tunnel.sweeps import sweep
from tunnel.table.files import NUMBERS
from tunnel.valleys import valley

CUTS = {"C": (0.5, 0.75), "N": (0.6,), "D": (0.6,)}  # share of the axis' range of logs (C), of its levels (N, D)
BANDS = {"inside or under 2x": (0, 0.3), "2-10x": (0.3, 1), "beyond 10x": (1, 9)}  # decades beyond the fit
FEWEST = 12  # rows that a fit is made on
SHAPES = 3  # that a study's ladder must still have
WIDEST = 2.0  # times the oracle's width; issue 4
DRAWS = 200
Table = dict[str, np.ndarray]


@dataclass(frozen=True)
class Asked:
    """One fit and what it was asked: errors and half-widths of log loss, per target."""

    table: str
    split: str
    kind: str
    candidate: str
    error: np.ndarray
    half: np.ndarray
    plain: np.ndarray  # half-width of the plain bootstrap
    distance: np.ndarray


def tables(spec: str) -> Iterator[tuple[str, Table]]:
    """The runs tables of a file: one, or one per value of its `by` column."""
    path, _, rest = spec.partition(":")
    options = dict(part.partition("=")[::2] for part in rest.split(",") if part)
    names = {k: v for k, v in options.items() if k in NUMBERS}
    frame = table.read(path, columns=names, drop=[options["drop"]] if "drop" in options else [])
    frame = frame[frame[options["keep"]] != 0] if "keep" in options else frame
    groups = frame.groupby(options["by"], sort=False) if "by" in options else [(Path(path).stem, frame)]
    for name, part in groups:
        yield str(name), laws.columns(table.as_columns(part.reset_index(drop=True)))


def ladders(count: int) -> Iterator[tuple[str, Table]]:
    """Small ladders as studies make them: 4 shapes on a path, 4 rungs, short ones under-trained, seed noise; and a
    larger shape at the longest rung, which is asked for."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        alpha, beta = rng.uniform(0.2, 0.5, 2)
        n0, ratio, d0 = 10 ** rng.uniform(4.5, 7.5), rng.uniform(1.8, 3.2), 10 ** rng.uniform(6, 9)
        n = n0 * ratio ** np.array([0, 1, 2, 3, 4, 5])
        size, length = (v.ravel() for v in np.meshgrid(n, d0 * 2.0 ** np.arange(4), indexing="ij"))
        loss = rng.uniform(0.8, 2.2) + rng.uniform(0.4, 2) * (size / n0) ** -alpha + (length / d0) ** -beta
        transient = rng.uniform(0, 0.25) * (length / d0) ** -2.0 * (size / n0) ** rng.uniform(0, 0.1)
        loss = (loss + transient) * np.exp(rng.normal(0, rng.choice([0.0005, 0.002, 0.005]), len(loss)))
        yield (
            f"ladder {seed}",
            laws.columns({"N": size, "D": length, "loss": loss, "run": np.repeat(np.arange(6.0), 4)}),
        )


def splits(given: Table, simulated: bool) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """Name, kind, rows to fit on and rows to ask for (masks)."""
    if simulated:
        sizes = np.unique(given["N"])
        longest = given["D"] == given["D"].max()
        for name, at in (("next shape", 4), ("next but one", 5)):
            yield name, "simulated", given["N"] < sizes[4], (given["N"] == sizes[at]) & longest
        return
    lowest = rows.excess(given) <= 1e-9
    for axis, shares in CUTS.items():
        levels, logs = np.unique(given[axis]), np.log(given[axis])
        for share in shares:
            at = levels[int(len(levels) * share)] if axis != "C" else np.exp(logs.min() + share * np.ptp(logs))
            fit = given[axis] <= at * (1 + 1e-9)
            for kind, asked in (("all larger", ~fit), ("best of budget", ~fit & lowest))[: 1 + (axis == "C")]:
                if fit.sum() >= FEWEST and asked.sum() >= 2:
                    yield f"{axis} {share:.0%}", kind, fit, asked


def asked(job: tuple[str, Table, bool]) -> list[Asked]:
    """Every fit of a table, and what it says of the readings it has not seen."""
    name, given, simulated = job
    out = []
    for split, kind, fit, rest in splits(given, simulated):
        seen, targets = take(given, fit), take(given, rest)
        question = {k: targets[k] for k in ("N", "D", "C")}
        choice = backtest.choose(seen, question)
        told = intervals.of_choice(choice, seen, question, draws=DRAWS)
        if not np.isfinite(told.value).all():
            continue
        error, half = np.log(targets["loss"] / told.value), np.log(told.high / told.value)
        plain = NORMAL * np.array(told.parts["s"])
        out.append(Asked(name, split, kind, str(choice.candidate), error, half, plain, told.distance))
    return out


def of_study(folder: str) -> list[Asked]:
    """What a study's ladder says of its own largest shapes and longest rung where it has not seen them."""
    study, keep = sweep.frozen(Path(folder))
    stage = ladder_of.stage_of(study)
    readings = ladder_of.table_of(ladder_of.rows_used(study, keep, keep.readings(), stage))
    lows, sizes = ladder_of.minima(valley.by_rung(readings)), np.unique(readings["N"])
    edges = {"largest shape": ("N", sizes[-1]), "largest two": ("N", sizes[-2]), "longest": ("D", readings["D"].max())}
    out = []
    for split, (axis, edge) in edges.items():
        seen, rest = take(readings, readings[axis] < edge), take(lows, lows[axis] >= edge)
        if len(np.unique(seen["N"])) < SHAPES:
            continue
        goals = zip(*(rest[k].astype(int).tolist() for k in ("width", "depth", "D")), strict=True)
        told = [ladder_of.fit(study, as_target(*goal), seen) for goal in goals]
        value, high, plain, distance = (
            np.array([of(t["forecast"]) for t in told])
            for of in (lambda f: f["value"], lambda f: f["high"], lambda f: f["parts"]["s"], lambda f: f["distance"])
        )
        error, name = np.log(rest["loss"] / value), f"{Path(folder).name}, {told[0]['chosen']}"
        out.append(Asked(folder, split, "study", name, error, np.log(high / value), NORMAL * plain, distance))
    return out


def as_target(width: int, depth: int, tokens: int) -> Target:
    return Target(name="held-out", width=width, depth=depth, tokens=tokens)


def multiplier(found: list[Asked]) -> float:
    """What the half-widths must be multiplied with for 90% to lie inside, every fit counting once."""
    ratio = np.concatenate([np.abs(a.error) / a.half for a in found])
    weight = np.concatenate([np.full(len(a.error), 1 / len(a.error)) for a in found])
    order = np.argsort(ratio)
    return float(ratio[order][np.searchsorted(np.cumsum(weight[order]) / weight.sum(), LEVEL)])


def others(found: list[Asked]) -> list[float]:
    """Each fit's multiplier from all other tables."""
    by = {name: multiplier([a for a in found if a.table != name] or found) for name in {a.table for a in found}}
    return [by[a.table] for a in found]


def summary(label: str, found: list[Asked], halves: list[np.ndarray], band: tuple[float, float]) -> dict[str, Any]:
    """Coverage with its cluster bootstrap, width over the oracle's and the interval score, every fit counting once."""
    names, rate, width, score, errors, weight = [], [], [], [], [], []
    for a, half in zip(found, halves, strict=True):
        at = (a.distance >= band[0]) & (a.distance < band[1])
        if not at.any():
            continue
        e, h = np.abs(a.error[at]), half[at]
        names.append(a.table)
        rate.append(float((e <= h).mean()))
        width.append(float(h.mean()))
        score.append(float((2 * h + 2 / (1 - LEVEL) * np.maximum(e - h, 0)).mean()))
        errors.append(e)
        weight.append(np.full(at.sum(), 1 / at.sum()))
    if not names:
        return {}
    clusters = [np.flatnonzero(np.array(names) == n) for n in dict.fromkeys(names)]
    rng = np.random.default_rng(0)
    rates = np.array(rate)
    draws = [
        rates[np.concatenate([clusters[i] for i in rng.integers(0, len(clusters), len(clusters))])].mean()
        for _ in range(2000)
    ]
    e, w = np.concatenate(errors), np.concatenate(weight)
    order = np.argsort(e)
    oracle = e[order][np.searchsorted(np.cumsum(w[order]) / w.sum(), LEVEL)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return {
        "intervals": label,
        "targets": len(e),
        "tables": len(clusters),
        "inside %": 100 * rates.mean(),
        "low %": 100 * low,
        "high %": 100 * high,
        "width/oracle": np.mean(width) / oracle,
        "score %": 100 * np.mean(score),
        "holds": low - 1e-9 <= LEVEL <= high + 1e-9,
    }


def line(a: Asked) -> str:
    """One fit at a look: share inside, mean error, mean half-width, what was chosen."""
    inside, error, half = (np.abs(a.error) <= a.half).mean(), 100 * np.abs(a.error).mean(), 100 * a.half.mean()
    return f"{a.table[:54]:54} {a.split:8} {a.kind:14} {inside:4.0%} {error:6.2f}% ±{half:6.2f}%  {a.candidate}"


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("table", nargs="*")
    ask.add_argument("--studies", nargs="*", default=[], help="folders of finished studies")
    ask.add_argument("--ladders", type=int, default=20, help="simulated ladders beside the tables")
    ask.add_argument("--jobs", type=int, default=2, help="processes")
    ask.add_argument("--fits", action="store_true", help="print a line per fit")
    given = ask.parse_args()
    try:
        jobs = [(name, runs, False) for spec in given.table for name, runs in tables(spec)]
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    jobs += [(name, runs, True) for name, runs in ladders(given.ladders)]
    found: list[Asked] = []
    with ProcessPoolExecutor(given.jobs) as pool:
        for part in chain(pool.map(asked, jobs), pool.map(of_study, given.studies)):
            found += part
            for a in part if given.fits else ():
                print(line(a), flush=True)
    ways = {
        "ours": [a.half for a in found],
        "ours, of other tables": [m * a.half for m, a in zip(others(found), found, strict=True)],
        "plain bootstrap": [a.plain for a in found],
    }
    missed = False
    titles = {"study": "our own ladders", "simulated": "simulated ladders"}
    where = [titles.get(a.kind, "public tables") for a in found]
    for title in dict.fromkeys(where):
        part = [a for a, at in zip(found, where, strict=True) if at == title]
        for label, band in ({"all": (0, 9)} | (BANDS if title == "public tables" else {})).items():
            lines = [
                summary(way, part, [h for h, at in zip(halves, where, strict=True) if at == title], band)
                for way, halves in ways.items()
            ]
            if lines[0]:
                print(f"\n{title}, {label}")
                print(pd.DataFrame(lines).to_string(index=False, float_format=lambda v: f"{v:.2f}"))
                control = title == "simulated ladders"
                missed |= lines[0]["inside %"] < 100 * LEVEL if control else not lines[0]["holds"]
                missed |= not control and lines[0]["width/oracle"] > WIDEST
    print(f"\nmultiplier that would make 90% on all: {multiplier(found):.2f}" if found else "nothing was asked")
    return int(missed or not found)


if __name__ == "__main__":
    sys.exit(main())
