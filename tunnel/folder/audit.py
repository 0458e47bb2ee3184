"""Who did what to a study, when, and with which code: `audit.jsonl`, a hash chain beside the records.

Every line also names the last forecast that was registered by then, so that neither chain is cut or written anew unseen
while the other stands.
"""

from __future__ import annotations

import logging
import os
import pwd
import socket
from pathlib import Path
from typing import Any, Literal

import tunnel
from tunnel.errors import UserError
from tunnel.folder import chain, environment
from tunnel.folder.chain import AUDIT, FORECASTS
from tunnel.folder.files import file_hash, now
from tunnel.study import secret

log = logging.getLogger(__name__)
Did = Literal[
    "launched", "resumed", "took over", "extended", "pruned", "exported", "trained", "alarmed", "forced", "promoted",
    "rolled back",
]  # fmt: skip


def note(root: Path, what: Did, **about: Any) -> None:
    """Adds a line to a study's audit; where it cannot be written the work goes on, with a warning.

    `about`: JSON values, such as the call's arguments; what looks like a secret is hidden.
    """
    question = root / "study.toml"
    try:
        asked = file_hash(question)[:16] if question.is_file() else None
        named = {"study": asked, "forecast": chain.tip(root / FORECASTS)}
        chain.append(root / AUDIT, {**who(), "what": what, "about": secret.without(about), **named})
    except (UserError, OSError) as e:
        log.warning("not noted in the audit (%s): %s", what, e)


def who() -> dict[str, Any]:
    """The one that acts: when, user, host, process, the tunnel's version and git state."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name  # not $USER, which says what it was told
    except KeyError:  # a container's user has no name
        user = f"uid {os.getuid()}"
    where = {"user": user, "host": socket.gethostname(), "pid": os.getpid()}
    return {"when": now(), **where, "tunnel": tunnel.__version__, "git": environment.git_state()}


def shown(root: Path) -> dict[str, Any]:
    """The lines up to the first that does not fit, oldest first; and whether all do."""
    lines, misfit = chain.checked(root / AUDIT)
    return {"folder": str(root), "lines": lines, "fits": misfit is None}


def verified(root: Path, tip: str | None = None) -> dict[str, Any]:
    """Whether a study's chains are as they were written; where they are not, the first `misfit` {file, line, why}.

    `tip`: a hash that was noted elsewhere, and must be among the audit's.
    """
    lines, forecasts = (chain.checked(root / name) for name in (AUDIT, FORECASTS))
    named = [(i, e["forecast"]) for i, e in enumerate(lines[0], 1) if e.get("forecast")]
    known = {e["hash"] for e in forecasts[0]}
    misfits = [
        {"file": name, "line": at, "why": "this line or one before was changed, or taken away"}
        for name, (_, at) in ((AUDIT, lines), (FORECASTS, forecasts))
        if at is not None
    ]
    misfits += [
        {"file": AUDIT, "line": i, "why": f"names a forecast that {FORECASTS} does not hold"}
        for i, hash_ in named
        if hash_ not in known
    ]
    if not lines[0] and environment.all_kept(root):
        misfits.append({"file": AUDIT, "line": 1, "why": "is missing, though something was measured"})
    if tip is not None and tip not in {e["hash"] for e in lines[0]}:
        misfits.append({"file": AUDIT, "line": len(lines[0]) + 1, "why": f"is missing: the line with hash {tip}"})
    counts = {"audit": len(lines[0]), "forecasts": len(forecasts[0])}
    last = lines[0][-1]["hash"] if lines[0] else None
    return {"folder": str(root), "fits": not misfits, "misfit": next(iter(misfits), None), "lines": counts, "tip": last}
