"""Storage that is reached by a URL, such as s3://bucket/path: files are put there whole, and pulled from there.

Whatever fsspec has a file system for, with that one's own credentials: its variables of the environment, or fsspec's
configuration files. Errors are tried again for a while; what is left is the machine's fault, or stops the work.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from tunnel.errors import Stopped, UserError
from tunnel.folder.trouble import FULL, ROOM, Unreachable
from tunnel.study import secret

OBJECTS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss"})  # a put shows all of an object, or none
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before an operation is tried again  *assumed*
FULL_SAID = re.compile("QuotaExceeded|StorageFull|InsufficientStorage|no space left", re.I)  # S3, MinIO, WebDAV
UNFINISHED = "unfinished"  # the folder of what is being put where files are renamed
T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Where a study's shared half lies, and which folder drives it."""

    url: str
    owner: str  # the driver's folder: a name that no other has


def plain(url: str) -> str:
    """A URL as it is kept; raises UserError where it is none, or holds a password."""
    if secret.holds(url):
        raise refused(url, "holds a secret: its file system reads it from the environment")
    found = url.rstrip("/")
    if "::" in url or "://" not in found:
        raise refused(url, "is no URL such as s3://bucket/path; a folder that all nodes see is given as --out")
    return found


def refused(url: str, rule: str) -> UserError:
    return UserError(rule, key="--shared", value=secret.without(url))


def checked(url: str) -> str:
    """What `plain` does; raises UserError where nothing here can put files there whole, too."""
    url = plain(url)
    try:
        from fsspec import AbstractFileSystem

        fs, path = Remote(url).place
    except ImportError as e:
        raise refused(url, f"needs a package that is not installed ({e})") from None
    except Exception as e:  # each file system has errors of its own
        raise refused(url, f"cannot be reached ({type(e).__name__}: {e})") from None
    if not path:
        raise refused(url, "names no folder")
    if not is_objects(fs) and type(fs).mv is AbstractFileSystem.mv:  # which copies
        raise refused(url, "can neither put a file whole nor rename one")
    return url


def is_objects(fs: Any) -> bool:
    names = [fs.protocol] if isinstance(fs.protocol, str) else fs.protocol
    return not OBJECTS.isdisjoint(names)


class Remote:
    """A folder at a URL; names are paths in it. One per thread: not every file system's connection can be shared.

    Raises Unreachable where an operation fails to the end, Stopped where the storage is full, or forbids it.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.again = False  # the connection broke

    @cached_property
    def place(self) -> tuple[Any, str]:
        """The file system, and the folder in its words; only a client that serves many threads is used again."""
        import fsspec.core  # only now: most studies need none

        many = fsspec.get_filesystem_class(fsspec.utils.get_protocol(self.url)).async_impl
        fs, path = fsspec.core.url_to_fs(self.url, skip_instance_cache=self.again or not many)
        return fs, path.rstrip("/")

    def put(self, content: Path | bytes, name: str, *, once: bool = False) -> bool:
        """Puts a file, whole or not at all; `once`: one that is there stays. Returns whether this one was put.

        `once` is exact on object stores that know it (S3, GCS); elsewhere two that race within a line are not told
        apart.
        """

        def upload(fs: Any, path: str, **how: str) -> None:
            if isinstance(content, bytes):
                fs.pipe_file(path, content, **how)
            else:
                fs.put_file(str(content), path, **how)

        def write(fs: Any, path: str) -> bool:
            if once and fs.exists(path):
                return False
            if is_objects(fs):
                with_rule = {"mode": "create"} if once else {}
                try:
                    upload(fs, path, **with_rule)
                except FileExistsError:
                    return False
                except Exception as e:
                    if not once or not (isinstance(e, TypeError) or "implemented" in str(e)):
                        raise
                    upload(fs, path)  # a store that does not know the rule
                return True
            root = self.place[1]
            temporary = f"{root}/{UNFINISHED}/{secrets.token_hex(8)}"
            for folder in (f"{root}/{UNFINISHED}", path.rpartition("/")[0]):
                fs.makedirs(folder, exist_ok=True)
            upload(fs, temporary)
            fs.mv(temporary, path)
            return True

        return self.tried(write, name)

    def get(self, name: str, local: Path) -> bool:
        """Copies a file to a path here; False where there is none."""

        def read(fs: Any, path: str) -> bool:
            try:
                fs.get_file(path, str(local))
            except FileNotFoundError:
                return False
            except Exception:
                if fs.exists(path):
                    raise
                return False
            return True

        return self.tried(read, name)

    def read(self, name: str) -> bytes | None:
        """A small file's bytes; None where there is none."""

        def read(fs: Any, path: str) -> bytes | None:
            try:
                return bytes(fs.cat_file(path))
            except FileNotFoundError:
                return None

        return self.tried(read, name)

    def exists(self, name: str) -> bool:
        return self.tried(lambda fs, path: bool(fs.exists(path)), name)

    def listed(self, folder: str) -> dict[str, dict[str, Any]]:
        """What the storage says of a folder's files and folders, by name; empty where it has none."""

        def read(fs: Any, path: str) -> dict[str, dict[str, Any]]:
            try:
                found = fs.ls(path, detail=True)
            except FileNotFoundError:
                return {}
            return {last(i["name"]): i for i in found if i["name"].strip("/") != path.strip("/")}

        return self.tried(read, folder)

    def remove(self, name: str) -> None:
        """Removes a file, or a folder with all in it; it may be gone."""

        def rm(fs: Any, path: str) -> None:
            with suppress(FileNotFoundError):
                fs.rm(path, recursive=True)

        self.tried(rm, name)

    def tried(self, operation: Callable[[Any, str], T], name: str) -> T:
        for wait in (*WAITS, None):
            try:
                fs, root = self.place
                fs.invalidate_cache()  # others write there
                return operation(fs, f"{root}/{name}".rstrip("/"))
            except (ImportError, FileNotFoundError):
                raise
            except PermissionError as e:
                raise Stopped(f"{self.url} does not allow it ({said(e)}); the same command goes on") from e
            except Exception as e:  # each file system has errors of its own
                if getattr(e, "errno", None) in FULL or FULL_SAID.search(str(e)):
                    raise Stopped(f"{self.url} has no space left ({said(e)}); {ROOM}") from e
                if wait is None:
                    raise Unreachable(f"{self.url} does not answer ({said(e)})") from e
            self.again = True
            self.__dict__.pop("place", None)
            time.sleep(wait)
        raise AssertionError


def last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def said(e: Exception) -> str:
    lines = str(e).strip().splitlines()
    return f"{type(e).__name__}: {secret.without(lines[-1])}" if lines else type(e).__name__
