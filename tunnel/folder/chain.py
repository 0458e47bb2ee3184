"""A hash chain: lines of JSON, each with its own hash and that of the line before, so that none is changed unseen.

Lines are only added, in one write that is flushed, under a lock that others wait for. What a killed writer left of a
line, without its end, was told to nobody: readers pass it over, and the next line takes its place. A chain cannot know
that its last lines were taken away, or that all of it was written anew: who must know that keeps its `tip` elsewhere.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunnel.errors import UserError
from tunnel.folder.files import flush

AUDIT, FORECASTS = "audit.jsonl", "forecasts.jsonl"  # a study's two chains
BROKEN = "the hash chain is broken: this line or one before was changed"
BLOCK = 1 << 16  # bytes read at a time, from the end: more than a line has
Entry = dict[str, Any]


def append(path: Path, entry: Entry) -> Entry:
    """Adds a line; returns it as written."""
    return append_all(path, [entry])[0]


def append_all(path: Path, entries: Iterable[Entry]) -> list[Entry]:
    """Adds lines, all or none; another process that appends waits. Raises UserError where the last line is broken."""
    with locked(path) as fd:
        return add(path, fd, entries)


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Holds a chain, so that what is decided from its lines still holds when `add` writes; yields its open file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not there(path)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        if new:
            flush(path.parent)
        yield fd
    finally:
        os.close(fd)


def add(path: Path, fd: int, entries: Iterable[Entry]) -> list[Entry]:
    """What `append_all` does, for who holds the chain."""
    end, line = last(fd)
    known = parsed(line) if line else None
    if line and known is None:
        raise UserError(BROKEN, file=path, key="the last line")
    before, written = known["hash"] if known else None, list[Entry]()
    for entry in entries:
        chained = {**entry, "previous": before}
        written.append({**chained, "hash": line_hash(chained)})
        before = written[-1]["hash"]
    left = "".join(text(entry) + "\n" for entry in written).encode()
    try:
        os.ftruncate(fd, end)
        while left:
            left = left[os.write(fd, left) :]
        os.fsync(fd)
    except OSError as e:  # a full disk: all or none
        os.ftruncate(fd, end)
        raise OSError(e.errno, e.strerror, str(path)) from None
    return written


def last(fd: int) -> tuple[int, bytes]:
    """Where the last whole line ends, and that line."""
    start = os.fstat(fd).st_size
    block = b""
    while start and block.count(b"\n") < 2:
        step = min(BLOCK, start)
        start -= step
        block = os.pread(fd, step, start) + block
    whole = block[: block.rfind(b"\n") + 1]
    return start + len(whole), whole[:-1].rsplit(b"\n", 1)[-1]


def there(path: Path) -> bool:
    """Whether there is a chain; raises UserError where something else has its name, such as a pipe."""
    if path.exists() and not path.is_file():
        raise UserError("is not a file", file=path)
    return path.exists()


def tip(path: Path) -> str | None:
    """The hash of the last line; None where there is none that can be read."""
    if not there(path):
        return None
    fd = os.open(path, os.O_RDONLY)
    try:
        known = parsed(last(fd)[1])
    finally:
        os.close(fd)
    return known["hash"] if known else None


def entries(path: Path) -> list[Entry]:
    """The lines of a chain; raises UserError where one was changed."""
    found, misfit = checked(path)
    if misfit is not None:
        raise UserError(BROKEN, file=path, key=f"line {misfit}")
    return found


def checked(path: Path) -> tuple[list[Entry], int | None]:
    """The lines up to the first that does not fit, and that one's number."""
    found: list[Entry] = []
    lines = path.read_bytes().split(b"\n")[:-1] if there(path) else []
    for i, line in enumerate(lines, 1):
        entry, before = parsed(line), found[-1]["hash"] if found else None
        if entry is None or entry.get("previous") != before:
            return found, i
        found.append(entry)
    return found, None


def parsed(line: bytes) -> Entry | None:
    """A line as it was written, byte for byte; None where it was changed."""
    try:
        entry = json.loads(line)
        fits = isinstance(entry, dict) and entry.get("hash") == line_hash(entry) and text(entry).encode() == line
    except (ValueError, RecursionError):
        return None
    return entry if fits else None


def line_hash(entry: Entry) -> str:
    """Of an entry without its own hash."""
    return hashlib.sha256(text({k: v for k, v in entry.items() if k != "hash"}).encode()).hexdigest()


def text(entry: Entry) -> str:
    return json.dumps(entry, sort_keys=True, allow_nan=False)
