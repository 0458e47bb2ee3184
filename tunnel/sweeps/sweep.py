"""A study's stages, one after the other: ask, plan, train, record, tell; resumable at any point."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunnel import families, plan, study, tuned
from tunnel.answers.rolling import Rolling
from tunnel.errors import Stopped, UserError, about
from tunnel.folder import store
from tunnel.folder.store import Store
from tunnel.run import Record, Trial
from tunnel.sampler import Asker, Outcome, key
from tunnel.space import Scalar
from tunnel.study import Stage, Study
from tunnel.sweeps import backends
from tunnel.sweeps.status import Live, Watch, status
from tunnel.training.forks import Event, Progress
from tunnel.valleys import halving
from tunnel.valleys.halving import Halving

RUNS = Path("runs")  # where studies' folders lie, unless --out says otherwise


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
        require_new(before, asked, Store(root))
    return asked, Store(root)


def require_new(before: Study, asked: Study, keep: Store) -> None:
    """Raises UserError where data would join earlier than readings that were trained without it."""
    added = asked.data.then[len(before.data.then) :]
    longest = max((r.D for r in keep.records() if not r.stage.startswith("target:")), default=0) if added else 0
    if added and added[0].at < longest:
        raise UserError(
            f"joins before the longest reading, which was trained without it: from {longest} on, or try --out",
            file=keep.root,
            key="data.then.from",
            value=added[0].at,
        )


def opened(where: str | Path, out: str | Path | None = None, *, small: bool = False) -> tuple[Study, Store]:
    """The study and its folder, made and holding the frozen question; raises UserError before anything is written."""
    asked, keep = located(where, out, small=small)
    with about(where):
        plan.plan(asked)
        plan.opened(asked)
    if Path(where).is_file():
        revise(study.read_text(Path(where)), keep, small=small)
    return asked, keep


def frozen(root: Path) -> tuple[Study, Store]:
    path = root / "study.toml"
    if not path.exists():
        raise UserError("is no study's folder: it has no study.toml", file=root)
    keep = Store(root)
    return study.parse(study.read_text(path), path, small=is_small(keep)), keep


def is_small(keep: Store) -> bool:
    """Whether the folder was made with --scale small."""
    return store.read_json(keep.path("study.resolved.json"), {}).get("scale") == "small"


def revise(text: str, keep: Store, *, small: bool = False) -> None:
    """Keeps a question's text, and the one before as a numbered revision."""
    path = keep.path("study.toml")
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
            if queue.asker.free():
                most = 1 if stage.halving else asked.resources.pack  # what may be stopped is handed out by itself
                packed = replace(work, pack=most)
                backends.run(queue, packed, asked.resources, address=address, max_concurrent=max_concurrent)
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
    """One stage as a backend's queue: asks through Optuna, plans, judges, tells."""

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
        self.middle = plan.sample_trials(asked, stage, handed)[0]
        self.planned: dict[Any, Trial] = {}
        self.halving = Halving(stage.halving)
        self.running: dict[int, Trial] = {}
        self.records: dict[int, dict[str, Record]] = {}  # of the running trials, by fingerprint
        self.rolling = Rolling(keep, stage)
        self.asker = Asker(keep.root, stage, plan.candidates(asked, stage, handed), asked.seed)
        self.asker.reconcile(self.trial, keep.record)
        self.live, self.shown = Live(stage.name), 0.0
        slots = self.asker.slots()
        for t in (t for slot, t in self.asker.answered().items() if slot in slots):
            trial = self.trial(t.params, t.user_attrs["seed"])
            records = self.measured(trial)
            self.share(records)
            self.halving.add(trial, records)
            loss = t.value if trial.rung in halving.losses(trial, records) else None
            self.live.finish(loss, t.user_attrs.get("diverged", False), self.flops(trial, records))
        self.live.reused = self.live.done
        self.recount()

    def trial(self, params: Mapping[str, Scalar], seed: int) -> Trial:
        """A candidate at a seed as it is planned, whatever its number."""
        asked = (key(params), seed)
        if asked not in self.planned:
            values = {**self.base, **params}
            self.planned[asked] = plan.trial(self.study, self.stage, values, seed=seed, corpus_hash=self.identity)
        return self.planned[asked]

    def measured(self, trial: Trial) -> dict[str, Record]:
        found = {r.fingerprint: self.keep.record(r.fingerprint) for r in trial.runs}
        return {fp: record for fp, record in found.items() if record is not None}

    def share(self, records: halving.Records) -> None:
        """Notes which of its readings another stage had measured."""
        self.keep.share(self.stage.name, [fp for fp, r in records.items() if r.stage != self.stage.name])

    def per_token(self, trial: Trial) -> float:
        return self.family.flops_per_token(trial.trunk.shape, self.body)

    def flops(self, trial: Trial, records: halving.Records | None = None) -> float:
        """A whole trial's, or those of what is measured of it."""
        return self.per_token(trial) * (trial.trained if records is None else trained(trial, records))

    def recount(self) -> None:
        """What the stage is known to take by now: stopped trials took less, and fans may have widened."""
        listed = self.stage.kind != "search"  # all over a search's space a trial costs the same
        running = sum(self.flops(t) for t in self.running.values())
        free = [self.trial(c, s) if c and listed else self.middle for (_, s), c in self.asker.free().items()]
        self.live.planned = self.asker.planned
        self.live.total = self.live.done + running + sum(self.flops(t) for t in free)

    def next(self) -> Trial | None:
        ask = self.asker.ask()
        if ask is None:
            return None
        trial = self.trial(ask.params, ask.seed).model_copy(update={"number": ask.number})
        self.asker.planned_as(ask.number, trial)
        self.running[ask.number], self.records[ask.number] = trial, self.measured(trial)
        self.rolling.handed_out(trial)
        before = trained(trial, self.records[ask.number])
        self.live.begin(ask.number, trial, self.per_token(trial), before)
        self.recount()
        self.show()
        return trial

    def left(self) -> int:
        return len(self.asker.free())

    def event(self, number: int, event: Event) -> bool:
        shown, trial, records = self.live.running[number], self.running[number], self.records[number]
        if isinstance(event, Progress):
            decays = sum(r.run.decay_tokens for r in records.values())
            shown |= {"phase": event.phase, "loss": event.loss, "tokens": decays + event.tokens}
        else:
            records[event.fingerprint_of] = event
            self.rolling.read(event, self.running.values())
            shown |= {"loss": event.loss, "tokens": trained(trial, records)}
            self.halving.add(trial, records)
            for rung, loss in halving.losses(trial, records).items():
                self.asker.report(number, rung, loss)
        self.show()
        return isinstance(event, Progress) or self.halving.goes_on(trial, records)

    def ended(self, number: int, error: str | None) -> None:
        trial, records = self.running.pop(number), self.records.pop(number)
        self.live.running.pop(number)
        if error is not None:
            self.asker.tell(number, "failed")
            self.live.failed += 1
            return
        self.share(records)
        losses = halving.losses(trial, records)
        last = losses.get(trial.rung)  # None where it was stopped before
        diverged = losses[max(losses)] == math.inf
        outcome: Outcome = "diverged" if diverged else "pruned" if last is None else "complete"
        self.asker.tell(number, outcome, last, measured=records if last is None else None)
        self.live.finish(last, diverged, self.flops(trial, records))
        self.recount()
        self.show()

    def show(self, force: bool = False) -> None:
        """Tells the watcher, and the folder's readers once a second."""
        if self.watch is not None:
            self.watch(self.live)
        clock = time.monotonic()
        if force or clock - self.shown > 1.0:
            self.shown = clock
            store.write_json(self.keep.path("progress.json"), self.live.snapshot())


def trained(trial: Trial, records: halving.Records) -> int:
    """Tokens that the measured part of a trial took."""
    runs = tuple(r for r in trial.runs if r.fingerprint in records)
    return trial.model_copy(update={"runs": runs}).trained if runs else 0
