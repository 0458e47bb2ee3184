"""One driver per study: a lock that dies with its process.

The lock is the kernel's (flock, on a file that stays open), so that taking over from a dead process is neither a guess
nor a race. What the file says is for people, and for where the kernel's word does not reach: on a file system that
several hosts share, another host's lock stands until `free` has watched its beat stop.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunnel.errors import RESUMABLE, UserError

BEAT_SECONDS = 5.0  # between touches of the lock's file  *assumed*
WATCH_SECONDS = 30.0  # without a touch, and another host's driver is dead  *assumed*
# One kernel sees them all, so its locks reach everybody who can write there: proc(5), mountinfo.
LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "ramfs", "overlay"})


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Holds `path` for this process; raises UserError, naming host, pid and age, while another one lives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = locked(path)
    over = threading.Event()
    try:
        other = said(fd)
        if other is not None and other["host"] != socket.gethostname() and not is_local(path):
            raise refused(path, other, "; if it is dead: --takeover")
        since = datetime.now(UTC).isoformat(timespec="seconds")
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}).encode(), 0)
        beating = threading.Thread(target=beat, args=(path, fd, over), daemon=True)
        beating.start()
        try:
            yield
        finally:
            over.set()
            path.unlink(missing_ok=True)  # ours still: nobody else removes a lock that is held
            beating.join()
    finally:
        os.close(fd)


def locked(path: Path) -> int:
    """An open file at `path` with the kernel's lock on it; raises UserError where another has it, or it is no file."""
    while True:
        if path.exists() and not path.is_file():  # a folder, a pipe
            raise UserError("is no file, so it cannot be locked: remove it", file=path)
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if still_there(path, fd):  # the last holder may have removed it since we opened it
                return fd
        except BlockingIOError:
            other = said(fd)
            os.close(fd)
            raise refused(path, other) from None
        except OSError as e:
            os.close(fd)
            if e.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                raise
            raise UserError("its file system has no locks; a study needs one that has", file=path.parent) from None
        os.close(fd)


def still_there(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def beat(path: Path, fd: int, over: threading.Event) -> None:
    """Touches the lock until it is given back; a process that lost it must not write another line, and ends."""
    while not over.wait(BEAT_SECONDS):
        try:
            mine = still_there(path, fd)
            os.utime(fd)
        except OSError:
            mine = over.is_set()
        if not mine and not over.is_set():
            os.write(2, b"stopped: another sweep took over this study\n")
            os._exit(RESUMABLE)


def free(path: Path) -> None:
    """Removes the lock of a driver that is dead, wherever it ran; raises UserError where it lives.

    Takes `WATCH_SECONDS` for another host's. It goes by changes of the file, not by clocks.
    """
    if not path.exists():
        return
    fd = locked(path)
    try:
        other = said(fd)
        if other is not None and other["host"] != socket.gethostname() and not is_local(path):
            before, end = os.stat(path).st_mtime_ns, time.monotonic() + WATCH_SECONDS
            while time.monotonic() < end:
                time.sleep(min(BEAT_SECONDS, WATCH_SECONDS) / 5)
                if not path.exists() or os.stat(path).st_mtime_ns != before:
                    raise refused(path, other, ": it lives")
        path.unlink()
    finally:
        os.close(fd)


def refused(path: Path, other: dict[str, Any] | None, more: str = "") -> UserError:
    if other is None:  # between its lock and its first line
        return UserError(f"another sweep holds this study: it just began{more}", file=path.parent)
    who = f"pid {other['pid']} on {other['host']} since {other['since']} ({age(other['since'])})"
    return UserError(f"another sweep holds this study: {who}{more}", file=path.parent)


def age(since: str) -> str:
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds()
        return f"{seconds / 60:.0f} min" if seconds >= 0 else "age unknown"  # the clock was set back
    except (ValueError, TypeError):  # another hand wrote it
        return "age unknown"


def said(fd: int) -> dict[str, Any] | None:
    return parsed(os.pread(fd, 4096, 0))


def other_driver(path: Path) -> dict[str, Any] | None:
    """What a lock's file says of its driver, dead or alive; None where there is none, or nothing whole in it."""
    return parsed(path.read_bytes()) if path.is_file() else None


def parsed(text: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
        return {"host": str(found["host"]), "pid": int(found["pid"]), "since": str(found["since"])}
    except (ValueError, TypeError, KeyError, OverflowError):  # infinity is JSON in Python
        return None


def alive(driver: dict[str, Any]) -> bool:
    """Whether a lock's process seems to live, for those who only look; one on another host is taken to."""
    if driver["host"] != socket.gethostname():
        return True
    try:
        os.kill(driver["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return driver["pid"] != os.getpid()


def is_local(path: Path) -> bool:
    """Whether the file system of `path` belongs to one kernel alone."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:  # no Linux
        return False
    device = os.stat(path.parent).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    kinds = {line.split(" - ")[1].split()[0] for line in lines if line.split()[2] == wanted}
    return bool(kinds) and kinds <= LOCAL
