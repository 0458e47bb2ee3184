"""Three tasks from manual pages, for studies/narrow_deep.toml: python studies/man_tasks.py data/zh data/tasks

`section`: in which section of the manual does a passage stand? `same`: are two passages of one page? `page`: of which
of the longest pages is it? The labels are the pages' own. Of the first two whole pages are held out, a fifth of them by
the hash of their name, of the last a fifth of the passages; a page under two names counts once.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
import sys
from pathlib import Path

PASSAGE = 160  # characters: about a sequence of 128 tokens
EACH = 3  # passages of a page, at most
RARE = 20  # a section of fewer pages is left out
LONGEST, OF_LONGEST = 24, 40  # pages, and passages of each
MACRO = re.compile(r"^[.'].*$|\\f.|\\[-&]|\\\(..", re.M)  # roff's, and with them the title that names the section


def pages(root: Path) -> dict[str, dict[str, list[str]]]:
    """By section and name, a page's passages, shuffled."""
    found: dict[str, dict[str, list[str]]] = {}
    for path in sorted({p.resolve() for p in root.glob("usr/share/man/zh_CN/man*/*.gz")}):
        text = " ".join(MACRO.sub(" ", gzip.decompress(path.read_bytes()).decode("utf-8", "replace")).split())
        cut = [text[i : i + PASSAGE] for i in range(0, len(text) - PASSAGE, PASSAGE)]
        if len(cut) > 1:
            rng = random.Random(path.name)
            found.setdefault(path.parent.name[3:], {})[path.name] = rng.sample(cut, len(cut))
    return {section: own for section, own in found.items() if len(own) >= RARE}


def main(source: str, out: str) -> None:
    found, folder = pages(Path(source)), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, str]]] = {}
    for held in (False, True):
        side = "held_out" if held else "train"
        named = {n: (s, p) for s, own in found.items() for n, p in sorted(own.items()) if is_held_out(n) is held}
        names, rng = list(named), random.Random(side)
        for name, (section, passages) in named.items():
            rows.setdefault(f"section.{side}", []).extend({"text": p, "label": section} for p in passages[:EACH])
            other = named[rng.choice([n for n in names if n != name])][1]
            first, second = passages[:2]
            pairs = ((first, second, "same"), (second, other[0], "other"))
            rows.setdefault(f"same.{side}", []).extend({"text": a, "text2": b, "label": x} for a, b, x in pairs)
    longest = sorted(((len(p), n, p) for own in found.values() for n, p in own.items()), reverse=True)[:LONGEST]
    for _, name, passages in longest:
        for text in passages[:OF_LONGEST]:
            side = "held_out" if is_held_out(text) else "train"
            rows.setdefault(f"page.{side}", []).append({"text": text, "label": name})
    for name, told in rows.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in told]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{folder / name}.jsonl: {len(lines)} examples")


def is_held_out(name: str) -> bool:
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32 < 0.2


if __name__ == "__main__":
    main(*sys.argv[1:])
