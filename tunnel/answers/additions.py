"""What a revision of a ladder may add, as the study-file line that adds it, and what it would cost.

A run is asked for by a shape, a rung, a factor of the fan or a seed, and each of these brings the runs that go with it:
so these are the choices that there are, not single runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from tunnel import families, plan, sampler, study, tuned
from tunnel.folder.store import Store
from tunnel.run import RunSpec, Shape, TrunkSpec
from tunnel.space import Scalar
from tunnel.study import Stage, Study, Target
from tunnel.sweeps.extend import spelled
from tunnel.training import data

APART = 1.1  # neighbours nearer than this factor, in N, D or lr, are one place  *assumed*
STEP = 2.0  # from one shape, rung or factor to the next where there is only one  *assumed*
DIGITS = 3  # of a factor or a length that is proposed  *assumed*
LARGEST = 0.5  # of the target's N: whoever trains more may as well train the target  *assumed*
KEYS = ("shapes", "rungs", "fan", "seeds")


@dataclass(frozen=True)
class Addition:
    """One value more in a key of the ladder's stage, and the study that has it."""

    key: str
    what: str
    study: Study


def neighbours(asked: Study, stage: Stage, goal: Target) -> Iterator[Addition]:
    """What lies beside a ladder's shapes, rungs, factors and seeds: on the way to the target, and between them."""
    for key, what, more in (*shapes(asked, stage, goal), *rungs(asked, stage, goal), *fan(stage), *seeds(stage)):
        grown = stage.model_copy(update=more)
        revised = asked.model_copy(update={"stage": tuple(grown if s is stage else s for s in asked.stage)})
        if not study.changes(asked, revised):  # a rung below the shortest is none, where a warmup is a part of it
            yield Addition(key, what, revised)


New = Iterator[tuple[str, str, dict[str, Any]]]  # key, in words, the stage's fields that change


def shapes(asked: Study, stage: Stage, goal: Target) -> New:
    """On the aspect path through the ladder to the target: between two shapes, and one or two steps beyond them."""
    family, body = families.load(asked.family), plan.body_of(asked)

    def count(width: int, depth: int) -> int:
        return family.count(Shape(width=width, depth=depth), body)

    assert stage.rungs is not None
    known = sorted(stage.shapes, key=lambda s: count(*s))
    sizes = [count(*s) for s in known]
    end = count(goal.width, goal.depth)
    path = np.log([[*s, count(*s)] for s in (*known, (goal.width, goal.depth))])
    ratio = sizes[-1] / sizes[-2] if len(sizes) > 1 else STEP
    wanted = [*middles(sizes), sizes[-1] * ratio, sizes[-1] * ratio**2]
    proposed: list[tuple[int, int]] = []
    for n in wanted:
        width, depth = (float(np.exp(np.interp(math.log(n), path[:, 2], path[:, i]))) for i in (0, 1))
        head = asked.model.head_dim
        shape = max(head, round(width / head) * head), max(1, round(depth))
        near, readable = count(*shape) <= LARGEST * end, stage.rungs.lengths(count(*shape))
        if near and readable and alone(count(*shape), [*sizes, *(count(*s) for s in proposed)]):
            proposed.append(shape)
    for shape in proposed:
        yield "shapes", f"shape {shape[0]}×{shape[1]}", {"shapes": (*stage.shapes, shape)}


def rungs(asked: Study, stage: Stage, goal: Target) -> New:
    """A length between two rungs, the next one, and the target's own; none beyond it."""
    assert stage.rungs is not None
    name, known = stage.rungs.unit, sorted(stage.rungs.listed)
    if name == "flops":  # a budget's, for every shape: no length of it is the target's
        return
    family, body = families.load(asked.family), plan.body_of(asked)
    end = float(goal.tokens)
    if name == "tokens_per_param":
        end /= family.count(Shape(width=goal.width, depth=goal.depth), body)
    ratio = known[-1] / known[-2] if len(known) > 1 else STEP
    wanted = [*middles(known), known[-1] * ratio, end]
    proposed: list[float] = []
    for d in wanted:
        d = d if d == end else rounded(d)
        if d <= end and alone(d, [*known, *proposed]):
            proposed.append(d)
    for d in proposed:
        length = spelled(d) + " tokens" if name == "tokens" else f"{d:g} tokens per parameter"
        listed = (*stage.rungs.listed, int(d) if name == "tokens" else d)
        yield "rungs", f"rung {length}", {"rungs": stage.rungs.model_copy(update={name: listed})}


def fan(stage: Stage) -> New:
    """A factor between two of the fan, and one beyond each end."""
    listed = stage.fan or (1.0,)
    known = sorted(listed)
    ratio = known[1] / known[0] if len(known) > 1 else STEP
    for factor in (*middles(known), known[0] / ratio, known[-1] * ratio):
        if alone(rounded(factor), known):
            yield "fan", f"lr factor {rounded(factor):g}", {"fan": (*listed, rounded(factor))}


def seeds(stage: Stage) -> New:
    """Everything once more, at a seed of its own."""
    seed = max(stage.budget.seeds) + 1
    budget = stage.budget.model_copy(update={"seeds": (*stage.budget.seeds, seed)})
    yield "seeds", f"seed {seed}", {"budget": budget}


def middles(values: Sequence[float]) -> list[float]:
    """Between each two, on a logarithmic scale."""
    return [math.sqrt(a * b) for a, b in pairwise(values)]


def alone(value: float, others: Iterable[float]) -> bool:
    return all(abs(math.log(value / o)) > math.log(APART) for o in others)


def rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


# what it takes


@dataclass(frozen=True)
class Trained:
    """What runs take beyond what is trained already: tokens, and FLOPs by the full count."""

    tokens: int
    flops: float

    def less(self, paid: Trained) -> Trained:
        return Trained(self.tokens - paid.tokens, self.flops - paid.flops)


@dataclass(frozen=True)
class Folder:
    """A study's folder as far as its ladder needs it: what was handed on, and by what its fans widened themselves."""

    keep: Store
    stage: str
    handed_on: Mapping[str, Scalar]
    listed: Sequence[Mapping[str, Scalar]]  # all candidates that were ever asked
    corpus_hash: str
    recorded: frozenset[str]

    def runs(self, asked: Study) -> dict[str, RunSpec]:
        """Every run of the ladder that a study plans, by fingerprint; raises UserError where one does not fit."""
        stage = asked.stage_named(self.stage)
        base, listed = plan.values_of(asked, stage, self.handed_on), plan.candidates(asked, stage, self.handed_on)
        every = {sampler.key(c): c for c in (*(listed or []), *self.listed)}
        trials = (
            plan.trial(asked, stage, {**base, **c}, seed=seed, corpus_hash=self.corpus_hash)
            for c in every.values()
            for seed in stage.budget.seeds
        )
        return {r.fingerprint: r for t in trials for r in t.runs}

    def cost(self, new: Iterable[RunSpec], before: Iterable[RunSpec] = ()) -> Trained:
        """What new runs take: a trunk goes on from the last checkpoint that the folder holds or `before` leaves."""
        kept: dict[str, set[int]] = {}
        for run in before:
            if run.fingerprint not in self.recorded:
                kept.setdefault(identity(run.trunk), set()).add(run.decay_start)
        tokens, flops = 0, 0.0
        for run in sorted(new, key=lambda r: r.decay_start):
            starts = kept.setdefault(identity(run.trunk), set())
            held = set(self.keep.kept(run.trunk.until(run.decay_start).fingerprint))
            trained = run.tokens - max((t for t in starts | held if t <= run.decay_start), default=0)
            starts.add(run.decay_start)
            tokens += trained
            flops += trained * families.load(run.trunk.family).flops_per_token(run.trunk.shape, run.trunk.body)
        return Trained(tokens, flops)


def folder_of(keep: Store, stage: Stage, readings: pd.DataFrame) -> Folder:
    """The folder of a ladder that has readings."""
    listed = [t["params"] for t in sampler.states(keep.root, stage.name)]
    newest = data.newest(readings.corpus_hash)
    return Folder(keep, stage.name, tuned.handed_on(keep, stage), listed, newest, frozenset(readings.fingerprint))


def identity(trunk: TrunkSpec) -> str:
    """A trunk, whatever data joins it later."""
    return trunk.replaced(source=trunk.source.replaced(then=())).fingerprint


# how a study file asks for it


def lines(before: Study, after: Study, stage: str, small: bool) -> list[str]:
    """What to write where in the study file, so that it asks for the other; `small`: the folder's scale."""
    old, new = (stated(s.stage_named(stage)) for s in (before, after))
    found = []
    for key in (k for k in KEYS if old[k] != new[k]):
        where = f"stage.{stage}.{'budget.' if key == 'seeds' else ''}{key}"
        if small and any(k.startswith(where) for k in before.small):
            found.append(f'[small]  "{where}" = {new[key]}')
        else:
            found.append(f"[{where.rpartition('.')[0]}]  {key} = {new[key]}")
    return found


def stated(stage: Stage) -> dict[str, str]:
    """The keys of a ladder that may grow, as TOML."""
    assert stage.rungs is not None
    name = stage.rungs.unit
    lengths = [f'"{spelled(d)}"' if name == "tokens" else repr(d) for d in stage.rungs.listed]
    cheapest = f", max_flops = {stage.rungs.max_flops!r}" if stage.rungs.max_flops else ""
    return {
        "shapes": str([list(s) for s in stage.shapes]),
        "rungs": f"{{ {name} = [{', '.join(lengths)}]{cheapest} }}",
        "fan": str(list(stage.fan)),
        "seeds": str(list(stage.budget.seeds)),
    }
