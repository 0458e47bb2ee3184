"""A finished model now: a decay off the running trunk of a full-size run, which goes on meanwhile.

What a trunk is for (WSD: arXiv 2404.06395, §4): its last checkpoint is copied into a folder of its own, and decayed
there, so that neither waits for the other.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from tunnel.answers import recommend, running
from tunnel.errors import UserError
from tunnel.families import Arrays
from tunnel.folder.store import Store
from tunnel.run import RunSpec, Trial
from tunnel.study import Study
from tunnel.sweeps import launch, sweep
from tunnel.sweeps.alarm import Alarm


def decay_now(
    asked: Study,
    keep: Store,
    target: str | None = None,
    *,
    workers: int = 1,
    address: str | None = None,
    watch: sweep.Watch | None = None,
) -> dict[str, Any]:
    """Decays a target's trunk from its last checkpoint, over the same share of its length; returns the record.

    Its reading is kept beside the target's, and enters no fit. Raises UserError where the trunk has no checkpoint yet.
    """
    goal, told = recommend.stored(asked, keep, target)
    run = RunSpec.model_validate(told["run"])
    kept = last_state(keep, run)
    if kept is None:
        rule = f"has no checkpoint of target {goal.name} yet: `tunnel train` first"
        raise UserError(rule, file=keep.root, key="--decay", value="now")
    arrays, meta = kept
    shorter = decayed(run, meta["tokens"])
    record = keep.record(shorter.fingerprint)
    if record is None:
        aside = keep.part("early", shorter.fingerprint)
        aside.save_state(run.trunk.until(meta["tokens"]).fingerprint, meta["tokens"], arrays, meta)
        carried(keep, run.trunk.fingerprint, aside, shorter.trunk.fingerprint)
        trial = Trial(stage=f"target:{goal.name}:early", number=0, runs=(shorter,))
        watched = Alarm(asked, keep, [shorter], partial(running.shortened, asked, keep, goal.name), watch, at=aside)
        launch.grown(asked, aside, [trial], address=address, watch=watched, workers=workers)
        found = aside.record(shorter.fingerprint)
        assert found is not None
        carried(aside, shorter.fingerprint, keep, shorter.fingerprint)
        record = keep.write_record(found)
        aside.remove()
    return record.model_dump(mode="json")


def carried(there: Store, theirs: str, here: Store, ours: str) -> None:
    """Copies a curve from one folder into another."""
    rows = there.curve(theirs)
    if rows is not None:
        here.write_curve(ours, list(rows.itertuples(index=False, name=None)))


def last_state(keep: Store, run: RunSpec) -> tuple[Arrays, dict[str, Any]] | None:
    """The trunk's last whole checkpoint, as one that nothing was trained for; None without any.

    Its writer may replace it under our eyes: then the next one is there.
    """
    for _ in range(2):
        specs = {run.trunk.until(at).fingerprint for at in (run.decay_start, *(j.at for j in run.trunk.source.then))}
        there = sorted(((tokens, name) for name in specs for tokens in keep.kept(name)), reverse=True)
        for tokens, name in there:
            state = keep.peek(name, tokens) if 0 < tokens <= run.decay_start else None
            if state is not None:
                return state[0], {**state[1], "trained": 0, "seconds": 0.0, "rolling": ""}
    return None


def decayed(run: RunSpec, tokens: int) -> RunSpec:
    """The run whose decay starts at `tokens`, and takes the same share of its length, in whole batches."""
    batch, share = run.trunk.settings.batch_tokens, run.decay_tokens / run.tokens
    decay = batch * math.ceil(tokens * share / (1 - share) / batch - 1e-9)
    return run.replaced(trunk=run.trunk.until(tokens + decay), decay_start=tokens, decay_tokens=decay)
