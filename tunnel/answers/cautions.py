"""What a reader should know before relying on a recommendation, each with what to run to remove it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunnel import families
from tunnel.answers import forecasts, remedies
from tunnel.answers.basis import Basis
from tunnel.errors import UserError
from tunnel.run import RunSpec
from tunnel.verdicts.carry import Carried

REPEATS, MOST_REPEATS = 1.0, 4.0  # epochs: caution above the first, refusal above the second  (SCIENCE §3)
WIDE = 5.0  # % of the loss: an interval that reaches farther says little  *assumed*


@dataclass(frozen=True)
class Caution:
    """`about`: edge, fit, seeds, data, drift, batch, shape, forced; `text` in a line; `run` removes it."""

    about: str
    text: str
    run: str


def all_of(b: Basis, run: RunSpec, told: Mapping[str, Any]) -> list[Caution]:
    """Those that the fit, the readings and the target give rise to."""
    return [
        *edges(b, run),
        *poor(b, told),
        *short(b, run),
        *few(b),
        *joined(b, run),
        *batches(b, run),
        *decayed(b, run),
    ]


def edges(b: Basis, run: RunSpec) -> list[Caution]:
    """Optima at the edge of what was tried, or without curvature."""
    found = {name: known["caution"] for name, known in b.evidence.items() if known["caution"]}
    said = [Caution("edge", text, remedies.searched(b, name, text)) for name, text in found.items()]
    low, high, lr = float(b.rows.lr.min()), float(b.rows.lr.max()), run.trunk.settings.lr
    if not b.fit["surface"]["curved"]:
        text = "lr: the fans show no minimum; run them with more, and wider, factors"
        said.append(Caution("edge", text, remedies.wider_fan(b)))
    elif not low <= lr <= high:
        text = f"lr: {lr:.3g} lies outside what was tried ({low:.3g} to {high:.3g}); widen the fan"
        said.append(Caution("edge", text, remedies.fan_to(b, lr)))
    return said


def poor(b: Basis, told: Mapping[str, Any]) -> list[Caution]:
    """A law that its readings do not settle, a wide interval, and a study whose forecasts missed too often."""
    law, said = b.fit["laws"][b.fit["chosen"]], []
    if law["status"] != "converged":
        text = (
            f"law {b.fit['chosen']}: {law['status']}, {law['reason']}; more shapes on the target's path would settle it"
        )
        said.append(Caution("fit", text, remedies.shapes(b)))
    reach = max(abs(end) for end in told["interval_percent"]["loss"])
    if reach > WIDE:
        text = f"forecast: its interval reaches {reach:.1f}% of the loss, for want of readings near the target"
        said.append(Caution("fit", text, remedies.next_runs(b)))
    fared = forecasts.every(b.keep)
    if not fared["enough"]:
        inside, of = fared["all"]["inside"], fared["all"]["of"]
        text = f"forecast: {inside} of this study's {of} forecasts so far lay inside their 90% intervals"
        said.append(Caution("fit", text, remedies.seeds(b)))
    return said


def short(b: Basis, run: RunSpec) -> list[Caution]:
    longest = float(b.rows.D.max())
    if run.tokens <= longest * 1.01:
        return []
    text = f"tokens: {run.tokens:,} is {run.tokens / longest:.1f} × the longest rung; "
    text += "a rung at the target's D would settle it"
    return [Caution("drift", text, remedies.longer(b))]


def few(b: Basis) -> list[Caution]:
    if b.rows.seed.nunique() > 1:
        return []
    text = "seeds: one seed per candidate, so seed noise is taken from the valleys' residuals; add seeds to the ladder"
    return [Caution("seeds", text, remedies.seeds(b))]


def joined(b: Basis, run: RunSpec) -> list[Caution]:
    """A caution where data joined between the rungs."""
    late = [j for j in run.trunk.source.then if j.at > 0 and b.rows.D.min() <= j.at < b.rows.D.max()]
    if not late:
        return []
    text = (
        f"data: {late[0].source.corpus} joined after {late[0].at:,} tokens, between the rungs; the law takes them for "
        "one corpus, and a ladder that reads the joined data throughout would settle it"
    )
    return [Caution("data", text, remedies.joined_throughout(b, late[0].share))]


def batches(b: Basis, run: RunSpec) -> list[Caution]:
    """Cautions about a batch that was not searched, or is not the ladder's."""
    ours, tried = run.trunk.settings.batch_tokens, (b.fit.get("horizon") or {}).get("batch_tokens", [])
    said = []
    if b.rows.batch_tokens.nunique() == 1 and "batch_tokens" not in b.evidence and len(tried) < 2:
        said.append("batch_tokens: was not searched; a batch stage would say whether another batch is better")
    if ours not in set(b.rows.batch_tokens) and b.fit["lr"]["batch_power"] is None:
        ladders = b.rows.batch_tokens.max()
        said.append(
            f"lr: the target's batch is {ours / ladders:.3g} × the ladder's, and how lr* moves with the batch is not "
            "known; a batch stage with a fan of 3 would say"
        )
    return [Caution("batch", text, remedies.batch_stage(b, ours)) for text in said]


def decayed(b: Basis, run: RunSpec) -> list[Caution]:
    """A caution where the weight decay lies outside what the study's horizon found best at its longest rung."""
    known = (b.fit.get("horizon") or {}).get("best") or []
    best = max(known, key=lambda row: row["D"]).get("weight_decay") if known else None
    ours = run.trunk.settings.weight_decay
    if best is None or best["low"] <= ours <= best["high"]:
        return []
    found = f"{best['value']:.3g} ({best['low']:.3g} to {best['high']:.3g})"
    text = f"weight_decay: {ours:.3g} is used; stage {b.fit['horizon']['stage']} found {found} best at its longest rung"
    return [Caution("drift", text, remedies.trained_with(b, best))]


def repeats(b: Basis, run: RunSpec) -> list[Caution]:
    """A caution where the target sees a source more than once; raises UserError beyond four epochs."""
    from tunnel.training import data

    local = all(map(data.is_local, (b.asked.data, *(part for _, _, part in b.asked.data.joins))))
    if not families.load(b.asked.family).reads or not local:
        return []
    t = b.asked.model.seq_len
    corpus = data.opened(b.asked.data, t).of(run.trunk.source).during(run.mix, run.decay_start)
    read = {c.name: (len(c.train), int(n) * t) for c, n in corpus.counts(np.array(run.tokens // t), t).values()}
    epochs = {name: tokens / unique for name, (unique, tokens) in read.items()}
    most = max(epochs, key=lambda name: epochs[name])
    if epochs[most] > MOST_REPEATS:
        source = "" if len(read) == 1 else f" of {most}"
        raise UserError(
            f"reads its {read[most][0]:,} tokens{source} {epochs[most]:.1f} times; at most {MOST_REPEATS:g}",
            key=f"target.{b.goal.name}.tokens",
        )
    said = []
    for name, times in epochs.items():
        which = "its corpus" if len(read) == 1 else f"source {name}"
        text = f"data: the target reads {which} {times:.1f} times; more data would remove this"
        said += [Caution("data", text, remedies.more_data(b))] if times > REPEATS else []
    return said


def carried(b: Basis, found: Mapping[str, Carried]) -> list[Caution]:
    """What no verdict, or a bad one, says of settings that were tuned on smaller runs."""
    values = {**b.handed_on, **{k: s.value for k, s in b.ways.items()}, "lr": b.fit["lr"]["chosen"]}
    return [
        Caution("drift", c.caution, remedies.verdict_stage(b, name, values.get(name, 1.0)))
        for name, c in found.items()
        if c.caution
    ]


def off_aspect(b: Basis, shaped: Mapping[str, Mapping[str, Any]]) -> list[Caution]:
    """A caution where the target's width/depth lies outside what was found best."""
    own = b.goal.width / b.goal.depth
    return [
        Caution(
            "shape",
            f"shape: the target's width/depth is {own:.3g}, {a['low']:.3g} to {a['high']:.3g} was best at equal FLOPs; "
            "a target of that aspect may do better",
            remedies.target_of(b, a["value"]),
        )
        for a in shaped.values()
        if not a["low"] <= own <= a["high"]
    ]


def near_the_edge(b: Basis, cut: str) -> list[Caution]:
    """A caution where the lr was cut, for smaller shapes diverged not far above it."""
    return [Caution("edge", cut, remedies.wider_fan(b))] if cut else []


def were_forced(forced: Sequence[tuple[str, str]]) -> list[Caution]:
    """What the recommendation would have been refused for, and what would spare it."""
    return [Caution("forced", f"forced: {text}", run) for text, run in forced]
