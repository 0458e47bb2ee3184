"""What the decay's own data did to every held-out slice, by pairs of forks off the same trunks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from tunnel import tuned
from tunnel.folder.store import ON
from tunnel.space import MIX
from tunnel.valleys import mixes
from tunnel.valleys.mixes import Change

WHOLE = "the loss"


def told(readings: pd.DataFrame) -> list[dict[str, Any]]:
    """By source, slice and share: the change in nats per token against the least share, with its 90% interval.

    Of the proxies' readings at each stage's last rungs; `low` and `high` are None where one pair alone tells it.
    """
    if not len(readings):
        return []
    done = readings[(readings.status == "complete") & ~readings.stage.str.startswith("target:")]
    last = pd.concat([tuned.last_rung(rows) for _, rows in done.groupby("stage")]) if len(done) else done
    slices = {WHOLE: "loss"} | {k.removeprefix(ON): k for k in last.columns if k.startswith(ON)}
    return [
        row_of(column.removeprefix(f"{MIX}."), name, change)
        for column in mixes.columns(last)
        for name, y in slices.items()
        for change in changes(last, column, y)
    ]


def changes(last: pd.DataFrame, column: str, y: str) -> list[Change]:
    rows = last[last[y].notna()]
    return mixes.changes(mixes.table(rows, column, rows[y].to_numpy(float))) if len(rows) else []


def row_of(source: str, name: str, c: Change) -> dict[str, Any]:
    return {"source": source, "slice": name, **vars(c), "words": words(source, name, c)}


def words(source: str, name: str, c: Change) -> str:
    """A change as a sentence.

    >>> words("code", "text", Change(0.3, 0.0, 0.02, 0.01, 0.03, 4, 2))
    'text rises by 0.02 nats per token (0.01 to 0.03) with 30% of code in the decay; 4 pairs of 2 trunks'
    """
    amount = f"{abs(c.change):.2g} nats per token"
    against = f" instead of {c.base:.0%}" if c.base else ""
    share = f"{c.share:.3g}" if c.share < 0.01 else f"{c.share:.0%}"
    pairs, trunks = (f"{n} {what}{'s' * (n != 1)}" for n, what in ((c.pairs, "pair"), (c.trunks, "trunk")))
    of = f"with {share} of {source} in the decay{against}; {pairs} of {trunks}"
    if c.low is None or c.high is None:
        return f"{name} {'falls' if c.change < 0 else 'rises'} by {amount}, without an interval, {of}"
    ends = np.sort(np.abs([c.low, c.high])) if c.low * c.high > 0 else None
    if ends is None:
        return f"{name} is not seen to change ({c.low:+.2g} to {c.high:+.2g} nats per token) {of}"
    return f"{name} {'falls' if c.change < 0 else 'rises'} by {amount} ({ends[0]:.2g} to {ends[1]:.2g}) {of}"
