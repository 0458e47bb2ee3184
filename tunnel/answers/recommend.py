"""The target's settings with their evidence, and a forecast that is registered before the target starts."""

from __future__ import annotations

from typing import Any

import pandas as pd

from tunnel import families, plan, transfer, tuned
from tunnel.answers import cautions, forecasts, ladder
from tunnel.errors import UserError
from tunnel.folder import store
from tunnel.folder.store import Store
from tunnel.run import RunSpec
from tunnel.space import Scalar
from tunnel.study import Stage, Study, Target
from tunnel.valleys import stability
from tunnel.verdicts import carry, horizon
from tunnel.verdicts.carry import Carried

SCHEMA = 1
LEAST_RUNG = 4.0  # settings tuned at D < D_target/4 need a fitted lr*(D)  (SCIENCE §3)
LEAST_RUNGS = 4  # that such a fit takes  (SCIENCE §3)
MARGIN = 2.0  # the lr keeps at least this factor from lr_max  (SCIENCE §3)


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
    rows = ladder.rows_used(asked, keep, readings, stage)
    ways = tuned.settled(horizon.own(asked, keep, readings, stage), stage)
    evidence = {**resolved["evidence"], **{k: s.as_dict() for k, s in ways.items()}}
    run, carried, cut = planned(asked, keep, goal, readings, fit, rows, ways, resolved)
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
        "settings": {**settings_of(run, fit, evidence, carried, groups, stage, rows), **shaped},
        "groups": groups,
        "multipliers": vars(transfer.multipliers(run.trunk.rules, run.trunk.shape, run.trunk.body)),
        "config": family.config_dict(run.trunk.shape, run.trunk.body, run.trunk.rules)
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
        "cautions": [
            *cautions.all_of(asked, goal, run, fit, evidence, rows),
            *cautions.off_aspect(goal, shaped),
            *([cut] if cut else []),
            *(c.caution for c in carried.values() if c.caution),
        ],
        "readings_hash": fit["readings_hash"],
    }


def planned(
    asked: Study,
    keep: Store,
    goal: Target,
    readings: pd.DataFrame,
    fit: dict[str, Any],
    rows: pd.DataFrame,
    ways: dict[str, tuned.Setting],
    resolved: dict[str, Any],
) -> tuple[RunSpec, dict[str, Carried], str]:
    """The target's run, what the verdicts did to its settings, and a caution where its lr was cut.

    From the bottom: [train], what was handed on and how it transfers, the ladder's best way, its lr and its warmup.
    """
    stage = ladder.stage_of(asked)
    values = plan.values_of(asked, stage, resolved["handed_on"])
    values |= {"lr": fit["lr"]["chosen"], "warmup": int(rows.warmup.max())}  # the ladder's own warmup, cut or not
    values |= {k: s.value for k, s in ways.items()}
    corpus_hash = max(rows.corpus_hash.astype(str), key=len)  # with all data that joined
    first = plan.target_trial(asked, goal, values, corpus_hash).runs[0]
    lawful = {*ways, *(["lr"] if fit["surface"]["curved"] else [])}
    judged = carry.verdicts(asked, keep)
    carried = carry.carried(judged, resolved["evidence"], readings, first, lawful)
    values |= {k: float(values[k]) * c.factor for k, c in carried.items() if c.factor != 1.0}
    most = safe_lr(readings, rows, float(fit["forecast"]["N"]))
    cut = ""
    if most is not None and float(values["lr"]) > most:
        cut = f"lr: cut from {values['lr']:.3g} to {most:.3g}, a factor {MARGIN:g} below where this size diverges"
        values["lr"] = most
    return plan.target_trial(asked, goal, values, corpus_hash).runs[0], carried, cut


def safe_lr(readings: pd.DataFrame, rows: pd.DataFrame, n: float) -> float | None:
    """The largest lr that is recommended at N: lr_max over a margin; None where no proxy diverged."""
    proxies = readings[~readings.stage.str.startswith("target:") & (readings.rules == rows.iloc[0].rules)]
    edge = stability.lr_max({k: proxies[k].to_numpy() for k in ("N", "lr", "status")}).at(n)
    return None if edge is None else edge / MARGIN


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
    carried: dict[str, Carried],
    groups: list[dict[str, Any]],
    stage: Stage,
    rows: pd.DataFrame,
) -> dict[str, dict[str, Any]]:
    """Every setting of the target: value, 90% interval, where it comes from, and the readings behind it."""
    s = run.trunk.settings
    behind = rows.fingerprint.tolist()
    fixed = {
        "decay_shape": run.decay_shape,
        **({"half_life": run.half_life} if run.decay_shape == "exponential" else {}),
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
    where = lr_source(fit, stage)
    found["lr"] = {"value": s.lr, "low": lr["low"], "high": lr["high"], "source": where, "readings": behind}
    for name, c in carried.items():
        if name in found and c.evidence:
            found[name]["source"] += f"; {c.evidence}"
    for name, value in vars(transfer.multipliers(run.trunk.rules, run.trunk.shape, run.trunk.body)).items():
        found[name] = exactly(value, f"rule {run.trunk.rules}")
    for group in groups:
        for name in ("lr", "init_std"):
            found[f"{name}_{group['role']}"] = exactly(group[name], f"rule {run.trunk.rules}")
    return found


def lr_source(fit: dict[str, Any], stage: Stage) -> str:
    """Where the target's lr comes from, in words."""
    if not fit["surface"]["curved"]:
        return f"stage {stage.name}'s lr"
    skew, power = fit["lr"]["skew"], fit["lr"]["batch_power"]
    side = "right" if skew["value"] > 0 else "left"
    shape = f"valleys steeper to the {side} (skew {skew['value']:.2g})" if skew["used"] else "symmetric valleys"
    where = f"lr*(N, D) of stage {stage.name}'s fans"
    if power:
        where += f", moved to the target's batch by the power {power['value']:+.2f} of stage {fit['horizon']['stage']}"
    return f"{where}; least expected loss, {shape}"


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
