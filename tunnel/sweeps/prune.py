"""What of a study's folder nobody needs any more: checkpoints behind the readings, and what killed writers left.

Kept are the fork points of planned runs that have no record yet, of every trunk the last checkpoint, from which
`extend` goes on, and the finished full-size models. Records, curves and results are never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tunnel import plan
from tunnel.folder import audit, store
from tunnel.folder.checkpoint import intact
from tunnel.folder.files import discard, size
from tunnel.folder.store import Store
from tunnel.run import RunSpec
from tunnel.sampler import states
from tunnel.study import Study
from tunnel.training import data

Found = dict[str, list[Path]]
KINDS = {
    "checkpoints": "checkpoints behind a later one, whose forks are all recorded",
    "decays": "states in the middle of decays that are recorded",
    "damaged": "checkpoints whose hashes are wrong",
    "unfinished": "what killed processes left half-written",
}


def prune(asked: Study, keep: Store, agreed: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Says what could be freed, and frees it where `agreed` to that; the study is held meanwhile.

    Returns folder, kinds {kind: {what, count, bytes}}, bytes, kept {count, bytes}, freed. Raises UserError while the
    study runs.
    """
    with keep.held():
        found, kept = prunable(asked, keep)
        told: dict[str, Any] = {
            "folder": str(keep.root),
            "kinds": {kind: {"what": KINDS[kind], **measured(paths)} for kind, paths in found.items()},
            "bytes": sum(measured(paths)["bytes"] for paths in found.values()),
            "kept": measured(kept),
            "freed": False,
        }
        if not agreed(told):
            return told
        for path in (p for paths in found.values() for p in paths):
            discard(path)
        for trunk in keep.path("trunks").glob("*"):
            if not any(trunk.iterdir()):
                trunk.rmdir()
        audit.note(keep.root, "pruned", bytes=told["bytes"])
        return {**told, "freed": True}


def measured(paths: list[Path]) -> dict[str, int]:
    return {"count": len(paths), "bytes": sum(map(size, paths))}


def prunable(asked: Study, keep: Store) -> tuple[Found, list[Path]]:
    """What could be freed, by kind, and the checkpoints that stay."""
    found: Found = {**{kind: [] for kind in KINDS}, "unfinished": keep.unfinished()}
    recorded, needed, kept = {r.fingerprint_of: r for r in keep.records()}, wanted(asked, keep), list[Path]()
    for trunk in sorted(p.name for p in keep.path("trunks").glob("*") if p.is_dir()):
        folders = keep.checkpoints(trunk)
        if trunk in recorded:
            r = recorded[trunk]
            models = [f for f in folders if r.stage.startswith("target:") and int(f.name) == r.D]
            kept += models
            found["decays"] += [f for f in folders if f not in models]
            continue
        while folders and not intact(folders[-1]):  # the last one must be good: all before it may go
            found["damaged"].append(folders.pop())
        bounds = needed.get(trunk, set())
        stay = {max((f for f in folders if int(f.name) <= b), default=None) for b in bounds} | {*folders[-1:]}
        kept += [f for f in folders if f in stay]
        found["checkpoints"] += [f for f in folders if f not in stay]
    return found, kept


def wanted(asked: Study, keep: Store) -> dict[str, set[int]]:
    """By trunk, the tokens at which a planned run without a record leaves it, or goes on with other data."""
    found: dict[str, set[int]] = {}
    for run in planned(asked, keep):
        if keep.record(run.fingerprint) is None:
            for at in (run.decay_start, *(j.at for j in run.trunk.source.then if j.at < run.decay_start)):
                found.setdefault(run.trunk.until(at).fingerprint, set()).add(at)
    return found


def planned(asked: Study, keep: Store) -> Iterator[RunSpec]:
    """Every run of the stages that have begun: what was asked, and what is listed."""
    resolved = store.read_json(keep.path("study.resolved.json"), {}).get("stages", {})
    identity = data.newest(keep.readings().corpus_hash)
    for stage in asked.stage:
        if stage.name not in resolved:
            continue
        handed = resolved[stage.name]["handed_on"]
        base, listed = plan.values_of(asked, stage, handed), plan.candidates(asked, stage, handed) or []
        asks = [(c, seed) for c in listed for seed in stage.budget.seeds]
        asks += [(t["params"], t["seed"]) for t in states(keep.root, stage.name) if t["seed"] is not None]
        for params, seed in asks:
            yield from plan.trial(asked, stage, {**base, **params}, seed=seed, corpus_hash=identity).runs
