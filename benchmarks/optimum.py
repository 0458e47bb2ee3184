"""lr and batch at larger models: the law `optimum` against raw grid minima and a line through them.

    python benchmarks/optimum.py [TABLE ...] [--seeds 30]

Synthetic tables like Step Law's (thousands of runs over lr x batch x N x D; seeds of 0.05-0.2%, valleys that are
steeper to the right, run together along lr ~ batch, diverged rows, grids that miss the minimum), whose truth is
known, and any runs table with lr and batch_tokens. Fitted are the cells below the largest N, and below the largest D;
asked are those left out. Regret is the loss given away, in %, against the truth (of a table: the cell's own smoothed
surface). Ratios, last, are of the synthetic tables; exits 1 where the law gives away more than the line, or 90%
intervals of lr hold less often than a bootstrap over tables allows.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from tunnel import laws
from tunnel import table as tables
from tunnel.errors import UserError
from tunnel.laws import Array, Table, optimum
from tunnel.quantiles import NORMAL
from tunnel.valleys import bowls

SEEDS = 30
JUDGED = 0.02  # `near` of the smoothed surface that judges a table's own cells  *assumed*
SIZES = np.array([6e7, 1.2e8, 2.1e8, 4.3e8, 5.4e8, 1.07e9])
LENGTHS = np.array([2e9, 4e9, 8e9, 2e10, 5e10, 1e11])


@dataclass(frozen=True)
class Body:
    """A surface of log loss over N, D, lr and batch whose best lr and batch are known everywhere."""

    lr: tuple[float, float, float]  # log lr* = lr . (1, log N/1e8, log D/1e10)
    batch: tuple[float, float, float]
    ridge: float  # lr* at another batch: (B/B*)^ridge
    depth: tuple[float, float]  # of the valley along lr and batch, at N 1e8, D 1e10
    growth: tuple[float, float]  # of both over N and D
    skew: float
    bent: tuple[float, float]  # what no line describes: a square in log N and log D
    wander: float  # of every cell's own lr*, log

    @staticmethod
    def drawn(rng: np.random.Generator) -> Body:
        return Body(
            lr=(float(np.log(rng.uniform(1e-3, 6e-3))), rng.uniform(-0.8, -0.2), rng.uniform(-0.2, 0.4)),
            batch=(float(np.log(rng.uniform(1e5, 6e5))), rng.uniform(-0.1, 0.2), rng.uniform(0.2, 0.7)),
            ridge=rng.uniform(0.1, 0.5),
            depth=(rng.uniform(0.006, 0.02), rng.uniform(0.002, 0.01)),
            growth=(rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2)),
            skew=rng.uniform(0.0, 1.2),
            bent=(float(rng.normal(0, 0.02)), float(rng.normal(0, 0.02))),
            wander=rng.uniform(0.0, 0.08),
        )

    def best(self, n: Array, d: Array) -> Array:
        """log lr* and log B*, (rows, 2)."""
        place = np.stack([np.ones(len(n)), np.log(n / 1e8), np.log(d / 1e10)], axis=1)
        seed = np.abs((np.log(n) * 7919 + np.log(d) * 104729) * 1e3).astype(
            np.int64
        )  # a cell's own, and the same always
        own = np.array([np.random.default_rng(s).normal(0, 1, 2) for s in seed]) * self.wander
        return place @ np.array([self.lr, self.batch]).T + own + (place[:, 1:] ** 2 @ np.array(self.bent))[:, None]

    def rise(self, n: Array, d: Array, lr: Array, batch: Array) -> Array:
        """log loss above the best of its N and D."""
        best = self.best(n, d)
        y = np.log(batch) - best[:, 1]
        x = np.log(lr) - best[:, 0] - self.ridge * y
        deep = (n / 1e8) ** self.growth[0] * (d / 1e10) ** self.growth[1]
        along = 2 * (np.expm1(self.skew * x) - self.skew * x) / self.skew**2 if self.skew > 1e-3 else x**2
        return deep * (self.depth[0] * along + self.depth[1] * (y**2 + 0.1 * np.maximum(y, 0) ** 3))

    def table(self, rng: np.random.Generator) -> Table:
        """Runs of some (N, D), each over a grid of lr and batch; some grids miss the minimum, some rows diverged."""
        places = [(n, d) for n in SIZES for d in LENGTHS if 8 <= d / n <= 1000]
        keep = rng.permutation(len(places))[: max(12, int(0.75 * len(places)))]
        noise, rows = rng.uniform(5e-4, 2e-3), []
        for n, d in (places[i] for i in sorted(keep)):
            centre = self.best(np.array([n]), np.array([d]))[0] + rng.normal(0, [0.5, 0.6])
            centre += (rng.random() < 0.15) * rng.choice([-1.7, 1.7]) * rng.permutation([1, 0])  # an edge is cut
            lr, batch = np.meshgrid(
                2.0 ** np.arange(np.round(centre[0] / np.log(2)) - 3, np.round(centre[0] / np.log(2)) + 3.1, 0.5),
                2.0 ** np.arange(np.round(centre[1] / np.log(2)) - 4, np.round(centre[1] / np.log(2)) + 4.1, 1.0),
            )
            some = rng.random(lr.size) < 0.9
            at = [np.full(lr.size, n), np.full(lr.size, d), lr.ravel(), batch.ravel()]
            rows.append(np.stack(at, axis=1)[some])
        n, d, lr, batch = np.concatenate(rows).T
        rise = self.rise(n, d, lr, batch)
        level = np.log(1.7 + 400 / n**0.34 + 900 / d**0.3)
        loss = np.exp(level + rise + rng.normal(0, noise, len(n)))
        loss = np.where(rise > rng.uniform(0.15, 0.4), np.where(rng.random(len(n)) < 0.5, np.nan, loss + 3), loss)
        return laws.columns({"N": n, "D": d, "lr": lr, "batch_tokens": batch, "loss": loss})


@dataclass(frozen=True)
class Seen:
    """A question as one method answered it: regret in %, and whether the truth of lr and batch lies inside its 90%."""

    regret: float
    inside: tuple[bool, bool]
    width: tuple[float, float]  # log half-width over log error


Method = Callable[[Table, Table], dict[str, Array]]


def law(table: Table, targets: Table) -> dict[str, Array]:
    return optimum.settings(table, targets)[1]


def line(table: Table, targets: Table) -> dict[str, Array]:
    """Every cell's best run, a straight line through those, the residuals' spread as its interval."""
    table = laws.take(table, optimum.select(table))
    cells = np.unique(np.stack([table["N"], table["D"]], axis=1), axis=0)
    best = []
    for n, d in cells:
        rows = np.flatnonzero((table["N"] == n) & (table["D"] == d))
        best.append(rows[table["loss"][rows].argmin()])
    y = np.log(np.stack([table["lr"][best], table["batch_tokens"][best]], axis=1))
    place, asked = (
        np.stack([np.ones(len(n)), np.log(n), np.log(d)], axis=1) for n, d in (cells.T, (targets["N"], targets["D"]))
    )
    answer = np.linalg.lstsq(place, y, rcond=None)[0]
    half = NORMAL * (y - place @ answer).std(axis=0)
    at = asked @ answer
    out = {"lr": at[:, 0], "lr_low": at[:, 0] - half[0], "lr_high": at[:, 0] + half[0]}
    out |= {"batch_tokens": at[:, 1], "batch_low": at[:, 1] - half[1], "batch_high": at[:, 1] + half[1]}
    return {k: np.exp(v) for k, v in out.items()}


METHODS: dict[str, Method] = {"law": law, "line": line}


def asked(
    table: Table, best: Callable[[float, float], Array | None], rise: Callable[..., float]
) -> dict[str, list[Seen]]:
    """Both methods on both hold-outs of a table; `best`: log lr*, log B* of a cell, None where it cannot be judged."""
    out: dict[str, list[Seen]] = {name: [] for name in METHODS}
    for axis in ("N", "D"):
        train = table[axis] < table[axis].max()
        cells = np.unique(np.stack([table["N"][~train], table["D"][~train]], axis=1), axis=0)
        places = [(n, d) for n, d in cells.tolist() if best(n, d) is not None]
        if not places or len(np.unique(table[axis][train])) < 2:
            continue
        targets = dict(zip(("N", "D"), np.array(places).T, strict=True))
        for name, method in METHODS.items():
            told = method(laws.take(table, train), targets)
            for i, (n, d) in enumerate(places):
                truth = best(n, d)
                assert truth is not None
                inside, width = [], []
                for j, (k, s) in enumerate((("lr", "lr"), ("batch_tokens", "batch"))):
                    value, low, high = (float(np.log(told[c][i])) for c in (k, f"{s}_low", f"{s}_high"))
                    inside.append(low <= truth[j] <= high)
                    width.append(abs(value - truth[j]) / ((high - low) / 2 + 1e-12))
                given = 100 * rise(n, d, float(told["lr"][i]), float(told["batch_tokens"][i]))
                out[name].append(Seen(given, (inside[0], inside[1]), (width[0], width[1])))
    return out


def of_body(seed: int) -> dict[str, list[Seen]]:
    rng = np.random.default_rng(seed)
    body = Body.drawn(rng)
    table = body.table(rng)

    def rise(*at: float) -> float:
        return float(body.rise(*(np.array([v]) for v in at))[0])

    return asked(table, lambda n, d: body.best(np.array([n]), np.array([d]))[0], rise)


def of_file(path: str) -> dict[str, list[Seen]]:
    table = laws.columns(tables.as_columns(tables.read(path, needed=optimum.COLUMNS)))
    table = laws.take(table, optimum.select(table))
    known: dict[tuple[float, float], bowls.Bowl | None] = {}
    for n, d in np.unique(np.stack([table["N"], table["D"]], axis=1), axis=0):
        own = (table["N"] == n) & (table["D"] == d)
        x = np.log(np.stack([table["lr"][own], table["batch_tokens"][own]], axis=1))
        found = bowls.bowl(x, np.log(table["loss"][own]), np.ones(len(x)), JUDGED)
        known[n, d] = None if found is None or found.edge else found

    def best(n: float, d: float) -> Array | None:
        bowl = known[n, d]
        return None if bowl is None else bowl.best

    def rise(n: float, d: float, lr: float, batch: float) -> float:
        bowl = known[n, d]
        assert bowl is not None
        return float(bowl.rise(np.log([[lr, batch]]))[0])

    return asked(table, best, rise)


def told(name: str, found: dict[str, list[Seen]], seconds: float) -> None:
    for method, seen in found.items():
        if not seen:
            print(f"{name:24} {method:5} no cell of the left-out ones can be judged")
            continue
        given = np.array([s.regret for s in seen])
        inside = np.mean([s.inside for s in seen], axis=0)
        wide = 1 / np.quantile([s.width for s in seen], 0.9, axis=0)
        regret = f"regret % median {np.median(given):.4f}  90th {np.quantile(given, 0.9):.4f}"
        cover = f"inside lr {inside[0]:.2f} batch {inside[1]:.2f}  width/oracle's lr {wide[0]:.2f} batch {wide[1]:.2f}"
        print(f"{name:24} {method:5} {len(seen):5} cases  {regret}  {cover}  {seconds:.0f} s")


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("tables", nargs="*")
    ask.add_argument("--seeds", type=int, default=SEEDS)
    given = ask.parse_args()
    for path in given.tables:
        began = time.process_time()
        try:
            found = of_file(path)
        except UserError as error:
            print(error, file=sys.stderr)
            return 2
        told(Path(path).name[:24], found, time.process_time() - began)
    if not given.seeds:
        return 0
    began = time.process_time()
    each = [of_body(seed) for seed in range(given.seeds)]
    found = {name: [s for one in each for s in one[name]] for name in METHODS}
    told(f"{given.seeds} synthetic tables", found, time.process_time() - began)
    rng = np.random.default_rng(0)
    inside = [np.array([s.inside[0] for s in one["law"]]) for one in each]
    drawn = [np.mean(np.concatenate([inside[i] for i in rng.integers(0, len(each), len(each))])) for _ in range(1000)]
    low, high = np.quantile(drawn, [0.05, 0.95])
    regrets = {name: np.array([s.regret for s in seen]) for name, seen in found.items()}
    median, worst = (float(f(regrets["law"]) / f(regrets["line"])) for f in (np.median, lambda r: np.quantile(r, 0.9)))
    print(f"lr inside its 90% interval, bootstrap over tables: {low:.2f} to {high:.2f}")
    print(f"regret of the law over the line's: median {median:.2f}, 90th percentile {worst:.2f}")
    return int(median > 1 or worst > 1 or high < 0.9)


if __name__ == "__main__":
    sys.exit(main())
