"""One reading, trained again from scratch and compared bit for bit: the claim that forks rest on, for anyone to check.

The loop is the plain one, without trunk, fork or checkpoint, so that it shares as little as it can with what it checks.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunnel import families, plan
from tunnel.errors import UserError
from tunnel.families import Arrays, Grown, State
from tunnel.folder import checkpoint, environment
from tunnel.folder.store import Store
from tunnel.run import Record, RunSpec, Trial, TrunkSpec
from tunnel.study import Study
from tunnel.sweeps.status import Live, Watch
from tunnel.training.data import Corpus

WATCH_SECONDS = 1.0  # between words to the watcher
Difference = dict[str, Any]  # what, where (tokens, tensor), and the two values


def rerun(asked: Study, keep: Store, run: str, *, watch: Watch | None = None) -> dict[str, Any]:
    """Trains a recorded run again and compares it; `run` is its fingerprint, or enough of its beginning.

    Returns equal, first_difference {what, tokens, tensor, recorded, again} or None, compared, skipped, and as `other`
    what of environment and host is not as it was. Raises UserError where no run, or several, begin so, or where
    the corpus changed.
    """
    record = named(keep, run)
    trunk = record.run.trunk
    reads = families.load(trunk.family).reads
    corpus = plan.opened(asked) if reads else None
    if reads:
        from tunnel.training.train import one_thread  # only now: it imports torch

        one_thread()
    grown, others = begun(trunk, corpus)
    at_fork, alive = trained(grown, record, watch) if others else (None, False)
    loss = grown.evaluate() if alive else math.inf
    again: dict[str, Any] = {"loss": None, "diverged_at": grown.tokens if others else None}
    if math.isfinite(loss):
        slices = {k: v for k, v in grown.slices().items() if k in record.slices}  # no source that was named since
        again = {**checkpoint.digests(*grown.state()), "loss": loss, "slices": slices}
    recorded = {**record.final, "loss": record.loss, "slices": record.slices, "diverged_at": record.diverged_at}
    kept = keep.peek(trunk.until(record.run.decay_start).fingerprint, record.run.decay_start)
    found = [spec(record), *at_the_fork(kept, at_fork), *at_the_end(recorded, again, grown.tokens)]
    differences = [d for d in found if d is not None]
    return {
        "run": record.fingerprint_of,
        "equal": not differences,
        "first_difference": differences[0] if differences else None,
        "differences": len(differences),
        "compared": ["loss", *record.final, *(["trunk"] if kept and at_fork else [])],
        "skipped": [] if kept and at_fork else ["trunk: its checkpoint at the fork point is not there any more"],
        "other": other(keep.root, record),
        "loss": again["loss"],
        "D": record.D,
    }


def named(keep: Store, run: str) -> Record:
    found = sorted(p.stem for p in keep.path("records").glob("*.json") if p.stem.startswith(run))
    if len(found) != 1:
        rule = "is the beginning of no run" if not found else "is the beginning of several runs"
        raise UserError(rule, file=keep.root, key="RUN", value=run, choices=found[:8])
    record = keep.record(found[0])
    assert record is not None
    return record


def begun(trunk: TrunkSpec, corpus: Corpus | None) -> tuple[Grown, bool]:
    """A trunk's model before its first step, and whether what it needs could be trained: from scratch, too."""
    others = {use: last(run, corpus) for use, run in trunk.needs.items()}  # first: a model that is made seeds the RNG
    grown: Grown = families.load(trunk.family).grown(trunk, corpus)
    there = {use: state for use, state in others.items() if state is not None}
    if len(there) == len(others):
        grown.begin(there)
    return grown, len(there) == len(others)


def last(run: RunSpec, corpus: Corpus | None) -> State | None:
    """The last state of a run that another needs; None where it diverges."""
    grown, alive = begun(run.trunk, corpus)
    while alive and grown.tokens < run.tokens:
        if grown.tokens == run.decay_start:
            grown.mix_in(run.mix, run.decay_start)
        alive = grown.step(run.multiplier(grown.tokens))
    if not alive:
        return None
    arrays, meta = grown.state()
    return {k: v.copy() for k, v in arrays.items()}, meta


def stepper(grown: Grown, record: Record) -> Callable[[float], bool]:
    """How the recorded run took its steps."""
    if not record.packed:
        return grown.step
    from tunnel.training.pack import stepper  # a pack of one: the same bits as among others

    return stepper(grown)


def trained(grown: Any, record: Record, watch: Watch | None) -> tuple[tuple[Arrays, dict[str, Any]] | None, bool]:
    """Trains to the end, or to where it diverges; returns the state at the fork point, and whether it lived."""
    step = stepper(grown, record)
    run, live, alive, at_fork, said = record.run, Live("rerun", 1), True, None, 0.0
    per_token = record.flops / record.D
    live.total = record.flops
    live.begin(0, Trial(stage="rerun", number=0, runs=(run,)), per_token)
    while alive and grown.tokens < run.tokens:
        if grown.tokens == run.decay_start:
            grown.mix_in(run.mix, run.decay_start)
            arrays, meta = grown.state()
            at_fork = {k: v.copy() for k, v in arrays.items()}, meta
        if grown.tokens == record.halved_at:
            grown.halve()
            step = stepper(grown, record)
        alive = step(run.multiplier(grown.tokens))
        if watch is not None and time.monotonic() - said > WATCH_SECONDS:
            said = time.monotonic()
            live.running[0] |= {"tokens": grown.tokens, "phase": "trunk" if at_fork is None else "decay"}
            watch(live)
    return at_fork, alive


def spec(record: Record) -> Difference | None:
    """A record whose settings were changed is another run's."""
    if record.run.fingerprint == record.fingerprint_of:
        return None
    return difference("spec", 0, None, record.fingerprint_of, record.run.fingerprint)


def at_the_fork(
    kept: tuple[Arrays, dict[str, Any]] | None, again: tuple[Arrays, dict[str, Any]] | None
) -> list[Difference]:
    """The trunk's checkpoint against the state that the run from scratch had there, tensor by tensor."""
    if kept is None or again is None:
        return []
    (a, meta), (b, mine) = kept, again
    tokens, found = mine["tokens"], []
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b:
            found.append(difference("trunk", tokens, name, name in a, name in b))
        elif a[name].dtype != b[name].dtype or a[name].shape != b[name].shape or a[name].tobytes() != b[name].tobytes():
            found.append(difference("trunk", tokens, name, first(a[name]), first(b[name])))
    cursor = {k: meta.get(k) for k in mine}  # a checkpoint's meta also says what it cost
    return [*found, *([difference("cursor", tokens, None, cursor, mine)] if cursor != mine else [])]


def first(value: Any) -> Any:
    """What a tensor begins with, for the eye; the comparison is of every byte."""
    return value.ravel()[:4].tolist()


def at_the_end(recorded: dict[str, Any], again: dict[str, Any], tokens: int) -> list[Difference]:
    """Digests and held-out loss of the finished model; a record of an earlier version has the loss alone."""
    names = [n for n in again if n in recorded]
    return [difference(n, tokens, None, recorded[n], again[n]) for n in names if recorded[n] != again[n]]


def difference(what: str, tokens: int, tensor: str | None, recorded: Any, again: Any) -> Difference:
    return {"what": what, "tokens": tokens, "tensor": tensor, "recorded": recorded, "again": again}


def other(root: Path, record: Record) -> environment.Other:
    """What of the environment is not as it was recorded: [recorded, here]."""
    kept = environment.kept(root, record.environment)
    here = environment.here() if kept else environment.versions()  # of 0.3 and before there are the versions alone
    then = {**kept, **record.versions, "host": record.host}
    if record.environment and not kept:
        then["environment"] = f"{record.environment}, of which the file is gone"
    return environment.differences(then, {**here, "host": socket.gethostname()})
