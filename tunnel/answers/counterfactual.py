"""A test of the recommendation: the loss at the recommended lr, half and double it, forecast before all three run.

The shape is the largest affordable one between the proxies and the target, its settings are recommended as the target's
are. What is tested is not only the level: the recommended lr should be the best of the three, by as much as was told.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from tunnel import families, plan
from tunnel.answers import forecasts, ladder, recommend, worth
from tunnel.answers.basis import Basis, basis
from tunnel.errors import UserError
from tunnel.folder import store
from tunnel.folder.store import Store
from tunnel.quantiles import NORMAL
from tunnel.run import RunSpec, Shape, Trial
from tunnel.study import Study, Target
from tunnel.training import data
from tunnel.valleys import regret, valley
from tunnel.valleys.valley import bend

FACTORS = (0.5, 1.0, 2.0)  # of the recommended lr
SHARE = 1.0  # of the proxies' FLOPs that the three runs may take, where no hours are given  *assumed*


def registered(asked: Study, keep: Store, target: str | None, hours: float | None) -> list[dict[str, Any]]:
    """The three forecasts, registered once for a target and the readings that there are.

    `hours`: of one device, that the three runs may take. Raises UserError where no shape fits, or no lr* is known.
    """
    goal, readings = ladder.target_named(asked, target), keep.readings()
    known = of(keep, goal.name, ladder.hash_of(asked, readings))
    if known:
        return known
    told = ladder.fitted(asked, keep, goal.name)
    if not told["surface"]["curved"]:
        raise UserError("the fans show no minimum, so no lr is recommended that could be tested", key="stage")
    rows = ladder.rows_used(asked, keep, readings, ladder.stage_of(asked))
    shape, tokens = affordable(asked, goal, rows, readings, hours)
    near = goal.model_copy(
        update={"name": "counterfactual", "width": shape.width, "depth": shape.depth, "tokens": tokens}
    )
    found = ladder.fit(asked, near, ladder.table_of(rows), told.get("horizon"))
    b = basis(asked, keep, near, readings, {**found, "readings_hash": told["readings_hash"]})
    return forecasts.register_all(keep, entries(b, goal))


def of(keep: Store, target: str, readings_hash: str) -> list[dict[str, Any]]:
    """The forecasts that were registered for a target and readings; empty before."""
    every = store.chain(keep.path(forecasts.FILE))
    mine = (e for e in every if forecasts.kind_of(e) == "counterfactual" and e["of"] == target)
    return [e for e in mine if e["readings_hash"] == readings_hash]


def affordable(
    asked: Study, goal: Target, rows: pd.DataFrame, readings: pd.DataFrame, hours: float | None
) -> tuple[Shape, int]:
    """The largest shape between the largest proxy and the target whose three runs are affordable; and their D."""
    proxies = readings[~readings.stage.str.startswith("target:")]
    spent = float((proxies.flops / proxies.D * proxies.tokens_trained).sum())
    most = SHARE * spent if hours is None else hours * 3600 * recommend.pace_of(rows)
    tokens = min(goal.tokens, int(rows.D.max()))
    family, body = families.load(asked.family), plan.body_of(asked)
    costs = {s: len(FACTORS) * tokens * family.flops_per_token(s, body) for s in between(asked, goal, rows)}
    if not costs:
        raise UserError("no shape lies between the largest proxy and the target", key=f"target.{goal.name}")
    least = min(costs.values())
    most = (
        max(most, least) if hours is None else most
    )  # little more than the largest proxy's fan: who had that, has this
    fitting = [s for s, cost in costs.items() if cost <= most]
    if not fitting:
        needed = least / recommend.pace_of(rows) / 3600
        raise UserError(f"the smallest shape between proxies and target takes {needed:.2g} hours", key="--hours")
    return max(fitting, key=lambda s: family.count(s, body)), tokens


def between(asked: Study, goal: Target, rows: pd.DataFrame) -> list[Shape]:
    """Shapes strictly between the largest proxy's size and the target's, on the line of log width and log depth."""
    family, body, head = families.load(asked.family), plan.body_of(asked), asked.model.head_dim
    last = rows.sort_values("N").iloc[-1]
    ends = [math.log(last.width), math.log(goal.width)], [math.log(last.depth), math.log(goal.depth)]
    widths = range(int(last.width) + head, goal.width, head)
    shapes = [Shape(width=w, depth=round(math.exp(np.interp(math.log(w), *ends)))) for w in widths]
    most = family.count(Shape(width=goal.width, depth=goal.depth, kv_heads=goal.kv_heads), body)
    return [s for s in shapes if last.N < family.count(s, body) < most]


def entries(b: Basis, goal: Target) -> list[dict[str, Any]]:
    """A forecast for each factor: the law's level at the shape, and the valley's rise to the factor's lr."""
    run, _, _ = recommend.planned(b, recommend.Honesty(force=True))
    level, found = recommend.forecast_of(b, run), []
    rises = rise_at(b, run)
    for number, factor in enumerate(FACTORS):
        s = run.trunk.settings
        own = run.replaced(trunk=run.trunk.replaced(settings=s.replaced(lr=s.lr * factor)))
        rise, half = rises[factor]
        half = math.hypot(math.log(level["high"] / level["low"]) / 2, half)
        value = math.log(level["forecast"]) + rise
        ends = {"forecast": math.exp(value), "low": math.exp(value - half), "high": math.exp(value + half)}
        found.append(
            {
                "kind": "counterfactual",
                "of": goal.name,
                "target": f"{goal.name}: {run.trunk.shape} at {factor:g} × the recommended lr",
                **{"factor": factor, "trial": number, "run": own.fingerprint, "spec": own.model_dump(mode="json")},
                **{k: level[k] for k in recommend.KEPT},
                **ends,
                **{"N": b.fit["forecast"]["N"], "D": run.tokens, "lr": own.trunk.settings.lr},
                **{"rise": rise, "noise": b.fit["noise"]},
                "corpus_hash": data.identity(run),
                "readings_hash": b.fit["readings_hash"],
            }
        )
    return found


def rise_at(b: Basis, run: RunSpec) -> dict[float, tuple[float, float]]:
    """By factor, how far the loss lies above its minimum over lr (of log loss), and half its 90% interval."""
    table = ladder.table_of(b.rows)
    batch = float(run.trunk.settings.batch_tokens) if valley.varies(table) else None
    n, d = float(b.fit["forecast"]["N"]), float(run.tokens)
    surface, draws = valley.by_rung(table), valley.bootstrap(table)
    known = regret.posterior(surface, draws, n, d, batch, valley.widening(table))
    found = {}
    for factor in FACTORS:
        log_lr = math.log(run.trunk.settings.lr * factor)
        low, high = np.quantile(known.h * bend(log_lr - known.draws, known.skew), valley.QUANTILES)
        found[factor] = known.regret(log_lr), float(high - low) / 2
    return found


def trials(told: list[dict[str, Any]]) -> list[Trial]:
    """The runs of registered forecasts, as they are trained: never as proxies."""
    runs = [(e["of"], e["trial"], RunSpec.model_validate(e["spec"])) for e in told]
    return [Trial(stage=f"target:{of}:counterfactual", number=number, runs=(run,)) for of, number, run in runs]


def judged(keep: Store, told: list[dict[str, Any]]) -> dict[str, Any]:
    """The three forecasts against what was measured.

    `holds`: the recommended lr gives away no more than two readings may differ by noise (90%); None before all three
    are measured.
    """
    rows = [{**forecasts.outcome(keep, e, True), "factor": e["factor"], "rise_percent": 100 * e["rise"]} for e in told]
    found = {"target": told[0]["of"], "runs": rows, "inside": sum(bool(r["inside"]) for r in rows)}
    if any(r["status"] == "waiting" for r in rows):
        return {**found, "best": None, "given_away_percent": None, "noise_percent": None, "holds": None}
    losses = {r["factor"]: math.inf if r["measured"] is None else r["measured"] for r in rows}
    best = min(losses, key=lambda f: losses[f])
    for r in rows:
        r["rise_measured_percent"] = 100 * (losses[r["factor"]] / losses[best] - 1) if r["measured"] else None
    given = 100 * (losses[1.0] / losses[best] - 1) if losses[1.0] < math.inf else None
    noise = 100 * NORMAL * math.sqrt(2) * told[0]["noise"]
    worth_it = worth.compute_percent(told[0]["path"], losses[1.0])
    return {
        **{**found, "best": best, "given_away_percent": given, "noise_percent": noise},
        **{"error_compute_percent": worth_it, "holds": given is not None and given <= noise},
    }
