"""Curves: loss and learning rate against tokens; a trunk with its forks as a tree, and the trunks of a shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import curve_figures, groups, load, show
from dashboard.curve_figures import Grown
from dashboard.figures import names_of, shape_name
from dashboard.style import nats

LISTED = 500  # trunks that can be chosen; the browser is sent them all  *assumed*
EVERY_SHAPE = "all shapes, before any decay"
STABILITY = {
    "attention_logit": st.column_config.NumberColumn("largest attention logit", format="%.3g"),
    "log_partition": st.column_config.NumberColumn("log-partition", format="%.3g"),
    "clip_rate": st.column_config.NumberColumn("steps clipped", format="percent"),
    "spikes": st.column_config.NumberColumn("spikes", format="%d"),
    "eps_ratio": st.column_config.NumberColumn("ε ÷ RMS gradient", format="%.2g"),
}


def rooted(rows: pd.DataFrame) -> pd.Series:
    """Each reading's tree: trunks of one trial are one, since data that joins later makes another spec of a trunk."""
    first: dict[object, str] = {}
    tree = rows["run"].astype(str)
    trial = list(zip(*(rows[k] for k in ("stage", "trial", "lr", "seed", "width", "depth", "rules")), strict=True))
    for _ in range(2):  # a trunk that was extended is in two trials
        for key in (trial, list(rows["run"])):
            first.clear()
            tree = pd.Series([first.setdefault(k, t) for k, t in zip(key, tree, strict=True)], index=rows.index)
    return tree


def trunks(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a trunk, the best first: fingerprint, shape, lr, best loss, readings."""
    by = rows.groupby("tree", sort=False)
    found = by.agg(
        width=("width", "first"),
        depth=("depth", "first"),
        lr=("lr", "first"),
        seed=("seed", "first"),
        loss=("loss", "min"),
        forks=("loss", "size"),
    )
    return found.sort_values("loss").reset_index()


def label(row: Any, seeds: bool, halted: bool) -> str:
    shape = shape_name(row.width, row.depth)
    end = f"loss {nats(row.loss)}" if pd.notna(row.loss) else "diverged"
    more = (f" · seed {row.seed}" if seeds else "") + (" · stopped by halving" if halted else "")
    return f"{shape} · lr {row.lr:.3g} · {end} · {int(row.forks)} fork{'s' * (row.forks != 1)}{more} · {row.tree[:6]}"


def stopped(rows: pd.DataFrame, states: Mapping[str, str]) -> bool:
    return any(states.get(fp) == "pruned" for fp in rows.fingerprint)


def grown(seen: load.Opened, rows: pd.DataFrame, states: Mapping[str, str]) -> Grown:
    """A trunk's curves; where data joined, those of its parts one after the other."""
    parts = [c for run in dict.fromkeys(rows["run"]) if (c := load.curve(seen.root, run)) is not None and len(c)]
    parts.sort(key=lambda c: float(c.tokens.iloc[0]))
    whole = None
    for c in parts:
        whole = c if whole is None else pd.concat([whole[whole.tokens < c.tokens.iloc[0]], c], ignore_index=True)
    forks = {fp: c for fp in rows.fingerprint if (c := load.curve(seen.root, fp)) is not None}
    return Grown(rows, whole, forks, stopped(rows, states))


def tree(seen: load.Opened, rows: pd.DataFrame, chosen: str, states: Mapping[str, str]) -> None:
    mine = rows[rows.tree == chosen]
    one = grown(seen, mine, states)
    if one.curve is None and not one.forks:
        show.nothing("This trunk's curve was not kept", "Its readings are on the page Valleys.")
    else:
        joins = [float(t.at) for t in seen.asked.data.then if t.at < mine.D.max()] if seen.asked else []
        show.figure(curve_figures.tree(mine, one.curve, one.forks, joins), f"tree {chosen}")
    stability(mine)


def stability(mine: pd.DataFrame) -> None:
    """How near a trunk's runs came to the edge, a reading a line."""
    known = [k for k in STABILITY if k in mine and mine[k].notna().any()]
    if not known:
        st.caption("Attention logits, clipping and spikes of these runs were not recorded.")
        return
    shown = mine.sort_values(["D", "decay"])[["D", "decay", "decay_shape", "loss", *known]]
    numbers = {"D": st.column_config.NumberColumn("D (tokens)", format="localized"), "loss": show.decimal("loss")}
    decay = {"decay": st.column_config.NumberColumn("decay", format="percent")}
    st.dataframe(shown, hide_index=True, placeholder="–", column_config={**numbers, **decay, **STABILITY})


def fans(seen: load.Opened, stage: str, rows: pd.DataFrame, chosen: str, states: Mapping[str, str]) -> None:
    """All trunks of a shape with their forks; or of all shapes, without."""
    key = f"{seen.root.name} {stage}"
    shapes, mine = groups.shapes(rows), rows[rows.tree == chosen].iloc[0]
    names = [*shapes, EVERY_SHAPE]
    left, right = st.columns([1, 2])
    at = shapes.index(shape_name(mine.width, mine.depth))
    shape = left.selectbox("All trunks of", names, index=at, key=f"shape of {key} {chosen}")
    if shape == EVERY_SHAPE:
        every(seen, trunks(rows), stage)
        return
    own = rows[pd.Series(names_of(rows), index=rows.index) == shape]
    asked = seen.asked.stage_named(stage) if seen.asked and stage in {s.name for s in seen.asked.stage} else None
    kinds = groups.of(own, asked, decays=False) if asked else {groups.ALL: own}
    kind = next(iter(kinds))
    if len(kinds) > 1:
        kind = right.selectbox("Of these", list(kinds), key=f"kind of {key} {shape}")
    trunk = kinds[kind].groupby("tree", sort=False)
    drawn, left_over = list[Grown](), curve_figures.CURVES
    for _, rows_of in trunk:
        one = grown(seen, rows_of, states)
        left_over -= 1 + len(one.forks)
        if left_over < 0:
            break
        drawn.append(one)
    name = shape if kind == groups.ALL else f"{shape}, {kind}"
    show.figure(curve_figures.fan(drawn, name, trunk.ngroups), f"fan {key} {name}")


def every(seen: load.Opened, found: pd.DataFrame, stage: str) -> None:
    first = found.iloc[: curve_figures.CURVES]
    several = [
        (shape_name(r.width, r.depth), float(r.lr), c)
        for _, r in first.iterrows()
        if (c := load.curve(seen.root, r.tree)) is not None and len(c)
    ]
    if not several:
        show.nothing("No trunk's curve was kept", "Their readings are on the page Valleys.")
        return
    ordered = sorted(several, key=lambda c: [int(k) for k in c[0].split("×")])
    show.figure(curve_figures.trunks(ordered, stage, len(found)), f"trunks {seen.root.name} {stage}")


def page(seen: load.Opened) -> None:
    if not len(seen.readings):
        show.nothing("There are no curves yet", "They appear with the first finished model.")
        return
    ladders = [s.name for s in seen.asked.stage if s.kind == "ladder"] if seen.asked else []
    names = list(dict.fromkeys(seen.readings.stage))[::-1]
    left, right = st.columns([1, 2])
    ladder = next((i for i, n in enumerate(names) if n in ladders), 0)
    stage = left.selectbox("Stage", names, index=ladder, key=f"stage of {seen.root.name}")
    rows = load.of_stage(seen, stage)
    rows = rows.assign(tree=rooted(rows))
    found, states = trunks(rows), load.states(seen.root, stage)
    seeds = rows.seed.nunique() > 1
    halted = set(rows.tree[rows.fingerprint.map(states) == "pruned"])
    labels = {str(r.tree): label(r, seeds, r.tree in halted) for r in found.iloc[:LISTED].itertuples()}
    what = "Trunk" if len(found) <= LISTED else f"Trunk: the best {LISTED} of {len(found):,}"
    chosen = right.selectbox(
        what, list(labels), format_func=labels.__getitem__, key=f"trunk of {seen.root.name} {stage}"
    )
    tree(seen, rows, chosen, states)
    if len(found) > 1:
        fans(seen, stage, rows, chosen, states)


if __name__ == "__main__":  # Streamlit runs a page as a script
    page(show.opened())
