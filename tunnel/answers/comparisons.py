"""What a study's bodies show side by side: tables of answers that need no target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunnel.answers import retention, sparse
from tunnel.folder.store import Store
from tunnel.study import Study

Table = dict[str, Any]  # rows: a list of {column: value}; words: what they say, a sentence each
TABLES: dict[str, Callable[[Study, Store], Table | None]] = {  # by title; None where a study has nothing for it
    "Dense or a mixture, at equal FLOPs": sparse.bodies,
    "One law of dense bodies and mixtures": sparse.law,
    "Depth against width": retention.depths,
    "What students keep": retention.kept,
    "Retention by task": retention.by_task,
}


def compared(asked: Study, keep: Store) -> dict[str, Any]:
    """Every table that the study has something for, by its title."""
    made = {title: table(asked, keep) for title, table in TABLES.items()}
    return {"folder": str(keep.root), "tables": {title: t for title, t in made.items() if t is not None}}
