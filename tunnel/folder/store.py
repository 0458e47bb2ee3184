"""A study's folder (contract 2): the only module that knows where things lie.

Everything is written under a temporary name, flushed, and renamed when whole.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from tunnel.errors import UserError
from tunnel.families import Arrays, hides
from tunnel.folder import audit, checkpoint, fence, lock, schema
from tunnel.folder.chain import append
from tunnel.folder.chain import entries as chain
from tunnel.folder.checkpoint import State, intact
from tunnel.folder.files import (
    SAVING,
    being_written,
    content,
    damaged,
    discard,
    flush,
    now,
    read_json,
    size,
    whole,
    write_json,
    write_text,
)
from tunnel.folder.lock import alive, other_driver
from tunnel.folder.remote import Place
from tunnel.run import Record, Stability
from tunnel.space import MIX
from tunnel.training import data

__all__ = ["Store", "alive", "append", "chain", "now", "other_driver", "read_json", "write_json", "write_text"]
log = logging.getLogger(__name__)
AGAIN = "; `tunnel sweep` sets it aside and measures its run again"
CURVE = ["tokens", "loss", "multiplier", "grad_norm"]


def read_record(path: Path) -> Record:
    """Raises UserError, naming the file, where it is no record: cut, overwritten, or of another version."""
    try:
        found = Record.model_validate_json(content(path))
    except ValidationError as e:
        if damaged(path):
            raise UserError(f"is not a record{AGAIN}", file=path) from None
        first = e.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"is not a record of this version: {first['msg']}", file=path, key=key) from None
    if found.fingerprint_of != path.stem:
        raise UserError("holds another run's record", file=path, value=found.fingerprint_of)
    return found


class Store:
    """Records, trunks, curves and results of one study, under one folder.

    `attempt`: a worker's, which publishes nothing once the driver gave that up (`tunnel.folder.fence`).
    """

    place: Place | None = None  # where else its shared half lies (`tunnel.folder.shared`)

    def __init__(self, root: str | Path, attempt: Path | None = None) -> None:
        self.root, self.attempt = Path(root), attempt

    def path(self, *parts: str) -> Path:
        return self.root.joinpath(*parts)

    def part(self, *names: str) -> Store:
        """A folder of its own within this one."""
        return Store(self.path(*names))

    def remove(self) -> None:
        """Removes the whole folder."""
        discard(self.root)

    def close(self) -> None:
        """Ends a worker's use of it."""

    def look(self) -> None:
        """Raises `fence.Overtaken` where this worker may no longer write."""
        fence.look(self.attempt)

    # records

    def record(self, fingerprint: str) -> Record | None:
        path = self.path("records", f"{fingerprint}.json")
        return read_record(path) if path.exists() else None

    def write_record(self, record: Record) -> Record:
        """Writes a record, once: where its run has one, that stays. Returns the one that is kept."""
        path = self.path("records", f"{record.fingerprint_of}.json")
        with whole(path, self.look, once=True) as temporary:
            temporary.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return read_record(path)

    def records(self) -> list[Record]:
        """All records, oldest first."""
        found = [read_record(p) for p in self.path("records").glob("*.json")]
        return sorted(found, key=lambda r: (r.started, r.D))

    # trunks: checkpoints by tokens

    def checkpoint(self, trunk: str, tokens: int) -> Path:
        return self.path("trunks", trunk, f"{tokens:015d}")

    def checkpoints(self, trunk: str) -> list[Path]:
        """A trunk's checkpoints, by tokens; the damaged ones too."""
        return sorted(p for p in self.path("trunks", trunk).glob("*") if p.name.isdigit())

    def kept(self, trunk: str) -> list[int]:
        """The tokens at which a trunk has checkpoints, wherever they lie."""
        return [int(p.name) for p in self.checkpoints(trunk)]

    def save_state(self, trunk: str, tokens: int, arrays: Arrays, meta: dict[str, Any]) -> None:
        final = self.checkpoint(trunk, tokens)
        if intact(final):
            return
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=final.parent, prefix=f"{SAVING}{os.getpid()}-"))
        try:
            checkpoint.write(temporary, arrays, meta)
            self.look()
            discard(final)  # a damaged one
            try:
                os.rename(temporary, final)
            except OSError:  # another worker, cut off and back, was first: a trunk's state is one and the same
                if not intact(final):
                    raise
            flush(final.parent)
        finally:
            discard(temporary)

    def load_state(self, trunk: str, up_to: int) -> State | None:
        """The last whole checkpoint at `up_to` tokens or before; one whose hashes are wrong is passed over."""
        for folder in reversed([p for p in self.checkpoints(trunk) if int(p.name) <= up_to]):
            state = self.peek(trunk, int(folder.name))
            if state is not None:
                return state
            self.look()
            discard(folder)  # it would be refused again, and its place is wanted
        return None

    def peek(self, trunk: str, tokens: int) -> State | None:
        """The checkpoint at `tokens`, for who only looks; None where there is none, or a damaged one."""
        return checkpoint.read(self.checkpoint(trunk, tokens))

    def forget_state(self, trunk: str, tokens: int) -> None:
        self.look()
        discard(self.checkpoint(trunk, tokens))

    # curves

    def write_curve(self, name: str, rows: list[tuple[int, float, float, float]], after: int = 0) -> None:
        """Rows (tokens, training loss, lr multiplier, gradient norm); those kept up to `after`, and beyond, stay."""
        curve = pd.DataFrame(rows, columns=CURVE)
        kept = self.curve(name)
        if kept is not None and not len(curve):  # a process that goes on where nothing is left to train
            return
        if kept is not None:
            before, beyond = kept[kept.tokens <= after], kept[kept.tokens > curve.tokens.max()]
            curve = pd.concat([before, curve[curve.tokens > after], beyond], ignore_index=True)
        with whole(self.path("curves", f"{name}.parquet"), self.look) as temporary:
            curve.to_parquet(temporary, index=False)

    def curve(self, name: str) -> pd.DataFrame | None:
        """A trunk's or a run's curve by fingerprint; None where there is none that can be read."""
        path = self.path("curves", f"{name}.parquet")
        try:
            return pd.read_parquet(path) if path.is_file() else None
        except (FileNotFoundError, ValueError, OSError):  # pyarrow's complaints are these two
            return None

    # readings: derived from the records

    def readings(self) -> pd.DataFrame:
        """One row per record: contract 4's columns, and stage, trial, status, flops, seconds, bpb, fingerprints.

        A record is kept once, under the stage that measured it; `shared` names the other stages that asked for it.
        """
        return self.table([flat(r) for r in self.records()])

    def table(self, rows: list[dict[str, Any]]) -> pd.DataFrame:
        """Rows as `flat` makes them, as `readings` has them.

        Their order is the same whatever was measured first: a fit's last bits go by it.
        """
        if not rows:
            return pd.DataFrame(columns=[*READING, "shared"])
        frame = pd.DataFrame(rows).sort_values("fingerprint", ignore_index=True)
        mixes = [k for k in frame.columns if k.startswith(f"{MIX}.")]
        frame = frame.assign(**frame[mixes].fillna(0.0))
        asked = self.shared()
        return frame.assign(shared=[" ".join(s for s in asked if fp in asked[s]) for fp in frame.fingerprint])

    def shared(self) -> dict[str, list[str]]:
        """By stage, the records that it asked for and another one had measured."""
        return read_json(self.path("shared.json"), {})

    def share(self, stage: str, fingerprints: Iterable[str]) -> None:
        before = self.shared()
        mine = sorted({*before.get(stage, []), *fingerprints})
        if mine != before.get(stage, []):
            write_json(self.path("shared.json"), {**before, stage: mine})

    def write_readings(self) -> pd.DataFrame:
        frame = self.readings()
        with whole(self.path("readings.parquet")) as temporary:
            frame.to_parquet(temporary, index=False)
        return frame

    # one driver per study

    def held(self) -> AbstractContextManager[None]:
        """Holds the study for this process; raises UserError, naming host, pid and age, while another one does."""
        return lock.held(self.path("driver.lock"))

    @contextmanager
    def driver(self) -> Iterator[None]:
        """Holds the study, makes it one of today's, and tidies it."""
        with self.held():
            schema.migrate(self.root)
            self.set_aside()
            self.tidy()
            yield

    def take_over(self) -> None:
        """Frees the study from a driver that is dead, wherever it ran; raises UserError where it lives."""
        before = other_driver(self.path("driver.lock"))
        lock.free(self.path("driver.lock"))
        if before is not None:
            audit.note(self.root, "took over", driver=before)

    @contextmanager
    def followed(self, *, here: bool = False) -> Iterator[None]:
        """While the block's workers write, `here`: in this process. Only for the one that holds the study."""
        fence.close_all(self.root)
        yield

    def open_attempt(self) -> Path:
        return fence.open_attempt(self.root)

    def close_attempt(self, attempt: Path) -> None:
        fence.close_attempt(attempt)

    def stopping(self) -> bool:
        """Whether a worker is asked to save and stop."""
        return self.path("stop").exists()

    def tidy(self) -> int:
        """Removes what killed writers left unfinished; returns its bytes. Only for the one that holds the study."""
        freed = 0
        for left in self.unfinished():
            freed += size(left)
            discard(left)
        return freed

    def unfinished(self) -> list[Path]:
        """Half-written files and checkpoints whose writer is dead."""
        return [p for p in sorted(self.root.glob(f"**/{SAVING}*")) if not being_written(p)]

    def set_aside(self) -> None:
        """Moves records that no longer can be read out of the way, with a warning: their runs are measured again."""
        for path in self.path("records").glob("*.json"):
            if damaged(path):
                aside = path.with_suffix(".unreadable")
                os.replace(path, aside)
                log.warning("%s cannot be read: kept as %s, and its run is measured again", path, aside.name)


ON = "loss."  # and a source's name: the column of the loss on its held-out slice
READING = [
    "stage",
    "trial",
    "status",
    "N",
    "D",
    "C",
    "loss",
    "bpb",
    "flops",
    "seconds",
    "tokens_trained",
    "diverged_at",
    "started",
    "host",
    "fingerprint",
    "run",
    "width",
    "depth",
    "N_embed",
    "lr",
    "batch_tokens",
    "warmup",
    "decay",
    "decay_start",
    "decay_shape",
    "min_ratio",
    "half_life",
    "weight_decay",
    "beta2",
    "seed",
    "seq_len",
    "rules",
    "corpus_hash",
    "N_total",
    "experts",
    "top_k",
    "granularity",
    "balance",
    "upcycle_at",
    "load_max",
    "attention_logit",
    "log_partition",
    "clip_rate",
    "spikes",
    "eps_ratio",
]


DENSE = {"experts": 1, "top_k": 1, "granularity": 1}  # a mixture's columns where there is none


def load_max(stability: Stability | None) -> float | None:
    """The busiest expert's share of its layer, over an even one: 1 at perfect balance."""
    layers = stability.expert_load if stability is not None else ()
    return max((max(shares) * len(shares) for shares in layers), default=None)


def flat(r: Record) -> dict[str, Any]:
    """A record as a row of the runs table; `run` is its trunk, `warmup` and the lengths are tokens.

    An encoder has its `masking`, and a student its lesson, in columns of their own.
    Where there are several sources, `decay_mix.NAME` is one's share of the decay, `loss.NAME` the loss on its slice.
    """
    trunk, settings = r.run.trunk, r.run.trunk.settings
    found = {
        **vars(settings),
        **vars(r),
        "fingerprint": r.fingerprint_of,
        "run": trunk.fingerprint,
        "width": trunk.shape.width,
        "depth": trunk.shape.depth,
        "N_embed": r.N + trunk.body.vocab * trunk.shape.width,
        "decay": r.run.decay_tokens / r.run.tokens,
        "decay_start": r.run.decay_start,
        "decay_shape": r.run.decay_shape,
        "min_ratio": r.run.min_ratio,
        "half_life": r.run.half_life,
        "seed": trunk.seed,
        "seq_len": trunk.body.seq_len,
        "rules": trunk.rules,
        "corpus_hash": data.identity(r.run),
        "N_total": r.N_total or r.N,
        **(trunk.shape.mixture.model_dump() if trunk.shape.mixture is not None else DENSE),
        "upcycle_at": trunk.begun,
        "load_max": load_max(r.stability),
    }
    edge = vars(r.stability) if r.stability is not None else {}
    several: dict[str, Any] = {f"{MIX}.{m.name}": m.share for m in r.run.mix} | {
        f"{ON}{name}": x for name, x in r.slices.items()
    }
    several |= {"masking": settings.masking} if hides(trunk.family) else {}
    several |= {f"score.{name}": x for name, x in r.scores.items()}
    several |= {"task": trunk.task.name} if trunk.task is not None else {}
    if trunk.lesson is not None:
        several |= {"teacher" if k == "name" else k: v for k, v in vars(trunk.lesson).items() if k != "teacher"}
    return {name: edge.get(name) if name in Stability.model_fields else found[name] for name in READING} | several
