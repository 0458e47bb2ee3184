"""Forecasts are written down before the run starts, and checked after it ends; every one is kept, and counted.

Three kinds share one chain: the target's (`recommend`), every next reading's while a study runs (`rolling`), and those
of a recommended lr, half and double it (`counterfactual`). What was measured is joined by the run's fingerprint.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tunnel.answers import worth
from tunnel.errors import UserError
from tunnel.folder import environment, store
from tunnel.folder.chain import FORECASTS, append_all
from tunnel.folder.store import Store
from tunnel.quantiles import LEVEL

FILE = FORECASTS
ALARMS = "alarms.json"  # of targets that left their bundle (`live`), by run, each raised once
KINDS = ("target", "rolling", "counterfactual")
BANDS = ((0.0, "inside what was read"), (0.3, "up to 2 × beyond"), (float("inf"), "farther"))  # decades, up to
SHORT = 0.05  # a coverage that 90% intervals have less often than this is too low  *assumed*


def begun(keep: Store, target: str) -> dict[str, Any] | None:
    """When and as what a target began; None before it did."""
    found = store.read_json(keep.path("target.json"), {})
    return found.get(target)


def begin(keep: Store, target: str, run: str) -> None:
    """Notes that a target begins now: from here on nothing is registered for it."""
    path = keep.path("target.json")
    found = store.read_json(path, {})
    if target not in found:
        registered = len(store.chain(keep.path(FILE)))  # what precedes it: a clock may jump, a chain does not
        mine = {"name": target, "started": store.now(), "run": run, "registered": registered}
        store.write_json(path, {**found, target: mine})


def alarms(keep: Store) -> dict[str, dict[str, Any]]:
    """The alarms that targets raised, by run."""
    return store.read_json(keep.path(ALARMS), {})


def register(keep: Store, entry: dict[str, Any]) -> str:
    """Adds a forecast to the chain, once; returns when it was registered."""
    for known in store.chain(keep.path(FILE)):
        if all(known.get(k) == entry[k] for k in ("target", "run", "readings_hash")):
            return known["registered"]
    return register_all(keep, [entry])[0]["registered"]


def register_all(keep: Store, entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds forecasts to the chain, all at one time; returns them as written."""
    stamp = {"registered": store.now(), "git": environment.git_state()}
    return append_all(keep.path(FILE), [{**entry, **stamp} for entry in entries])


def check(keep: Store, target: str) -> dict[str, Any]:
    """The registered forecast that precedes the target's first step, against what was measured.

    Raises UserError where the target has not finished, or no forecast precedes it.
    """
    start = begun(keep, target)
    record = keep.record(start["run"]) if start else None
    if start is None or record is None:
        raise UserError("has not finished: `tunnel train` it first", file=keep.root, key=f"target.{target}")
    told = preceding(store.chain(keep.path(FILE)), start)
    if told is None:
        raise UserError("no forecast was registered before its first step", file=keep.root, key=f"target.{target}")
    measured = record.loss
    found = {
        "target": target,
        "status": record.status,
        "forecast": told["forecast"],
        "low": told["low"],
        "high": told["high"],
        "measured": measured,
        "error_percent": None if measured is None else 100 * (told["forecast"] / measured - 1),
        **(in_compute(told, measured) if "path" in told else {}),  # of 0.2 and before there is none
        "inside": measured is not None and told["low"] <= measured <= told["high"],
        "compute_ratio": told["compute_ratio"],
        "registered": told["registered"],
        "started": start["started"],
        "bpb": record.bpb,
        "seconds": record.seconds,
    }
    store.write_json(keep.path("check.json"), found)
    return found


def in_compute(told: dict[str, Any], measured: float | None) -> dict[str, Any]:
    """A forecast's error and interval in % of the compute, and of the loss."""
    return {
        "error_compute_percent": worth.compute_percent(told["path"], measured),
        "interval_percent": worth.interval(told["path"], told["forecast"], told["low"], told["high"]),
    }


def preceding(entries: Sequence[dict[str, Any]], start: dict[str, Any]) -> dict[str, Any] | None:
    """The last forecast for a target before it began."""
    if "registered" in start:
        sooner = entries[: start["registered"]]
    else:  # 0.3 and before
        sooner = [e for e in entries if e["registered"] < start["started"]]
    return next((e for e in reversed(sooner) if e["target"] == start["name"]), None)


# all that were ever made


def every(keep: Store) -> dict[str, Any]:
    """All forecasts that a folder ever registered, oldest first, with what was measured; and how they fared.

    Of a target's only the one that counts is judged: the last before its first step. Raises UserError where the chain
    was changed.
    """
    entries = store.chain(keep.path(FILE))
    starts = store.read_json(keep.path("target.json"), {}).values()
    counted = [told for start in starts if (told := preceding(entries, start)) is not None]
    rows = [outcome(keep, e, kind_of(e) != "target" or e in counted) for e in entries]
    return {"forecasts": rows, **judged(rows)}


def kind_of(entry: dict[str, Any]) -> str:
    return entry.get("kind", "target")


def outcome(keep: Store, entry: dict[str, Any], counts: bool) -> dict[str, Any]:
    """One forecast, with what was measured where that is known and this is the forecast that counts."""
    record = keep.record(entry["run"]) if counts else None
    measured = record.loss if record else None
    shown = ("target", "run", "stage", "trial", "N", "D", "lr", "law", "forecast", "low", "high", "distance", "before")
    return {
        "kind": kind_of(entry),
        **{k: entry.get(k) for k in (*shown, "compute_ratio", "registered", "readings_hash")},
        "status": "superseded" if not counts else record.status if record else "waiting",
        "measured": measured,
        "error_percent": None if measured is None else 100 * (entry["forecast"] / measured - 1),
        "inside": None if measured is None else entry["low"] <= measured <= entry["high"],
        "score_percent": None if measured is None else score(entry["low"], entry["high"], measured),
    }


def score(low: float, high: float, measured: float) -> float:
    """The interval score in % of the loss: the width, and 2/(1 − LEVEL) times what lies outside; less is better.

    >>> round(score(1.9, 2.1, 2.0), 6), round(score(1.9, 2.1, 2.2), 6)
    (10.0, 100.0)
    """
    outside = max(low - measured, measured - high, 0.0)
    return 100 * (high - low + 2 / (1 - LEVEL) * outside) / measured


def judged(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How forecasts fared: over all, by kind and by how far beyond the readings they lay.

    `enough`: whether so few inside are to be expected of 90% intervals in more than SHORT of the cases.
    """
    known = [r for r in rows if r["inside"] is not None]
    bands: dict[str, list[dict[str, Any]]] = {}
    for r in (r for r in known if r["distance"] is not None):
        bands.setdefault(next(name for most, name in BANDS if r["distance"] <= most), []).append(r)
    found = summary(known)
    return {
        "all": found,
        "by_kind": {k: summary([r for r in known if r["kind"] == k]) for k in KINDS},
        "by_distance": {name: summary(bands.get(name, [])) for _, name in BANDS},
        "waiting": sum(r["status"] == "waiting" for r in rows),
        "enough": at_most(found["inside"], found["of"]) > SHORT,
    }


def at_most(inside: int, of: int) -> float:
    """How often at most so many of 90% intervals hold what they should, if they are honest and independent.

    >>> round(at_most(9, 10), 4), at_most(0, 0)
    (0.6513, 1.0)
    """
    logs = (math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1) for k in range(inside + 1))
    each = (math.exp(c + k * math.log(LEVEL) + (of - k) * math.log(1 - LEVEL)) for k, c in enumerate(logs))
    return math.fsum(each)


def summary(known: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts, and means in % of the loss; None where there are no forecasts."""
    mean = {
        "mean_error_percent": [abs(r["error_percent"]) for r in known],
        "bias_percent": [r["error_percent"] for r in known],
        "half_width_percent": [50 * (r["high"] - r["low"]) / r["measured"] for r in known],
        "score_percent": [r["score_percent"] for r in known],
    }
    inside = sum(r["inside"] for r in known)
    return {
        "of": len(known),
        "inside": inside,
        "coverage": inside / len(known) if known else None,
        **{k: float(np.mean(v)) if v else None for k, v in mean.items()},
    }
