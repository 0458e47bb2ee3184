"""What the commands print of who may do what: audits, champions."""

from __future__ import annotations

import json
from typing import Any

from tunnel.show.words import out, table, yes


def audit(found: dict[str, Any]) -> None:
    rows = [
        [e["when"][:19].replace("T", " "), f"{e['user']}@{e['host']}:{e['pid']}", e["what"], code(e), about(e["about"])]
        for e in found["lines"]
    ]
    table(f"{found['folder']}: who did what (UTC)", ["when", "who", "what", "code", "about"], rows)
    if not found["fits"]:
        out.print("the next line does not fit: tunnel audit verify", style="red")


def code(entry: dict[str, Any]) -> str:
    return f"{entry['tunnel']} {entry['git'] or ''}".strip()


def about(known: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v if isinstance(v, str) else json.dumps(v)}" for k, v in known.items() if v is not None)


def verified(found: dict[str, Any]) -> None:
    lines = f"{found['lines']['audit']} lines of audit, {found['lines']['forecasts']} forecasts"
    if found["fits"]:
        out.print(f"{found['folder']}: {lines}, all as they were written; last hash {found['tip']}", style="green")
    else:
        bad = found["misfit"]
        out.print(f"{found['folder']}/{bad['file']}: line {bad['line']}: {bad['why']}", style="red")


def promotion(found: dict[str, Any]) -> None:
    rows = [[c["condition"], yes(c["holds"]), c["why"]] for c in found["conditions"]]
    table("What a champion takes", ["condition", "holds", "why"], rows)
    if found["promoted"]:
        champion(found["champion"], found["champions"])
    else:
        out.print("not promoted; --force REASON does it all the same, and writes the reason down", style="red")


def rolled_back(found: dict[str, Any]) -> None:
    out.print(f"champion {found['was']['number']} goes")
    champion(found["champion"], found["champions"])


def champion(known: dict[str, Any], file: str) -> None:
    forced = f"; forced: {known['forced']}" if known["forced"] else ""
    what = f"champion {known['number']} is {known['target']} of {known['folder']}"
    out.print(f"{what}, in {file}{forced}", style="green")
