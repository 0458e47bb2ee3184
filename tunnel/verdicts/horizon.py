"""How the best settings move with the horizon: lr, batch and weight decay over D, with the signs measured.

Rests on `joint`'s surface of one stage's readings: fixed shapes at which lr, and batch or weight decay, vary, best at
several rungs. AdamW's memory is τ = B/(lr·λ·D), in parts of a run (arXiv 2505.13738). Intervals are 90%, by a bootstrap
by run, widened where runs are few.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tunnel import plan, tuned
from tunnel.folder.store import Store
from tunnel.space import SHAPE
from tunnel.study import Stage, Study
from tunnel.valleys import joint, valley
from tunnel.valleys.joint import CURVED, SETTINGS, Joint, Rows
from tunnel.valleys.valley import Array

DRAWS = 200  # of the bootstrap
EDGE = 0.5  # of the places whose best lies outside what was tried on one side: the setting is at its edge  *assumed*
FLAT = "no curvature"
HUGE = 700.0  # log of the largest float, nearly  *derived*
WORDS = {"lr": "lr*", "weight_decay": "λ*", "tau": "τ*", "batch": "B*"}
SHORT = {"batch_tokens": "B", "weight_decay": "λ"}
REPORTED = {"exponent": -0.53, "source": "arXiv 2505.13738"}  # of τ* against D/N  *from paper*


def own(asked: Study, keep: Store, readings: pd.DataFrame, stage: Stage) -> pd.DataFrame:
    """A stage's finished readings under the study's own rules."""
    found = tuned.of_stage(readings, stage.name)
    if not len(found):
        return found
    values = plan.values_of(asked, stage, tuned.handed_on(keep, stage))
    return found[found.rules == values["rules"]]


def stage_of(asked: Study, keep: Store, readings: pd.DataFrame) -> tuple[Stage, pd.DataFrame] | None:
    """The last stage that varies lr, and batch or weight decay, at fixed shapes; and its readings."""
    for stage in reversed(asked.stage):
        if set(SHAPE) & set(stage.axes):
            continue
        found = own(asked, keep, readings, stage)
        several = {k: found[k].nunique() for k in SETTINGS} if len(found) else {}
        if several and several["lr"] >= CURVED and max(several["batch_tokens"], several["weight_decay"]) > 1:
            return stage, found
    return None


def fitted(stage: Stage, found: pd.DataFrame) -> dict[str, Any]:
    """The stage's surface in words and numbers; plain JSON values, None where the readings do not say."""
    without, with_decay = found[found.weight_decay == 0], found[found.weight_decay > 0]
    zero = zero_decay(without, with_decay)
    positive = with_decay if with_decay.weight_decay.nunique() > 1 else most_common(found)
    used = tuned.best_ways(positive, besides=("weight_decay",))
    table = {k: used[k].to_numpy(float) for k in ("N", "D", "loss", *SETTINGS)} | {"run": used.run.to_numpy(str)}
    rows = joint.rows_of(table)
    growth = joint.growth(rows)
    surface = joint.fit(rows, growth=growth)
    head = {
        "stage": stage.name,
        "n": len(used),
        "runs": int(used.run.nunique()),
        "shapes": sorted({f"{w}x{d}" for w, d in zip(used.width, used.depth, strict=True)}),
        **{k: sorted(used[k].unique().tolist()) for k in ("D", "batch_tokens", "weight_decay")},
        "zero_decay_percent": zero,
    }
    if surface is None:
        return head | {
            "status": "too few points",
            "reason": "fewer runs than the surface has coefficients",
            "words": [],
        }
    if surface.exponents(["lr"]) is None:
        return head | {"status": FLAT, "reason": "no minimum along lr: widen its range", "words": []}
    told = Told(rows, surface, growth)
    free = [k for k in surface.names if k != "batch_tokens"]
    body = {
        "status": "converged",
        "reason": "",
        "noise": surface.noise,
        "growth": growth,
        "lr": told.setting(["lr"], "lr"),
        "weight_decay": told.setting(free, "weight_decay"),
        "tau": tau(told, free),
        "batch": batch(told),
        "best": places(told, free),
    }
    return head | body | {"words": words(body)}


def most_common(found: pd.DataFrame) -> pd.DataFrame:
    """The readings at the weight decay that most have."""
    return found[found.weight_decay == found.weight_decay.mode().iloc[0]]


def zero_decay(without: pd.DataFrame, with_decay: pd.DataFrame) -> float | None:
    """How much worse the best reading without weight decay is than the best with it, in percent at the longest rung."""
    if not len(without) or not len(with_decay):
        return None
    lows = [float(tuned.last_rung(f).loss.min()) for f in (without, with_decay)]
    return 100 * (lows[0] / lows[1] - 1)


Interval = dict[str, float]  # value, low, high
Logs = dict[str, float]


class Told:
    """The surface with its bootstrap: any numbers read off it get 90% intervals."""

    def __init__(self, rows: Rows, surface: Joint, growth: Mapping[str, float]) -> None:
        self.rows, self.surface = rows, surface
        self.draws = joint.bootstrap(rows, DRAWS, growth)
        self.wide = joint.widening(rows)

    def of(self, read: Callable[[Joint], Mapping[str, float]]) -> dict[str, Interval]:
        """Numbers with their intervals; without those that the surface, or too many of the draws, do not have."""
        value, each = read(self.surface), [read(s) for s in self.draws]
        found = {}
        for k, v in value.items():
            known = np.array([d[k] for d in each if math.isfinite(d.get(k, math.nan))])
            if math.isfinite(v) and len(known) >= valley.SURE * len(each):
                low, high = valley.interval(v, known, self.wide)
                found[k] = {"value": v, "low": low, "high": high}
        return found

    def powers(self, free: Sequence[str], name: str) -> dict[str, Interval]:
        """The powers of one setting's best over each place and each held setting."""
        return self.of(lambda s: (s.exponents(free) or {}).get(name, {}))

    def setting(self, free: Sequence[str], name: str) -> dict[str, Any] | None:
        """A setting's powers, and whether its best lies inside what was tried."""
        if name not in self.surface.names:
            return None
        status, reason = self.status(free, name)
        return {"status": status, "reason": reason, "over": {} if status == FLAT else self.powers(free, name)}

    def status(self, free: Sequence[str], name: str) -> tuple[str, str]:
        turned = [s.solved(free) is not None for s in (self.surface, *self.draws)]
        if not turned[0] or np.mean(turned) < valley.SURE:
            return FLAT, f"the readings show no minimum along {name}: widen its range, or add seeds"
        best = [self.surface.best(free, at(self.rows, i, free)) for i in self.rows.first.tolist()]
        logs, low, high = [b[name] for b in best if b], *ends(self.rows.logs[name])
        under, over = float(np.mean(np.array(logs) < low)), float(np.mean(np.array(logs) > high))
        if max(under, over) >= EDGE:
            side = "below" if under > over else "above"
            return "edge", f"the best {name} lies {side} what was tried at most rungs: widen its range"
        return "converged", ""


def ends(logs: Array) -> tuple[float, float]:
    return float(logs.min()), float(logs.max())


def at(rows: Rows, i: int, free: Sequence[str]) -> dict[str, float]:
    """The logs of a row's place; the held settings at the middle of what was tried."""
    held = {k: sum(ends(v)) / 2 for k, v in rows.logs.items() if k in SETTINGS and k not in free}
    return {**held, **{k: float(rows.logs[k][i]) for k in rows.places}}


def tau(told: Told, free: Sequence[str]) -> dict[str, Any] | None:
    """τ* = B/(lr*·λ*·D) at a held batch, and its power of D/N: at a fixed shape that is its power of D."""
    if "weight_decay" not in free:
        return None
    status, reason = told.status(free, "weight_decay")

    def moved(s: Joint) -> dict[str, float]:
        found = s.exponents(free) or {"lr": {}, "weight_decay": {}}
        own = {"D": -1.0, "batch_tokens": 1.0}
        return {k: own.get(k, 0.0) - v - found["weight_decay"][k] for k, v in found["lr"].items()}

    over = {} if status == FLAT else told.of(moved)
    return {"status": status, "reason": reason, "over": over, "D_over_N": over.get("D"), "reported": REPORTED}


def batch(told: Told) -> dict[str, Any] | None:
    """The batch law in both forms, lr and weight decay at their best: B* ∝ D^b, and bs = a/L^b."""
    found = told.setting(told.surface.names, "batch_tokens")
    if found is None or found["status"] == FLAT:
        return found
    return found | {"by_loss": told.of(lambda s: by_loss(told.rows, s))}


def by_loss(rows: Rows, s: Joint) -> dict[str, float]:
    """log a and b of bs = a/L^b, a line through the cells' best batches and losses; empty where these do not vary."""
    best = [b["batch_tokens"] for i in rows.first.tolist() if (b := s.best(s.names, at(rows, i, s.names)))]
    if not best or float(np.ptp(s.low)) < valley.QUIET:
        return {}
    slope, level = np.polyfit(s.low, best, 1)
    return {"log_a": float(level), "b": -float(slope)}


def places(told: Told, free: Sequence[str]) -> list[dict[str, Any]]:
    """At every N and rung: the best lr and weight decay at the middle batch, their τ, and the best batch."""
    rows, whole = told.rows, told.surface.names
    found = []
    for i in rows.first.tolist():
        place, d = at(rows, i, free), float(rows.logs["D"][i])
        held = place.get("batch_tokens", float(rows.logs["batch_tokens"].mean()))

        def read(s: Joint, i: int = i, place: dict[str, float] = place, d: float = d, held: float = held) -> Logs:
            best = s.best(free, place) or {}
            every = s.best(whole, at(rows, i, whole)) or {} if "batch_tokens" in whole else {}
            tau = {"tau": held - best["lr"] - best["weight_decay"] - d} if "weight_decay" in best else {}
            return {**best, **tau, **({"batch_best": every["batch_tokens"]} if every else {})}

        known = {k: {e: math.exp(min(v, HUGE)) for e, v in row.items()} for k, row in told.of(read).items()}
        found.append({"N": math.exp(rows.logs["N"][i]), "D": math.exp(d), "batch_tokens": math.exp(held), **known})
    return found


def words(body: dict[str, Any]) -> list[str]:
    """The signs, each no more sure than its interval, and what the readings do not settle."""
    said = []
    for part, what in WORDS.items():
        known = body[part] or {}
        said += [moves(what, along, power) for along, power in known.get("over", {}).items()]
        if known.get("reason") and part != "tau":
            said.append(f"{what}: {known['status']}, {known['reason']}")
    b = ((body["batch"] or {}).get("by_loss") or {}).get("b")
    return said + ([f"bs = a/L^b: b {b['value']:.2f} ({b['low']:.2f} to {b['high']:.2f})"] if b else [])


def moves(what: str, along: str, power: dict[str, float]) -> str:
    """A power in words.

    >>> moves("lr*", "D", {"value": -0.3, "low": -0.4, "high": -0.2})
    'lr* falls with D: power -0.30 (-0.40 to -0.20)'
    >>> moves("B*", "D", {"value": 0.1, "low": -0.1, "high": 0.3})
    'B* over D: sign not settled, power +0.10 (-0.10 to +0.30)'
    """
    along = SHORT.get(along, along)
    numbers = f"power {power['value']:+.2f} ({power['low']:+.2f} to {power['high']:+.2f})"
    if power["low"] <= 0 <= power["high"]:
        return f"{what} over {along}: sign not settled, {numbers}"
    return f"{what} {'rises' if power['value'] > 0 else 'falls'} with {along}: {numbers}"
