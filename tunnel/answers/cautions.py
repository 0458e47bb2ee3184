"""What a reader should know before relying on a recommendation, each with what would remove it."""

from __future__ import annotations

from typing import Any

import pandas as pd

from tunnel import families
from tunnel.errors import UserError
from tunnel.run import RunSpec
from tunnel.study import Study, Target

REPEATS, MOST_REPEATS = 1.0, 4.0  # epochs: caution above the first, refusal above the second  (SCIENCE §3)


def all_of(
    asked: Study, goal: Target, run: RunSpec, fit: dict[str, Any], evidence: dict[str, Any], rows: pd.DataFrame
) -> list[str]:
    """Those that the fit, the readings and the target give rise to; raises UserError past MOST_REPEATS epochs."""
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
    joined = run.trunk.source.then
    if any(rows.D.min() <= j.at < rows.D.max() for j in joined):
        said.append(
            f"data: {joined[0].source.corpus} joined after {joined[0].at:,} tokens, between the rungs; the law "
            "takes them for one corpus, and a ladder that reads the joined data throughout would settle it"
        )
    return said + batches(run, fit, evidence, rows) + decayed(run, fit) + repeats(asked, goal)


def batches(run: RunSpec, fit: dict[str, Any], evidence: dict[str, Any], rows: pd.DataFrame) -> list[str]:
    """Cautions about a batch that was not searched, or is not the ladder's."""
    ours, tried = run.trunk.settings.batch_tokens, (fit.get("horizon") or {}).get("batch_tokens", [])
    said = []
    if rows.batch_tokens.nunique() == 1 and "batch_tokens" not in evidence and len(tried) < 2:
        said.append("batch_tokens: was not searched; a batch stage would say whether another batch is better")
    if ours not in set(rows.batch_tokens) and fit["lr"]["batch_power"] is None:
        ladders = rows.batch_tokens.max()
        said.append(
            f"lr: the target's batch is {ours / ladders:.3g} × the ladder's, and how lr* moves with the batch is not "
            "known; a batch stage with a fan of 3 would say"
        )
    return said


def decayed(run: RunSpec, fit: dict[str, Any]) -> list[str]:
    """A caution where the weight decay lies outside what the study's horizon found best at its longest rung."""
    known = (fit.get("horizon") or {}).get("best") or []
    best = max(known, key=lambda row: row["D"]).get("weight_decay") if known else None
    ours = run.trunk.settings.weight_decay
    if best is None or best["low"] <= ours <= best["high"]:
        return []
    found = f"{best['value']:.3g} ({best['low']:.3g} to {best['high']:.3g})"
    return [f"weight_decay: {ours:.3g} is used; stage {fit['horizon']['stage']} found {found} best at its longest rung"]


def repeats(asked: Study, goal: Target) -> list[str]:
    """A caution where the target sees its data more than once; refused beyond four epochs."""
    from tunnel.training import data

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


def off_aspect(goal: Target, shaped: dict[str, dict[str, Any]]) -> list[str]:
    """A caution where the target's width/depth lies outside what was found best."""
    own = goal.width / goal.depth
    return [
        f"shape: the target's width/depth is {own:.3g}, {a['low']:.3g} to {a['high']:.3g} was best at equal FLOPs; "
        "a target of that aspect may do better"
        for a in shaped.values()
        if not a["low"] <= own <= a["high"]
    ]
