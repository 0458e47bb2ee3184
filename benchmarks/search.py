"""What a search gives away at a larger target, per FLOP: `pareto` against random, Sobol, TPE, GP and rung pruning.

    python benchmarks/search.py [--seeds 30] [--methods tpe,pareto] [TABLE ...]

A virtual clock replays searches on the synthetic family's surface, or on runs tables (contract 4). Of a table each size
(N at a rung) gets a smooth surface, a thin-plate spline over the logs of what varies, with noise as its repeated seeds
show. The largest size is the target and is never read; those at most a quarter as dear are the cheap sizes of all.
All search the same settings, as base-shape values, and carry them to the target in the same ways: `best`, the best
reading at the dearest size that was read, as it is; `surface`, the target's minimum on `tunnel.valleys.front`'s surface
of all readings (`joint`: on `tunnel.valleys.joint`'s). Prints the median regret (% of loss at the target) by FLOPs,
paired over the seeds; last the ratio of FLOPs at which the best other and pareto come down, and stay, to a regret of
0.1% or a third of a reading's noise, whichever is more. Exits 1 where it is under 2.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from scipy.interpolate import RBFInterpolator
from scipy.stats import qmc

from tunnel import proposals, table
from tunnel.errors import UserError
from tunnel.families.synthetic import TRUTH
from tunnel.pareto import ParetoSampler
from tunnel.space import Axis, Range
from tunnel.valleys import front, joint
from tunnel.valleys.cube import spread

Array = np.ndarray
ASKED = 2.0  # FLOPs of the best other over those of pareto, at equal median regret
SETTINGS = ("lr", "batch_tokens", "weight_decay", "decay", "warmup", "beta2")
CHEAP = 0.25  # of the target's FLOPs
UNREPEATED = 0.0024  # noise of log loss where no seed is repeated: SCIENCE §5, at the demo's size  *measured here*
LEVELS = (0.01, 0.003, 0.001, 0.0003)  # regrets at which FLOPs are compared
TRANSFERS = 0.001  # relative loss that counts as nothing given away (SCIENCE §3)
MOST = {"gp": 16, "tpe": 64}  # trials: Optuna's GP takes a good part of a second per ask, TPE's tens of milliseconds
UNKNOWN = 3.0  # a table's own minimum is known to about its noise over this: three seeds, smoothed  *assumed*
READINGS = 128  # of a search, at the most
DRAWS = 400


@dataclass(frozen=True)
class World:
    """What is searched: sizes (k, 2) of N and D, cheapest first, their costs as parts of the target's, and losses.

    `loss(u, i)`: log loss of settings in the unit cube at size i (-1: the target), infinite where it diverges.
    """

    name: str
    settings: tuple[str, ...]
    sizes: Array
    target: tuple[float, float]
    cost: Array
    ranges: Array  # (d, 2) of logs
    loss: Callable[[Array, int], float]
    noise: float

    @property
    def budgets(self) -> Array:
        """FLOPs, as parts of the target's, at which a search is judged: four of the cheapest readings and more."""
        return np.geomspace(4 * self.cost[0], max(64 * self.cost[0], 4 * self.cost[-1]), 9)

    def read(self, u: Array, i: int, rng: np.random.Generator) -> float:
        return self.loss(u, i) + self.noise * float(rng.normal())

    def regret(self, u: Array, least: float) -> float:
        """Relative loss given away at the target."""
        return min(math.expm1(min(self.loss(u, -1), 10.0) - least), 1.0)

    def least(self) -> float:
        d = len(self.settings)
        points = np.vstack([spread(d, 4096, 0), *np.eye(d), np.zeros(d), np.ones(d)])
        at = min(points, key=lambda u: self.loss(u, -1))
        for width in (0.1, 0.03, 0.01, 0.003):
            near = np.clip(at + width * (2 * spread(d, 512, 1) - 1), 0, 1)
            at = min([at, *near], key=lambda u: self.loss(u, -1))
        return self.loss(at, -1)


def synthetic(noise: float) -> World:
    """The calibration body's truth over lr (diverging above) and decay."""
    ranges = np.log([[1e-3, 1.0], [0.03, 0.8]])
    target = (3.2e7, 256e6)
    sizes = [(n, d) for n in (1e6, 2e6, 4e6, 8e6) for d in (64e6, 128e6, 256e6)]
    sizes = sorted((s for s in sizes if 16 <= s[1] / s[0] <= 128), key=math.prod)

    def loss(u: Array, i: int) -> float:
        lr, decay = np.exp(ranges[:, 0] + u * (ranges[:, 1] - ranges[:, 0])).tolist()
        if lr >= TRUTH.lr_max:
            return math.inf
        n, d = target if i < 0 else sizes[i]
        off = TRUTH.h * math.log(lr / TRUTH.best_lr(n, d)) ** 2 + TRUTH.k * math.log(decay / TRUTH.decay) ** 2
        return math.log(TRUTH.best_loss(n, d) + off)

    cost = np.array([math.prod(s) for s in sizes]) / math.prod(target)
    return World("synthetic", ("lr", "decay"), np.array(sizes), target, cost, ranges, loss, noise)


def of_table(path: Path) -> World:
    """A runs table's own surface by size."""
    rows = table.read(path)
    names = tuple(k for k in SETTINGS if k in rows and (rows[k] > 0).all() and rows[k].max() > 1.2 * rows[k].min())
    if not names:
        raise UserError("varies no setting that could be searched", file=path, key="columns", choices=SETTINGS)
    logs = np.log(rows[list(names)].to_numpy(float))
    ranges = np.column_stack([logs.min(0), logs.max(0)])
    u = (logs - ranges[:, 0]) / np.ptp(ranges, axis=1)
    rung = (np.log2(rows.D / rows.D.max()) * 4).round()  # a batch rounds a rung's D
    groups = [g.index.to_numpy() for _, g in rows.groupby([rows.N, rung]) if len(g) > 2 * len(names) + 1]
    groups.sort(key=lambda g: float(rows.C[g].mean()))
    found = [smooth(u[g], np.log(rows.loss.to_numpy(float)[g])) for g in groups]
    cost = np.array([rows.C[g].mean() / rows.C[groups[-1]].mean() for g in groups])
    cheap = [i for i in range(len(groups)) if cost[i] <= CHEAP * 1.01]
    if not cheap:
        raise UserError("has no size with enough settings that is at most a quarter as dear as its largest", file=path)
    sizes = np.array([[rows.N[g].mean(), rows.D[g].mean()] for g in groups])
    left = np.concatenate([f[1] for f in found])
    noise = float(np.sqrt(np.mean(left**2))) if len(left) else UNREPEATED

    def loss(u: Array, i: int) -> float:
        return float(found[cheap[i] if i >= 0 else -1][0](np.atleast_2d(u))[0])

    return World(path.stem, names, sizes[cheap], tuple(sizes[-1].tolist()), cost[cheap], ranges, loss, noise)


def smooth(u: Array, y: Array) -> tuple[RBFInterpolator, Array]:
    """A spline through each setting's mean, and what its repeats leave; smoothed as leaving one out says."""
    places, of = np.unique(u.round(6), axis=0, return_inverse=True)
    of, count = of.reshape(-1), np.bincount(of.reshape(-1))
    mean = np.bincount(of, y) / count
    left = (y - mean[of])[count[of] > 1] * np.sqrt((count / np.maximum(count - 1, 1))[of][count[of] > 1])

    def missed(smoothing: float) -> float:
        each = [np.arange(len(mean)) != i for i in range(len(mean))]
        told = [RBFInterpolator(places[k], mean[k], smoothing=smoothing)(places[~k])[0] for k in each]
        return float(np.median(np.abs(np.array(told) - mean)))

    best = min((1e-4, 1e-3, 1e-2, 1e-1), key=missed)
    return RBFInterpolator(places, mean, smoothing=best), left


# methods: each yields what it wants read, and is sent the log loss


@dataclass(frozen=True)
class Reading:
    spent: float  # up to and with this one
    u: Array
    size: int
    y: float


Asks = Iterator[tuple[Array, int, float]]  # settings, size, cost; told through the list of readings


def evenly(world: World, seed: int, told: list[Reading], *, scrambled: bool) -> Asks:
    """Space-filling settings, the sizes in turn."""
    d = len(world.settings)
    points = qmc.Sobol(d, rng=seed).random(1024) if scrambled else np.random.default_rng([seed, 1]).random((1024, d))
    for j, u in enumerate(points):
        yield u, j % len(world.cost), world.cost[j % len(world.cost)]


def optunas(world: World, seed: int, told: list[Reading], *, name: str, size: int) -> Asks:
    """One of Optuna's own at one size."""
    study = optuna.create_study(sampler=proposals.sampler(name, seed))
    space: dict[str, BaseDistribution] = {k: FloatDistribution(0, 1) for k in world.settings}
    for _ in range(MOST[name]):
        trial = study.ask(space)
        yield np.array([trial.params[k] for k in world.settings]), size, world.cost[size]
        study.tell(trial, math.exp(told[-1].y))


def halving(world: World, seed: int, told: list[Reading], *, largest: bool) -> Asks:
    """Sobol's settings at one shape, through its rungs while among the better half: the rule of `valleys.halving`."""
    n = world.sizes[:, 0].max() if largest else world.sizes[:, 0].min()
    rungs = np.flatnonzero(world.sizes[:, 0] == n)
    seen: dict[int, list[float]] = {int(i): [] for i in rungs}
    for u in qmc.Sobol(len(world.settings), rng=seed).random(512):
        paid = 0.0
        for i in rungs.tolist():
            yield u, i, world.cost[i] - 0.8 * paid  # the trunk goes on; a fifth of each rung was its decay
            paid = world.cost[i]
            y = told[-1].y
            if y < math.inf:
                seen[i].append(y)
            if y == math.inf or sum(x < y for x in seen[i]) >= math.ceil(len(seen[i]) / 2):
                break


def pareto(world: World, seed: int, told: list[Reading]) -> Asks:
    space: dict[str, BaseDistribution] = {k: FloatDistribution(0, 1) for k in world.settings}
    low, high = np.minimum(world.sizes.min(0), world.target), np.maximum(world.sizes.max(0), world.target)
    space |= {k: FloatDistribution(low[i], high[i]) for i, k in enumerate("ND")}
    axes: dict[str, Axis] = {k: Range(0, 1) for k in world.settings}
    axes |= {k: Range(low[i], high[i], log=True) for i, k in enumerate("ND")}
    places = [{"N": n, "D": d} for n, d in world.sizes.tolist()]
    cost = dict(zip([tuple(p.values()) for p in places], world.cost.tolist(), strict=True))
    mine = ParetoSampler(
        space,
        axes,
        seed,
        goal=dict(zip("ND", world.target, strict=True)),
        cost=lambda p: cost[p["N"], p["D"]],
        places=places,
        scales=("N", "D"),
    )
    study = optuna.create_study(sampler=mine)
    while True:
        trial = study.ask(space)
        i = list(cost).index((trial.params["N"], trial.params["D"]))
        yield np.array([trial.params[k] for k in world.settings]), i, world.cost[i]
        study.tell(trial, math.exp(told[-1].y))


def methods(world: World) -> dict[str, Callable[[World, int, list[Reading]], Asks]]:
    small, large = 0, len(world.cost) - 1

    def bound(f: Any, **given: Any) -> Callable[[World, int, list[Reading]], Asks]:
        return lambda w, s, t: f(w, s, t, **given)

    return {
        "random": bound(evenly, scrambled=False),
        "sobol": bound(evenly, scrambled=True),
        "tpe smallest": bound(optunas, name="tpe", size=small),
        "tpe largest": bound(optunas, name="tpe", size=large),
        "gp smallest": bound(optunas, name="gp", size=small),
        "gp largest": bound(optunas, name="gp", size=large),
        "halving smallest": bound(halving, largest=False),
        "halving largest": bound(halving, largest=True),
        "pareto": pareto,
    }


# answers: the settings that readings say are best at the target


def best_reading(world: World, told: list[Reading], seed: int) -> Array | None:
    fine = [r for r in told if r.y < math.inf]
    if not fine:
        return None
    dearest = max(r.size for r in fine)
    return min((r for r in fine if r.size == dearest), key=lambda r: r.y).u


def surface(world: World, told: list[Reading], seed: int) -> Array | None:
    """The target's minimum on `valleys.front`'s surface; the best reading where there are fewer than a bowl takes."""
    d = len(world.settings)
    if sum(r.y < math.inf for r in told) < 2 * (d + 1):  # as `valleys.valley` asks of a bowl
        return best_reading(world, told, seed)
    s = np.log(world.sizes / world.target)[[r.size for r in told]]
    read = front.Readings(np.array([r.u for r in told]), s, np.array([r.y for r in told]))
    return front.best(front.fit(read), spread(d, 128, seed), np.random.default_rng(seed))


def joint_surface(world: World, told: list[Reading], seed: int) -> Array | None:
    """The surface of `valleys.joint`, where it can be fitted and has a minimum."""
    fine = [r for r in told if r.y < math.inf]
    first = best_reading(world, told, seed)
    if not set(world.settings) <= set(joint.SETTINGS) or len(fine) < 3:
        return first
    u = np.array([r.u for r in fine])
    logs = world.ranges[:, 0] + u * np.ptp(world.ranges, axis=1)
    sizes = world.sizes[[r.size for r in fine]]
    columns = dict(zip(world.settings, np.exp(logs).T, strict=True))
    columns |= {"N": sizes[:, 0], "D": sizes[:, 1], "loss": np.exp([r.y for r in fine])}
    rows = joint.rows_of({**columns, "run": np.arange(len(fine))})
    found = joint.fit(rows) if set(rows.names) == set(world.settings) else None
    at = (
        found.best(world.settings, {k: math.log(v) for k, v in zip("ND", world.target, strict=True)}) if found else None
    )
    if at is None:
        return first
    told_best = np.array([at[k] for k in world.settings])
    return np.clip((told_best - world.ranges[:, 0]) / np.ptp(world.ranges, axis=1), 0, 1)


ANSWERS = {"best": best_reading, "surface": surface, "joint": joint_surface}
GIVEN = {"sobol": ("best", "surface", "joint"), "pareto": ("surface",)}


def replay(world: World, seed: int, ask: Callable[[World, int, list[Reading]], Asks]) -> list[Reading]:
    """All that a method reads with the last of the budgets."""
    told: list[Reading] = []
    rng, spent = np.random.default_rng([seed, 7]), 0.0
    for u, i, cost in ask(world, seed, told):
        spent += cost
        told.append(Reading(spent, u, i, world.read(u, i, rng)))
        if spent > world.budgets[-1] or len(told) == READINGS:
            break
    return told


def regrets(world: World, seed: int, name: str, least: float) -> dict[str, list[float]]:
    """A method's regret at each budget, by how it answers."""
    told = replay(world, seed, methods(world)[name])
    found: dict[str, list[float]] = {k: [] for k in GIVEN.get(name, ("best", "surface"))}
    for budget in world.budgets:
        known = [r for r in told if r.spent <= budget]
        for k in found:
            u = ANSWERS[k](world, known, seed) if known else None
            found[k].append(1.0 if u is None else world.regret(u, least))
    return found


def needed(budgets: Array, curve: Array, level: float) -> float:
    """FLOPs at which a median curve comes down to a level and stays there; between budgets by logs."""
    above = np.flatnonzero(curve > level)
    if not len(above):
        return float(budgets[0])
    i = int(above[-1])
    if i == len(curve) - 1:
        return math.inf
    share = np.log(curve[i] / level) / np.log(curve[i] / max(curve[i + 1], 1e-9))
    return float(budgets[i] * (budgets[i + 1] / budgets[i]) ** share)


def judge(world: World, seeds: int, only: list[str]) -> float:
    """Prints a world's table; the ratio of FLOPs, best other over pareto."""
    began, least, budgets = time.perf_counter(), world.least(), world.budgets
    sizes = ", ".join(f"{n:.3g}×{d:.3g} ({c:.2g})" for (n, d), c in zip(world.sizes, world.cost, strict=True))
    print(f"{world.name}: {', '.join(world.settings)}; noise {100 * world.noise:.3f}%; {seeds} seeds")
    print(f"sizes N×D (part of the target's FLOPs): {sizes}; target {world.target[0]:.3g}×{world.target[1]:.3g}")
    print(f"{'median regret, % of loss, at FLOPs of':38s}" + "".join(f"{b:9.3g}" for b in budgets))
    each: dict[str, Array] = {}  # (seeds, budgets)
    for name in methods(world):
        if only and not any(name.startswith(k) for k in only):
            continue
        found = [regrets(world, seed, name, least) for seed in range(seeds)]
        for k in found[0]:
            each[f"{name}, {k}"] = np.array([f[k] for f in found])
            print(f"{name + ', ' + k:38s}" + "".join(f"{100 * x:9.3f}" for x in np.median(each[f"{name}, {k}"], 0)))
            sys.stdout.flush()
    return compared(budgets, each, max(TRANSFERS, world.noise / UNKNOWN), time.perf_counter() - began)


def compared(budgets: Array, each: dict[str, Array], asked: float, seconds: float) -> float:
    """Prints the FLOPs to equal median regret; the ratio at the regret asked."""
    ours, seeds = each.pop("pareto, surface", None), len(next(iter(each.values())))
    if ours is None or not each:
        return math.inf

    def at(level: float, of: Array) -> tuple[float, str, float]:
        others = {k: needed(budgets, np.median(v[of], 0), level) for k, v in each.items()}
        best = min(others, key=lambda k: others[k])
        name = best if others[best] < math.inf else "none of them"
        return others[best], name, needed(budgets, np.median(ours[of], 0), level)

    def ratio(theirs: float, mine: float) -> float:
        return math.nan if math.isinf(theirs) and math.isinf(mine) else theirs / mine

    print(f"{'FLOPs to a median regret of':38s}{'pareto':>9s}{'best other':>12s}{'ratio':>7s}")
    for level in sorted({*LEVELS, asked}, reverse=True):
        theirs, name, mine = at(level, np.arange(seeds))
        print(f"{100 * level:.2g}%".ljust(38) + f"{mine:9.3g}{theirs:12.3g}{ratio(theirs, mine):7.2f}  {name}")
    theirs, _, mine = at(asked, np.arange(seeds))
    rng = np.random.default_rng(0)
    drawn = [at(asked, rng.integers(seeds, size=seeds)) for _ in range(DRAWS)]
    ratios = [r for r in (ratio(t, m) for t, _, m in drawn) if not math.isnan(r)] or [math.nan]
    low, high = np.quantile(ratios, (0.05, 0.95), method="lower")
    print(
        f"{seconds:.0f} s; FLOPs of the best other / pareto to {100 * asked:.2g}%: {ratio(theirs, mine):.2f} ", end=""
    )
    print(f"(90% over the seeds: {low:.2f} to {high:.2f}; at least {ASKED:g} asked)\n")
    return ratio(theirs, mine)


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("tables", type=Path, nargs="*", metavar="TABLE")
    options.add_argument("--seeds", type=int, default=30)
    options.add_argument("--methods", default="", help="only those that begin so, with commas between")
    options.add_argument("--noise", type=float, default=TRUTH.noise, help="of the synthetic surface")
    given = options.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", module="optuna")  # its GP says that it clips what diverged
    try:
        worlds = [of_table(path) for path in given.tables] or [synthetic(given.noise)]
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    ratios = [judge(w, given.seeds, [m for m in given.methods.split(",") if m]) for w in worlds]
    return int(not all(r >= ASKED for r in ratios))


if __name__ == "__main__":
    sys.exit(main())
