"""A study's stages, one after the other: ask, plan, train, record, tell; resumable at any point."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunnel import backends, families, plan, store, study, tuned
from tunnel.errors import Stopped, UserError, about
from tunnel.forks import Event, Progress
from tunnel.run import Record, Trial
from tunnel.sampler import Asker, states
from tunnel.space import Scalar
from tunnel.store import Store
from tunnel.study import Stage, Study

RUNS = Path("runs")  # where studies' folders lie, unless --out says otherwise
PACE_KNOWN = 0.02  # of a stage: before it, the start of the workers is most of the time  *assumed*
STATES = ("complete", "pruned", "diverged", "failed", "running")


@dataclass
class Live:
    """What the driver knows of a stage in progress; shown, and written to progress.json for others to read."""

    stage: str
    planned: int  # trials
    total: float  # FLOPs planned
    done: float = 0.0  # FLOPs of this stage that are trained or reused
    reused: float = 0.0  # those that an earlier sweep trained
    finished: int = 0
    diverged: int = 0
    failed: int = 0
    best: float | None = None
    running: dict[int, dict[str, Any]] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def begin(self, number: int, trial: Trial, flops_per_token: float) -> None:
        what = {"what": str(trial.trunk), "phase": "trunk", "tokens": 0, "of": trial.trained, "loss": None}
        self.running[number] = {**what, "flops_per_token": flops_per_token}

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


def located(where: str | Path, out: str | Path | None = None, *, small: bool = False) -> tuple[Study, Store]:
    """The study and its folder, from a study file or from the folder; a study.toml beside records/ means its own.

    Raises UserError where there is neither, or where the file changed what the folder had asked.
    """
    path = Path(where)
    if path.is_dir():
        return frozen(path)
    own = path.name == "study.toml" and (path.parent / "records").is_dir()
    if own and out is None:
        return frozen(path.parent)
    asked = study.load(path, small=small)
    root = Path(out) if out is not None else RUNS / path.stem
    if (root / "study.toml").exists():
        before, _ = frozen(root)
        changed = study.changes(before, asked)
        if changed:
            raise UserError(
                f"differs from what {root} asked, and a revision may only add; try --out", file=path, key=changed
            )
    return asked, Store(root)


def opened(where: str | Path, out: str | Path | None = None, *, small: bool = False) -> tuple[Study, Store]:
    """The study and its folder, made and holding the frozen question; raises UserError before anything is written."""
    asked, keep = located(where, out, small=small)
    with about(where):
        plan.plan(asked)
        plan.opened(asked)
    if Path(where).is_file():
        freeze(where, asked, keep, small=small)
    return asked, keep


def frozen(root: Path) -> tuple[Study, Store]:
    path = root / "study.toml"
    if not path.exists():
        raise UserError("is no study's folder: it has no study.toml", file=root)
    scale = store.read_json(root / "study.resolved.json", {}).get("scale")
    return study.parse(study.read_text(path), path, small=scale == "small"), Store(root)


def freeze(where: str | Path, asked: Study, keep: Store, *, small: bool = False) -> None:
    """Keeps the question in the folder: the first time as it is, later additions as numbered revisions."""
    path, text = keep.path("study.toml"), study.read_text(Path(where))
    if path.exists():
        before = path.read_text(encoding="utf-8")
        if before == text:
            return
        number = len(list(keep.root.glob("study.*.toml"))) + 1
        store.write_text(keep.path(f"study.{number}.toml"), before)
    store.write_text(path, text)
    resolved = {
        "scale": "small" if small else "full",
        "stages": {},
        **store.read_json(keep.path("study.resolved.json"), {}),
    }
    store.write_json(keep.path("study.resolved.json"), resolved)


def sweep(
    asked: Study,
    keep: Store,
    *,
    address: str | None = None,
    max_concurrent: int | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Runs, or goes on with, all stages; returns `status`. The folder must hold the frozen question.

    Raises UserError for what the study got wrong, Stopped where the work was interrupted.
    """
    work = backends.Work(str(keep.root.resolve()), asked.data, asked.model.seq_len, families.load(asked.family).reads)
    with keep.driver():
        corpus = work.corpus()
        identity = corpus.hash if corpus is not None else asked.family
        for stage in asked.stage:
            handed = hand_on(asked, stage, keep)
            queue = StageQueue(asked, stage, handed, keep, identity, watch)
            if queue.asker.planned > queue.live.finished:
                backends.run(queue, work, asked.resources, address=address, max_concurrent=max_concurrent)
            queue.show(force=True)
            if queue.live.failed:
                raise Stopped(
                    f"stage {stage.name}: {queue.live.failed} trials failed for good; the same command tries them again"
                )
        keep.path("progress.json").unlink(missing_ok=True)
        keep.write_readings()
    return status(asked, keep)


def hand_on(asked: Study, stage: Stage, keep: Store) -> dict[str, Scalar]:
    """What earlier stages hand to this one, frozen in study.resolved.json when it first starts."""
    path = keep.path("study.resolved.json")
    resolved = store.read_json(path, {"scale": "full", "stages": {}})
    if stage.name not in resolved["stages"]:
        found = [tuned.best(asked.stage_named(name), keep.readings()) for name in stage.after]
        handed = {k: v for settings in found for k, v in settings.items()}
        resolved["stages"][stage.name] = {
            "handed_on": {k: s.value for k, s in handed.items()},
            "evidence": {k: s.as_dict() for k, s in handed.items()},
            "when": store.now(),
        }
        store.write_json(path, resolved)
    return resolved["stages"][stage.name]["handed_on"]


class StageQueue:
    """One stage as a backend's queue: asks through Optuna, plans, tells."""

    def __init__(
        self,
        asked: Study,
        stage: Stage,
        handed: Mapping[str, Scalar],
        keep: Store,
        identity: str,
        watch: Watch | None = None,
    ) -> None:
        self.study, self.stage, self.keep, self.identity, self.watch = asked, stage, keep, identity, watch
        self.base = plan.values_of(asked, stage, handed)
        self.family, self.body = families.load(asked.family), plan.body_of(asked)
        listed = plan.candidates(asked, stage, handed)
        self.asker = Asker(keep.root, stage, listed, asked.seed)
        self.asker.reconcile(keep.record)
        priced = plan.sample_trials(asked, stage, handed)
        per_trial = sum(self.flops(t) for t in priced) / len(priced)
        self.live = Live(stage.name, self.asker.planned, per_trial * self.asker.planned)
        for t in self.asker.answered().values():
            self.finish(t.value, t.user_attrs.get("diverged", False), per_trial)
        self.live.reused = self.live.done
        self.running: dict[int, Trial] = {}
        self.records: dict[int, list[Record]] = {}
        self.shown = 0.0

    def per_token(self, trial: Trial) -> float:
        return self.family.flops_per_token(trial.trunk.shape, self.body)

    def flops(self, trial: Trial) -> float:
        return self.per_token(trial) * trial.trained

    def next(self) -> Trial | None:
        ask = self.asker.ask()
        if ask is None:
            return None
        trial = plan.trial(
            self.study,
            self.stage,
            {**self.base, **ask.params},
            seed=ask.seed,
            number=ask.number,
            corpus_hash=self.identity,
        )
        self.asker.planned_as(ask.number, trial)
        self.running[ask.number], self.records[ask.number] = trial, []
        self.live.begin(ask.number, trial, self.per_token(trial))
        self.show()
        return trial

    def event(self, number: int, event: Event) -> None:
        shown, records = self.live.running[number], self.records[number]
        behind = sum(r.run.decay_tokens for r in records)
        if isinstance(event, Progress):
            shown |= {"phase": event.phase, "loss": event.loss, "tokens": behind + event.tokens}
        else:
            records.append(event)
            self.asker.report(number, event)
            shown |= {"loss": event.loss, "tokens": behind + event.run.tokens}
        self.show()

    def ended(self, number: int, error: str | None) -> None:
        trial, records = self.running.pop(number), self.records.pop(number)
        self.live.running.pop(number)
        if error is not None:
            self.asker.tell(number, "failed")
            self.live.failed += 1
            return
        last = records[-1]
        self.asker.tell(number, last.status, last.loss)
        self.finish(last.loss, last.status == "diverged", self.flops(trial))
        self.show()

    def finish(self, loss: float | None, diverged: bool, flops: float) -> None:
        live = self.live
        live.finished, live.done = live.finished + 1, live.done + flops
        live.diverged += diverged
        if loss is not None and not diverged:
            live.best = loss if live.best is None else min(live.best, loss)

    def show(self, force: bool = False) -> None:
        """Tells the watcher, and the folder's readers once a second."""
        if self.watch is not None:
            self.watch(self.live)
        clock = time.monotonic()
        if force or clock - self.shown > 1.0:
            self.shown = clock
            store.write_json(self.keep.path("progress.json"), self.live.snapshot())


def status(asked: Study, keep: Store) -> dict[str, Any]:
    """Counts by state, readings, tokens and FLOPs spent and saved, cost and ETA of a folder."""
    planned = sum(plan.trials_planned(s) for s in asked.stage)
    stages = {s.name: states(keep.root, s.name) for s in asked.stage}
    trials = {"planned": planned, **{state: 0 for state in STATES}}
    for found in stages.values():
        for t in latest(found):
            trials[t["state"]] += 1
    readings = keep.readings()
    proxies = readings[~readings.stage.str.startswith("target:")] if len(readings) else readings
    progress = store.read_json(keep.path("progress.json"))
    expected = plan.plan(asked)
    done = sum(trials[s] for s in ("complete", "pruned", "diverged"))
    seconds = float(proxies.seconds.sum()) if len(proxies) else 0.0
    return {
        "question": asked.question,
        "folder": str(keep.root),
        "state": "complete" if done >= planned else "running" if progress else "stopped" if done else "not started",
        "trials": trials,
        "stages": {
            name: {
                "planned": plan.trials_planned(asked.stage_named(name)),
                "done": sum(t["state"] != "running" for t in latest(f)),
            }
            for name, f in stages.items()
        },
        "readings": int((proxies.status == "complete").sum()) if len(proxies) else 0,
        "tokens": {
            "trained": int(proxies.tokens_trained.sum()) if len(proxies) else 0,
            "from_scratch": int(proxies.D.sum()) if len(proxies) else 0,
        },
        "flops": spent(proxies),
        "flops_planned": expected["flops"],
        "seconds": seconds,
        "cost": seconds / 3600 * asked.price.per_hour,
        "currency": asked.price.currency,
        "eta_seconds": eta(spent(proxies), expected["flops"], seconds, asked, progress) if done < planned else 0.0,
        "progress": progress,
    }


def latest(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each asked slot once, by its last trial: a failed ask that was asked again does not count twice.

    By its values too, since a revision moves candidates; an ask that died before it had a seed was never handed out.
    """
    asked = [t for t in found if t["seed"] is not None]
    return list({(t["candidate"], t["seed"], *sorted(t["params"].items())): t for t in asked}.values())


def spent(readings: Any) -> float:
    """Full-count FLOPs that were really trained: shared trunks once."""
    return float((readings.flops / readings.D * readings.tokens_trained).sum()) if len(readings) else 0.0


def eta(done: float, planned: float, seconds: float, asked: Study, progress: dict[str, Any] | None) -> float:
    """Seconds left at the measured pace (the price's pace before there is one), with the trials that run now."""
    pace = done / seconds if seconds else asked.price.flops_per_second * asked.price.mfu
    return max(planned - done, 0.0) / pace / max(len((progress or {}).get("running", {})), 1)
