"""The target's settings with their evidence, and a forecast that is registered before the target starts."""

from __future__ import annotations

from typing import Any

import pandas as pd

from tunnel import families, forecasts, ladder, plan, store, transfer, tuned
from tunnel.errors import UserError
from tunnel.run import RunSpec
from tunnel.space import Scalar
from tunnel.store import Store
from tunnel.study import Stage, Study, Target

SCHEMA = 1
LEAST_RUNG = 4.0  # settings tuned at D < D_target/4 need a fitted lr*(D)  (SCIENCE §3)
LEAST_RUNGS = 4  # that such a fit takes  (SCIENCE §3)
REPEATS, MOST_REPEATS = 1.0, 4.0  # epochs: caution above the first, refusal above the second  (SCIENCE §3)


def recommend(asked: Study, keep: Store, target: str | None = None) -> dict[str, Any]:
    """The recommendation for a target; with unchanged readings, or once the target began, the stored one.

    Raises UserError where it cannot be honest: too few readings, or settings tuned too far below the target's D.
    """
    goal = ladder.target_named(asked, target)
    path = keep.path("recommendation.json" if goal is asked.target[0] else f"recommendation.{goal.name}.json")
    kept = store.read_json(path)
    readings = keep.readings()
    if kept and (kept["readings_hash"] == ladder.hash_of(asked, readings) or forecasts.begun(keep, goal.name)):
        return kept
    found = made(asked, keep, goal, readings)
    entry = {
        "target": goal.name,
        "run": RunSpec.model_validate(found["run"]).fingerprint,
        **{
            k: found[k]
            for k in ("forecast", "low", "high", "law", "formula", "parts", "compute_ratio", "readings_hash")
        },
    }
    found["registered"] = forecasts.register(keep, entry)
    store.write_json(path, found)
    return found


def made(asked: Study, keep: Store, goal: Target, readings: pd.DataFrame) -> dict[str, Any]:
    """A recommendation from the readings, before it is registered."""
    fit = ladder.fitted(asked, keep, goal.name)
    stage = ladder.stage_of(asked)
    resolved = store.read_json(keep.path("study.resolved.json"), {})["stages"][stage.name]
    refuse_short(goal, fit)
    rows = tuned.of_stage(readings, stage.name)
    tuned_to = {"lr": fit["lr"]["value"], "warmup": int(rows.warmup.max())}  # the ladder's own warmup, cut or not
    values = {**plan.values_of(asked, stage, resolved["handed_on"]), **tuned_to}
    corpus_hash = str(rows.iloc[0].corpus_hash)
    run = plan.target_trial(asked, goal, values, corpus_hash).runs[0]
    family = families.load(asked.family)
    n, per_token = (
        family.count(run.trunk.shape, run.trunk.body),
        family.flops_per_token(run.trunk.shape, run.trunk.body),
    )
    largest = float(rows.C.max())
    groups = [vars(g) for g in transfer.groups(run.trunk, family.ROLES)]
    told = fit["forecast"]
    shaped = aspects(asked, readings)
    seconds = per_token * run.tokens / pace_of(rows)
    return {
        "schema": SCHEMA,
        "study": keep.root.name,
        "question": asked.question,
        "target": {
            "name": goal.name,
            **run.trunk.shape.model_dump(),
            "tokens": run.tokens,
            "seq_len": run.trunk.body.seq_len,
            "precision": run.trunk.settings.precision,
            "vocab": run.trunk.body.vocab,
            "N": n,
            "C": 6.0 * n * run.tokens,
            "flops": per_token * run.tokens,
            "seconds": seconds,
            "cost": seconds / 3600 * asked.price.per_hour,
            "currency": asked.price.currency,
        },
        "run": run.model_dump(mode="json"),
        "settings": {**settings_of(run, fit, resolved["evidence"], groups, stage, rows), **shaped},
        "groups": groups,
        "multipliers": vars(transfer.multipliers(run.trunk.rules, run.trunk.shape, run.trunk.body)),
        "config": family.config_dict(run.trunk.shape, run.trunk.body, asked.rules)
        if hasattr(family, "config_dict")
        else None,
        "forecast": told["value"],
        "low": told["low"],
        "high": told["high"],
        "unit": "nats per token",
        "law": told["law"],
        "formula": fit["laws"][told["law"]]["formula"],
        "parts": told["parts"],
        "rejected": fit["rejected"],
        "compute_ratio": 6.0 * n * run.tokens / largest,
        "regret": fit["lr"]["regret"],
        "registered": None,
        "cautions": cautions(asked, goal, run, fit, resolved["evidence"], rows) + off_aspect(goal, shaped),
        "readings_hash": fit["readings_hash"],
    }


def pace_of(rows: pd.DataFrame) -> float:
    """FLOPs per second that the largest proxies reached, over all their readings."""
    biggest = rows[rows.N.max() == rows.N]
    return float((biggest.flops / biggest.D * biggest.tokens_trained).sum() / biggest.seconds.sum())


def refuse_short(goal: Target, fit: dict[str, Any]) -> None:
    rungs = sorted({m["D"] for m in fit["minima"]})
    if rungs[-1] < goal.tokens / LEAST_RUNG and not (len(rungs) >= LEAST_RUNGS and fit["surface"]["curved"]):
        raise UserError(
            f"its {goal.tokens:,} tokens are over {LEAST_RUNG:g} × the longest rung ({rungs[-1]:,.0f}), and no law of "
            f"lr over D could be fitted: give the ladder {LEAST_RUNGS} rungs and a fan of 3",
            key=f"target.{goal.name}",
        )


def settings_of(
    run: RunSpec,
    fit: dict[str, Any],
    evidence: dict[str, Any],
    groups: list[dict[str, Any]],
    stage: Stage,
    rows: pd.DataFrame,
) -> dict[str, dict[str, Any]]:
    """Every setting of the target: value, 90% interval, where it comes from, and the readings behind it."""
    s = run.trunk.settings
    behind = rows.fingerprint.tolist()
    fixed = {
        "decay_shape": run.decay_shape,
        "min_ratio": run.min_ratio,
        "batch_tokens": s.batch_tokens,
        "tokens": run.tokens,
        **{k: getattr(s, k) for k in ("weight_decay", "beta1", "beta2", "eps", "clip")},
    }
    found = {name: exactly(value, "the study") for name, value in fixed.items()}
    found["warmup"] = exactly(s.warmup, "the study")
    found["decay"] = exactly(run.decay_tokens / run.tokens, "the study")
    for name, known in evidence.items():
        if name in found:
            found[name] |= {k: known[k] for k in ("low", "high", "source")} | {"readings": list(known["readings"])}
    lr = fit["lr"]
    where = f"lr*(N, D) of stage {stage.name}'s fans" if fit["surface"]["curved"] else f"stage {stage.name}'s lr"
    found["lr"] = {"value": s.lr, "low": lr["low"], "high": lr["high"], "source": where, "readings": behind}
    for name, value in vars(transfer.multipliers(run.trunk.rules, run.trunk.shape, run.trunk.body)).items():
        found[name] = exactly(value, f"rule {run.trunk.rules}")
    for group in groups:
        for name in ("lr", "init_std"):
            found[f"{name}_{group['role']}"] = exactly(group[name], f"rule {run.trunk.rules}")
    return found


def exactly(value: Scalar, source: str) -> dict[str, Any]:
    end = None if isinstance(value, str) else value
    return {"value": value, "low": end, "high": end, "source": source, "readings": []}


def aspects(asked: Study, readings: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Width over depth as the last stage that searched the shape found it best; empty where none did."""
    found = [a for stage in asked.stage if (a := tuned.aspect(stage, readings)) is not None]
    if not found:
        return {}
    last = found[-1]
    value = {"value": last.value, "low": last.low, "high": last.high}
    return {
        "aspect": {**value, "source": f"width/depth at equal FLOPs: {last.source}", "readings": list(last.readings)}
    }


def off_aspect(goal: Target, shaped: dict[str, dict[str, Any]]) -> list[str]:
    """A caution where the target's width/depth lies outside what was found best."""
    own = goal.width / goal.depth
    return [
        f"shape: the target's width/depth is {own:.3g}, {a['low']:.3g} to {a['high']:.3g} was best at equal FLOPs; "
        "a target of that aspect may do better"
        for a in shaped.values()
        if not a["low"] <= own <= a["high"]
    ]


def cautions(
    asked: Study, goal: Target, run: RunSpec, fit: dict[str, Any], evidence: dict[str, Any], rows: pd.DataFrame
) -> list[str]:
    """What the reader should know before relying on it, each with what would remove it."""
    said = [known["caution"] for known in evidence.values() if known["caution"]]
    tried = sorted(rows.lr)
    lr = run.trunk.settings.lr
    if not fit["surface"]["curved"]:
        said.append("lr: the fans show no minimum; run them with more, and wider, factors")
    elif not tried[0] <= lr <= tried[-1]:
        said.append(f"lr: {lr:.3g} lies outside what was tried ({tried[0]:.3g} to {tried[-1]:.3g}); widen the fan")
    law = fit["laws"][fit["chosen"]]
    if law["status"] != "converged":
        said.append(
            f"law {fit['chosen']}: {law['status']}, {law['reason']}; more shapes on the target's path would settle it"
        )
    longest = float(rows.D.max())
    if run.tokens > longest * 1.01:
        said.append(
            f"tokens: {run.tokens:,} is {run.tokens / longest:.1f} × the longest rung; "
            "a rung at the target's D would settle it"
        )
    if rows.seed.nunique() == 1:
        said.append(
            "seeds: one seed per candidate, so seed noise is taken from the valleys' residuals; add seeds to the ladder"
        )
    if rows.batch_tokens.nunique() == 1 and "batch_tokens" not in evidence:
        said.append("batch_tokens: was not searched; a batch stage would say whether another batch is better")
    return said + repeats(asked, goal)


def repeats(asked: Study, goal: Target) -> list[str]:
    """A caution where the target sees its data more than once; refused beyond four epochs."""
    from tunnel import data

    if not families.load(asked.family).reads or not data.is_local(asked.data):
        return []
    unique = len(data.opened(asked.data, asked.model.seq_len).train)
    epochs = goal.tokens / unique
    if epochs > MOST_REPEATS:
        raise UserError(
            f"reads its {unique:,} tokens {epochs:.1f} times; at most {MOST_REPEATS:g}",
            key=f"target.{goal.name}.tokens",
        )
    return (
        [f"data: the target reads its corpus {epochs:.1f} times; more data would remove this"]
        if epochs > REPEATS
        else []
    )
