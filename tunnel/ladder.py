"""A ladder read as evidence: its fans' valleys, the law of their minima, and the forecast for a target.

What `tunnel fit DIR` prints, what `recommend` rests on and what the dashboard draws is this one value.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from tunnel import laws, plan, store, tuned, valley
from tunnel.errors import UserError
from tunnel.laws import backtest, intervals
from tunnel.run import fingerprint
from tunnel.store import Store
from tunnel.study import Stage, Study, Target
from tunnel.valley import Surface

Table = dict[str, np.ndarray]
FORMS = ("chinchilla", "floor", "size")  # a ladder is a grid of shapes and rungs, not the path that a frontier needs
RIVAL = 3.0  # a form that misses the hold-outs by up to this factor more is not clearly worse  *assumed*
PATH = 25  # points of the curve from the smallest shape to beyond the target
VALLEY_FREEDOM = 4  # of a rung's valleys: curvature and place, and how both move with N  *derived*
BEYOND = 2.0  # how far beyond the target's N the curve is drawn


def stage_of(asked: Study) -> Stage:
    """The ladder that the law is fitted to: the study's last one."""
    ladders = [s for s in asked.stage if s.kind == "ladder"]
    if not ladders:
        raise UserError("has no stage of kind ladder, so there is no law to fit", key="stage")
    return ladders[-1]


def target_named(asked: Study, name: str | None) -> Target:
    found = [t for t in asked.target if name in (None, t.name)]
    if not found:
        raise UserError(
            "is no target of this study", key="--target", value=name, choices=[t.name for t in asked.target]
        )
    return found[0]


def table_of(readings: pd.DataFrame, stage: Stage) -> Table:
    """The ladder's finished readings as columns; raises UserError where there are too few shapes."""
    found = tuned.of_stage(readings, stage.name)
    if found.groupby(["width", "depth"]).ngroups < 2 if len(found) else True:
        raise UserError("has readings of fewer than 2 shapes: sweep it first", key=f"stage.{stage.name}")
    numeric = ("N", "D", "C", "loss", "lr", "width", "depth", "flops", "seconds")
    return {**{k: found[k].to_numpy(float) for k in numeric}, "run": found["run"].to_numpy(str)}


def minima(surface: Surface) -> Table:
    """The valleys' minima as a runs table; a run here is a shape, whose rungs share their trunks."""
    c = {k: np.asarray(v, float) for k, v in surface.cells.items()}
    shape = np.array([f"{w:.0f}x{d:.0f}" for w, d in zip(c["width"], c["depth"], strict=True)])
    return {**c, "C": 6 * c["N"] * c["D"], "loss": np.exp(surface.log_loss), "run": shape}


def fitted(asked: Study, keep: Store, target: str | None = None) -> dict[str, Any]:
    """The ladder's fit as plain JSON values; kept in fits/, and made again only where readings changed.

    Raises UserError where the ladder has too few readings.
    """
    stage, goal = stage_of(asked), target_named(asked, target)
    readings = keep.readings()
    path = keep.path("fits", f"{stage.name}.{goal.name}.json")
    identity = hash_of(asked, readings)
    kept = store.read_json(path)
    if kept and kept["readings_hash"] == identity:
        return kept
    table = table_of(readings, stage)
    found = {"stage": stage.name, "readings_hash": identity, **fit(asked, goal, table)}
    for name in (path, keep.path("fits", f"{stage.name}.json")):
        if goal is asked.target[0] or name == path:
            store.write_json(name, found)
    return found


def hash_of(asked: Study, readings: pd.DataFrame) -> str:
    """What a fit and a recommendation rest on: the question, and the proxies' readings."""
    proxies = readings[~readings.stage.str.startswith("target:")] if len(readings) else readings
    rows = sorted(proxies[["fingerprint", "status", "loss"]].astype(str).itertuples(index=False, name=None))
    return fingerprint([asked.model_dump(mode="json"), rows])


def fit(asked: Study, goal: Target, table: Table) -> dict[str, Any]:
    surface, draws = valley.by_rung(table), valley.bootstrap(table)
    lows = minima(surface)
    where = target_row(asked, goal)
    choice = backtest.choose(lows, where, among=FORMS)
    noise = residual_noise(table, surface)
    resamples = [minima(s) for s in draws]
    wide = {k: np.append(path_of(lows, where)[k], where[k]) for k in ("N", "D", "C")}
    rivals = tuple(n for n, s in choice.scores.items() if n != choice.law and s <= RIVAL * choice.scores[choice.law])
    misses = backtest.own_misses(choice.law, lows, where, choice.axis, near=backtest.NEAR_D)
    told = intervals.forecast(choice.law, lows, wide, resamples=resamples, misses=misses, noise=noise, rivals=rivals)
    return {
        "minima": rows_of(table, lows, surface, draws),
        "surface": {**{k: getattr(surface, k) for k in ("a", "b", "c", "curved")}, "h": float(surface.h[-1])},
        "noise": noise,
        "lr_drift": drift(surface, draws),
        "lr": lr_at(surface, draws, float(where["N"][0]), float(where["D"][0])),
        "laws": {name: law_dict(name, lows, where) for name in {**choice.scores, choice.law: 0}},
        "chosen": choice.law,
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
    n = float(plan.families.load(asked.family).count(run.trunk.shape, run.trunk.body))
    return {"N": np.array([n]), "D": np.array([float(run.tokens)]), "C": np.array([6 * n * run.tokens])}


def path_of(lows: Table, where: Table) -> Table:
    """N from the smallest shape to beyond the target, at the target's D."""
    n = np.geomspace(lows["N"].min(), where["N"][0] * BEYOND, PATH)
    d = np.full(PATH, where["D"][0])
    return {"N": n, "D": d, "C": 6 * n * d}


def rows_of(table: Table, lows: Table, surface: Surface, draws: list[Surface]) -> list[dict[str, Any]]:
    """A row per shape and rung: what was read, the valley's minimum with its interval, and the cell's own parabola."""
    spread = np.exp(np.quantile([s.log_loss for s in draws], valley.QUANTILES, axis=0))
    found = []
    for i in range(len(lows["N"])):
        cell = (table["N"] == lows["N"][i]) & (table["D"] == lows["D"][i]) & (table["width"] == lows["width"][i])
        order = np.argsort(table["lr"][cell])
        lrs, losses = table["lr"][cell][order], table["loss"][cell][order]
        own = valley.parabola(np.log(lrs), np.log(losses))
        found.append(
            {
                **{k: float(lows[k][i]) for k in ("N", "D", "C", "loss")},
                "width": int(lows["width"][i]),
                "depth": int(lows["depth"][i]),
                "low": float(spread[0][i]),
                "high": float(spread[1][i]),
                "lr": float(np.exp(valley.surface(table, at=lows["D"][i]).log_lr(lows["N"][i], lows["D"][i]))),
                "lrs": lrs.tolist(),
                "losses": losses.tolist(),
                "own": None if own is None else {"lr": math.exp(own[0]), "loss": math.exp(own[1])},
            }
        )
    return found


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


def drift(surface: Surface, draws: list[Surface]) -> dict[str, float]:
    """How lr* moves, in octaves per tenfold N and D, with 90% intervals."""
    octaves = math.log(10) / math.log(2)
    found = {"per_10x_N_octaves": surface.b * octaves, "per_10x_D_octaves": surface.c * octaves}
    for name, values in (("N", [s.b for s in draws]), ("D", [s.c for s in draws])):
        low, high = np.quantile(values, valley.QUANTILES) * octaves
        found |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return found


def lr_at(surface: Surface, draws: list[Surface], n: float, d: float) -> dict[str, float]:
    """lr* at the target with its 90% interval, and the relative loss expected to be given away by not knowing it."""
    log = float(surface.log_lr(n, d))
    each = np.array([float(s.log_lr(n, d)) for s in draws if s.curved] or [log])
    low, high = np.quantile(each, valley.QUANTILES)
    return {
        "value": math.exp(log),
        "low": math.exp(low),
        "high": math.exp(high),
        "regret": float(surface.h[-1] * np.mean((each - log) ** 2)),
    }


def law_dict(name: str, lows: Table, where: Table) -> dict[str, Any]:
    law = laws.get(name)
    found = law.fit(laws.take(laws.columns(lows), law.select(laws.columns(lows), laws.columns(where))))
    return {
        "params": {k: float(v) if math.isfinite(v) else None for k, v in found.params.items()},
        "status": found.status,
        "reason": found.reason,
        "objective": found.objective,
        "n": found.n,
        "formula": (law.__doc__ or "").strip().splitlines()[0],
    }


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
    per_target = ("s", "d", "half_parameters", "half_holdouts", "half_rivals")
    return {k: v[-1] if k in per_target else v for k, v in parts.items()}
