"""From a study to its trials: candidates, trunks, forks. Proxies and target go the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from tunnel import families
from tunnel.errors import UserError
from tunnel.plan import lessons
from tunnel.run import BALANCE, TOP_K, Body, Joined, Mixed, Mixture, RunSpec, Settings, Shape, Source, Trial, TrunkSpec
from tunnel.schedule import HALF_LIFE, whole_batches
from tunnel.space import Choice, Scalar, by_source, check_shares, mix_of
from tunnel.study import Stage, Study, Target, Texts
from tunnel.training import data

Values = Mapping[str, Scalar]  # settings by name, as base-shape values
STABLE = "1-sqrt"  # a run without a decay has a shape all the same, and one identity
HANDED_ON_WARMUP = 0.3  # of the shortest rung: what was tuned on longer runs is cut to this where it must  *assumed*


def body_of(study: Study) -> Body:
    m = study.model
    return Body(**m.model_dump(), vocab=study.data.vocab)


def source_of(study: Study, corpus_hash: str) -> Source:
    """The trunk's data; `corpus_hash` as `data.newest` has it, or empty where nothing was read yet."""
    d = study.data
    first, *rest = corpus_hash.split(";")[0].split("+")
    hashes = [*rest, *[""] * (len(d.joins) - len(rest))]
    then = tuple(
        Joined(at=at, share=share, source=part_of(study, t, h))
        for (at, share, t), h in zip(d.joins, hashes, strict=True)
    )
    weighs = tuple(sorted(d.weighs.items()))
    loss = () if weighs == ((d.first, 1.0),) else weighs
    return part_of(study, d, first).replaced(then=then, loss=loss)


def part_of(study: Study, texts: Texts, corpus_hash: str) -> Source:
    d = study.data
    same = {"tokenizer": d.tokenizer, "held_out": d.held_out, "eval_tokens": d.eval_tokens}
    return Source(corpus=texts.corpus, corpus_hash=corpus_hash, **same)


def mixed(study: Study, values: Values, corpus_hash: str, where: str) -> tuple[Mixed, ...]:
    """A decay's own data; raises UserError where the shares that several places ask for are more than all of it."""
    shares = mix_of(values)
    try:
        check_shares(shares)
    except ValueError as e:
        raise UserError(str(e), key=where) from None
    hashes = dict(part.split("=") for part in corpus_hash.split(";")[1:])
    return tuple(
        Mixed(name=name, share=share, source=part_of(study, study.data.named(name), hashes.get(name, "")))
        for name, share in shares.items()
    )


def opened(study: Study) -> data.Corpus | None:
    """The study's corpus, where its family reads one."""
    return data.opened(study.data, study.model.seq_len) if families.load(study.family).reads else None


def values_of(study: Study, stage: Stage, handed_on: Values) -> dict[str, Scalar]:
    """A stage's settings before anything is sampled: [train], then what was handed on, then its own space."""
    train = by_source(study.train.model_dump(include=set(TRAINED)))
    own = {**train, "rules": study.rules, **handed_on, **stage.fixed}
    if "warmup" in handed_on and "warmup" not in stage.fixed:
        own["warmup_share"] = HANDED_ON_WARMUP
    return own


TRAINED = (
    *("lr", "warmup", "decay", "decay_shape", "min_ratio", "half_life", "decay_mix"),
    *("batch_tokens", "weight_decay", "beta2", "balance", "masking"),
)


# candidates: what a stage asks for, in order


def candidates(study: Study, stage: Stage, handed_on: Values) -> list[dict[str, Scalar]] | None:
    """What a listed stage asks: shapes × lists of its space × batches × fan, the costly first; None for a search."""
    if stage.searches:
        return None
    lr = float(values_of(study, stage, handed_on)["lr"])
    lists = {name: axis.values for name, axis in stage.axes.items() if isinstance(axis, Choice)}
    if stage.batches:
        lists["batch_tokens"] = stage.batches
    shapes: list[dict[str, Scalar]] = [{"width": width, "depth": depth} for width, depth in stage.shapes]
    bodies = shapes or [m.candidate(label) for label, m in models(study, stage).items()]
    listed = [
        {**body, "lr": lr * factor, **dict(zip(lists, chosen, strict=True))}
        for body in bodies
        for chosen in product(*lists.values())
        for factor in stage.fan or (1.0,)
    ]
    family, of = families.load(study.family), body_of(study)

    def cost(candidate: Mapping[str, Any]) -> float:
        return float(family.flops_per_token(shape_of(study.family, {**stage.fixed, **candidate}), of))

    return sorted(listed, key=lambda c: -cost(c))


@dataclass(frozen=True)
class Model:
    """A finished model that a stage is to tune: of which stage, which of its candidates at its best lr, which seed."""

    stage: Stage
    values: Mapping[str, Scalar]
    seed: int

    def candidate(self, label: str) -> dict[str, Scalar]:
        return {"width": self.values["width"], "depth": self.values["depth"], "model": label}


def models(study: Study, stage: Stage) -> dict[str, Model]:
    """What a `finetune` tunes, by label: every candidate of its stages, but for the lr, at each seed."""
    found: dict[str, Model] = {}
    for before in map(study.stage_named, stage.models):
        for c in candidates(study, before, {}) or [{}]:
            own = {**before.fixed, **{k: v for k, v in c.items() if k != "lr"}}
            shape = require_shape(before, own)
            told = [f"{shape['width']}x{shape['depth']}", *(str(v) for k, v in own.items() if k in before.axes)]
            for seed in before.budget.seeds:
                found["-".join([before.name, *told, f"s{seed}"])] = Model(before, own, seed)
    return found


def shape_of(family: str, values: Mapping[str, Any]) -> Shape:
    """The shape that settings name; raises UserError where a mixture cannot be, or the family has none."""
    return Shape(
        width=int(values["width"]),
        depth=int(values["depth"]),
        kv_heads=values.get("kv_heads"),
        mixture=mixture_of(family, values),
    )


def mixture_of(family: str, values: Mapping[str, Any]) -> Mixture | None:
    experts, top_k = int(values.get("experts", 1)), int(values.get("top_k", TOP_K))
    if experts == 1:
        return None
    if not families.mixes(family):
        those = " or ".join(filter(families.mixes, families.names()))
        raise UserError(
            f"above 1 is a mixture, which is family {those}'s, not {family}'s", key="experts", value=experts
        )
    if top_k > experts:
        raise UserError(f"is more than the {experts} experts that there are", key="top_k", value=top_k)
    return Mixture(experts=experts, top_k=top_k, granularity=int(values.get("granularity", 1)))


# trials: a candidate at a seed becomes a trunk with its forks


def trial(
    study: Study, stage: Stage, values: Values, *, seed: int = 0, number: int = 0, corpus_hash: str = ""
) -> Trial:
    """A stage's candidate as a trunk with forks at its rungs; raises UserError where the lengths do not fit."""
    shape = shape_of(study.family, require_shape(stage, values))
    forks, rungs = [d.values() for d in stage.decays], lengths(study, stage, shape, values)
    first = lessons.begins(study, stage, values, shape.width)
    found = build(study, shape, values, rungs, seed, stage.name, number, corpus_hash, forks, first)
    return found.model_copy(update={"keeps": study.is_wanted(stage.name)})


def target_trial(study: Study, target: Target, values: Values, corpus_hash: str = "") -> Trial:
    """The full-size run, planned exactly as a proxy is."""
    shape = shape_of(study.family, target.model_dump())
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
    if stage.rungs is not None and stage.rungs.epochs:
        return [
            e * lessons.task_of(study, str(values["task"]), values).examples * body.seq_len for e in stage.rungs.epochs
        ]
    if stage.rungs is not None and stage.rungs.flops:
        return at_flops(study, stage.rungs.flops, shape, values)
    if stage.rungs is not None:
        found = stage.rungs.lengths(n)
        if not found:
            which = f"leaves {shape.width}×{shape.depth}, of {n:,} parameters, no rung"
            raise UserError(which, key=f"stage.{stage.name}.rungs.max_flops", value=stage.rungs.max_flops)
        return found
    b = stage.budget
    flops = values["flops"] if "flops" in stage.axes else b.flops
    if flops is not None:
        return at_flops(study, [float(flops)], shape, values)
    return [float(b.tokens)] if b.tokens is not None else [float(b.tokens_per_param or 0) * n]


def at_flops(study: Study, flops: Sequence[float], shape: Shape, values: Values) -> list[float]:
    """D of the readings that take so many FLOPs from scratch, what an upcycled body took while it was dense included.

    With f a token's, F a reading's, F = at·f_dense + (D − at)·f; where `at` is a share of the shortest D, that is found
    first.
    """
    per_token, body = families.load(study.family).flops_per_token, body_of(study)
    own, dense = per_token(shape, body), per_token(shape.replaced(mixture=None), body)
    at = float(values.get("upcycle_at", 0.0))
    if at < 1:
        at *= min(flops) / (at * dense + (1 - at) * own)
    return [at + (f - at * dense) / own for f in flops]


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
    begins: Mapping[str, Any] | None = None,
) -> Trial:
    batch = int(values["batch_tokens"])
    if batch % study.model.seq_len:
        raise UserError("is not a multiple of model.seq_len", key="batch_tokens", value=batch)
    trunk = TrunkSpec(
        family=study.family,
        rules=str(values["rules"]),
        shape=shape,
        body=body_of(study),
        settings=settings(study, shape, values, batch, min(rungs)),
        source=source_of(study, corpus_hash),
        seed=study.seed + seed,
        **(begins or {}),
    )
    if "upcycle_at" in values:
        trunk = upcycled(trunk, float(values["upcycle_at"]), min(rungs), f"stage {stage}")
    ways = [{**values, **d} for d in decays or ({},)]
    mixes = [mixed(study, way, corpus_hash, f"stage {stage}") for way in ways]
    runs = {
        fork(trunk, study, way, rung, f"stage {stage}").replaced(mix=mix): None
        for rung in rungs
        for way, mix in zip(ways, mixes, strict=True)
    }
    return Trial(stage=stage, number=number, runs=tuple(sorted(runs, key=lambda r: (r.decay_start, r.tokens))))


def upcycled(trunk: TrunkSpec, at: float, shortest: float, where: str) -> TrunkSpec:
    """A mixture's trunk that goes on from a dense one: that of a dense stage with its settings, so they share it."""
    tokens = whole_batches(at if at >= 1 else at * shortest, trunk.settings.batch_tokens, at_least=1)
    if trunk.shape.mixture is None:
        raise UserError("has no experts to upcycle to", key=where)
    if tokens < trunk.settings.warmup:
        rule = f"lies at {tokens} tokens, in the dense trunk's warmup of {trunk.settings.warmup}"
        raise UserError(rule, key=f"{where}.space.upcycle_at", value=at)
    dense = trunk.replaced(
        shape=trunk.shape.replaced(mixture=None), settings=trunk.settings.replaced(balance=BALANCE)
    ).until(tokens)
    stable = RunSpec(trunk=dense, decay_start=tokens, decay_tokens=0, decay_shape=STABLE)
    return trunk.replaced(start=stable)


def settings(study: Study, shape: Shape, values: Values, batch: int, shortest: float) -> Settings:
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
        balance=float(values["balance"]) if shape.mixture is not None else BALANCE,
        masking=str(values["masking"]),
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
    if start < trunk.begun:
        raise UserError(f"a dense trunk of {trunk.begun} tokens is longer than the decay's start at {start}", key=where)
    shape = "cosine" if cosine else str(values["decay_shape"])
    return RunSpec(
        trunk=trunk.until(d),
        decay_start=start,
        decay_tokens=d - start,
        decay_shape=shape,
        min_ratio=float(values["min_ratio"]),
        half_life=float(values["half_life"]) if shape == "exponential" else HALF_LIFE,
    )
