"""Who is champion: the recommendation that a training job should take. A hash chain of promotions and rollbacks.

`champion.json` says who it is now, for scripts; `champion.jsonl` beside it is the history, and the truth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunnel.errors import UserError
from tunnel.folder import audit, chain
from tunnel.folder.files import write_json

FILE = Path("runs") / "champion.json"
TOLD = ("number", "over", "folder", "study", "target", "recommendation", "forced", "when", "user")
Promotion = dict[str, Any]


def history(path: Path) -> Path:
    """The chain behind a champion's file; raises UserError where that is no JSON's name."""
    if path.suffix != ".json":
        raise UserError("must end in .json", key="--champions", value=str(path))
    return path.with_suffix(".jsonl")


def promotions(path: Path) -> dict[int, Promotion]:
    """All that were ever made, by number. Raises UserError where the chain was changed."""
    return {e["number"]: e for e in chain.entries(history(path)) if e["what"] == "promoted"}


def current(path: Path) -> Promotion | None:
    """The promotion of the champion of now; None where there is none yet."""
    entries = chain.entries(history(path))
    return promotions(path)[entries[-1]["number"]] if entries else None


def write(path: Path, entry: dict[str, Any], tip: str | None) -> dict[str, Any]:
    """Adds to the history what was decided when `tip` was its last line, and says in the champion's file who it is now.

    Raises UserError where another process came first.
    """
    file = history(path)
    with chain.locked(file) as fd:
        if chain.tip(file) != tip:
            raise UserError("another one came first: the same command decides again", file=file)
        [written] = chain.add(file, fd, [{**audit.who(), **entry}])
        now = current(path)
        assert now is not None
        write_json(path, {**{k: now[k] for k in TOLD}, "since": written["when"], "line": written["hash"]})
    return written


def rollback(path: Path = FILE, to: int | None = None) -> dict[str, Any]:
    """Makes an earlier champion the champion again: the one before, or promotion number `to`; what was, and what is.

    Noted in the audits of both studies. Raises UserError where there is no such one.
    """
    tip, now, every = chain.tip(history(path)), current(path), promotions(path)
    if now is None:
        raise UserError("there is no champion yet", file=path)
    number = now["over"] if to is None else to
    if number is None:
        raise UserError("there was no champion before", file=path)
    others = [n for n in every if n != now["number"]]
    if number not in others:
        raise UserError("is no other champion's number", file=path, key="--to", value=number, choices=others)
    write(path, {"what": "rolled back", "number": number, "over": now["number"]}, tip)
    for folder in {Path(every[n]["folder"]) for n in (number, now["number"])}:
        if folder.is_dir():
            audit.note(folder, "rolled back", champions=str(path), to=number, over=now["number"])
    return {"champions": str(path), "was": brief(now), "champion": brief(every[number])}


def brief(promotion: Promotion) -> dict[str, Any]:
    return {k: promotion[k] for k in TOLD if k != "recommendation"}
