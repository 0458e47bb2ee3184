"""From a study to its trials: candidates, trunks, forks. Proxies and target go the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from tunnel import families
from tunnel.errors import UserError
from tunnel.run import Body, Joined, Mixed, RunSpec, Settings, Shape, Source, Trial, TrunkSpec
from tunnel.schedule import HALF_LIFE, whole_batches
from tunnel.space import Choice, Scalar, by_source, check_shares, mix_of
from tunnel.study import Stage, Study, Target, Texts
from tunnel.training import data

Values = Mapping[str, Scalar]  # settings by name, as base-shape values
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
    *("batch_tokens", "weight_decay", "beta2"),
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
        found = stage.rungs.lengths(n)
        if not found:
            which = f"leaves {shape.width}×{shape.depth}, of {n:,} parameters, no rung"
            raise UserError(which, key=f"stage.{stage.name}.rungs.max_flops", value=stage.rungs.max_flops)
        return found
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
    mixes = [mixed(study, way, corpus_hash, f"stage {stage}") for way in ways]
    runs = {
        fork(trunk, study, way, rung, f"stage {stage}").replaced(mix=mix): None
        for rung in rungs
        for way, mix in zip(ways, mixes, strict=True)
    }
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
