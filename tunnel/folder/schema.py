"""The version of a study's folder: who only reads takes an older one as it is, who writes migrates it first.

It stands in study.resolved.json, which those of schema 1 have without it. What a newer tunnel wrote is left alone: its
records may hold what this one would lose.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path

from tunnel.errors import UserError
from tunnel.folder.files import SAVING, discard, flush, read_json, write_json

SCHEMA = 2  # 1: 0.1 to 0.3. 2: records name their environment, which an older tunnel does not know
RESOLVED = "study.resolved.json"
KEPT = ("records", "*.toml", "*.json", "*.jsonl", "optuna.db*")  # by a backup: all that is written anew or added to
log = logging.getLogger(__name__)


def of(root: Path) -> int:
    """A folder's schema; raises UserError where this tunnel does not know it."""
    resolved = read_json(root / RESOLVED)
    found = SCHEMA if resolved is None else resolved.get("schema", 1)
    if type(found) is int and 0 < found <= SCHEMA:
        return found
    newer = type(found) is int and found > SCHEMA
    rule = "was written by a newer tunnel, and is left as it is" if newer else "is no folder's schema"
    raise UserError(rule, file=root / RESOLVED, key="schema", value=found, choices=range(1, SCHEMA + 1))


def migrate(root: Path) -> None:
    """Makes a folder one of today's, after a backup. For the one that holds the study; a kill leaves what it was."""
    before = of(root)
    if before == SCHEMA:
        return
    log.warning("%s is of an older tunnel: kept as it was in %s", root, backup(root, before).name)
    # Of 1 nothing else changes: all that 2 has more may be missing.
    write_json(root / RESOLVED, {**read_json(root / RESOLVED), "schema": SCHEMA})


def backup(root: Path, before: int) -> Path:
    """Copies what is not only ever added, whole or not at all; one that is there is of a migration that was killed."""
    final = root / f"backup.schema-{before}"
    if final.exists():
        return final
    temporary = Path(tempfile.mkdtemp(dir=root, prefix=f"{SAVING}{os.getpid()}-"))
    try:
        for path in {p for pattern in KEPT for p in root.glob(pattern)}:
            (shutil.copytree if path.is_dir() else shutil.copy2)(path, temporary / path.name)
        for path in temporary.rglob("*"):
            flush(path)
        os.rename(temporary, final)
        flush(root)
    finally:
        discard(temporary)
    return final
