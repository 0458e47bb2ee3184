"""Longer trunks: a revision of the study with longer rungs, of which only the new part is trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import tomlkit

from tunnel import plan, study
from tunnel.errors import UserError, about
from tunnel.folder import audit
from tunnel.space import UNITS, whole
from tunnel.study import Stage, Study
from tunnel.sweeps import sweep


def extend(
    where: str | Path,
    tokens: str,
    stage: str | None = None,
    *,
    join: str | None = None,
    share: float = 1.0,
    out: str | Path | None = None,
    **how: Any,
) -> dict[str, Any]:
    """Adds a rung to the study's listed stages, or to one, and sweeps; `how` goes to `sweep.sweep`.

    `tokens` is a factor on each stage's longest rung ("2x") or a length ("4M"); `join` names a source that joins all
    trunks from the longest reading on, as `share` of the sequences. Returns `status`, and as `extended` the new rungs
    by stage. Raises UserError where a stage cannot have the length, or nothing is so named; nothing is written then.
    """
    asked, keep = sweep.located(where, out)
    text = study.read_text(keep.path("study.toml"))
    scaled = sweep.is_small(keep)
    added = {s.name: (s.rungs.unit, longer(s, tokens)) for s in chosen(asked, stage) if s.rungs is not None}
    text = with_rungs(text, added, small=scaled)
    if join is not None:
        text = with_joined(text, sweep.longest(keep), join, share)
    revised = study.parse(text, keep.path("study.toml"), small=scaled)
    assert not study.changes(asked, revised), study.changes(asked, revised)
    with about(keep.path("study.toml")):
        plan.plan(revised)
    sweep.revise(text, keep, small=scaled)
    joined = {} if join is None else {"join": join, "share": share}
    audit.note(keep.root, "extended", tokens=tokens, rungs={name: rung for name, (_, rung) in added.items()}, **joined)
    return {**sweep.sweep(revised, keep, **how), "extended": {name: rung for name, (_, rung) in added.items()}}


def chosen(asked: Study, name: str | None) -> list[Stage]:
    listed = [s for s in asked.stage if not s.searches and s.rungs is not None]
    found = [s for s in listed if name in (None, s.name)]
    if not found:
        raise UserError("is no listed stage with rungs", key="--stage", value=name, choices=[s.name for s in listed])
    return found


def longer(stage: Stage, tokens: str) -> float:
    """A stage's new rung, in the unit of its rungs; raises UserError where it is no longer than what there is."""
    assert stage.rungs is not None
    longest, unit = max(stage.rungs.listed), stage.rungs.unit
    factor = re.fullmatch(r"(\d+(?:\.\d+)?)x", tokens.strip())
    if factor:
        found = float(factor[1]) * longest
    elif unit == "tokens":
        found = length(tokens)
    else:
        raise UserError(f"stage {stage.name} counts its rungs in {unit}: say 2x", key="--tokens", value=tokens)
    if found <= longest:
        raise UserError(f"must be longer than stage {stage.name}'s {longest:g}", key="--tokens", value=tokens)
    return round(found) if unit == "tokens" else found


def length(tokens: str) -> int:
    try:
        found = whole(tokens)
    except ValueError as e:
        raise UserError(f"{e}, or a factor such as 2x", key="--tokens", value=tokens) from None
    if not isinstance(found, int):
        raise UserError("is no whole number of tokens", key="--tokens", value=tokens)
    return found


def with_rungs(text: str, added: dict[str, tuple[str, float]], *, small: bool) -> str:
    """The study file with a rung more for each stage, everything else as it was written, comments too."""
    document = tomlkit.parse(text)
    replaced = document.get("small", {}) if small else {}
    for stage in document["stage"]:
        if stage["name"] not in added:
            continue
        name, rung = added[stage["name"]]
        key = f"stage.{stage['name']}.rungs"
        rungs = replaced.get(f"{key}.{name}") or replaced.get(key, stage["rungs"])[name]
        number = int(rung) if float(rung).is_integer() else rung
        rungs.append(spelled(rung) if all(isinstance(r, str) for r in rungs) else number)
    return tomlkit.dumps(document)


def with_joined(text: str, at: int, source: str, share: float) -> str:
    """The study file with one more source that joins, everything else as it was written."""
    document = tomlkit.parse(text)
    then = document.setdefault("data", tomlkit.table()).setdefault("then", tomlkit.aot())
    then.append(tomlkit.item({"from": at, "source": source, "share": share}))
    return tomlkit.dumps(document)


def spelled(amount: float) -> str:
    """An amount as a study file spells it.

    >>> spelled(2_000_000), spelled(1_500_000), spelled(98_304)
    ('2M', '1500k', '98304')
    """
    for letter, size in sorted(UNITS.items(), key=lambda u: -u[1]):
        if amount >= size and amount % size == 0:
            return f"{amount / size:.0f}{letter}"
    return f"{amount:.17g}"
