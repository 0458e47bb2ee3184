"""Curves: a trunk with its forks as a tree, loss above and learning rate below, and all trunks of a shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import address, curve_figures, expert_figures, groups, load, show, trunk_figures
from dashboard.curve_figures import FLOPS, HOURS, TOKENS, Units
from dashboard.figures import names_of, shape_name
from dashboard.style import clock, nats, short
from dashboard.trunk_figures import Grown

LISTED = 500  # trunks that can be chosen; the browser is sent them all  *assumed*
MOST = 1000  # trunks whose curves are read for one figure  *assumed*
EVERY_SHAPE = "all shapes, before any decay"
LOSSES = {"nats per token": "nats", "bits per byte": "bits"}
TREE = "tree"  # in the address
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
        experts=("experts", "first"),
        top_k=("top_k", "first"),
        lr=("lr", "first"),
        seed=("seed", "first"),
        loss=("loss", "min"),
        forks=("loss", "size"),
    )
    return found.sort_values("loss").reset_index()


def label(row: Any, seeds: bool, halted: bool) -> str:
    shape = shape_name(row.width, row.depth) + (f" {row.top_k} of {row.experts}" if row.experts > 1 else "")
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


def tree(seen: load.Opened, rows: pd.DataFrame, chosen: str, states: Mapping[str, str], units: Units) -> None:
    mine = rows[rows.tree == chosen]
    one = grown(seen, mine, states)
    if one.curve is None and not one.forks:
        show.nothing("This trunk's curve was not kept", "Its readings are on the page Landscape.")
    else:
        joins = [float(t.at) for t in seen.asked.data.then if t.at < mine.D.max()] if seen.asked else []
        fig = curve_figures.tree(mine, one.curve, one.forks, joins, units)
        show.figure(fig, f"tree {chosen} {units.x} {units.y}")
    stability(mine)
    experts(seen, mine)


def experts(seen: load.Opened, mine: pd.DataFrame) -> None:
    """How the longest reading's tokens spread over its experts, where it has any."""
    done = mine[mine.loss.notna()].sort_values("D")
    loads = load.expert_load(seen.root, str(done.fingerprint.iloc[-1])) if len(done) else []
    if loads:
        r = done.iloc[-1]
        name = f"{shape_name(r.width, r.depth)} with {r.top_k} of {r.experts} experts at D = {short(r.D)}"
        show.figure(expert_figures.load(loads, name), f"experts {r.fingerprint}")


def stability(mine: pd.DataFrame) -> None:
    """How near a trunk's runs came to the edge, a reading a line."""
    known = [k for k in STABILITY if k in mine and mine[k].notna().any()]
    if not known:
        st.caption("Attention logits, clipping and spikes of these runs were not recorded.")
        return
    shown = mine.sort_values(["D", "decay"])[["D", "decay", "decay_shape", "loss", *known]]
    numbers = {"D": st.column_config.NumberColumn("D (tokens)", format="localized"), "loss": show.decimal("loss")}
    decay = {"decay": st.column_config.NumberColumn("decay", format="percent")}
    columns = {**numbers, **decay, **STABILITY}
    st.dataframe(
        shown, hide_index=True, placeholder="–", column_config=columns, alt="How near to the edge its runs came"
    )
    st.caption(
        "How to read this: a line a reading, and how near its run came to the edge: logits that grow, steps that are "
        "clipped and spikes come before a run diverges."
    )


def fans(
    seen: load.Opened, stage: str, rows: pd.DataFrame, chosen: str, states: Mapping[str, str], units: Units
) -> None:
    """All trunks of a shape with their forks; or of all shapes, without. A click on a reading opens its trial."""
    shapes, mine = groups.shapes(rows), rows[rows.tree == chosen].iloc[0]
    names = [*shapes, EVERY_SHAPE]
    left, right = st.columns([1, 2])
    at = shapes.index(shape_name(mine.width, mine.depth))
    shape = left.selectbox("All trunks of", names, index=at, key="trunks", bind="query-params")
    asked = seen.asked.stage_named(stage) if seen.asked and stage in {s.name for s in seen.asked.stage} else None
    own = rows if shape == EVERY_SHAPE else rows[pd.Series(names_of(rows), index=rows.index) == shape]
    kinds = groups.of(own, asked, decays=False) if asked and shape != EVERY_SHAPE else {groups.ALL: own}
    kind = next(iter(kinds))
    if len(kinds) > 1:
        kind = right.selectbox("Of these", list(kinds), key="kind", bind="query-params")
    several = list(kinds[kind].groupby("tree", sort=False))
    drawn = [grown(seen, rows_of, states) for _, rows_of in several[:MOST]]
    key = f"{seen.root.name} {stage} {shape} {kind} {units.x} {units.y}"
    if shape == EVERY_SHAPE:
        kept = [t for t in drawn if t.curve is not None]
        if not kept:
            show.nothing("No trunk's curve was kept", "Their readings are on the page Landscape.")
            return
        kept.sort(key=lambda t: (t.first.width, t.first.depth))
        show.figure(trunk_figures.trunks(kept, stage, len(several), units), f"trunks {key}")
        return
    name = shape if kind == groups.ALL else f"{shape}, {kind}"
    found = show.figure(trunk_figures.fan(drawn, name, len(several), units), f"fan {key}", None, ("points",))
    show.open_clicked(found)


def units_of(rows: pd.DataFrame) -> Units:
    """What the reader wants on the axes."""
    left, right = st.columns([1, 2])
    timed = bool((rows.seconds > 0).all() and (rows.tokens_trained > 0).any())
    across = [TOKENS, FLOPS, *([HOURS] if timed else [])]
    x = left.segmented_control("Against", across, default=TOKENS, required=True, key="against", bind="query-params")
    y = "nats per token"
    if rows.bpb.notna().any():
        y = right.segmented_control("Loss in", list(LOSSES), default=y, required=True, key="in", bind="query-params")
    y, up = LOSSES.get(y, "nats"), 1.0
    if y == "bits":
        up = float((rows.bpb / rows.loss).median())
    longest = float((rows.D * rows.seconds.sum() / max(rows.tokens_trained.sum(), 1)).max())
    return Units(x if x in across else TOKENS, y, up, clock(longest))


def page(seen: load.Opened) -> None:
    if not len(seen.readings):
        show.nothing("There are no curves yet", "They appear with the first finished model.")
        return
    ladders = [s.name for s in seen.asked.stage if s.kind == "ladder"] if seen.asked else []
    names = list(dict.fromkeys(seen.readings.stage))[::-1]
    left, right = st.columns([1, 2])
    ladder = next((i for i, n in enumerate(names) if n in ladders), 0)
    stage = left.selectbox("Stage", names, index=ladder, key="curves", bind="query-params")
    rows = show.named(load.of_stage(seen, stage))
    rows = rows.assign(tree=rooted(rows))
    found, states = trunks(rows), load.states(seen.root, stage)
    seeds = rows.seed.nunique() > 1
    halted = set(rows.tree[rows.fingerprint.map(states) == "pruned"])
    wanted = address.get(TREE, "")
    wanted = next(iter(rows.tree[(rows.fingerprint == wanted) | (rows["run"] == wanted)]), "")
    listed = found.iloc[:LISTED]
    if wanted and wanted not in set(listed.tree):
        listed = pd.concat([found[found.tree == wanted], listed])
    labels = {str(r.tree): label(r, seeds, r.tree in halted) for r in listed.itertuples()}
    what = "Trunk" if len(found) <= LISTED else f"Trunk: the best {LISTED} of {len(found):,}"
    options = list(labels)
    chosen = right.selectbox(
        what,
        options,
        index=options.index(wanted) if wanted else 0,
        format_func=labels.__getitem__,
        key=f"trunk of {seen.root.name} {stage}",
    )
    address.put(TREE, chosen)
    units = units_of(rows)
    tree(seen, rows, chosen, states, units)
    if len(found) > 1:
        fans(seen, stage, rows, chosen, states, units)


if __name__ == "__main__":  # Streamlit runs a page as a script
    page(show.opened())
