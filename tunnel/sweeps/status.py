"""What a sweep tells while it runs, and what a folder tells of it at any time: counts, tokens, FLOPs, ETA."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunnel import plan
from tunnel.answers.forecasts import alarms
from tunnel.folder import store
from tunnel.folder.store import Store
from tunnel.run import Trial
from tunnel.sampler import key, states
from tunnel.space import Scalar
from tunnel.study import Stage, Study
from tunnel.study.money import total
from tunnel.sweeps import attempts, slices
from tunnel.sweeps.attempts import DONE, Span
from tunnel.valleys import fans

PACE_KNOWN = 0.02  # of a stage: before it, the start of the workers is most of the time  *assumed*
STATES = (*DONE, "failed", "running")
NOTHING = 0.1  # device seconds that no span tells of, and sums of roundings may be  *assumed*


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
    expected: Callable[[], float | None] = lambda: None  # seconds left at the pace of each shape, where that is known

    def begin(self, number: int, trial: Trial, flops_per_token: float, measured: int = 0) -> None:
        """A trial starts, `measured` of its tokens already trained by an earlier one."""
        what = {"what": str(trial.trunk), "trunk": trial.trunk.fingerprint, "phase": "trunk", "tokens": measured}
        what |= {"of": trial.trained, "loss": None}
        unmeasured = (trial.trained - measured) * flops_per_token
        self.running[number] = {**what, "flops_per_token": flops_per_token, "unmeasured": unmeasured}
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
        """Seconds left of this stage; at this sweep's pace where no shape's is known, None before there is one."""
        expected = self.expected()
        if expected is not None:
            return expected
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
    """Counts by state, readings, tokens and FLOPs, what the devices were held for and what it cost, limits, ETA."""
    readings = keep.readings()
    proxies = proxies_of(readings)
    recorded = set(readings.fingerprint) if len(readings) else set[str]()
    resolved = store.read_json(keep.path("study.resolved.json"), {}).get("stages", {})
    stages = {s.name: counts(asked, s, resolved.get(s.name), keep, recorded) for s in asked.stage}
    trials = {name: sum(s[name] for s in stages.values()) for name in ("planned", *STATES)}
    planned = plan.plan(asked, plan.Paces.of(asked, readings), plan.tasks_known(resolved))
    progress, spans = store.read_json(keep.path("progress.json")), attempts.spans(keep)
    running = progress is not None and driven(keep)
    done, held = sum(trials[s] for s in DONE), bill(asked, spans, proxies)
    seconds, cost = sum(row["seconds"] for row in held.values()), total(row["cost"] for row in held.values())
    per_trial = {s["name"]: s["flops"] / s["trials"] for s in planned["stages"]}
    state = "running" if running else "stopped" if done else "not started"
    targets = planned["targets"]
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
        "training_seconds": float(proxies.seconds.sum()) if len(proxies) else 0.0,
        "held": held,
        "cost": cost,
        "currency": asked.price.currency,
        "of_target": {"flops": spent(proxies) / targets[0]["flops"], "cost": seconds / targets[0]["seconds"]}
        if targets
        else None,
        "limits": plan.limits(asked, seconds, cost, spent(proxies)),
        "eta_seconds": eta(planned["stages"], stages, spans, progress if running else None),
        "progress": progress,
        "alarms": list(alarms(keep).values()),
        "slices": slices.best(keep.records()) if asked.data.source else [],
        "forgetting": slices.forgetting(keep.records()) if asked.data.then else [],
    }


def proxies_of(readings: Any) -> Any:
    return readings[~readings.stage.str.startswith("target:")] if len(readings) else readings


def driven(keep: Store) -> bool:
    """Whether a sweep is at work in the folder: this process, or another one that lives."""
    driver = store.other_driver(keep.path("driver.lock"))
    return driver is not None and (driver["pid"] == os.getpid() or store.alive(driver))


def bill(asked: Study, spans: Iterable[Span], proxies: Any) -> dict[str, dict[str, Any]]:
    """Device seconds and money by what became of them; `earlier`: records from before attempts.jsonl was kept."""
    found: dict[str, list[float]] = {}
    for span in spans:
        found.setdefault(span.state, []).append(span.seconds)
    before = attempts.earlier(asked, spans, proxies)
    rows = found | ({"earlier": [before]} if before > NOTHING else {})
    whole = sum(map(sum, rows.values()))
    return {
        state: {"spans": len(each), "seconds": sum(each), "share": sum(each) / whole if whole else 0.0}
        | {"cost": asked.price.cost(sum(each))}
        for state, each in rows.items()
    }


def counts(
    asked: Study, stage: Stage, resolved: Mapping[str, Any] | None, keep: Store, recorded: set[str]
) -> dict[str, Any]:
    """A stage's slots by state, each once, by its last trial; what lacks a planned run's record is in none.

    `left`: those not done, by shape where it is listed.
    """
    none: dict[str, Any] = {"planned": plan.trials_planned(asked, stage)} | {state: 0 for state in STATES}
    handed = resolved["handed_on"] if resolved is not None else plan.handed_on(asked, stage)
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
    if listed is None:
        found = Counter(t["state"] for t in slots.values())
        return none | found | {"left": {None: none["planned"] - sum(found[s] for s in DONE)}}
    more = fans.widened(listed, stage.budget.seeds, lambda c, s: loss_of(slots.get((key(c), s))), stage.widen)
    asks = {(key(c), seed): (c["width"], c["depth"]) for c in [*listed, *more] for seed in stage.budget.seeds}
    slots = {slot: t for slot, t in slots.items() if slot in asks}
    left = Counter(shape for slot, shape in asks.items() if slot not in slots or slots[slot]["state"] not in DONE)
    return none | {"planned": len(asks)} | Counter(t["state"] for t in slots.values()) | {"left": left}


def loss_of(t: Mapping[str, Any] | None) -> float | None:
    """What a fan knows of a trial, as the sampler's driver does."""
    if t is None or t["state"] not in DONE:
        return None
    return t["value"] if t["state"] == "complete" else float("inf")


def spent(readings: Any) -> float:
    """Full-count FLOPs that were really trained: shared trunks once."""
    return float((readings.flops / readings.D * readings.tokens_trained).sum()) if len(readings) else 0.0


def eta(
    planned: Iterable[Mapping[str, Any]],
    stages: Mapping[str, Mapping[str, Any]],
    spans: Sequence[Span],
    progress: Mapping[str, Any] | None,
) -> float:
    """Seconds for what is left, each shape at its own pace, on as many workers as there were last.

    Of the stage that runs, what its driver says.
    """
    whole, beside = attempts.beside(spans)
    workers = next((s.workers for s in reversed(spans) if s.workers), 1)
    now = (progress or {}).get("eta_seconds")
    left = 0.0
    for row in planned:
        if now is None or row["name"] != (progress or {})["stage"]:
            per_shape = {(s["width"], s["depth"]): s["seconds"] / s["trials"] for s in row["shapes"]}
            mean = row["seconds"] / row["trials"]
            shapes = stages[row["name"]]["left"]
            left += sum(n * (per_shape.get(shape, mean) + beside / max(whole, 1)) for shape, n in shapes.items())
    return left / workers + (now or 0.0)
