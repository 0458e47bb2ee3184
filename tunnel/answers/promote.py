"""Whether a recommendation becomes the champion: its forecast held, no optimum lies on an edge, it beats the last one.

Both are compared by what they recommend, at held-out sizes: their targets, which are larger than all that their fits
read and never enter them, each trained at several seeds (`tunnel train --seed`). A pair is two readings of equal shape,
seed and held-out data, whose D differ by less than a batch. Per size, the differences of log loss have a paired
interval, Student's at 90%: the champion is beaten where the largest size's lies below 0, and no other's above it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tunnel.answers import champions, forecasts, recommend
from tunnel.answers.champions import Promotion
from tunnel.errors import UserError
from tunnel.folder import audit, chain, store
from tunnel.folder.store import Store
from tunnel.quantiles import LEVEL, student
from tunnel.run import RunSpec
from tunnel.study import Study

LEAST_SEEDS = 3  # paired, per size: half an interval is then 1.7 standard deviations  *assumed*
LARGER = 1.01  # a size within this factor of the largest one read is no held-out size  *assumed*
Recommendation = dict[str, Any]
Condition = dict[str, Any]  # condition, holds, why


def promote(
    asked: Study, keep: Store, target: str | None = None, *, path: Path = champions.FILE, force: str | None = None
) -> dict[str, Any]:
    """Makes a study's recommendation the champion where every condition holds, or a reason forces it.

    Returns promoted, champion, over, conditions [{condition, holds, why}], sizes (the comparison), forced. Raises
    UserError where nothing was recommended, or the history was changed.
    """
    goal, told = recommend.stored(asked, keep, target)
    if force is not None and not force.strip():
        raise UserError("needs a reason", key="--force", value=force)
    tip, champion = chain.tip(champions.history(path)), champions.current(path)
    if champion is not None and champion["recommendation"] == told:
        return answer(path, True, champion, champion["over"], champion["conditions"], champion["sizes"])
    sizes = compared(keep, told, champion) if champion else []
    conditions = [held(keep, goal.name, told), *settled(told), *([beats(champion, sizes)] if champion else [])]
    failed = [c["condition"] for c in conditions if not c["holds"]]
    over = champion["number"] if champion else None
    if failed and force is None:
        return answer(path, False, champion, over, conditions, sizes)
    forced = None if force is None or not failed else force.strip()
    entry = {
        "what": "promoted",
        "number": len(champions.promotions(path)) + 1,
        "over": over,
        "folder": str(keep.root.resolve()),
        "study": told["study"],
        "target": goal.name,
        "recommendation": told,
        "conditions": conditions,
        "sizes": sizes,
        "forced": forced,
    }
    written = champions.write(path, entry, tip)
    audit.note(keep.root, "promoted", champions=str(path), number=entry["number"], over=over, forced=forced)
    return answer(path, True, written, over, conditions, sizes)


def answer(
    path: Path,
    promoted: bool,
    champion: Promotion | None,
    over: int | None,
    conditions: list[Condition],
    sizes: list[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "promoted": promoted,
        "champions": str(path),
        "champion": champions.brief(champion) if champion else None,
        "over": over,
        "forced": champion["forced"] if promoted and champion else None,
        "conditions": conditions,
        "sizes": sizes,
    }


def condition(name: str, holds: bool, why: str) -> Condition:
    return {"condition": name, "holds": holds, "why": why}


def held(keep: Store, target: str, told: Recommendation) -> Condition:
    """Whether the forecast that was registered before the run held, of the run that is recommended."""
    name = "its forecast held"
    start = forecasts.begun(keep, target)
    if start is not None and start["run"] != RunSpec.model_validate(told["run"]).fingerprint:
        return condition(name, False, "the run that was trained is not the one that is recommended")
    try:
        found = forecasts.check(keep, target)
    except UserError as e:
        return condition(name, False, e.rule)
    if found["measured"] is None:
        return condition(name, False, "it diverged")
    where = f"{found['measured']:.4f}, forecast {found['low']:.4f} to {found['high']:.4f}"
    return condition(name, found["inside"], where)


def settled(told: Recommendation) -> list[Condition]:
    """Whether the recommendation was made without force, and no optimum of it lies on an edge."""
    edges = [r["text"] for r in told["remedies"] if r["about"] == "edge"]
    return [
        condition("no optimum lies on an edge", not edges, "; ".join(edges)),
        condition("it was not forced", not told["forced"], "; ".join(told["forced"])),
    ]


@dataclass(frozen=True)
class Size:
    """A held-out size that a study's recommendation was trained at; losses by seed, None where it diverged."""

    run: RunSpec
    N: int
    losses: dict[int, float | None] = field(default_factory=dict)

    def like(self, other: Size) -> bool:
        """Whether readings of both can be compared: shape, length to within a batch, held-out data."""
        a, b = self.run, other.run
        apart = (a.trunk.settings.batch_tokens + b.trunk.settings.batch_tokens) / 2
        return read(a) == read(b) and a.trunk.shape == b.trunk.shape and abs(a.tokens - b.tokens) < apart


def read(run: RunSpec) -> tuple[object, ...]:
    """What a run's loss is measured on."""
    return run.trunk.source.replaced(then=()), run.trunk.body.seq_len, run.trunk.body.vocab


def sizes_of(keep: Store, told: Recommendation) -> Iterator[Size]:
    """The held-out sizes that a recommendation, and those for other targets made with it, were trained at."""
    paths = sorted(keep.root.glob("recommendation*.json"))
    known = [told, *(r for p in paths if (r := store.read_json(p))["readings_hash"] == told["readings_hash"])]
    largest = told["target"]["N"] / told["extrapolation"]["N"]  # of what its fit read
    runs = {seeded(run, 0).fingerprint: run for run in (RunSpec.model_validate(r["run"]) for r in known)}
    found: dict[str, Size] = {}
    for record in keep.records():
        name = seeded(record.run, 0).fingerprint
        if name in runs and LARGER * largest < record.N:
            found.setdefault(name, Size(record.run, record.N)).losses[record.run.trunk.seed] = record.loss
    yield from found.values()


def seeded(run: RunSpec, seed: int) -> RunSpec:
    return run.replaced(trunk=run.trunk.replaced(seed=seed))


def compared(keep: Store, told: Recommendation, champion: Promotion) -> list[dict[str, Any]]:
    """Every held-out size that both were trained at, the largest last; below 0 where the champion is beaten."""
    theirs = list(sizes_of(Store(champion["folder"]), champion["recommendation"]))
    pairs = [(a, b) for a in sizes_of(keep, told) for b in theirs if a.like(b)]
    return [paired(a, b) for a, b in sorted(pairs, key=lambda p: (p[0].N, p[0].run.tokens))]


def paired(a: Size, b: Size) -> dict[str, Any]:
    """A size's paired difference of the loss in %, with its 90% interval; None where the seeds are too few.

    A seed at which the champion diverged makes no pair; `diverged` are those at which the new one did.
    """
    seeds = sorted(s for s in a.losses.keys() & b.losses.keys() if b.losses[s] is not None)
    both = [(a.losses[s], b.losses[s]) for s in seeds]
    off = np.array([math.log(x / y) for x, y in both if x is not None and y is not None])
    found = {
        "shape": str(a.run.trunk.shape),
        "N": a.N,
        "D": a.run.tokens,
        "seeds": seeds,
        "diverged": [s for s in a.losses if a.losses[s] is None],
        **dict.fromkeys(("difference_percent", "low", "high")),
    }
    if len(off) < LEAST_SEEDS:
        return found
    half = student((1 + LEVEL) / 2, len(off) - 1) * off.std(ddof=1) / math.sqrt(len(off))
    ends = {"difference_percent": off.mean(), "low": off.mean() - half, "high": off.mean() + half}
    return found | {k: 100 * math.expm1(v) for k, v in ends.items()}


def beats(champion: Promotion, sizes: list[dict[str, Any]]) -> Condition:
    """Whether the champion is beaten at the largest size, and not better at another."""
    name = f"it beats champion {champion['number']} on held-out sizes"
    enough = [s for s in sizes if s["difference_percent"] is not None]
    if not Path(champion["folder"]).is_dir():
        return condition(name, False, f"its folder is gone: {champion['folder']}")
    if diverged := [s for s in sizes if s["diverged"]]:
        return condition(name, False, "; ".join(f"diverged at {s['shape']}, seeds {s['diverged']}" for s in diverged))
    if not enough:
        seeds = max((len(s["seeds"]) for s in sizes), default=0)
        what = "no size that both were trained at" if not sizes else f"{seeds} paired seeds at most"
        rule = f"{what}, {LEAST_SEEDS} seeds of one are needed: `tunnel train DIR --seed 1 --seed 2` in both studies"
        return condition(name, False, rule)
    said = "; ".join(
        f"{s['shape']}: {s['difference_percent']:+.3f}% ({s['low']:+.3f} to {s['high']:+.3f})" for s in enough
    )
    return condition(name, enough[-1]["high"] < 0 and all(s["low"] <= 0 for s in enough), said)
