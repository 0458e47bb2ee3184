"""What a stage found: each searched setting's best value with its interval and where it comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from tunnel.folder import store
from tunnel.folder.store import Store
from tunnel.space import BODY, MIX, SCALES, SHAPE, Choice, Range, Scalar
from tunnel.study import Stage
from tunnel.valleys import front, mixes, valley
from tunnel.valleys.cube import Cube

WAY = ("decay", "decay_shape", "half_life")  # what decays off one trunk may differ in
WAYS = (*WAY, "min_ratio", "weight_decay", "beta2", "warmup")  # and what lists in a stage's space may vary
HUGE = 700.0  # log of the largest float, nearly  *derived*
LEAST_TRUNKS = 3  # that a bootstrap by trunk takes  *assumed*
CELL = ("D", "batch_tokens")  # with a body, readings that are compared


@dataclass(frozen=True)
class Setting:
    """A value with a 90% interval, its source in words, and a caution where it rests on little."""

    value: Scalar
    low: Scalar | None
    high: Scalar | None
    source: str
    caution: str = ""
    readings: tuple[str, ...] = ()  # fingerprints of what it rests on

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def of_stage(readings: pd.DataFrame, stage: str) -> pd.DataFrame:
    """A stage's finished readings, with those that it shares."""
    if not len(readings):
        return readings
    return readings[asked_by(readings, stage) & (readings.status == "complete")]


def asked_by(readings: pd.DataFrame, stage: str) -> pd.Series:
    """Which readings a stage asked for, whichever stage measured them (`Store.readings`)."""
    mine = readings.stage == stage
    return mine | readings.shared.str.split().map(lambda s: stage in s) if "shared" in readings else mine


def handed_on(keep: Store, stage: Stage) -> dict[str, Scalar]:
    """What earlier stages handed to this one; empty where it has not started."""
    stages = store.read_json(keep.path("study.resolved.json"), {}).get("stages", {})
    return dict(stages.get(stage.name, {}).get("handed_on", {}))


def body(found: pd.DataFrame) -> list[str]:
    """What tells one body from another, of the columns that a table has."""
    return [k for k in BODY if k in found]


def last_rung(found: pd.DataFrame) -> pd.DataFrame:
    """Each shape's readings at its longest D; two batches round one rung to lengths half of each apart."""
    if not len(found):
        return found
    by = found.groupby(body(found))
    apart = (found.batch_tokens + by.batch_tokens.transform("max")) / 2
    return found[by.D.transform("max") - found.D < apart]


def best_ways(found: pd.DataFrame, besides: tuple[str, ...] = ()) -> pd.DataFrame:
    """Of every shape, rung and batch the readings of its best way to train, over all lrs; ways are compared at equal D.

    `besides`: what is no part of a way, but of the cell.
    """
    named = [k for k in (*WAYS, *mixes.columns(found)) if k not in besides]
    kept = [best_way(cell, named)[1] for _, cell in found.groupby([*body(found), *CELL, *besides], sort=False)]
    return found.loc[np.concatenate([rows.index.to_numpy() for rows in kept])].sort_index()


def best_way(cell: pd.DataFrame, named: Sequence[str]) -> tuple[float, pd.DataFrame]:
    """The log loss and the readings of a cell's best way, each at its own best lr."""
    ways = [rows for _, rows in cell.groupby(list(named), sort=False)]
    lows = [own_low(rows) for rows in ways] if len(ways) > 1 else [0.0]
    best = int(np.argmin(lows))
    return lows[best], ways[best]


def own_low(rows: pd.DataFrame) -> float:
    """The log loss at a fan's own minimum where that lies inside it; else at its best reading."""
    by_lr = rows.groupby("lr").loss.mean()
    log_lr, low = np.log(by_lr.index.to_numpy(float)), np.log(by_lr.to_numpy(float))
    dip = valley.parabola(log_lr, low)
    inside = dip is not None and log_lr.min() <= dip[0] <= log_lr.max()
    return dip[1] if dip is not None and inside else float(low.min())


def settled(found: pd.DataFrame, stage: Stage) -> dict[str, Setting]:
    """What several ways on a ladder say is best at its shapes' last rungs, over all of them; empty where it has one.

    A decay's length is compared as it was asked, since it is rounded to whole batches.
    """
    last = last_rung(found)
    asked = [d.decay for d in stage.decays if d.decay is not None]
    if asked:
        near = np.abs(np.log(last.decay.to_numpy(float)[:, None] / np.array(asked))).argmin(axis=1)
        last = last.assign(decay=np.array(asked)[near])
    several = [k for k in WAYS if last[k].nunique() > 1 and (k in stage.axes or k in WAY)]
    shares = [k for k in mixes.columns(last) if last[k].nunique() > 1]
    several += shares
    if not several:
        return {}
    n = len(body(last))
    lows = {k: own_low(rows) for k, rows in last.groupby([*body(last), *several], sort=False)}
    least = {k[:n]: min(v for o, v in lows.items() if o[:n] == k[:n]) for k in lows}
    above: dict[tuple[Any, ...], list[float]] = {}
    for k, low in lows.items():
        above.setdefault(k[n:], []).append(low - least[k[:n]])
    ranked = sorted((float(np.mean(v)), k) for k, v in above.items())
    ahead = f"; the next is {100 * math.expm1(ranked[1][0] - ranked[0][0]):.2g}% behind"
    where = f"best of {len(ranked)} ways over the shapes of stage {stage.name}, at their last rungs{ahead}"
    behind = tuple(last.fingerprint)
    best = {k: Setting(plain(v), None, None, where, "", behind) for k, v in zip(several, ranked[0][1], strict=True)}
    return best | {k: shared(k, last, best[k]) for k in shares}


def shared(name: str, rows: pd.DataFrame, otherwise: Setting) -> Setting:
    """A source's share of the decay: where the curve through forks of one trunk is least.

    Where that is at the edge, or not to be told, it is `otherwise`, with the range that was tried and a caution.
    """
    dip = mixes.best(mixes.table(rows, name, np.log(rows.loss.to_numpy(float))))
    low, high = float(rows[name].min()), float(rows[name].max())
    few = f"{name}: three shares cannot show whether a parabola holds; a fourth would tell"
    if dip is not None and dip.curved:
        least, most = np.clip([dip.low, dip.high], low, high).tolist()
        told: dict[str, Any] = {"value": dip.at, "low": least, "high": most}
        told |= {"caution": few if rows[name].nunique() < 4 else ""}
        return replace(otherwise, **told, source=f"minimum over forks of the same trunks; {otherwise.source}")
    inside = low < float(otherwise.value) < high
    why = "no minimum shows inside the shares tried" if inside else "its best share is at the edge of those tried"
    return replace(otherwise, low=low, high=high, caution=f"{name}: {why}; more shares, or seeds, would tell")


def best(stage: Stage, readings: pd.DataFrame) -> dict[str, Setting]:
    """The settings a stage hands on: all it searched except the body's, from the valley's fitted minimum.

    Only the last rung counts, and of a list of shapes the largest. Values without an order are compared each at its own
    best; the numbers are then those of the best one, where it has readings enough, else of all.
    """
    if "flops" in stage.axes:
        return on_front(stage, searched(of_stage(readings, stage.name), stage))
    frame = searched(last_rung(of_stage(readings, stage.name)), stage)
    if not stage.searches:
        frame = frame[frame.N.max() == frame.N] if len(frame) else frame
    numeric, kinds = axes_of(stage, frame)
    if not len(frame) or not (numeric or kinds):
        return {}
    settings: dict[str, Setting] = {}
    shapes = [k for k in SHAPE if k in stage.axes]
    for names in kinds:
        found, rows = chosen(frame, names, [*numeric, *shapes], stage)
        settings |= found
        frame = rows if len(rows) >= needed(numeric, shapes) else frame
    bowl = bowl_of(frame, [*numeric, *shapes])
    winner = frame.iloc[int(frame.loss.to_numpy(float).argmin())]
    for name, axis in numeric.items():
        dip = bowl.dips.get(name) if bowl else None
        settings[name] = from_bowl(name, axis, dip, float(winner[name]), frame, stage)
        if name.startswith(f"{MIX}.") and frame.run.nunique() == 1:
            settings[name] = shared(name, frame, settings[name])
    return settings


def on_front(stage: Stage, frame: pd.DataFrame) -> dict[str, Setting]:
    """The settings of readings that differ in cost: what is best at the stage's largest shape and FLOPs.

    Empty where there are too few readings for a bowl over the settings.
    """
    axes = {k: a for k, a in stage.axes.items() if k in SCALES or frame[k].nunique() > 1} if len(frame) else {}
    for k in (k for k, a in axes.items() if isinstance(a, Range)):  # as it was trained: whole batches, warmup in tokens
        axes[k] = Range(float(frame[k].min()), float(frame[k].max()), log=bool((frame[k] > 0).all()))
    goal = {k: a.high for k, a in stage.axes.items() if isinstance(a, Range) and k in SCALES}
    cube = Cube({k: a for k, a in axes.items() if not isinstance(a, Range) or a.low < a.high}, goal)
    if len(frame) < 2 * cube.d + 2:
        return {}
    rows = [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]
    u, s = (np.array([f(row) for row in rows]) for f in (cube.u, cube.s))
    read = front.Readings(u, s, np.log(frame.loss.to_numpy(float)))
    found, rng = front.fit(read), np.random.default_rng(0)
    pool = found.alive(cube.pool(0))
    at = front.best(found, pool, rng)
    drawn = [cube.params(pool[i], {}) for i in front.draws(found, pool, valley.DRAWS, rng)]
    where = f"front of loss and cost, at {goal['flops']:.3g} FLOPs, stage {stage.name}, {len(frame)} readings"
    settings = {}
    for name, value in cube.params(at, {}).items():
        axis, low, high = stage.axes[name], None, None
        if isinstance(axis, Range):
            low, high = np.quantile([value, *(p[name] for p in drawn)], valley.QUANTILES).tolist()
            value = on_grid(axis, value)
        settings[name] = Setting(value, low, high, where, "", tuple(frame.fingerprint))
    return settings


def axes_of(stage: Stage, frame: pd.DataFrame) -> tuple[dict[str, Range], list[tuple[str, ...]]]:
    """What a stage tried: ranges, also of what its fan and decays list; and groups of values that have no order."""
    axes = {k: a for k, a in stage.axes.items() if k not in BODY}
    numeric = {k: a for k, a in axes.items() if isinstance(a, Range)}
    kinds: list[tuple[str, ...]] = [(k,) for k, a in axes.items() if isinstance(a, Choice)]
    several = [k for k in WAY if len({getattr(d, k) for d in stage.decays}) > 1]
    shaped = tuple(k for k in several if k != "decay")
    kinds += [shaped] if shaped else []
    kinds += [("batch_tokens",)] if len(stage.batches) > 1 else []  # only what was listed is whole sequences
    spread = [*(["decay"] if "decay" in several else []), *(["lr"] if len(stage.fan) > 1 else [])]
    numeric |= {k: Range(float(frame[k].min()), float(frame[k].max()), True) for k in spread if len(frame)}
    listed = [k for k in mixes.columns(frame) if stage.decays and frame[k].nunique() > 1]
    numeric |= {k: Range(float(frame[k].min()), float(frame[k].max())) for k in listed if k not in numeric}
    return numeric, kinds


def needed(numeric: dict[str, Range], shapes: list[str]) -> int:
    """Readings that a bowl takes."""
    return 2 * (len(numeric) + len(shapes)) + 2


def bowl_of(frame: pd.DataFrame, names: Sequence[str]) -> valley.Bowl | None:
    """The valley over some settings; decays of one trunk are drawn together, and trade with its lr."""
    places = {k: x for k in names if (x := coordinate(k, frame[k].to_numpy(float))) is not None}
    loss = np.log(frame.loss.to_numpy(float))
    forks = frame.run.duplicated().any() and frame.run.nunique() >= LEAST_TRUNKS  # of one trunk, forks are the draws
    run, pair = (frame.run.to_numpy(str), ("lr", "decay")) if forks else (None, None)
    return valley.basin(places, loss, run, pair)


def chosen(
    frame: pd.DataFrame, names: tuple[str, ...], others: Sequence[str], stage: Stage
) -> tuple[dict[str, Setting], pd.DataFrame]:
    """The best of values that have no order, each at its own best, and its readings."""
    ways: dict[Any, pd.DataFrame] = dict(list(frame.groupby(list(names), sort=False)))
    lows = {w: own_best(rows, others) for w, rows in ways.items()}
    first, *rest = sorted(lows, key=lambda w: lows[w][0])
    rows = ways[first]
    behind = (str(rows.iloc[int(rows.loss.to_numpy(float).argmin())].fingerprint),)
    where, caution = f"best of {len(ways)}, each at its own best, stage {stage.name}", ""
    if rest:
        ahead = 100 * math.expm1(lows[rest[0]][0] - lows[first][0])
        where += f"; {', '.join(map(str, rest[0]))} is {ahead:.2g}% behind"
        if lows[rest[0]][0] - lows[first][0] < lows[first][1]:
            caution = f"{' and '.join(names)}: the second best lies within the noise; more seeds would tell them apart"
    found = {}
    for name, value in zip(names, first, strict=True):
        found[name] = Setting(plain(value), None, None, where, caution if name == names[0] else "", behind)
    return found, rows


def plain(value: Any) -> Scalar:
    """A value of a table as Python's own."""
    return value.item() if hasattr(value, "item") else value


def own_best(rows: pd.DataFrame, others: Sequence[str]) -> tuple[float, float]:
    """The log loss at the best of all other settings, and the noise about it (0 where it is not known)."""
    bowl = bowl_of(rows, others)
    if bowl is None or not all(d.curved for d in bowl.dips.values()):
        return math.log(float(rows.loss.min())), 0.0
    return bowl.low, bowl.noise


def searched(found: pd.DataFrame, stage: Stage) -> pd.DataFrame:
    """The readings with warmup as it was asked, since a logarithm needs it above 0, and with every share."""
    none = {k: 0.0 for k in stage.axes if k.startswith(f"{MIX}.") and k not in found}
    return found.assign(warmup=found.warmup.clip(lower=1.0), **none) if len(found) else found


def coordinate(name: str, values: np.ndarray) -> np.ndarray | None:
    """A setting as its valley is drawn: its logarithm, a share as it is; None where there is none."""
    if name.startswith(f"{MIX}."):
        return values
    return np.log(values) if bool((values > 0).all()) else None


def back(name: str, at: float) -> float:
    """The inverse, of one value."""
    return at if name.startswith(f"{MIX}.") else math.exp(min(at, HUGE))


def from_bowl(
    name: str, axis: Range, dip: valley.Dip | None, winner: float, frame: pd.DataFrame, stage: Stage
) -> Setting:
    """The fitted minimum where there is one inside what was tried; else the best trial's value, with a caution."""
    low, high = float(frame[name].min()), float(frame[name].max())
    behind = tuple(frame.fingerprint)
    where = f"stage {stage.name}, {len(frame)} {'trials' if frame.run.is_unique else 'readings'}"
    if dip is not None and dip.curved and low <= back(name, dip.at) <= high:
        least, most = np.clip([back(name, dip.low), back(name, dip.high)], low, high).tolist()
        value = on_grid(axis, back(name, dip.at))
        return Setting(value, least, most, f"valley's fitted minimum, {where}", "", behind)
    edge = dip is not None and dip.curved
    why = (
        "its fitted minimum lies outside the range: widen it"
        if edge
        else "no curvature along it: add trials or widen the range"
    )
    return Setting(
        on_grid(axis, winner),
        low,
        high,
        f"best trial (low and high: the range tried), {where}",
        f"{name}: {why}",
        behind,
    )


def on_grid(axis: Range, value: float) -> Scalar:
    """A value that a run can have: the nearest of a range that has steps."""
    if axis.step is None:
        return value
    return int(axis.low + round((value - axis.low) / axis.step) * axis.step)


def aspect(stage: Stage, readings: pd.DataFrame) -> Setting | None:
    """Width over depth that was best at equal FLOPs, from a stage that searched the shape; None where none was."""
    found = of_stage(readings, stage.name)
    axes = {k: a for k, a in stage.axes.items() if isinstance(a, Range)}
    if not set(SHAPE) <= set(axes) or not len(found):
        return None
    frame = searched(found, stage).assign(aspect=lambda f: f.width / f.depth)
    names = ["aspect", *(k for k in axes if k not in SHAPE)]
    bowl = bowl_of(frame, names)
    winner = float(frame.aspect.iloc[int(frame.loss.to_numpy(float).argmin())])
    low, high = float(frame.aspect.min()), float(frame.aspect.max())
    dip = bowl.dips.get("aspect") if bowl else None
    return from_bowl("aspect", Range(low, high, True), dip, winner, frame, stage)
