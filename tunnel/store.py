"""A study's folder (contract 2): the only module that knows where things lie.

Everything is written under a temporary name, flushed, and renamed when whole; a checkpoint is a folder whose
manifest holds its files' hashes. No pickle anywhere.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tunnel.errors import UserError
from tunnel.families import Arrays
from tunnel.run import Record

CURVE = ["tokens", "loss", "multiplier", "grad_norm"]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def write_text(path: Path, text: str) -> None:
    """Atomic: the old content or the new, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, default: Any = None) -> Any:
    return json.loads(path.read_text()) if path.exists() else default


def append(path: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """Adds a line to a hash chain: each holds its own hash, and that of the line before. Returns it as written."""
    known = chain(path)
    entry = {**entry, "previous": known[-1]["hash"] if known else None}
    entry = {**entry, "hash": line_hash(entry)}
    text = path.read_text() if path.exists() else ""
    write_text(path, text + json.dumps(entry, sort_keys=True, allow_nan=False) + "\n")
    return entry


def chain(path: Path) -> list[dict[str, Any]]:
    """The entries of a hash chain; raises UserError where a line was changed."""
    entries: list[dict[str, Any]] = []
    for i, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        entry = json.loads(line)
        before = entries[-1]["hash"] if entries else None
        if entry.get("previous") != before or entry.get("hash") != line_hash(entry):
            raise UserError("the hash chain is broken: this line or one before was changed", file=path, key=f"line {i}")
        entries.append(entry)
    return entries


def line_hash(entry: dict[str, Any]) -> str:
    """Of an entry without its own hash."""
    text = json.dumps({k: v for k, v in entry.items() if k != "hash"}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Store:
    """Records, trunks, curves and results of one study, under one folder."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def path(self, *parts: str) -> Path:
        return self.root.joinpath(*parts)

    # records

    def record(self, fingerprint: str) -> Record | None:
        path = self.path("records", f"{fingerprint}.json")
        return Record.model_validate_json(path.read_text()) if path.exists() else None

    def write_record(self, record: Record) -> None:
        write_text(self.path("records", f"{record.fingerprint_of}.json"), record.model_dump_json(indent=1) + "\n")

    def records(self) -> list[Record]:
        """All records, oldest first."""
        found = [Record.model_validate_json(p.read_text()) for p in self.path("records").glob("*.json")]
        return sorted(found, key=lambda r: (r.started, r.D))

    # trunks: checkpoints by tokens

    def checkpoint(self, trunk: str, tokens: int) -> Path:
        return self.path("trunks", trunk, f"{tokens:015d}")

    def save_state(self, trunk: str, tokens: int, arrays: Arrays, meta: dict[str, Any]) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        final = self.checkpoint(trunk, tokens)
        if final.exists():
            return
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=final.parent, prefix=".saving-"))
        try:
            save_file({k: np.asarray(v, order="C") for k, v in arrays.items()}, temporary / "state.safetensors")
            (temporary / "meta.json").write_text(json.dumps(meta))
            manifest = {name: file_hash(temporary / name) for name in ("state.safetensors", "meta.json")}
            (temporary / "manifest.json").write_text(json.dumps(manifest))
            for f in temporary.iterdir():
                with open(f, "rb") as handle:
                    os.fsync(handle.fileno())
            os.rename(temporary, final)
        except SafetensorError as e:  # a full disk, in its words: "I/O error: ... (os error 28)"
            code = re.search(r"os error (\d+)", str(e))
            raise OSError(int(code[1]) if code else errno.EIO, str(e), str(final)) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def load_state(self, trunk: str, up_to: int) -> tuple[Arrays, dict[str, Any]] | None:
        """The last whole checkpoint at `up_to` tokens or before; one whose hashes are wrong is passed over."""
        from safetensors.numpy import load_file

        folders = sorted((p for p in self.path("trunks", trunk).glob("[0-9]*") if int(p.name) <= up_to), reverse=True)
        for folder in folders:
            if intact(folder):
                return load_file(folder / "state.safetensors"), json.loads((folder / "meta.json").read_text())
            shutil.rmtree(folder, ignore_errors=True)  # it would be refused again, and its place is wanted
        return None

    def forget_state(self, trunk: str, tokens: int) -> None:
        shutil.rmtree(self.checkpoint(trunk, tokens), ignore_errors=True)

    # curves

    def write_curve(self, name: str, rows: list[tuple[int, float, float, float]], after: int = 0) -> None:
        """Rows (tokens, training loss, lr multiplier, gradient norm); those kept up to `after` tokens stay."""
        curve = pd.DataFrame(rows, columns=CURVE)
        kept = self.curve(name)
        if after and kept is not None:
            curve = pd.concat([kept[kept.tokens <= after], curve[curve.tokens > after]], ignore_index=True)
        path = self.path("curves", f"{name}.parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{name}.{os.getpid()}")
        curve.to_parquet(temporary, index=False)
        os.replace(temporary, path)

    def curve(self, name: str) -> pd.DataFrame | None:
        """A trunk's or a run's curve by fingerprint."""
        path = self.path("curves", f"{name}.parquet")
        return pd.read_parquet(path) if path.exists() else None

    # readings: derived from the records

    def readings(self) -> pd.DataFrame:
        """One row per record: contract 4's columns, and stage, trial, status, flops, seconds, bpb, fingerprints."""
        frame = pd.DataFrame([flat(r) for r in self.records()])
        return frame if len(frame) else pd.DataFrame(columns=READING)

    def write_readings(self) -> pd.DataFrame:
        frame = self.readings()
        path = self.path("readings.parquet")
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        frame.to_parquet(temporary, index=False)
        os.replace(temporary, path)
        return frame

    # the lease: one driver per study

    @contextmanager
    def driver(self) -> Iterator[None]:
        """Holds the study for this process; raises UserError, naming host and pid, while another one lives."""
        path = self.path("driver.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        me = {"host": socket.gethostname(), "pid": os.getpid(), "since": now()}
        while True:
            try:
                with open(path, "x", encoding="utf-8") as f:
                    json.dump(me, f)
                break
            except FileExistsError:
                other = other_driver(path)
                if other is not None and alive(other):
                    raise UserError(
                        f"another sweep holds this study: pid {other['pid']} on {other['host']} since {other['since']}",
                        file=self.root,
                    ) from None
                path.unlink(missing_ok=True)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def other_driver(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except json.JSONDecodeError:
        return None


def alive(driver: dict[str, Any]) -> bool:
    """Whether the lock's process lives; one on another host is taken to."""
    if driver["host"] != socket.gethostname():
        return True
    try:
        os.kill(driver["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return driver["pid"] != os.getpid()


def intact(folder: Path) -> bool:
    """Whether a checkpoint's files are what its manifest says."""
    try:
        manifest = read_json(folder / "manifest.json", {})
    except ValueError:  # no JSON, or no text
        return False
    return bool(manifest) and all((folder / n).exists() and file_hash(folder / n) == h for n, h in manifest.items())


def file_hash(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


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
    "weight_decay",
    "beta2",
    "seed",
    "seq_len",
    "rules",
    "corpus_hash",
]


def flat(r: Record) -> dict[str, Any]:
    """A record as a row of the runs table; `run` is its trunk, `warmup` and the lengths are tokens."""
    trunk, settings = r.run.trunk, r.run.trunk.settings
    found = {
        **settings.model_dump(),
        **r.model_dump(exclude={"run"}),
        "fingerprint": r.fingerprint_of,
        "run": trunk.fingerprint,
        "width": trunk.shape.width,
        "depth": trunk.shape.depth,
        "N_embed": r.N + trunk.body.vocab * trunk.shape.width,
        "decay": r.run.decay_tokens / r.run.tokens,
        "decay_start": r.run.decay_start,
        "decay_shape": r.run.decay_shape,
        "min_ratio": r.run.min_ratio,
        "seed": trunk.seed,
        "seq_len": trunk.body.seq_len,
        "rules": trunk.rules,
        "corpus_hash": trunk.source.corpus_hash,
    }
    return {name: found[name] for name in READING}
