"""The target's settings with their evidence, and a forecast that is registered before the target starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from tunnel import families, plan, transfer
from tunnel.answers import cautions, forecasts, ladder, mixes, remedies, settings, worth
from tunnel.answers.basis import Basis, basis
from tunnel.answers.cautions import Caution
from tunnel.errors import UserError
from tunnel.folder import audit, store
from tunnel.folder.store import Store
from tunnel.run import RunSpec
from tunnel.study import Study, Target
from tunnel.training import data
from tunnel.valleys import stability
from tunnel.verdicts import carry
from tunnel.verdicts.carry import Carried

SCHEMA = 1  # keys are only added: exporters of this version read it
LEAST_RUNG = 4.0  # settings tuned at D < D_target/4 need a fitted lr*(D)  (SCIENCE §3)
LEAST_RUNGS = 4  # that such a fit takes  (SCIENCE §3)
MARGIN = 2.0  # the lr keeps at least this factor from lr_max  (SCIENCE §3)
KEPT = ("forecast", "low", "high", "law", "formula", "parts", "path", "distance", "compute_ratio", "extrapolation")
HASHES = ("corpus_hash", "readings_hash")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Honesty:
    """Refuses where a recommendation would not be honest; with `force` it goes on, and keeps what it was forced to."""

    force: bool
    forced: list[tuple[str, str]] = field(default_factory=list)  # the refusal, and what would spare it

    def unless_forced(self, ask: Callable[[], Answer], otherwise: Answer, remedy: str) -> Answer:
        try:
            return ask()
        except UserError as e:
            if not self.force:
                rule = f"{e.rule} (--force goes on, and writes down what it was forced to)"
                raise UserError(rule, file=e.file, key=e.key, value=e.value, choices=e.choices) from None
            self.forced.append((str(e), remedy))
            return otherwise


def recommend(asked: Study, keep: Store, target: str | None = None, *, force: bool = False) -> dict[str, Any]:
    """The recommendation for a target; with unchanged readings, or once the target began, the stored one.

    Raises UserError where it cannot be honest, and is not forced: settings tuned too far below the target's D, that do
    not transfer, or data read too often; and where there are too few readings.
    """
    goal = ladder.target_named(asked, target)
    path = path_of(asked, keep, goal)
    kept = store.read_json(path)
    readings = keep.readings()
    if kept and (kept["readings_hash"] == ladder.hash_of(asked, readings) or forecasts.begun(keep, goal.name)):
        return kept
    found = made(asked, keep, goal, readings, force=force)
    run = RunSpec.model_validate(found["run"]).fingerprint
    where = {"N": found["target"]["N"], "D": found["target"]["tokens"], "lr": found["settings"]["lr"]["value"]}
    told = {k: found[k] for k in (*KEPT, *HASHES)}
    entry = {"kind": "target", "target": goal.name, "run": run, **where, **told}
    found["registered"] = forecasts.register(keep, entry)
    store.write_json(path, found)
    if found["forced"]:
        audit.note(keep.root, "forced", target=goal.name, refusals=found["forced"])
    return found


def stored(asked: Study, keep: Store, target: str | None = None) -> tuple[Target, dict[str, Any]]:
    """A target with its recommendation as it was made; raises UserError where it has none yet."""
    goal = ladder.target_named(asked, target)
    found = store.read_json(path_of(asked, keep, goal))
    if found is None:
        raise UserError(
            "has no recommendation yet: `tunnel recommend` first", file=keep.root, key=f"target.{goal.name}"
        )
    return goal, found


def path_of(asked: Study, keep: Store, goal: Target) -> Path:
    return keep.path("recommendation.json" if goal is asked.target[0] else f"recommendation.{goal.name}.json")


def made(asked: Study, keep: Store, goal: Target, readings: pd.DataFrame, *, force: bool = False) -> dict[str, Any]:
    """A recommendation from the readings, before it is registered."""
    b, honest = basis(asked, keep, goal, readings), Honesty(force)
    honest.unless_forced(lambda: refuse_short(b), None, remedies.longer(b))
    run, carried, cut = planned(b, honest)
    groups = [vars(g) for g in transfer.groups(run.trunk, families.roles(run.trunk))]
    shaped = settings.aspects(asked, readings)
    told = forecast_of(b, run)
    repeated = honest.unless_forced(lambda: cautions.repeats(b, run), list[Caution](), remedies.more_data(b))
    said = [*cautions.all_of(b, run, told), *repeated, *cautions.carried(b, carried), *cautions.off_aspect(b, shaped)]
    said += [*cautions.near_the_edge(b, cut), *cautions.were_forced(honest.forced)]
    return {
        "schema": SCHEMA,
        "study": keep.root.name,
        "question": asked.question,
        "target": target_of(b, run),
        "run": run.model_dump(mode="json"),
        "settings": {**settings.all_of(b, run, carried, groups), **shaped},
        "groups": groups,
        "multipliers": vars(transfer.multipliers(run.trunk.rules, run.trunk.shape, run.trunk.body)),
        "config": families.config(run.trunk),
        **told,
        "mixes": mixes.told(readings),
        "regret": b.fit["lr"]["regret"],
        "registered": None,
        "forced": [text for text, _ in honest.forced],
        "cautions": [c.text for c in said],
        "remedies": [vars(c) for c in said],
        "corpus_hash": data.identity(run),
        "readings_hash": b.fit["readings_hash"],
    }


def target_of(b: Basis, run: RunSpec) -> dict[str, Any]:
    """The target in numbers, at the pace of the largest proxies."""
    trunk, family = run.trunk, families.load(b.asked.family)
    n, per_token = (f(trunk.shape, trunk.body) for f in (family.count, family.flops_per_token))
    seconds = per_token * run.tokens / pace_of(b.rows)
    return {
        "name": b.goal.name,
        **trunk.shape.model_dump(),
        "tokens": run.tokens,
        "seq_len": trunk.body.seq_len,
        "precision": trunk.settings.precision,
        "vocab": trunk.body.vocab,
        "N": n,
        "C": 6.0 * n * run.tokens,
        "flops": per_token * run.tokens,
        "seconds": seconds,
        "cost": float(b.asked.price.cost(seconds)),  # the file holds JSON
        "currency": b.asked.price.currency,
    }


def forecast_of(b: Basis, run: RunSpec) -> dict[str, Any]:
    """The forecast with its interval, in loss and in compute, and how far beyond the readings it reaches."""
    told, rows = b.fit["forecast"], b.rows
    n, d = float(told["N"]), float(run.tokens)
    last = rows.sort_values("C").iloc[-1]
    way = worth.path(told["law"], b.fit["laws"][told["law"]]["params"], n, d, (float(last.N), float(last.D)))
    beyond = {"N": n / float(rows.N.max()), "D": d / float(rows.D.max()), "C": 6.0 * n * d / float(rows.C.max())}
    return {
        "forecast": told["value"],
        "low": told["low"],
        "high": told["high"],
        "interval_percent": worth.interval(way, told["value"], told["low"], told["high"]),
        "unit": "nats per token",
        "law": told["law"],
        "formula": b.fit["laws"][told["law"]]["formula"],
        "path": way,
        "parts": told["parts"],
        "distance": told["distance"],
        "rejected": b.fit["rejected"],
        "compute_ratio": beyond["C"],
        "extrapolation": beyond,
    }


def planned(b: Basis, honest: Honesty) -> tuple[RunSpec, dict[str, Carried], str]:
    """The target's run, what the verdicts did to its settings, and a caution where its lr was cut.

    From the bottom: [train], what was handed on and how it transfers, the ladder's best way, its lr and its warmup.
    """
    values = plan.values_of(b.asked, b.stage, b.handed_on)
    values |= {"lr": b.fit["lr"]["chosen"], "warmup": int(b.rows.warmup.max())}  # the ladder's own warmup, cut or not
    values |= {k: s.value for k, s in b.ways.items()}
    corpus_hash = data.newest(b.rows.corpus_hash)
    first = plan.target_trial(b.asked, b.goal, values, corpus_hash).runs[0]
    lawful, judged = {*b.ways, *(["lr"] if b.fit["surface"]["curved"] else [])}, carry.verdicts(b.asked, b.keep)
    found = honest.unless_forced(
        lambda: carry.carried(judged, b.handed["evidence"], b.readings, first, lawful),
        dict[str, Carried](),
        remedies.next_runs(b),
    )
    values |= {k: float(values[k]) * c.factor for k, c in found.items() if c.factor != 1.0}
    most, cut = safe_lr(b.readings, b.rows, float(b.fit["forecast"]["N"])), ""
    if most is not None and float(values["lr"]) > most:
        cut = f"lr: cut from {values['lr']:.3g} to {most:.3g}, a factor {MARGIN:g} below where this size diverges"
        values["lr"] = most
    return plan.target_trial(b.asked, b.goal, values, corpus_hash).runs[0], found, cut


def safe_lr(readings: pd.DataFrame, rows: pd.DataFrame, n: float) -> float | None:
    """The largest lr that is recommended at N: lr_max over a margin; None where no proxy diverged."""
    proxies = readings[~readings.stage.str.startswith("target:") & (readings.rules == rows.iloc[0].rules)]
    edge = stability.lr_max({k: proxies[k].to_numpy() for k in ("N", "lr", "status")}).at(n)
    return None if edge is None else edge / MARGIN


def pace_of(rows: pd.DataFrame) -> float:
    """FLOPs per second that the largest proxies reached, over all their readings."""
    biggest = rows[rows.N.max() == rows.N]
    return float((biggest.flops / biggest.D * biggest.tokens_trained).sum() / biggest.seconds.sum())


def refuse_short(b: Basis) -> None:
    """Raises UserError where the settings were tuned far below the target's D, and no law says how lr moves with D."""
    rungs = sorted({m["D"] for m in b.fit["minima"]})
    if rungs[-1] < b.goal.tokens / LEAST_RUNG and not (len(rungs) >= LEAST_RUNGS and b.fit["surface"]["curved"]):
        raise UserError(
            f"its {b.goal.tokens:,} tokens are over {LEAST_RUNG:g} × the longest rung ({rungs[-1]:,.0f}), and no law "
            f"of lr over D could be fitted: give the ladder {LEAST_RUNGS} rungs and a fan of 3",
            key=f"target.{b.goal.name}",
        )
