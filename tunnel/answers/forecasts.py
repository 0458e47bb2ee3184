"""Forecasts are written down before the run starts, and checked after it ends."""

from __future__ import annotations

import subprocess
from typing import Any

from tunnel.errors import UserError
from tunnel.folder import store
from tunnel.folder.store import Store


def begun(keep: Store, target: str) -> dict[str, Any] | None:
    """When and as what a target began; None before it did."""
    found = store.read_json(keep.path("target.json"), {})
    return found.get(target)


def begin(keep: Store, target: str, run: str) -> None:
    """Notes that a target begins now: from here on nothing is registered for it."""
    path = keep.path("target.json")
    found = store.read_json(path, {})
    if target not in found:
        store.write_json(path, {**found, target: {"name": target, "started": store.now(), "run": run}})


def register(keep: Store, entry: dict[str, Any]) -> str:
    """Adds a forecast to forecasts.jsonl, once; returns when it was registered."""
    path = keep.path("forecasts.jsonl")
    for known in store.chain(path):
        if all(known.get(k) == entry[k] for k in ("target", "run", "readings_hash")):
            return known["registered"]
    return store.append(path, {**entry, "registered": store.now(), "git": git_state()})["registered"]


def git_state() -> str | None:
    """The commit of the code, with + where it was changed; None outside a checkout."""
    call = ["git", "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        return subprocess.run(call, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def check(keep: Store, target: str) -> dict[str, Any]:
    """The registered forecast that precedes the target's first step, against what was measured.

    Raises UserError where the target has not finished, or no forecast precedes it.
    """
    start = begun(keep, target)
    record = keep.record(start["run"]) if start else None
    if start is None or record is None:
        raise UserError("has not finished: `tunnel train` it first", file=keep.root, key=f"target.{target}")
    before = [
        f
        for f in store.chain(keep.path("forecasts.jsonl"))
        if f["target"] == target and f["registered"] < start["started"]
    ]
    if not before:
        raise UserError("no forecast was registered before its first step", file=keep.root, key=f"target.{target}")
    told = before[-1]
    measured = record.loss
    found = {
        "target": target,
        "status": record.status,
        "forecast": told["forecast"],
        "low": told["low"],
        "high": told["high"],
        "measured": measured,
        "error_percent": None if measured is None else 100 * (told["forecast"] / measured - 1),
        "inside": measured is not None and told["low"] <= measured <= told["high"],
        "compute_ratio": told["compute_ratio"],
        "registered": told["registered"],
        "started": start["started"],
        "bpb": record.bpb,
        "seconds": record.seconds,
    }
    store.write_json(keep.path("check.json"), found)
    return found
