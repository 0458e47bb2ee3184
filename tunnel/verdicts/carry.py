"""Settings that were tuned on small runs and handed on, as their verdicts say: kept, moved by their law, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tunnel.errors import UserError
from tunnel.folder import store
from tunnel.folder.store import Store
from tunnel.run import RunSpec
from tunnel.study import Study
from tunnel.verdicts import verdict
from tunnel.verdicts.cells import AXES

LARGER = 1.01  # a target beyond this factor of where a setting was tuned is carried to  *assumed*
KEPT, DRIFTS = "transfers", "drifts by this law"


@dataclass(frozen=True)
class Carried:
    """What a verdict does to a setting: `factor` on its value, its line of evidence, and a caution."""

    factor: float = 1.0
    evidence: str = ""
    caution: str = ""


def verdicts(asked: Study, keep: Store) -> dict[str, Any]:
    """The study's verdicts: those that are kept while they are up to date, made again where a stage asks for them."""
    if not any(s.kind == "verdict" for s in asked.stage):
        return store.read_json(keep.path("verdict.json")) or {}
    try:
        return verdict.verdicts(asked, keep, check=False)
    except UserError:  # nothing to judge yet
        return {}


def carried(
    known: Mapping[str, Any],
    evidence: Mapping[str, Any],
    readings: pd.DataFrame,
    run: RunSpec,
    lawful: set[str],
) -> dict[str, Carried]:
    """What the verdicts do to the settings that earlier stages handed on, at the target's run.

    `evidence`: as study.resolved.json keeps it; `lawful`: settings whose own law is fitted, which no verdict moves.
    Raises UserError for one that was tuned at a smaller size and does not transfer there, or cannot be told.
    """
    found = {}
    for name, judged in known.items():
        if name in lawful:
            found[name] = beside(name, judged)
        elif name in evidence and (far := beyond(evidence[name], readings, run)):
            found[name] = moved(name, judged, far)
    return found


def beside(name: str, judged: Mapping[str, Any]) -> Carried:
    """A verdict on a setting whose law is fitted: it says what the rule alone would have done."""
    said = f"the rule alone: {judged['verdict']}"
    if judged["verdict"] in (KEPT, DRIFTS):
        return Carried(evidence=said)
    return Carried(evidence=said, caution=f"{name}: {said} ({judged['reason']}); what is used is the fitted law")


def beyond(known: Mapping[str, Any], readings: pd.DataFrame, run: RunSpec) -> dict[str, float]:
    """The axes along which the target lies beyond what a setting was tuned on, and by which factor."""
    behind = readings[readings.fingerprint.isin(known["readings"])]
    if not len(behind):
        return {}
    shape, batch = run.trunk.shape, run.trunk.settings.batch_tokens
    target = {"width": shape.width, "depth": shape.depth, "D": run.tokens, "B": batch}
    factors = {axis: target[axis] / float(behind[column].max()) for axis, column in AXES.items()}
    return {axis: f for axis, f in factors.items() if not 1 / LARGER <= f <= LARGER}


def moved(name: str, judged: Mapping[str, Any], far: Mapping[str, float]) -> Carried:
    """A setting at the target, along the axes that lead there."""
    factor, said = 1.0, []
    for axis, ratio in far.items():
        along = judged["over"].get(axis)
        if along is None:
            continue
        if along["verdict"] == DRIFTS:
            factor *= ratio ** along["law"]["b"]
            said.append(f"moved over {axis} by the power {along['law']['b']:+.2f}")
        elif along["verdict"] == KEPT:
            said.append(f"transfers over {axis} (at most {along['penalty_high']:.2g}% lost)")
        else:
            raise UserError(
                f"was tuned at a {axis} {ratio:.3g} times smaller, and its verdict over {axis} is "
                f"{along['verdict']!r}: {along['reason']}; tune it at the target's {axis}, or give it a law",
                key=f"settings.{name}",
            )
    unknown = [axis for axis in far if axis not in judged["over"]]
    caution = f"{name}: no verdict over {', '.join(unknown)}, along which the target lies beyond it" if unknown else ""
    return Carried(factor, "; ".join(said), caution)
