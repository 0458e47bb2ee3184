"""A study's folder whose workers share no file system: what they write lies at a URL (`tunnel.folder.remote`).

There lie records, curves, environments, trunks, and what orders the workers: open attempts, and the file that asks them
to stop. The driver's folder stays whole: it pulls records and curves; only trunks stay where they are until they are
wanted. A worker has a folder for its hand alone, on its node, and touches neither the driver's nor the database.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tunnel import study
from tunnel.errors import RESUMABLE, Stopped, UserError
from tunnel.families import Arrays
from tunnel.folder import audit, checkpoint, environment, fence
from tunnel.folder.checkpoint import MANIFEST, META, State
from tunnel.folder.files import SAVING, being_written, damaged, discard, now, read_json, whole
from tunnel.folder.remote import UNFINISHED, Place, Remote
from tunnel.folder.store import Store, read_record
from tunnel.folder.trouble import Unreachable
from tunnel.run import Record
from tunnel.training import data

OWNER = "owner.json"
PULLED = {environment.FOLDER: True, "records": True, "curves": False}  # by the driver; whether it is written once
NAME = re.compile(r"[0-9a-f]+\.(json|parquet)")  # of what is pulled
CURVE_SECONDS = 10.0  # between pushes of a curve that grows  *assumed*
STOP_SECONDS = 2.0  # between a worker's looks for `stop`: each waits for the storage  *assumed*
FOLLOW_SECONDS = 10.0  # between the driver's looks for what is new  *assumed*
log = logging.getLogger(__name__)


def opened(root: str | Path, place: Place | None = None) -> Store:
    """A study's folder; one whose half lies elsewhere says so itself, in study.resolved.json."""
    said = read_json(Path(root, "study.resolved.json"), {}).get("shared")
    place = place or (Place(**said) if said else None)
    return Shared(root, place) if place is not None else Store(root)


class Shared(Store):
    """A study's folder that keeps at its place, too, what is written here, and finds there the states that are not."""

    def __init__(self, root: str | Path, place: Place) -> None:
        super().__init__(root)
        self.place, self.url, self.me, self.remote = place, place.url, place.owner, Remote(place.url)
        self.drawn: set[str] = set()  # curves that are not pushed yet
        self.drawn_at = time.monotonic()
        self.seen: dict[str, str] = {}  # what the storage said of a curve when it was pulled

    def part(self, *names: str) -> Store:
        return Shared(self.path(*names), Place("/".join([self.url, *names]), self.me))

    def remove(self) -> None:
        super().remove()
        self.remote.remove("")

    def push(self, name: str, *, once: bool = False) -> bool:
        return self.remote.put(self.path(name), name, once=once)

    def pull(self, name: str) -> bool:
        """Brings one file here; False where there is none that is whole."""
        with contextlib.suppress(Missing), whole(self.path(name)) as temporary:
            if not self.remote.get(name, temporary) or (name.endswith(".json") and damaged(temporary)):
                raise Missing
            return True
        return False

    # records and curves

    def write_record(self, record: Record) -> Record:
        kept = super().write_record(record)
        self.push_curves()
        around = f"{environment.FOLDER}/{record.environment}.json"
        if self.path(around).exists():
            self.push(around, once=True)
        name = f"records/{record.fingerprint_of}.json"
        if self.push(name, once=True):
            return kept
        if not self.pull(name):
            self.push(name)  # what is there was cut
        return read_record(self.path(name))

    def write_curve(self, name: str, rows: list[tuple[int, float, float, float]], after: int = 0) -> None:
        super().write_curve(name, rows, after)
        self.drawn.add(name)
        if time.monotonic() - self.drawn_at > CURVE_SECONDS:
            self.push_curves()

    def push_curves(self) -> None:
        """Also before each record and checkpoint: their curves are never behind them."""
        for path in (f"curves/{name}.parquet" for name in sorted(self.drawn)):
            if self.path(path).exists():
                self.push(path)
        self.drawn, self.drawn_at = set(), time.monotonic()

    # trunks

    def kept(self, trunk: str) -> list[int]:
        there = (int(name) for name in self.remote.listed(f"trunks/{trunk}") if name.isdigit())
        return sorted({*super().kept(trunk), *there})

    def save_state(self, trunk: str, tokens: int, arrays: Arrays, meta: dict[str, Any]) -> None:
        super().save_state(trunk, tokens, arrays, meta)
        name = self.name(trunk, tokens)
        if not self.remote.exists(f"{name}/{MANIFEST}"):
            self.push_curves()
            for file in (*checkpoint.files(self.path(name)), MANIFEST):  # which says that it is whole
                self.push(f"{name}/{file}")

    def load_state(self, trunk: str, up_to: int) -> State | None:
        state = super().peek(trunk, up_to)  # the best that there can be
        if state is not None:
            return state
        for tokens in reversed([t for t in self.kept(trunk) if t <= up_to]):
            state = self.peek(trunk, tokens)
            if state is not None:
                return state
            if self.remote.exists(f"{self.name(trunk, tokens)}/{MANIFEST}"):  # else it may still be on its way
                self.forget_state(trunk, tokens)
        return None

    def peek(self, trunk: str, tokens: int) -> State | None:
        state = super().peek(trunk, tokens)
        return super().peek(trunk, tokens) if state is None and self.pull_state(trunk, tokens) else state

    def pull_state(self, trunk: str, tokens: int) -> bool:
        """Brings a checkpoint here; whether it is a good one its reader looks."""
        name, final = self.name(trunk, tokens), self.checkpoint(trunk, tokens)
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=final.parent, prefix=f"{SAVING}{os.getpid()}-"))
        try:
            if not self.remote.get(f"{name}/{MANIFEST}", temporary / MANIFEST):
                return False
            files = checkpoint.files(temporary)
            if not files or not all(self.remote.get(f"{name}/{file}", temporary / file) for file in files):
                return False
            discard(final)
            os.rename(temporary, final)
            return True
        finally:
            discard(temporary)

    def forget_state(self, trunk: str, tokens: int) -> None:
        super().forget_state(trunk, tokens)
        self.remote.remove(self.name(trunk, tokens))

    @staticmethod
    def name(trunk: str, tokens: int) -> str:
        return f"trunks/{trunk}/{tokens:015d}"

    # the driver's part

    @contextmanager
    def driver(self) -> Iterator[None]:
        with super().driver():
            self.claim()
            self.pull_new()
            yield

    def claim(self) -> None:
        """Makes this folder the one that drives; raises UserError where another one does, or there is no such place."""
        question = self.path("study.toml")
        mine = {
            "owner": self.me,
            "host": socket.gethostname(),
            "folder": str(self.root.resolve()),
            "since": now(),
            "study": question.read_text(encoding="utf-8") if question.exists() else "",
        }
        other = self.owner()
        if other is None or other["owner"] == self.me:
            try:
                self.remote.put(json.dumps(mine, indent=1).encode(), OWNER, once=other is None)
            except FileNotFoundError as e:
                raise UserError(f"does not exist ({e})", key="--shared", value=self.url) from None
            other = self.owner()
        if other is not None and other["owner"] != self.me:
            who = f"{other['folder']} on {other['host']} since {other['since']}"
            rule = f"holds what {who} sweeps; if that is dead or gone: --takeover"
            raise UserError(rule, key="--shared", value=self.url)

    def owner(self) -> dict[str, str] | None:
        """Which folder drives, and from when; None where none does."""
        try:
            found = json.loads(self.remote.read(OWNER) or b"null")
            return found and {k: str(found[k]) for k in ("owner", "host", "folder", "since", "study")}
        except (ValueError, KeyError, TypeError):
            raise UserError("is not ours", file=f"{self.url}/{OWNER}") from None

    def take_over(self) -> None:
        super().take_over()
        other = self.owner()
        if other is None or other["owner"] == self.me:
            return
        small = read_json(self.path("study.resolved.json"), {}).get("scale") == "small"
        theirs, mine = (
            study.parse(text, self.path("study.toml"), small=small)
            for text in (other["study"], self.path("study.toml").read_text(encoding="utf-8"))
        )
        changed = study.changes(theirs, mine)
        if changed:
            raise UserError(f"holds another study's runs, which differs in {changed}", key="--shared", value=self.url)
        self.remote.remove(OWNER)
        audit.note(self.root, "took over", driver={k: other[k] for k in ("host", "folder", "since")})

    def pull_new(self) -> None:
        """Brings what the workers wrote. A curve of unchanged size is taken to be the same when it is first seen."""
        for folder, once in PULLED.items():
            for file, info in self.remote.listed(folder).items():
                name, path = f"{folder}/{file}", self.path(folder, file)
                stamp = repr(sorted(info.items(), key=str))
                there = path.exists()
                if not NAME.fullmatch(file) or self.seen.get(name) == stamp or (once and there):
                    continue
                known = there and name not in self.seen and path.stat().st_size == info.get("size")
                if known or self.pull(name):
                    self.seen[name] = stamp

    def open_attempt(self) -> Path:
        path = super().open_attempt()
        self.remote.put(b"", f"attempts/{path.name}")
        return path

    def close_attempt(self, attempt: Path) -> None:
        super().close_attempt(attempt)
        self.remote.remove(f"attempts/{attempt.name}")

    @contextmanager
    def followed(self, *, here: bool = False) -> Iterator[None]:
        """While the block's workers write elsewhere, brings what they wrote, and passes on that they shall stop."""
        for left in ("attempts", "stop", UNFINISHED):  # by an earlier driver, whose workers may live
            self.remote.remove(left)
        over = threading.Event()
        thread = threading.Thread(target=follow, args=(Shared(self.root, Place(self.url, self.me)), over), daemon=True)
        with super().followed(here=here):
            if here:
                yield
                return
            thread.start()
            try:
                yield
            finally:
                over.set()
                thread.join(timeout=1.0)  # it may be waiting for the storage
        self.pull_new()


def follow(keep: Shared, over: threading.Event) -> None:
    """The driver's second thread; where the study was taken over it ends the process, as `lock.beat` does."""
    stopped, at, warned = False, time.monotonic(), False
    while not over.wait(0.25):
        try:
            if not stopped and keep.path("stop").exists():
                keep.remote.put(b"", "stop")
                stopped = True
            if time.monotonic() - at > FOLLOW_SECONDS:
                other = keep.owner()
                if other is not None and other["owner"] != keep.me:
                    os.write(2, b"stopped: another folder took over this study's shared storage\n")
                    os._exit(RESUMABLE)
                keep.pull_new()
                at = time.monotonic()
        except (Unreachable, Stopped, UserError, FileNotFoundError) as e:
            if not warned:
                log.warning("%s", e)
            warned, at = True, time.monotonic()


class Worker(Shared):
    """A worker's: a folder for its hand alone, and its attempt, without which it puts nothing any more."""

    def __init__(self, place: Place, attempt: str | None = None) -> None:
        super().__init__(scratch(), place)
        self.own = attempt
        self.sought: set[str] = set()
        self.asked, self.asked_at = False, -STOP_SECONDS

    @classmethod
    def leading(cls, place: Place) -> Worker:
        """One that closes all attempts but its own."""
        keep = cls(place, secrets.token_hex(8))
        keep.remote.remove("attempts")
        keep.remote.put(b"", f"attempts/{keep.own}")
        return keep

    def close(self) -> None:
        discard(self.root)

    def admitted(self) -> None:
        """Raises `fence.Overtaken` where this worker may no longer write."""
        if self.own is not None and not self.remote.exists(f"attempts/{self.own}"):
            raise fence.Overtaken(f"attempt {self.own} was given up")

    def push(self, name: str, *, once: bool = False) -> bool:
        self.admitted()
        return super().push(name, once=once)

    def forget_state(self, trunk: str, tokens: int) -> None:
        self.admitted()
        super().forget_state(trunk, tokens)

    def save_state(self, trunk: str, tokens: int, arrays: Arrays, meta: dict[str, Any]) -> None:
        """Where several processes hold it, each puts its file there, and none has it all."""
        name = self.name(trunk, tokens)
        if not isinstance(arrays, checkpoint.Parts):
            super().save_state(trunk, tokens, arrays, meta)
        elif not self.remote.exists(f"{name}/{MANIFEST}"):
            self.push_curves()
            hashes = checkpoint.put(arrays, There(Place(self.url, self.me), self.own, name))
            self.path(name).mkdir(parents=True, exist_ok=True)
            checkpoint.seal(self.path(name), hashes, meta)
            for file in (META, MANIFEST):
                self.push(f"{name}/{file}")

    def record(self, fingerprint: str) -> Record | None:
        self.seek(f"records/{fingerprint}.json")
        return super().record(fingerprint)

    def curve(self, name: str) -> pd.DataFrame | None:
        self.seek(f"curves/{name}.parquet")
        return super().curve(name)

    def seek(self, name: str) -> None:
        """Pulls what an earlier worker may have put, once."""
        if name not in self.sought and not self.path(name).exists():
            self.sought.add(name)
            self.pull(name)

    def stopping(self) -> bool:
        clock = time.monotonic()
        if not self.asked and clock - self.asked_at > STOP_SECONDS:
            self.asked, self.asked_at = self.remote.exists("stop"), clock
        return self.asked


@dataclass(frozen=True)
class There:
    """Where the processes of a worker put a checkpoint's files: at the place, under the worker's attempt."""

    place: Place
    attempt: str | None
    name: str

    def put(self, file: str, arrays: Arrays) -> str:
        keep = Worker(self.place, self.attempt)
        try:
            path = keep.path(self.name, file)
            path.parent.mkdir(parents=True)
            found = checkpoint.written(path, arrays)
            keep.push(f"{self.name}/{file}")
            return found
        finally:
            keep.close()


def scratch() -> Path:
    """A new folder of this process's, on this node; those of processes that died are removed."""
    base = data.cache() / "scratch"
    base.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in base.glob(f"{SAVING}*"):
        if not being_written(left) and not left.name.startswith(f"{SAVING}{os.getpid()}-"):
            discard(left)
    return Path(tempfile.mkdtemp(dir=base, prefix=f"{SAVING}{os.getpid()}-"))


class Missing(Exception):
    """There is nothing to pull."""
