"""Who may still write: a worker whose attempt at its trials the driver has not given up.

A worker that was cut off trains on, and may come back after its trials were handed to another one. So the driver opens
an attempt for each hand, a file in the study's `attempts/`, and closes it before it gives the hand's trials to anybody
else; a worker looks for that file right before every rename and removal, and ends where it is gone. What a closed
attempt can still do, in the moment between its look and its rename: put a whole checkpoint of the same trunk where none
was, or an older curve. A record it cannot change, because a record is written once (`Store.write_record`).
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from tunnel.folder.files import discard


class Overtaken(Exception):
    """The driver gave this attempt up: another worker has its trials."""


def open_attempt(folder: Path) -> Path:
    """The file of a new attempt, of a name that none had before."""
    path = folder / "attempts" / secrets.token_hex(8)
    path.parent.mkdir(exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o644))
    return path


def close_attempt(path: Path) -> None:
    path.unlink(missing_ok=True)


def close_all(folder: Path) -> None:
    """Closes what an earlier driver left open, whose workers may live."""
    discard(folder / "attempts")


def look(attempt: Path | None) -> None:
    """Raises Overtaken where the attempt is closed; None is the driver's own process, which holds the study's lock."""
    if attempt is None:
        return
    try:
        os.close(os.open(attempt, os.O_RDONLY))  # opened, not looked up: NFS asks its server only then
    except FileNotFoundError:
        raise Overtaken(f"attempt {attempt.name} was given up") from None
