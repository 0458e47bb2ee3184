"""Curves: loss and learning rate against tokens; a trunk with its forks as a tree."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from dashboard import curve_figures, load, show
from dashboard.figures import shape_name
from dashboard.style import nats


def trunks(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a trunk, the best first: fingerprint, shape, lr, best loss, readings."""
    by = rows.groupby("run", sort=False)
    found = by.agg(
        width=("width", "first"),
        depth=("depth", "first"),
        lr=("lr", "first"),
        loss=("loss", "min"),
        forks=("loss", "size"),
    )
    return found.sort_values("loss").reset_index()


def label(row: pd.Series) -> str:
    shape = shape_name(row.width, row.depth)
    end = f"loss {nats(row.loss)}" if pd.notna(row.loss) else "diverged"
    return f"{shape} · lr {row.lr:.3g} · {end} · {int(row.forks)} fork{'s' * (row.forks != 1)} · {row.run[:6]}"


def page(seen: load.Opened) -> None:
    if not len(seen.readings):
        show.nothing("There are no curves yet", "They appear with the first finished model.")
        return
    ladders = [s.name for s in seen.asked.stage if s.kind == "ladder"] if seen.asked else []
    names = list(dict.fromkeys(seen.readings.stage))[::-1]
    left, right = st.columns([1, 2])
    ladder = next((i for i, n in enumerate(names) if n in ladders), 0)
    stage = left.selectbox("Stage", names, index=ladder, key=f"stage of {seen.root.name}")
    rows = seen.readings[seen.readings.stage == stage]
    found = trunks(rows)
    labels = {r.run: label(r) for _, r in found.iterrows()}
    chosen = right.selectbox(
        "Trunk", list(labels), format_func=labels.__getitem__, key=f"trunk of {seen.root.name} {stage}"
    )
    mine = rows[rows.run == chosen]
    forks = {fp: c for fp in mine.fingerprint if (c := load.curve(seen.root, fp)) is not None}
    trunk = load.curve(seen.root, chosen)
    if trunk is None and not forks:
        show.nothing("This trunk's curve was not kept", "Its readings are on the page Valleys.")
    else:
        show.figure(curve_figures.tree(mine, trunk, forks), f"tree {chosen}")
    first = found.iloc[: curve_figures.CURVES]
    several = [
        (shape_name(r.width, r.depth), float(r.lr), c)
        for _, r in first.iterrows()
        if (c := load.curve(seen.root, r.run)) is not None
    ]
    if len(several) > 1:
        show.figure(
            curve_figures.fan(sorted(several, key=lambda c: int(c[0].split("×")[0])), stage, len(found)), f"fan {stage}"
        )


if __name__ == "__main__":  # Streamlit runs a page as a script
    page(show.opened())
