"""What a sweep tells while it runs, and what a folder tells of it at any time: counts, tokens, FLOPs, ETA."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tunnel import plan
from tunnel.folder import store
from tunnel.folder.store import Store
from tunnel.run import Trial
from tunnel.sampler import key, states
from tunnel.space import Scalar
from tunnel.study import Stage, Study
from tunnel.sweeps import slices
from tunnel.valleys import fans

PACE_KNOWN = 0.02  # of a stage: before it, the start of the workers is most of the time  *assumed*
STATES = ("complete", "pruned", "diverged", "failed", "running")
DONE = ("complete", "pruned", "diverged")


@dataclass
class Live:
    """What the driver knows of a stage in progress; shown, and written to progress.json for others to read."""

    stage: str
    planned: int = 0  # trials
    total: float = 0.0  # FLOPs that the stage is known to take
    done: float = 0.0  # FLOPs of its finished trials, trained or reused
    reused: float = 0.0  # those that an earlier sweep trained
    finished: int = 0
    diverged: int = 0
    failed: int = 0
    best: float | None = None
    running: dict[int, dict[str, Any]] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def begin(self, number: int, trial: Trial, flops_per_token: float, measured: int = 0) -> None:
        """A trial starts, `measured` of its tokens already trained by an earlier one."""
        what = {"what": str(trial.trunk), "phase": "trunk", "tokens": measured, "of": trial.trained, "loss": None}
        self.running[number] = {**what, "flops_per_token": flops_per_token}
        self.reused += measured * flops_per_token

    def finish(self, loss: float | None, diverged: bool, flops: float) -> None:
        self.finished, self.done = self.finished + 1, self.done + flops
        self.diverged += diverged
        if loss is not None and not diverged:
            self.best = loss if self.best is None else min(self.best, loss)

    def now(self) -> float:
        """FLOPs trained, the running trials' included."""
        return self.done + sum(r["tokens"] * r["flops_per_token"] for r in self.running.values())

    def left(self) -> float | None:
        """Seconds left of this stage at this sweep's pace; None before there is one."""
        trained = self.now() - self.reused
        if trained < PACE_KNOWN * self.total:
            return None
        return (time.monotonic() - self.started) * max(self.total - self.now(), 0.0) / trained

    def snapshot(self) -> dict[str, Any]:
        """progress.json: what other readers of the folder may know while the sweep runs."""
        return {
            "stage": self.stage,
            "when": store.now(),
            "planned": self.planned,
            "finished": self.finished,
            "best": self.best,
            "flops": {"planned": self.total, "done": self.now()},
            "seconds": time.monotonic() - self.started,
            "eta_seconds": self.left(),
            "running": {str(n): r for n, r in self.running.items()},
        }


Watch = Callable[[Live], None]


def status(asked: Study, keep: Store) -> dict[str, Any]:
    """Counts by state, readings, tokens and FLOPs spent and saved, cost and ETA of a folder."""
    readings = keep.readings()
    proxies = readings[~readings.stage.str.startswith("target:")] if len(readings) else readings
    recorded = set(readings.fingerprint) if len(readings) else set[str]()
    resolved = store.read_json(keep.path("study.resolved.json"), {}).get("stages", {})
    stages = {s.name: counts(asked, s, resolved.get(s.name), keep, recorded) for s in asked.stage}
    trials = {name: sum(s[name] for s in stages.values()) for name in ("planned", *STATES)}
    per_trial = {s["name"]: s["flops"] / s["trials"] for s in plan.plan(asked)["stages"]}
    progress = store.read_json(keep.path("progress.json"))
    done = sum(trials[s] for s in DONE)
    seconds = float(proxies.seconds.sum()) if len(proxies) else 0.0
    left = {name: per_trial[name] * (s["planned"] - sum(s[state] for state in DONE)) for name, s in stages.items()}
    state = "running" if progress else "stopped" if done else "not started"
    return {
        "question": asked.question,
        "folder": str(keep.root),
        "state": "complete" if done >= trials["planned"] else state,
        "trials": trials,
        "stages": {
            n: {"planned": s["planned"], "done": sum(s[x] for x in (*DONE, "failed"))} for n, s in stages.items()
        },
        "readings": int((proxies.status == "complete").sum()) if len(proxies) else 0,
        "tokens": {
            "trained": int(proxies.tokens_trained.sum()) if len(proxies) else 0,
            "from_scratch": int(proxies.D.sum()) if len(proxies) else 0,
        },
        "flops": spent(proxies),
        "flops_planned": sum(per_trial[name] * s["planned"] for name, s in stages.items()),
        "seconds": seconds,
        "cost": seconds / 3600 * asked.price.per_hour,
        "currency": asked.price.currency,
        "eta_seconds": eta(sum(left.values()), spent(proxies), seconds, asked, progress),
        "progress": progress,
        "forgetting": slices.forgetting(keep.records()) if asked.data.then else [],
    }


def counts(
    asked: Study, stage: Stage, resolved: Mapping[str, Any] | None, keep: Store, recorded: set[str]
) -> dict[str, int]:
    """A stage's slots by state, each once, by its last trial; what lacks a planned run's record is in none."""
    none = {"planned": plan.trials_planned(stage)} | {state: 0 for state in STATES}
    if resolved is None:
        return none
    handed = resolved["handed_on"]
    base, listed = plan.values_of(asked, stage, handed), plan.candidates(asked, stage, handed)
    runs: dict[tuple[Scalar, ...], int] = {}

    def whole(t: Mapping[str, Any]) -> bool:
        if t["state"] not in DONE or t["measured"] is not None:
            return t["state"] not in DONE or recorded >= set(t["measured"])
        values = {**base, **t["params"]}
        shape = values["width"], values["depth"], values["batch_tokens"]
        if shape not in runs:  # all else leaves the number of a trial's runs as it is
            runs[shape] = len(plan.trial(asked, stage, values).runs)
        return len(t["runs"]) >= runs[shape] and recorded >= set(t["runs"])

    seeded = [t for t in states(keep.root, stage.name) if t["seed"] in stage.budget.seeds]
    last = {(t["candidate"] if listed is None else key(t["params"]), t["seed"]): t for t in seeded}
    slots = {slot: t for slot, t in last.items() if whole(t)}
    planned = none["planned"]
    if listed is not None:
        more = fans.widened(listed, stage.budget.seeds, lambda c, s: loss_of(slots.get((key(c), s))), stage.widen)
        asks = {key(c) for c in [*listed, *more]}
        slots = {slot: t for slot, t in slots.items() if slot[0] in asks}
        planned = len(asks) * len(stage.budget.seeds)
    return none | {"planned": planned} | Counter(t["state"] for t in slots.values())


def loss_of(t: Mapping[str, Any] | None) -> float | None:
    """What a fan knows of a trial, as the sampler's driver does."""
    if t is None or t["state"] not in DONE:
        return None
    return t["value"] if t["state"] == "complete" else float("inf")


def spent(readings: Any) -> float:
    """Full-count FLOPs that were really trained: shared trunks once."""
    return float((readings.flops / readings.D * readings.tokens_trained).sum()) if len(readings) else 0.0


def eta(left: float, done: float, seconds: float, asked: Study, progress: Mapping[str, Any] | None) -> float:
    """Seconds for the FLOPs left at the measured pace (the price's before there is one), with the trials running."""
    running = (progress or {}).get("running", {}).values()
    begun = sum(r["tokens"] * r["flops_per_token"] for r in running)
    pace = done / seconds if seconds else asked.price.flops_per_second * asked.price.mfu
    return max(left - begun, 0.0) / pace / max(len(running), 1)
