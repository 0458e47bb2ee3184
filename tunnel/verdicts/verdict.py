"""Does each setting transfer? Penalty, drift and verdict over width, depth, D and batch, from a study's readings.

What `tunnel verdict DIR` prints and DIR/verdict.json keeps: one value per setting, with SCIENCE §3's definitions
(`drift` has the mathematics). The axes are separate: a line is one axis' sizes with everything else equal, and an axis
answers by the line that reaches farthest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from tunnel import families, plan
from tunnel.answers import ladder
from tunnel.errors import UserError
from tunnel.folder import store
from tunnel.folder.store import Store
from tunnel.run import Record, fingerprint
from tunnel.space import SHAPE
from tunnel.study import Study
from tunnel.valleys import drift, stability
from tunnel.verdicts import cells, coordinates
from tunnel.verdicts.cells import AXES, SETTINGS, Floors, Place

METHOD = 2  # of this file, `cells` and `drift`: another one makes the verdicts again
SEVERITY = ("transfers", "drifts by this law", "refused", "does not transfer")  # a study answers by the worst
# One seed cannot show that another one's whole valley tilts: bounds of 90% then held 79% (simulated)  *measured here*
LEAST_SEEDS = 3  # SCIENCE §3  *from paper*
Say = Callable[[str], None]


def verdicts(asked: Study, keep: Store, *, check: bool = True, say: Say = lambda line: None) -> dict[str, Any]:
    """Each setting's verdict; kept in DIR/verdict.json, and made again only where readings changed.

    `check`: with the coordinate check, which trains for minutes the first time; `say` is told of it.
    Raises UserError where nothing was read that could be judged.
    """
    readings = keep.readings()
    identity = fingerprint([ladder.hash_of(asked, readings), METHOD])
    kept = store.read_json(keep.path("verdict.json"))
    fresh = kept and all(v["readings_hash"] == identity for v in kept.values())
    if fresh and (not check or "lr" not in kept or kept["lr"].get("checked")):
        return kept
    rows = judged_rows(asked, readings)
    checked = coordinates_of(asked, keep, rows, say) if check else {}
    ruled = by_rules(asked, rows)
    for rules, found in ruled.items():
        if "lr" in found:
            found["lr"] |= {"coordinates": checked.get(rules), "checked": check}
    own = asked.rules if asked.rules in ruled else str(rows.rules.mode()[0])
    names = [s for s in SETTINGS if any(s in found for found in ruled.values())]
    answer = {}
    for name in names:
        others = {r: found[name] for r, found in ruled.items() if r != own and name in found}
        mine = ruled[own].get(name) or nothing("refused", f"no readings under rules {own} vary it")
        answer[name] = {**mine, "rules": own, "compared": others, "readings_hash": identity}
    if not answer:
        raise UserError("no setting was read at three values of one shape: sweep a stage of kind verdict", key="stage")
    store.write_json(keep.path("verdict.json"), answer)
    return answer


def judged_rows(asked: Study, readings: pd.DataFrame) -> pd.DataFrame:
    """The listed stages' readings, with lengths that rounding alone set apart made one."""
    rows = readings[readings.stage.isin([s.name for s in asked.stage if not s.searches])]
    if not len(rows):
        raise UserError(
            "has no readings of a stage of kind verdict, ladder, batch or noise: sweep it first", key="stage"
        )
    return cells.comparable(rows)


# lines: one axis, everything else equal


def by_rules(asked: Study, rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """All settings' verdicts under every rule; where none of a rule's seeds tell the noise, the others' do."""
    ruled = {str(r): (own, cells.floors(own)) for r, own in rows.groupby("rules")}
    everyone = {place: floor for _, floors in ruled.values() for place, floor in floors.items()}
    return {r: of_rules(asked, own, floors or everyone) for r, (own, floors) in ruled.items()}


def of_rules(asked: Study, rows: pd.DataFrame, measured: Floors) -> dict[str, Any]:
    """All settings' verdicts under one rule, held against the noise that was measured."""
    noise = noise_rows(asked, measured)
    found = {}
    for setting in SETTINGS:
        if not cells.varied(rows, setting):
            continue
        over = {}
        known = cells.valleys(cells.places(rows, setting), measured)
        for axis in AXES:
            ranked = sorted((told(axis, line) for line in cells.lines(axis, known)), key=lambda t: t[0], reverse=True)
            if ranked:
                over[axis] = {**ranked[0][1], "lines": [line for _, line in ranked[1:]]}
        found[setting] = {**overall(over), "over": over, "noise": noise}
    if "lr" in found:
        found["lr"]["lr_max"] = edge_of(rows)
    return found


def told(axis: str, line: list[Place]) -> tuple[tuple[float, ...], dict[str, Any]]:
    """One line's rank (reach first, then size, seeds, and a low loss), and its verdict as plain values."""
    sizes = np.array([p.at[axis] for p in line])
    made = [p.valley for p in line if p.valley is not None]
    found = drift.compared(sizes, made, [p.noise for p in line], [p.name for p in line])
    noise = line[-1].noise
    last = line[-1].at
    reach = round(math.log(sizes[-1] / sizes[0]), 2)
    size = (0.0 if axis == "D" else last["D"], last["depth"] * last["width"] ** 2)
    minima = [minimum(axis, p) for p in line]
    seeds = min(m["seeds"] for m in minima)
    few = f"; seeds at a minimum: {seeds}, where {LEAST_SEEDS} are asked; its bounds may be too narrow"
    return (reach, *size, seeds, -made[-1].log_loss), {
        **found.numbers(),
        "reason": found.reason + (few if found.penalty and seeds < LEAST_SEEDS else ""),
        "penalty_noise": drift.finite(found.penalty.percent / (100 * noise)) if found.penalty and noise else None,
        "fixed": {k: v for k, v in last.items() if k != axis},
        "minima": minima,
    }


def minimum(axis: str, p: Place) -> dict[str, Any]:
    assert p.valley is not None
    v, c = p.valley, p.cell
    low, high = v.interval
    return {
        "at": p.at[axis],
        **{k: int(p.at[k]) for k in AXES},
        "best": math.exp(v.best),
        "low": math.exp(low),
        "high": math.exp(high),
        "loss": math.exp(v.log_loss),
        "edge": v.edge,
        "fault": v.fault,
        "values": np.exp(c.x).tolist(),
        "losses": np.exp(c.means).tolist(),
        "seeds": int(c.count[int(np.abs(c.x - v.best).argmin())]),
    }


def overall(over: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The worst axis answers for the setting."""
    if not over:
        return nothing("refused", "no two sizes were read at three values each with everything else equal")

    def worse(axis: str) -> tuple[int, float]:
        found = over[axis]
        return SEVERITY.index(found["verdict"]), (found["penalty_high"] or 0.0) / found["limit_percent"]

    worst = max(over, key=worse)
    numbers = {k: v for k, v in over[worst].items() if k not in ("lines", "minima", "fixed", "law")}
    return {**numbers, "axis": worst, "reason": f"over {worst}: {numbers['reason']}"}


def nothing(verdict: str, reason: str) -> dict[str, Any]:
    return {**drift.Along(verdict, reason).numbers(), "axis": None, "over": {}, "noise": []}


def noise_rows(asked: Study, floors: Floors) -> list[dict[str, Any]]:
    """The noise floor per shape, rung and batch, and the seeds that the study's wanted effect takes above it."""
    wanted = [s.effect for s in asked.stage if s.kind == "noise"] or [s.effect for s in asked.stage]
    return [
        {
            **{k: int(v) for k, v in zip(AXES, key, strict=True)},
            "floor_percent": 100 * f.relative,
            "low": 100 * f.low,
            "high": 100 * f.high,
            "seeds": f.seeds,
            "effect_percent": 100 * min(wanted),
            "seeds_needed": stability.seeds_needed(min(wanted), f.relative),
        }
        for key, f in floors.items()
    ]


def edge_of(rows: pd.DataFrame) -> dict[str, Any]:
    """lr_max per shape and its law, as plain values."""
    found = stability.lr_max({k: rows[k].to_numpy() for k in ("N", "lr", "status")})
    shapes = {int(n): own.iloc[0] for n, own in rows.groupby(rows.N.astype(int))}
    law = None
    if found.draws is not None:
        low, high = np.quantile(found.draws[:, 1], [0.05, 0.95])
        law = {"a": found.a, "b": found.b, "low": float(low), "high": float(high)}
    return {
        "status": found.status,
        "shapes": [
            {**{k: int(shapes[int(b.N)][k]) for k in SHAPE}, "N": int(b.N), "survives": b.low, "diverges": b.high}
            for b in found.brackets
        ],
        "law": law,
    }


# the coordinate check


def coordinates_of(asked: Study, keep: Store, rows: pd.DataFrame, say: Say) -> dict[str, Any]:
    """The check of every rule that was read, at the sizes it was read at; {} for families that read no corpus."""
    if not families.load(asked.family).reads:
        return {}
    usual = rows[rows.batch_tokens == rows.batch_tokens.mode()[0]]
    record = keep.record(str(usual.iloc[0].fingerprint))
    assert isinstance(record, Record)
    stage = asked.stage_named(record.stage)
    handed = store.read_json(keep.path("study.resolved.json"), {}).get("stages", {}).get(stage.name, {})
    lr = float(plan.values_of(asked, stage, handed.get("handed_on", {}))["lr"])
    sizes = {str(r): {a: line for a in SHAPE if (line := sizes_of(own, a))} for r, own in rows.groupby("rules")}
    return coordinates.check(record.run.trunk, lr, sizes, plan.opened(asked), keep, say)


def sizes_of(rows: pd.DataFrame, axis: str) -> list[tuple[int, int]]:
    """The shapes of the longest row along an axis, the other one fixed; [] where they are fewer than three."""
    other = SHAPE[1 - SHAPE.index(axis)]
    shapes = rows[list(SHAPE)].drop_duplicates()
    longest = max((g for _, g in shapes.groupby(other)), key=len).sort_values(axis)
    return [(int(w), int(d)) for w, d in longest.itertuples(index=False)] if len(longest) > 2 else []
