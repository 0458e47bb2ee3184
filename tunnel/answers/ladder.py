"""A ladder read as evidence: its fans' valleys, the law of their minima, and the forecast for a target.

What `tunnel fit DIR` prints, what `recommend` rests on and what the dashboard draws is this one value.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from tunnel import families, laws, plan, tuned
from tunnel.backtests import backtest, intervals, rows
from tunnel.errors import UserError
from tunnel.folder import store
from tunnel.folder.store import Store
from tunnel.run import fingerprint
from tunnel.study import Stage, Study, Target
from tunnel.valleys import regret, valley
from tunnel.valleys.valley import Surface
from tunnel.verdicts import horizon

Table = dict[str, np.ndarray]
FORMS = (
    "chinchilla",
    "floor",
    "kaplan",
    "size",
)  # a ladder is a grid of shapes and rungs, not the path that a frontier needs
PATH = 25  # points of the curve from the smallest shape to beyond the target
VALLEY_FREEDOM = 4  # of a rung's valleys: curvature and place, and how both move with N  *derived*
BEYOND = 2.0  # how far beyond the target's N the curve is drawn
SCHEMA = 5  # of what a fit holds: one of an older version is made again
SAME_BATCH = 1.01  # a batch within this factor of the ladder's is the ladder's  *assumed*


def stage_of(asked: Study) -> Stage:
    """The ladder that the law is fitted to: the study's last one."""
    ladders = [s for s in asked.stage if s.kind == "ladder"]
    if not ladders:
        raise UserError("has no stage of kind ladder, so there is no law to fit", key="stage")
    return ladders[-1]


def target_named(asked: Study, name: str | None) -> Target:
    found = [t for t in asked.target if name in (None, t.name)]
    if not asked.target:
        raise UserError("has no [[target]], so there is nothing to forecast; `tunnel compare` shows what it found")
    if not found:
        raise UserError(
            "is no target of this study", key="--target", value=name, choices=[t.name for t in asked.target]
        )
    return found[0]


def rows_used(asked: Study, keep: Store, readings: pd.DataFrame, stage: Stage) -> pd.DataFrame:
    """The ladder's readings that its law rests on: of the study's own rules, and of each cell the best way to train.

    Raises UserError where they are of too few shapes.
    """
    found = horizon.own(asked, keep, readings, stage)
    if found.groupby(["width", "depth"]).ngroups < 2 if len(found) else True:
        raise UserError(
            "has readings of fewer than 2 shapes under its own rule: sweep it first", key=f"stage.{stage.name}"
        )
    return tuned.best_ways(found)


def table_of(rows: pd.DataFrame) -> Table:
    """Readings as columns."""
    numeric = ("N", "D", "C", "loss", "lr", "width", "depth", "flops", "seconds", "batch_tokens")
    return {**{k: rows[k].to_numpy(float) for k in numeric}, "run": rows["run"].to_numpy(str)}


def minima(surface: Surface) -> Table:
    """The valleys' minima as a runs table; a run here is a shape, whose rungs share their trunks."""
    c = {k: np.asarray(v, float) for k, v in surface.cells.items()}
    shape = np.array([f"{w:.0f}x{d:.0f}" for w, d in zip(c["width"], c["depth"], strict=True)])
    return {**c, "C": 6 * c["N"] * c["D"], "loss": np.exp(surface.log_loss), "run": shape}


def fitted(asked: Study, keep: Store, target: str | None = None) -> dict[str, Any]:
    """The ladder's fit, and how the settings move with the horizon (`horizon`), as plain JSON values.

    Kept in fits/, and made again only where readings changed; a study without a ladder has its `horizon` alone. Raises
    UserError where there are too few readings for either.
    """
    goal, readings = target_named(asked, target), keep.readings()
    joint = horizon.stage_of(asked, keep, readings)
    ladders = any(s.kind == "ladder" for s in asked.stage)
    stage = joint[0] if joint and not ladders else stage_of(asked)
    path = keep.path("fits", f"{stage.name}.{goal.name}.json")
    identity = hash_of(asked, readings)
    kept = store.read_json(path)
    if kept and kept["readings_hash"] == identity and kept.get("schema") == SCHEMA:
        return kept
    found: dict[str, Any] = {"schema": SCHEMA, "stage": stage.name, "readings_hash": identity}
    moves = horizon.fitted(*joint) if joint else None
    if ladders:
        found |= fit(asked, goal, table_of(rows_used(asked, keep, readings, stage)), moves)
    found |= {"horizon": moves} if moves else {}
    for name in (path, keep.path("fits", f"{stage.name}.json")):
        if goal is asked.target[0] or name == path:
            store.write_json(name, found)
    return found


def hash_of(asked: Study, readings: pd.DataFrame) -> str:
    """What a fit and a recommendation rest on: the proxies' readings, and what the question says.

    A key that it leaves out is not part of it: one that a later version adds makes no result of an older one stale.
    """
    proxies = readings[~readings.stage.str.startswith("target:")] if len(readings) else readings
    columns = proxies[["fingerprint", "status", "loss"]].itertuples(index=False, name=None)
    rows = sorted((fp, status, str(loss)) for fp, status, loss in columns)  # a diverged one's loss is no JSON number
    return fingerprint([asked.model_dump(mode="json", exclude_defaults=True), rows])


def fit(asked: Study, goal: Target, table: Table, moves: dict[str, Any] | None = None) -> dict[str, Any]:
    surface, draws = valley.by_rung(table), valley.bootstrap(table)
    lows = minima(surface)
    where = target_row(asked, goal)
    choice = backtest.choose(lows, where, among=FORMS)
    noise = residual_noise(table, surface)
    resamples = [minima(s) for s in draws]
    wide = {k: np.append(path_of(lows, where)[k], where[k]) for k in ("N", "D", "C")}
    misses = backtest.own_misses(choice.candidate, lows, where, choice.axis, near=backtest.NEAR_D)
    told = intervals.forecast(
        choice.candidate,
        lows,
        wide,
        resamples=resamples,
        misses=misses,
        noise=noise,
        rivals=choice.rivals(),
    )
    if not math.isfinite(told.value[-1]):
        raise UserError(f"allows no forecast yet: {told.parts['reason']}", key=f"stage.{stage_of(asked).name}")
    return {
        "minima": rows_of(table, lows, surface, draws),
        "surface": {**{k: getattr(surface, k) for k in ("a", "b", "c", "e", "curved")}, "h": float(surface.h[-1])},
        "noise": noise,
        "lr_drift": drift(table, surface, draws),
        "lr": lr_at(table, surface, draws, where, moves),
        "laws": {c.law: law_dict(c, lows, where) for c in map(backtest.Candidate, choice.scores)}
        | {choice.law: law_dict(choice.candidate, lows, where)},
        "chosen": choice.law,
        "rows": rows_told(choice.candidate, lows),
        "scores": {k: v for k, v in choice.scores.items() if math.isfinite(v)},
        "rejected": list(choice.rejected.values()),
        "holdouts": [holdout(m, lows) for m in (*choice.misses, *longest_rung(lows))],
        "forecast": {
            "target": goal.name,
            "N": float(where["N"][0]),
            "D": float(where["D"][0]),
            **{k: float(getattr(told, k)[-1]) for k in ("value", "low", "high", "distance")},
            "law": choice.law,
            "parts": last_of(told.parts),
        },
        "curve": [
            {"N": n, "D": d, "value": v, "low": lo, "high": hi}
            for n, d, v, lo, hi in zip(
                *(wide[k][:-1].tolist() for k in ("N", "D")),
                *(getattr(told, k)[:-1].tolist() for k in ("value", "low", "high")),
                strict=True,
            )
        ],
    }


def target_row(asked: Study, goal: Target) -> Table:
    """The target as a table of one row: N, D, C."""
    run = plan.target_trial(asked, goal, plan.values_of(asked, stage_of(asked), {})).runs[0]
    n = float(families.load(asked.family).count(run.trunk.shape, run.trunk.body))
    d, batch = float(run.tokens), float(run.trunk.settings.batch_tokens)
    return {k: np.array([v]) for k, v in (("N", n), ("D", d), ("C", 6 * n * d), ("batch_tokens", batch))}


def path_of(lows: Table, where: Table) -> Table:
    """N from the smallest shape to beyond the target, at the target's D."""
    n = np.geomspace(lows["N"].min(), where["N"][0] * BEYOND, PATH)
    d = np.full(PATH, where["D"][0])
    return {"N": n, "D": d, "C": 6 * n * d}


def rows_of(table: Table, lows: Table, surface: Surface, draws: list[Surface]) -> list[dict[str, Any]]:
    """A row per cell: what was read, the valley's minimum with 90% intervals, and the cell's own parabola."""
    _, of = valley.cells_of(table)
    wide = valley.widening(table)
    curved = [s for s in draws if s.curved]
    found = []
    for i in range(len(lows["N"])):
        order = np.argsort(table["lr"][of == i])
        lrs, losses = table["lr"][of == i][order], table["loss"][of == i][order]
        own = valley.parabola(np.log(lrs), np.log(losses))
        row: dict[str, Any] = {k: float(lows[k][i]) for k in ("N", "D", "C", "loss")}
        row |= {k: int(lows[k][i]) for k in ("width", "depth", *(["batch_tokens"] if valley.varies(table) else []))}
        row["low"], row["high"] = ends(surface.log_loss[i], [s.log_loss[i] for s in draws], wide)
        row["lr"] = math.exp(surface.dips[i])
        row["lr_low"], row["lr_high"] = ends(surface.dips[i], [s.dips[i] for s in curved or [surface]], wide)
        row |= {"lrs": lrs.tolist(), "losses": losses.tolist()}
        found.append(row | {"own": None if own is None else {"lr": math.exp(own[0]), "loss": math.exp(own[1])}})
    return found


def ends(log: float, draws: list[float], wide: float) -> tuple[float, float]:
    low, high = valley.interval(float(log), np.array(draws), wide)
    return math.exp(low), math.exp(high)


def residual_noise(table: Table, surface: Surface) -> float:
    """The standard deviation of log loss about the longest rung's valleys: seeds, and what a parabola cannot follow."""
    if not surface.curved:
        return 0.0
    _, cell = valley.cells_of(table)
    rise = surface.h[cell] * (np.log(table["lr"]) - surface.log_lr(table["N"], table["D"])) ** 2
    left = np.log(table["loss"]) - surface.log_loss[cell] - rise
    near = (table["D"] == table["D"].max()) & (rise < valley.NEAR)
    free = near.sum() - len(set(cell[near])) - VALLEY_FREEDOM
    return float(np.sqrt((left[near] ** 2).sum() / free)) if free > 0 else 0.0


def drift(table: Table, surface: Surface, draws: list[Surface]) -> dict[str, float]:
    """How lr* moves, in octaves per tenfold N, D and, where it varies, batch, with 90% intervals."""
    octaves = math.log(10) / math.log(2)
    wide = valley.widening(table)
    found: dict[str, float] = {}
    for name, power in (("N", "b"), ("D", "c"), *([("B", "e")] if valley.varies(table) else [])):
        value, each = getattr(surface, power), np.array([getattr(s, power) for s in draws])
        low, high = valley.interval(value, each, wide)
        told = {f"per_10x_{name}_octaves": value, f"{name}_low": low, f"{name}_high": high}
        found |= {k: v * octaves for k, v in told.items()}
    return found


def lr_at(
    table: Table, surface: Surface, draws: list[Surface], where: Table, moves: dict[str, Any] | None
) -> dict[str, Any]:
    """lr* at the target with its 90% interval; `chosen`, whose expected loss is least, and the loss given away by it.

    Where the valleys are seen to be steeper on one side the surfaces are fitted so; where the target's batch is none
    of the ladder's, lr* moves by the power of B that the study's horizon measured.
    """
    wide, skew = valley.widening(table), regret.Skew(0.0, 0.0, 0.0)
    if surface.curved:
        skew = regret.skew(table)
    if skew.seen:
        surface, draws = valley.by_rung(table, skew=skew.value), valley.bootstrap(table, skew=skew.value)
    n, d, batch = (float(where[k][0]) for k in ("N", "D", "batch_tokens"))
    known = regret.posterior(surface, draws, n, d, batch if valley.varies(table) else None, wide)
    power = batch_power(table, batch, moves)
    if power:
        far = math.log(batch / float(np.exp(np.log(table["batch_tokens"]).mean())))
        known = regret.moved(known, power["value"] * far, (power["high"] - power["low"]) / 2 * abs(far))
    low, high = known.interval()
    chosen = known.safest()
    return {
        "value": math.exp(known.at),
        "low": math.exp(low),
        "high": math.exp(high),
        "chosen": math.exp(chosen),
        "regret": known.regret(chosen),
        "skew": {**vars(skew), "used": skew.seen},
        "batch_power": power,
    }


def batch_power(table: Table, batch: float, moves: dict[str, Any] | None) -> dict[str, float] | None:
    """The power of lr* over B, where the target's batch is not the ladder's and the horizon measured one."""
    ours = table["batch_tokens"]
    near = bool((np.abs(np.log(ours / batch)) < math.log(SAME_BATCH)).any())
    over = ((moves or {}).get("lr") or {}).get("over", {})
    return None if near or valley.varies(table) else over.get("batch_tokens")


def law_dict(which: backtest.Candidate, lows: Table, where: Table) -> dict[str, Any]:
    law = laws.get(which.law)
    found = which.fit(laws.columns(lows), laws.columns(where))
    return {
        "params": {k: float(v) if math.isfinite(v) else None for k, v in found.params.items()},
        "status": found.status,
        "reason": found.reason,
        "objective": found.objective,
        "n": found.n,
        "formula": (law.__doc__ or "").strip().splitlines()[0],
    }


def rows_told(which: backtest.Candidate, lows: Table) -> dict[str, Any]:
    """Which of the valleys' minima the law is fitted to, and those that lie outside every law, with the reason."""
    marks = [{"N": float(lows["N"][m.row]), "D": float(lows["D"][m.row]), "reason": m.reason} for m in rows.marks(lows)]
    return {"window": which.window.name, "loss": which.loss, "marked": marks}


def longest_rung(lows: Table) -> list[backtest.Miss]:
    """What L(N, D) misses the longest rung by when it is left out; the laws at one D cannot be asked."""
    return [
        m for fold in backtest.holdouts(lows, ("D",))[:1] for m in backtest.misses("chinchilla", lows, fold, fold.test)
    ]


def holdout(m: backtest.Miss, lows: Table) -> dict[str, Any]:
    measured = float(lows["loss"][m.row])
    return {
        "law": m.law,
        "axis": m.axis,
        "left_out": m.fold,
        "N": float(lows["N"][m.row]),
        "D": float(lows["D"][m.row]),
        "measured": measured,
        "predicted": measured * math.exp(m.error),
        "error_percent": 100 * math.expm1(m.error),
        "distance": m.distance,
    }


def last_of(parts: Any) -> dict[str, Any]:
    """The formula's inputs for the last row asked, which is the target."""
    per_target = ("s", "d", "r", "half_parameters", "half_holdouts", "half_rivals", "half_bend", "half_noise")
    return {k: v[-1] if k in per_target else v for k, v in parts.items()}
