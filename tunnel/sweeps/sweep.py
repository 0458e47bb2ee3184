"""A study's stages, one after the other: ask, plan, train, record, tell; resumable at any point."""

from __future__ import annotations

import logging
import secrets
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tunnel import plan, study, tuned
from tunnel.errors import Stopped, UserError, about
from tunnel.folder import audit, database, environment, remote, schema, shared, store, trouble
from tunnel.folder.store import Store
from tunnel.space import Scalar
from tunnel.study import Stage, Study
from tunnel.sweeps import backends, notify, rebuild
from tunnel.sweeps.limits import Account
from tunnel.sweeps.queue import StageQueue
from tunnel.sweeps.status import Watch, status

log = logging.getLogger(__name__)
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
    return asked, shared.opened(root)


def require_new(before: Study, asked: Study, keep: Store) -> None:
    """Raises UserError where data would join earlier than readings that were trained without it."""
    added = asked.data.then[len(before.data.then) :]
    if added and added[0].at < (from_on := longest(keep)):
        raise UserError(
            f"joins before the longest reading, which was trained without it: from {from_on} on, or try --out",
            file=keep.root,
            key="data.then.from",
            value=added[0].at,
        )


def longest(keep: Store) -> int:
    """The D of the longest reading of a proxy; 0 before there is one."""
    return max((r.D for r in keep.records() if not r.stage.startswith("target:")), default=0)


def opened(
    where: str | Path, out: str | Path | None = None, *, small: bool = False, url: str | None = None
) -> tuple[Study, Store]:
    """The study and its folder, made and holding the frozen question; raises UserError before anything is written.

    `url`: where its workers shall write, if not there (`tunnel.folder.shared`).
    """
    asked, keep = located(where, out, small=small)
    with about(where):
        plan.plan(asked)
        plan.opened(asked)
    keep = keep if url is None else placed(keep, url)
    if Path(where).is_file():
        revise(study.read_text(Path(where)), keep, small=small)
    return asked, keep


def placed(keep: Store, url: str) -> Store:
    """The folder with its shared half at `url`; raises UserError where that lies elsewhere already."""
    url, resolved = remote.checked(url), store.read_json(keep.path("study.resolved.json"), {})
    before = keep.place.url if keep.place is not None else str(keep.root)
    if url == before:
        return keep
    if resolved.get("stages"):
        raise UserError(f"differs: the study began with {before}, and stays; try --out", key="--shared", value=url)
    place = remote.Place(url, secrets.token_hex(8))
    store.write_json(keep.path("study.resolved.json"), {**resolved, "shared": asdict(place)})
    return shared.Shared(keep.root, place)


def frozen(root: Path) -> tuple[Study, Store]:
    path = root / "study.toml"
    if not path.exists():
        raise UserError("is no study's folder: it has no study.toml", file=root)
    schema.of(root)
    keep = shared.opened(root)
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
    resolved = store.read_json(keep.path("study.resolved.json"), {})
    if "scale" not in resolved:
        scale = "small" if small else "full"
        new = {**resolved, "scale": scale, "schema": schema.SCHEMA, "stages": {}}
        store.write_json(keep.path("study.resolved.json"), new)


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
    work = backends.Work.of(asked, keep)
    with trouble.stops(), keep.driver(), notify.telling(asked, keep) as tell:
        rebuild.mended(keep, [s.name for s in asked.stage])
        corpus = work.corpus()
        if corpus is not None:
            corpus.hold(r.run for r in keep.records())
        at = {} if keep.place is None else {"shared": keep.place.url}
        began(keep, address=address, max_concurrent=max_concurrent, **at)
        database.bind(keep.root, asked.storage, asked.storage_password_env, [s.name for s in asked.stage])
        identity = corpus.hash if corpus is not None else asked.family
        account = Account(asked, keep, tell)
        for stage in asked.stage:
            handed = hand_on(asked, stage, keep)
            queue = StageQueue(asked, stage, handed, keep, identity, account, watch)
            if queue.left():
                takes = asked.resources_of(stage)
                most = 1 if stage.halving else takes.pack  # what may be stopped is handed out by itself
                packed = replace(work, pack=most)
                with account.session(stage, queue.live):
                    backends.run(queue, packed, takes, address=address, max_concurrent=max_concurrent)
            queue.show(force=True)
            if queue.live.failed:
                raise Stopped(
                    f"stage {stage.name}: {queue.live.failed} trials failed for good ({queue.error}); "
                    "the same command tries them again"
                )
        keep.path("progress.json").unlink(missing_ok=True)
        keep.write_readings()
    return status(asked, keep)


def began(keep: Store, **how: Any) -> None:
    """Notes that a sweep begins, or goes on; warns where it does so under versions that measured nothing here yet."""
    stages = store.read_json(keep.path("study.resolved.json"), {}).get("stages", {})
    known = environment.all_kept(keep.root) or [r.versions for r in keep.records() if r.versions]  # of 0.3 and before
    other = environment.changed(known) if stages else {}
    if other:
        said = ", ".join(f"{k} {then or 'unknown'} → {now}" for k, (then, now) in other.items())
        log.warning("%s goes on under other versions than it was measured with: %s", keep.root, said)
    audit.note(keep.root, "resumed" if stages else "launched", **how, **({"versions": other} if other else {}))


def best_runs(asked: Study, stage: Stage, keep: Store) -> dict[str, Scalar]:
    """The finished runs that a stage's students learn from, or that it tunes: least loss at the last rung."""
    found, readings = dict[str, Scalar](), keep.readings()
    wanted: list[tuple[str, str, dict[str, Scalar]]] = [(name, name, {}) for name in asked.taught_by(stage)]
    for label, m in plan.models(asked, stage).items():
        wanted.append((label, m.stage.name, {**m.values, "seed": asked.seed + m.seed}))
    for name, source, values in wanted:
        rows = tuned.of_stage(readings, source)
        for k, v in values.items():
            rows = rows[rows[k] == v] if k in rows else rows
        if not len(rows):
            raise UserError("has no finished run to go on with", file=keep.root, key=f"stage.{source}", value=name)
        best = keep.record(str(rows[rows.D.max() == rows.D].sort_values("loss").fingerprint.iloc[0]))
        assert best is not None
        found[plan.RUN + name] = best.run.model_dump_json()
    return found


def hand_on(asked: Study, stage: Stage, keep: Store) -> dict[str, Scalar]:
    """What earlier stages hand to this one, frozen in study.resolved.json when it first starts."""
    path = keep.path("study.resolved.json")
    resolved = store.read_json(path, {"scale": "full", "schema": schema.SCHEMA, "stages": {}})
    if stage.name not in resolved["stages"]:
        found = [tuned.best(asked.stage_named(name), keep.readings()) for name in stage.after]
        handed = {k: v for settings in found for k, v in settings.items()}
        resolved["stages"][stage.name] = {
            "handed_on": {k: s.value for k, s in handed.items()}
            | best_runs(asked, stage, keep)
            | plan.tasks_of(asked, stage),
            "evidence": {k: s.as_dict() for k, s in handed.items()},
            "when": store.now(),
        }
        store.write_json(path, resolved)
    return resolved["stages"][stage.name]["handed_on"]
