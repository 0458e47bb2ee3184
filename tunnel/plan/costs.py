"""What a study would take, before it is run: FLOPs, device hours, money."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from tunnel import families
from tunnel.errors import UserError
from tunnel.plan import lessons
from tunnel.plan.paces import Paces
from tunnel.plan.trials import (
    HANDED_ON_WARMUP,
    Values,
    body_of,
    candidates,
    models,
    shape_of,
    target_trial,
    trial,
    values_of,
)
from tunnel.run import Trial
from tunnel.space import BODY, Choice, Range, Scalar
from tunnel.study import Stage, Study
from tunnel.study.money import total
from tunnel.training import data, words


@dataclass(frozen=True)
class StagePlan:
    """What one stage (or target) would take: `tokens` trained, and from scratch; FLOPs are the full count."""

    name: str
    kind: str
    trials: int
    runs: int
    shapes: list[dict[str, Any]]
    tokens: float
    from_scratch: float
    flops: float
    seconds: float  # of one device
    cost: Decimal
    schedule: list[float] = field(default_factory=list)  # multipliers at even steps through the longest run


def plan(study: Study, paces: Paces | None = None, known: Values | None = None) -> dict[str, Any]:
    """What the study would run, in FLOPs, device seconds and money; starts nothing and reads no corpus.

    `paces`: measured ones, where something has run: then its corpus may be elsewhere; `known`: its tasks as they were
    (`lessons.tasks_known`), which may be elsewhere too. Raises UserError for lengths and shapes that do not fit, and
    for a local corpus that is not there.
    """
    if paces is None and families.load(study.family).reads:
        data.look(study.data)
        check_words(study)
    paces = paces or Paces(study.price.pace(study.train.precision))
    stages: list[StagePlan] = []
    for stage in study.stage:
        before = {**handed_on(study, stage), **(known or {})}
        trials = sample_trials(study, stage, before)
        first = (candidates(study, stage, before) or [middle(stage)])[0]
        values = {**values_of(study, stage, before), **first, **biggest(stage)}
        if "warmup_share" in values:  # the longest that can be handed on
            values["warmup"] = HANDED_ON_WARMUP
        trial(study, stage, values)
        count = trials_planned(study, stage)
        stages.append(priced(study, stage.name, stage.kind, trials, count / len(trials), paces))
    check_targets(study)
    last = study.stage[-1]
    values = values_of(study, last, handed_on(study, last))
    targets = [priced(study, t.name, "target", [target_trial(study, t, values)], 1, paces) for t in study.target]
    all_flops, seconds = sum(s.flops for s in stages), sum(s.seconds for s in stages)
    cost = total(s.cost for s in stages)
    return {
        "question": study.question,
        "runs": sum(s.runs for s in stages),
        "flops": all_flops,
        "seconds": seconds,
        "cost": cost,
        "currency": study.price.currency,
        "device": study.price.device,
        "pace": "measured" if paces.measured else "expected",
        "of_target": of_target(targets, all_flops, seconds),
        "max_hours": study.budget.max_hours,
        "limits": limits(study, seconds, cost, all_flops),
        "stages": [vars(s) for s in stages],
        "targets": [vars(t) for t in targets],
    }


def check_words(study: Study) -> None:
    """Raises UserError where an encoder would not know its words, or another family would read their marks."""
    d = study.data
    told = d.words is not None or d.tokenizer == words.LEARNED
    if families.hides(study.family) and not told and d.tokenizer != "bytes":
        raise UserError("is missing: an encoder hides whole words", key="data.words", choices=["tokenizer", "jieba"])
    if told and not families.hides(study.family):
        rule = "knows no words: wordpiece and data.words belong to an encoder"
        raise UserError(rule, key="family", value=study.family)


def of_target(targets: list[StagePlan], flops: float, seconds: float) -> dict[str, float] | None:
    """What the proxies take as shares of the first target's; None where there is none."""
    return {"flops": flops / targets[0].flops, "cost": seconds / targets[0].seconds} if targets else None


def handed_on(study: Study, stage: Stage) -> dict[str, Scalar]:
    """What earlier stages are expected to hand on, before they ran: the middle of each range."""
    values: dict[str, Scalar] = {}
    for name in stage.after:
        before = study.stage_named(name)
        values |= {k: v for k, v in middle(before).items() if k not in BODY}
    for name in study.taught_by(stage):
        before = study.stage_named(name)
        runs = sample_trials(study, before, handed_on(study, before))[0].runs
        values[lessons.RUN + name] = max(runs, key=lambda r: r.tokens).model_dump_json()
    for label, model in models(study, stage).items():
        own = {**values_of(study, model.stage, handed_on(study, model.stage)), **model.values}
        runs = trial(study, model.stage, own, seed=model.seed).runs
        values[lessons.RUN + label] = max(runs, key=lambda r: r.tokens).model_dump_json()
    return values


def middle(stage: Stage) -> dict[str, Scalar]:
    return {**stage.fixed, **{name: centre(axis) for name, axis in stage.axes.items()}}


def centre(axis: Range | Choice) -> Scalar:
    if isinstance(axis, Choice):
        return axis.values[0]
    if axis.log:
        return math.sqrt(axis.low * axis.high)
    value = (axis.low + axis.high) / 2
    return value if axis.step is None else int(axis.low + (value - axis.low) // axis.step * axis.step)


def sample_trials(study: Study, stage: Stage, before: Values) -> list[Trial]:
    """A ladder's trials; of a search, the middle of its space (equal budgets cost the same all over it)."""
    base = values_of(study, stage, before)
    listed = candidates(study, stage, before) or [middle(stage)]
    return [trial(study, stage, {**base, **c}) for c in listed]


def trials_planned(study: Study, stage: Stage) -> int:
    listed = candidates(study, stage, {})
    return (stage.budget.trials if listed is None else len(listed)) * len(stage.budget.seeds)


def priced(study: Study, name: str, kind: str, trials: list[Trial], times: float, paces: Paces) -> StagePlan:
    shapes = shapes_of(study, trials, times, paces, kind)
    seconds = sum(s["seconds"] for s in shapes)
    longest = max((r for t in trials for r in t.runs), key=lambda r: r.tokens)
    return StagePlan(
        name=name,
        kind=kind,
        trials=round(times * len(trials)),
        runs=round(times * sum(len(t.runs) for t in trials)),
        shapes=shapes,
        tokens=times * sum(t.trained for t in trials),
        from_scratch=times * sum(t.from_scratch for t in trials),
        flops=sum(s["trained_flops"] for s in shapes),
        seconds=seconds,
        cost=study.price.cost(seconds),
        schedule=[longest.multiplier(round(longest.tokens * i / 40)) for i in range(40)],
    )


def shapes_of(study: Study, trials: list[Trial], times: float, paces: Paces, kind: str) -> list[dict[str, Any]]:
    """Each shape once: N, its longest D, 6ND and the full FLOPs of that reading; what all its trials train and take."""
    family, body = families.load(study.family), body_of(study)
    rows: dict[str, dict[str, Any]] = {}
    for t in trials:
        shape, n, per_token = (
            t.trunk.shape,
            family.count(t.trunk.shape, body),
            family.flops_per_token(t.trunk.shape, body),
        )
        row = rows.setdefault(
            str(shape), {"shape": str(shape), "width": shape.width, "depth": shape.depth, "N": n, "D": 0}
        )
        d, pace = max(t.rung, row["D"]), paces.at(per_token)
        if kind == "target":  # small proxies are bound by overhead: a target reaches at least what the price says
            pace = max(pace, study.price.pace(t.trunk.settings.precision))
        if t.rung == d:
            longest = max(t.runs, key=lambda r: r.tokens)
            row |= {"D": d, "C": families.compute(longest), "flops": families.flops(longest)}
        row["trials"] = row.get("trials", 0.0) + times
        row["trained_flops"] = row.get("trained_flops", 0.0) + times * t.trained * per_token
        row["seconds"] = row["trained_flops"] / pace
    return sorted(rows.values(), key=lambda r: r["N"])


def limits(study: Study, seconds: float, cost: Decimal, flops: float) -> list[dict[str, Any]]:
    """The study's limits beside what is taken of them: hours of one device, money, FLOPs; `share` is 1 at the limit."""
    limit = study.budget
    rows = [
        ("max_hours", limit.max_hours, seconds / 3600, "device hours"),
        ("max_cost", limit.max_cost, cost, study.price.currency),
        ("max_flops", limit.max_flops, flops, "FLOPs"),
    ]
    return [
        {"name": name, "limit": most, "taken": taken, "unit": unit, "share": float(taken / most)}  # type: ignore[operator]
        for name, most, taken, unit in rows
        if most is not None
    ]


def check_targets(study: Study) -> None:
    """A target must be larger than every proxy: the tunnel extrapolates, it does not look up."""
    family, body = families.load(study.family), body_of(study)
    largest, where = 0, ""
    for stage in study.stage:
        widths = [{"width": w, "depth": d} for w, d in stage.shapes] or [biggest(stage)]
        for shape in widths:
            if {"width", "depth"} <= set(shape) and (n := family.count(shape_of(study.family, shape), body)) > largest:
                largest, where = n, stage.name
    for target in study.target:
        n = family.count(shape_of(study.family, target.model_dump()), body)
        if n < largest:
            raise UserError(
                f"has {n:,} parameters, fewer than the largest proxy of stage {where} ({largest:,})",
                key=f"target.{target.name}",
            )


def biggest(stage: Stage) -> dict[str, Any]:
    """The corner where lengths fit least: the largest shape, the longest warmup and decay, the fewest FLOPs."""
    ranges = {k: a for k, a in stage.axes.items() if isinstance(a, Range)}
    return {**stage.fixed, **{k: a.low if k == "flops" else a.high for k, a in ranges.items()}}
