"""A bundle appears whole or not at all, and takes the place of nothing but an earlier bundle."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Mapping
from json import JSONDecodeError, dumps, loads
from pathlib import Path
from typing import Any

from tunnel.errors import UserError
from tunnel.folder.files import file_hash

MANIFEST = "manifest.json"
OURS = {MANIFEST, "__pycache__"}  # in a bundle beside what its manifest names: Python's cache of the shipped hook
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # Linux: fcntl.h, linux/fs.h


def write(
    files: Mapping[str, str] | Mapping[str, str | bytes], out: Path, about: Mapping[str, Any], *, force: bool
) -> list[str]:
    """Writes the files and their manifest as the folder `out`; returns their names, the manifest last.

    Raises UserError where `out` may not be written or replaced, and changes nothing then.
    """
    out = Path(os.path.abspath(out))
    temporary = None
    try:
        refuse(out, force)
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        for name, content in files.items():
            flushed(temporary / name, content)
        hashes = {name: file_hash(temporary / name) for name in sorted(files)}
        flushed(temporary / MANIFEST, dumps({**about, "files": hashes}, indent=1) + "\n")
        temporary.chmod(0o755)
        if os.path.lexists(out):
            exchange(temporary, out)
        else:
            os.rename(temporary, out)
    except (OSError, ValueError) as e:  # ValueError: a NUL in the name
        raise UserError(f"cannot be written: {getattr(e, 'strerror', None) or e}", file=out) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return [*sorted(files), MANIFEST]


def refuse(out: Path, force: bool) -> None:
    """Raises UserError unless `out` is free, or an earlier bundle (or empty) that may be replaced."""
    if os.path.islink(out):
        raise UserError("is a symbolic link: an export never follows one", file=out)
    if not os.path.lexists(out):
        return
    if not force:
        raise UserError("exists: choose another --out, or replace an earlier bundle with --force", file=out)
    if not out.is_dir():
        raise UserError("is not a folder: --force replaces bundles only", file=out)
    if strangers := sorted(p.name for p in out.iterdir() if p.name not in known(out)):
        raise UserError(
            "holds what no export wrote: --force replaces bundles only", file=out, value=", ".join(strangers)
        )


def known(out: Path) -> set[str]:
    """The names that an earlier export wrote here, by its manifest."""
    manifest = out / MANIFEST
    try:
        return OURS | set(loads(manifest.read_text())["files"]) if manifest.is_file() else set()
    except (JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return set()


def flushed(path: Path, content: str | bytes) -> None:
    with open(path, "xb") as f:
        f.write(content if isinstance(content, bytes) else content.encode())
        f.flush()
        os.fsync(f.fileno())


def exchange(new: Path, old: Path) -> None:
    """Swaps two folders in one step, so that a kill leaves one whole bundle under the name; the old is then in `new`.

    Where the system has no such call, two renames: a kill between them leaves both bundles, each under another name.
    """
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
        if call(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old), RENAME_EXCHANGE) == 0:
            return
    except AttributeError:
        pass
    aside = new.with_name(f"{new.name}.old")
    os.rename(old, aside)
    try:
        os.rename(new, old)
    except OSError:
        os.rename(aside, old)
        raise
    shutil.rmtree(aside, ignore_errors=True)
