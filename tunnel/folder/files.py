"""How files are written: whole or not at all, flushed to the disk, and in a chain of hashes where order is evidence."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunnel.errors import UserError
from tunnel.folder import lock

SAVING = ".saving-"  # begins the name of what is being written; the writer's pid follows


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends: the old content or the new, never half.

    It is flushed before and after, and gone where the block fails; a killed process leaves it for `Store.tidy`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{SAVING}{os.getpid()}-")
    os.close(handle)
    try:
        yield Path(name)
        flush(Path(name))
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        discard(Path(name))
        raise
    flush(path.parent)


def flush(path: Path) -> None:
    """Puts a file's content, or a folder's names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Atomic."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, default: Any = None) -> Any:
    return json.loads(path.read_text()) if path.exists() else default


def append(path: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """Adds a line to a hash chain: each holds its own hash, and that of the line before. Returns it as written."""
    return append_all(path, [entry])[0]


def append_all(path: Path, entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds lines to a hash chain, all or none; another process that appends meanwhile waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        known = chain(path)
        before, written = known[-1]["hash"] if known else None, []
        for entry in entries:
            chained = {**entry, "previous": before}
            written.append({**chained, "hash": line_hash(chained)})
            before = written[-1]["hash"]
        text = path.read_text() if path.exists() else ""
        lines = (json.dumps(entry, sort_keys=True, allow_nan=False) + "\n" for entry in written)
        write_text(path, text + "".join(lines))
        return written
    finally:
        os.close(folder)


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


def damaged(path: Path) -> bool:
    """Whether a JSON file was cut or overwritten; one of another version is whole."""
    try:
        return not isinstance(json.loads(path.read_bytes()), dict)
    except ValueError:
        return True


def being_written(path: Path) -> bool:
    """Whether the process that writes a `.saving-` file or folder lives, here; elsewhere it died with its driver."""
    pid = path.name.removeprefix(SAVING).split("-")[0]
    return pid.isdigit() and lock.alive({"host": socket.gethostname(), "pid": int(pid)})


def size(path: Path) -> int:
    """Bytes of a file, or of a folder's files."""
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file())


def discard(path: Path) -> None:
    """Removes a file or a folder, which may be gone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def file_hash(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
