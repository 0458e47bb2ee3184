"""From a study to what would run: candidates, trunks, forks, and what they cost. Proxies and target go the same way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from tunnel import families
from tunnel.errors import UserError
from tunnel.run import Body, Joined, RunSpec, Settings, Shape, Source, Trial, TrunkSpec
from tunnel.schedule import HALF_LIFE, whole_batches
from tunnel.space import Choice, Range, Scalar
from tunnel.study import Stage, Study, Target
from tunnel.training import data

Values = Mapping[str, Scalar]  # settings by name, as base-shape values
HANDED_ON_WARMUP = 0.3  # of the shortest rung: what was tuned on longer runs is cut to this where it must  *assumed*


def body_of(study: Study) -> Body:
    m = study.model
    return Body(**m.model_dump(), vocab=study.data.vocab)


def source_of(study: Study, corpus_hash: str) -> Source:
    d = study.data
    first, *rest = corpus_hash.split("+")
    same = {"tokenizer": d.tokenizer, "held_out": d.held_out, "eval_tokens": d.eval_tokens}
    then = [
        Joined(at=t.at, share=t.share, source=Source(corpus=t.corpus, corpus_hash=h, **same))
        for t, h in zip(d.then, [*rest, *[""] * (len(d.then) - len(rest))], strict=True)
    ]
    return Source(corpus=d.corpus, corpus_hash=first, then=tuple(then), **same)


def opened(study: Study) -> data.Corpus | None:
    """The study's corpus, where its family reads one."""
    return data.opened(study.data, study.model.seq_len) if families.load(study.family).reads else None


def values_of(study: Study, stage: Stage, handed_on: Values) -> dict[str, Scalar]:
    """A stage's settings before anything is sampled: [train], then what was handed on, then its own space."""
    train = study.train.model_dump(include=set(TRAINED))
    own = {**train, "rules": study.rules, **handed_on, **stage.fixed}
    if "warmup" in handed_on and "warmup" not in stage.fixed:
        own["warmup_share"] = HANDED_ON_WARMUP
    return own


TRAINED = ("lr", "warmup", "decay", "decay_shape", "min_ratio", "half_life", "batch_tokens", "weight_decay", "beta2")


# candidates: what a stage asks for, in order


def candidates(study: Study, stage: Stage, handed_on: Values) -> list[dict[str, Scalar]] | None:
    """What a listed stage asks: shapes × lists of its space × batches × fan, the costly first; None for a search."""
    if stage.kind == "search":
        return None
    lr = float(values_of(study, stage, handed_on)["lr"])
    lists = {name: axis.values for name, axis in stage.axes.items() if isinstance(axis, Choice)}
    if stage.batches:
        lists["batch_tokens"] = stage.batches
    listed = [
        {"width": width, "depth": depth, "lr": lr * factor, **dict(zip(lists, chosen, strict=True))}
        for width, depth in stage.shapes
        for chosen in product(*lists.values())
        for factor in stage.fan or (1.0,)
    ]
    body = body_of(study)
    return sorted(listed, key=lambda c: -families.load(study.family).flops_per_token(shape_of(c), body))


def shape_of(values: Mapping[str, Any]) -> Shape:
    return Shape(width=int(values["width"]), depth=int(values["depth"]), kv_heads=values.get("kv_heads"))


# trials: a candidate at a seed becomes a trunk with its forks


def trial(
    study: Study, stage: Stage, values: Values, *, seed: int = 0, number: int = 0, corpus_hash: str = ""
) -> Trial:
    """A stage's candidate as a trunk with forks at its rungs; raises UserError where the lengths do not fit."""
    shape = shape_of(require_shape(stage, values))
    forks, rungs = [d.values() for d in stage.decays], lengths(study, stage, shape, values)
    return build(study, shape, values, rungs, seed, stage.name, number, corpus_hash, forks)


def target_trial(study: Study, target: Target, values: Values, corpus_hash: str = "") -> Trial:
    """The full-size run, planned exactly as a proxy is."""
    shape = Shape(width=target.width, depth=target.depth, kv_heads=target.kv_heads)
    values = {**values, "batch_tokens": target.batch_tokens or values["batch_tokens"]}
    values["precision"] = target.precision or study.train.precision
    return build(study, shape, values, [target.tokens], 0, f"target:{target.name}", 0, corpus_hash)


def require_shape(stage: Stage, values: Values) -> Values:
    for name in ("width", "depth"):
        if name not in values:
            raise UserError(
                "is missing: give it in the stage's space or shapes", key=f"stage.{stage.name}.space.{name}"
            )
    return values


def lengths(study: Study, stage: Stage, shape: Shape, values: Values) -> list[float]:
    """The readings' D of a stage at a shape (tokens, not rounded)."""
    family, body = families.load(study.family), body_of(study)
    n = family.count(shape, body)
    if stage.rungs is not None:
        return [float(t) for t in stage.rungs.tokens] or [r * n for r in stage.rungs.tokens_per_param]
    b = stage.budget
    flops = values["flops"] if "flops" in stage.axes else b.flops
    if flops is not None:
        return [float(flops) / family.flops_per_token(shape, body)]
    return [float(b.tokens)] if b.tokens is not None else [float(b.tokens_per_param or 0) * n]


def build(
    study: Study,
    shape: Shape,
    values: Values,
    rungs: list[float],
    seed: int,
    stage: str,
    number: int,
    corpus_hash: str,
    decays: Sequence[Values] = (),
) -> Trial:
    batch = int(values["batch_tokens"])
    if batch % study.model.seq_len:
        raise UserError("is not a multiple of model.seq_len", key="batch_tokens", value=batch)
    trunk = TrunkSpec(
        family=study.family,
        rules=str(values["rules"]),
        shape=shape,
        body=body_of(study),
        settings=settings(study, values, batch, min(rungs)),
        source=source_of(study, corpus_hash),
        seed=study.seed + seed,
    )
    ways = [{**values, **d} for d in decays or ({},)]
    runs = {fork(trunk, study, way, rung, f"stage {stage}"): None for rung in rungs for way in ways}
    return Trial(stage=stage, number=number, runs=tuple(sorted(runs, key=lambda r: (r.decay_start, r.tokens))))


def settings(study: Study, values: Values, batch: int, shortest: float) -> Settings:
    """Settings in tokens: a warmup below 1 is a fraction of the shortest rung."""
    t, warmup = study.train, float(values["warmup"])
    micro = min(t.micro_batch_tokens or batch, batch)
    if batch % micro or micro % study.model.seq_len:
        raise UserError("does not divide the batch into whole sequences", key="train.micro_batch_tokens", value=micro)
    warmup = warmup if warmup >= 1 else warmup * shortest
    return Settings(
        lr=float(values["lr"]),
        warmup=whole_batches(min(warmup, float(values.get("warmup_share", 1.0)) * shortest), batch),
        batch_tokens=batch,
        micro_batch_tokens=micro,
        weight_decay=float(values["weight_decay"]),
        beta1=t.beta1,
        beta2=float(values["beta2"]),
        eps=t.eps,
        clip=t.clip,
        dropout=t.dropout,
        precision=values.get("precision", t.precision),
    )


def fork(trunk: TrunkSpec, study: Study, values: Values, rung: float, where: str) -> RunSpec:
    """The run whose reading lies at `rung` tokens: its decay starts at D·(1 − decay)."""
    batch, warmup = trunk.settings.batch_tokens, trunk.settings.warmup
    d = whole_batches(rung, batch, at_least=2)
    cosine = study.train.schedule == "cosine"
    start = warmup if cosine else d - whole_batches(float(values["decay"]) * d, batch, at_least=1)
    if start < warmup or d <= start:
        raise UserError(f"a warmup of {warmup} tokens leaves no stable phase before the decay at {start}", key=where)
    shape = "cosine" if cosine else str(values["decay_shape"])
    return RunSpec(
        trunk=trunk.until(d),
        decay_start=start,
        decay_tokens=d - start,
        decay_shape=shape,
        min_ratio=float(values["min_ratio"]),
        half_life=float(values["half_life"]) if shape == "exponential" else HALF_LIFE,
    )


# what it would cost


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
    seconds: float
    cost: float
    schedule: list[float] = field(default_factory=list)  # multipliers at even steps through the longest run


def plan(study: Study) -> dict[str, Any]:
    """What the study would run, in FLOPs, device hours and money; starts nothing and reads no corpus.

    Raises UserError for lengths and shapes that do not fit, and for a local corpus that is not there.
    """
    if families.load(study.family).reads:
        data.look(study.data)
    stages: list[StagePlan] = []
    for stage in study.stage:
        before = handed_on(study, stage)
        trials = sample_trials(study, stage, before)
        values = {**values_of(study, stage, before), **trials[0].trunk.shape.model_dump(), **biggest(stage)}
        if "warmup_share" in values:  # the longest that can be handed on
            values["warmup"] = HANDED_ON_WARMUP
        trial(study, stage, values)
        count = trials_planned(stage)
        stages.append(priced(study, stage.name, stage.kind, trials, count / len(trials)))
    check_targets(study)
    last = study.stage[-1]
    targets = [
        priced(study, t.name, "target", [target_trial(study, t, values_of(study, last, handed_on(study, last)))], 1)
        for t in study.target
    ]
    return {
        "question": study.question,
        "runs": sum(s.runs for s in stages),
        "flops": sum(s.flops for s in stages),
        "seconds": sum(s.seconds for s in stages),
        "cost": sum(s.cost for s in stages),
        "currency": study.price.currency,
        "device": study.price.device,
        "max_hours": study.budget.max_hours,
        "stages": [vars(s) for s in stages],
        "targets": [vars(t) for t in targets],
    }


def handed_on(study: Study, stage: Stage) -> dict[str, Scalar]:
    """What earlier stages are expected to hand on, before they ran: the middle of each range."""
    values: dict[str, Scalar] = {}
    for name in stage.after:
        before = study.stage_named(name)
        values |= {k: v for k, v in middle(before).items() if k not in ("width", "depth")}
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


def trials_planned(stage: Stage) -> int:
    lists = math.prod(len(a.values) for a in stage.axes.values() if isinstance(a, Choice))
    listed = len(stage.shapes) * max(len(stage.fan), 1) * max(len(stage.batches), 1) * lists
    return (stage.budget.trials if stage.kind == "search" else listed) * len(stage.budget.seeds)


def priced(study: Study, name: str, kind: str, trials: list[Trial], times: float) -> StagePlan:
    family, body = families.load(study.family), body_of(study)
    per_token = [family.flops_per_token(t.trunk.shape, body) for t in trials]
    flops = times * sum(t.trained * f for t, f in zip(trials, per_token, strict=True))
    seconds = flops / (study.price.flops_per_second * study.price.mfu)
    longest = max((r for t in trials for r in t.runs), key=lambda r: r.tokens)
    return StagePlan(
        name=name,
        kind=kind,
        trials=round(times * len(trials)),
        runs=round(times * sum(len(t.runs) for t in trials)),
        shapes=shapes_of(study, trials),
        tokens=times * sum(t.trained for t in trials),
        from_scratch=times * sum(t.from_scratch for t in trials),
        flops=flops,
        seconds=seconds,
        cost=seconds / 3600 * study.price.per_hour,
        schedule=[longest.multiplier(round(longest.tokens * i / 40)) for i in range(40)],
    )


def shapes_of(study: Study, trials: list[Trial]) -> list[dict[str, Any]]:
    """Each shape once: N, its longest D, 6ND and the full FLOPs of that reading."""
    family, body = families.load(study.family), body_of(study)
    rows: dict[str, dict[str, Any]] = {}
    for t in trials:
        shape, d = t.trunk.shape, t.rung
        n = family.count(shape, body)
        rows[str(shape)] = {
            "width": shape.width,
            "depth": shape.depth,
            "N": n,
            "D": d,
            "C": 6.0 * n * d,
            "flops": family.flops_per_token(shape, body) * d,
        }
    return sorted(rows.values(), key=lambda r: r["N"])


def check_targets(study: Study) -> None:
    """A target must be larger than every proxy: the tunnel extrapolates, it does not look up."""
    family, body = families.load(study.family), body_of(study)
    largest, where = 0, ""
    for stage in study.stage:
        widths = [{"width": w, "depth": d} for w, d in stage.shapes] or [biggest(stage)]
        for shape in widths:
            if {"width", "depth"} <= set(shape) and (n := family.count(shape_of(shape), body)) > largest:
                largest, where = n, stage.name
    for target in study.target:
        n = family.count(Shape(width=target.width, depth=target.depth, kv_heads=target.kv_heads), body)
        if n < largest:
            raise UserError(
                f"has {n:,} parameters, fewer than the largest proxy of stage {where} ({largest:,})",
                key=f"target.{target.name}",
            )


def biggest(stage: Stage) -> dict[str, Any]:
    """The corner where lengths fit least: the largest shape, the longest warmup and decay, the fewest FLOPs."""
    ranges = {k: a for k, a in stage.axes.items() if isinstance(a, Range)}
    return {**stage.fixed, **{k: a.low if k == "flops" else a.high for k, a in ranges.items()}}
