"""How files are written: whole or not at all, and flushed to the disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunnel.errors import UserError
from tunnel.folder import lock

LARGEST = 1 << 26  # bytes of a JSON file: records have a few thousand, a law's fit a million  *assumed*
SAVING = ".saving-"  # begins the name of what is being written; the writer's pid follows


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


@contextmanager
def whole(path: Path, look: Callable[[], None] = lambda: None, *, once: bool = False) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends: the old content or the new, never half.

    It is flushed before and after, and gone where the block fails; a killed process leaves it for `Store.tidy`. `look`
    is called right before the rename, and may raise; `once`: a file that is there already stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{SAVING}{os.getpid()}-")
    os.close(handle)
    try:
        yield Path(name)
        flush(Path(name))
        os.chmod(name, 0o644)
        look()
        (place if once else os.replace)(name, path)
    except BaseException:
        discard(Path(name))
        raise
    flush(path.parent)


def place(new: str, path: Path) -> None:
    """Renames, but never over a file: of two that race, the first one's stays."""
    try:
        os.link(new, path)
    except FileExistsError:
        pass
    except OSError as e:
        if e.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        if not path.exists():  # a file system without links: two that race within this line are not told apart
            os.replace(new, path)
            return
    os.unlink(new)


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


def content(path: Path) -> bytes:
    """A small file's bytes; raises UserError where it is none of ours: a pipe would be waited for, a gigabyte read."""
    if not path.is_file():
        raise UserError("is not a file", file=path)
    if path.stat().st_size > LARGEST:
        raise UserError(f"has more than {LARGEST} bytes", file=path, value=path.stat().st_size)
    return path.read_bytes()


def read_json(path: Path, default: Any = None) -> Any:
    """A JSON object of the folder's; raises UserError where there is something else."""
    if not path.exists():
        return default
    try:
        found = json.loads(content(path))
    except (ValueError, RecursionError) as e:
        raise UserError(f"is not JSON: {e}", file=path) from None
    if not isinstance(found, dict):
        raise UserError("is no object", file=path, value=type(found).__name__)
    return found


def damaged(path: Path) -> bool:
    """Whether a JSON file was cut or overwritten; one of another version is whole."""
    try:
        return not isinstance(json.loads(content(path)), dict)
    except (ValueError, RecursionError):
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
