"""The token that a Ray cluster is guarded by: in a file that only its owner reads, or it is not used.

Ray writes its own (~/.ray/auth_token) readable by all; whoever reads it may run code on the cluster.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tunnel.errors import UserError
from tunnel.training.data import cache

NAME = "ray-token"


def own() -> Path:
    """The token of this user's local clusters, made where there is none."""
    path = cache() / NAME
    if not path.exists():
        make(path)
    return private(path)


def known() -> Path | None:
    """The token of this user's local clusters; None before there is one. Raises UserError as `private` does."""
    path = cache() / NAME
    return private(path) if path.exists() else None


def make(path: Path) -> None:
    """Writes a new token, whole or not at all; of two processes the first one's stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)  # mode 0600
    try:
        with open(handle, "w") as f:
            f.write(secrets.token_hex(32))
            f.flush()
            os.fsync(f.fileno())
        os.link(name, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(name)


def of_cluster(variables: Mapping[str, str]) -> Path | None:
    """The file that a cluster elsewhere is joined with, by Ray's own rules; None where it joins without one.

    Raises UserError as `private` does.
    """
    if variables.get("RAY_AUTH_MODE", "token").lower() != "token" or variables.get("RAY_AUTH_TOKEN"):
        return None
    named = variables.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named or "~/.ray/auth_token").expanduser()
    return private(path) if named or path.exists() else None


def private(path: Path) -> Path:
    """`path`, where it is a token that only this user reads; raises UserError, with what mends it."""
    try:
        found = path.stat()
    except OSError as e:
        raise UserError(f"the token file cannot be read ({e.strerror})", file=path) from None
    if not stat.S_ISREG(found.st_mode):
        raise UserError("the token file is no file", file=path)
    if found.st_uid != os.getuid():
        raise UserError("the token file is another user's, who knows the token: use one of your own", file=path)
    if found.st_mode & 0o077:
        rule = "the token file is open to others: remove it for a new token, or chmod 600 where nobody can have read it"
        raise UserError(rule, file=path, value=f"mode {found.st_mode & 0o777:04o}")
    if not found.st_size:
        raise UserError("the token file is empty: remove it", file=path)
    return path
