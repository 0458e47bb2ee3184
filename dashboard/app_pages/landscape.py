"""Landscape: all that a stage tried, and what it brought; a brush keeps a part of it on the whole page."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from dashboard import address, figures, landscape, landscape_figures, load, show
from dashboard.landscape import LOSS, Axis, Brush
from dashboard.landscape_figures import BY_LOSS, BY_RUNG
from dashboard.style import short
from tunnel.space import SHAPE
from tunnel.study import Stage

SLICES = 6  # settings that are drawn one by one, those that matter most first
LAST, EVERY = "each trial's last", "all"
LISTED = 200  # readings of the table  *assumed*
BRUSH = "brush"  # in the address


def readings_of(seen: load.Opened, stage: str, rung: str) -> pd.DataFrame:
    """A stage's readings with the names of their trials: at one rung, at each trial's last one, or all."""
    rows = show.named(load.of_stage(seen, stage))
    if rung == LAST:
        return rows.sort_values("D").drop_duplicates("name", keep="last").sort_index()
    return rows if rung == EVERY else rows[rows.D.map(short) == rung]


def controls(seen: load.Opened, stages: list[str]) -> tuple[str, str, str]:
    """Stage, rung and colour, as the address has them."""
    left, middle, right = st.columns([2, 3, 2])
    begun = [s for s in dict.fromkeys(seen.complete.stage) if s in stages]
    searches = [s.name for s in (seen.asked.stage if seen.asked else ()) if s.searches and s.name in begun]
    first = stages.index((searches or begun or stages)[-1])
    stage = left.selectbox("Stage", stages, index=first, key="space", bind="query-params")
    rungs = [short(d) for d in sorted(load.of_stage(seen, stage).D.unique())]
    choices = [LAST, *(rungs if 1 < len(rungs) <= 8 else []), *([EVERY] if len(rungs) > 1 else [])]
    rung = middle.segmented_control(
        "Readings at D (tokens)", choices, default=LAST, required=True, key="rung", bind="query-params"
    )
    by = right.segmented_control(
        "Colour by", [BY_LOSS, BY_RUNG], default=BY_LOSS, required=True, key="colour", bind="query-params"
    )
    return stage, rung if rung in choices else LAST, by or BY_LOSS


def brushing(axes: dict[str, Axis]) -> Brush:
    """What is brushed, with a button for each part of it to let it go, and the same by numbers."""
    brush = landscape.read(address.get(BRUSH, ("",)), axes)
    with st.container(horizontal=True, vertical_alignment="center"):
        with st.popover("Keep only …", icon=":material/filter_alt:", help="What a brush does, by keyboard."):
            by_hand(axes, brush)
        for name, want in brush.items():
            said = landscape.said({name: want})[0].replace("=", ": ").replace(":", " ", 1).replace(":", " to ")
            st.button(
                f"{show.plain(said)} ✕",
                key=f"drop {name}",
                help=f"Lets go of what is kept of {name}.",
                on_click=keep,
                args=({k: v for k, v in brush.items() if k != name},),
            )
        if len(brush) > 1:
            st.button("Clear all", key="drop all", on_click=keep, args=({},))
    return brush


def by_hand(axes: dict[str, Axis], brush: Brush) -> None:
    name = st.selectbox("Setting", list(axes), key="kept setting")
    a = axes[name]
    if a.names:
        wanted = st.multiselect("Values", a.names, default=a.names, key=f"kept values {name}")
        new: Brush = {**brush, name: frozenset(wanted)}
    else:
        was = brush.get(name, (a.low, a.high))
        low, high = was if isinstance(was, tuple) else (a.low, a.high)
        ends = [
            st.number_input(end, value=float(v), format="%.6g", key=f"kept {end} {name} {low} {high}")
            for end, v in (("From", low), ("To", high))
        ]
        new = {**brush, name: (min(ends), max(ends))}
    st.button("Keep these", key="keep these", on_click=keep, args=(new,), type="primary")


def keep(brush: Brush) -> None:
    address.put(BRUSH, landscape.said(brush))


def drawn_boxes(found: dict[str, list], axes: list[Axis], brush: Brush) -> None:
    """A box over the parallel axes is a brush: the page is drawn anew with it in the address."""
    boxes = landscape.brushed(found["box"], axes)
    if boxes:
        keep({**brush, **boxes})
        st.rerun()


def page(seen: load.Opened) -> None:
    stages = [s.name for s in seen.asked.stage] if seen.asked else list(dict.fromkeys(seen.complete.stage))
    if not len(seen.complete):
        show.nothing("Nothing was tried yet", "The first finished model is the first point of this landscape.")
        return
    stage, rung, by = controls(seen, stages)
    rows = readings_of(seen, stage, rung)
    done = rows[rows.status == "complete"]
    if not len(done):
        show.nothing(f"Stage {show.plain(stage)} has no finished trial yet", "Its first one brings these figures.")
        return
    asked = seen.asked.stage_named(stage) if seen.asked else None
    axes = landscape.axes_of(done, list(asked.axes) if asked else ())
    if len(axes) < 2:
        show.nothing("All readings here are of one setting", "A landscape needs two that differ: choose another stage.")
        return
    brush = brushing(axes)
    inside = landscape.kept(done, brush)
    fig = landscape_figures.parallel(done, list(axes.values()), inside, brush, by)
    key = f"{seen.root.name} {stage} {rung} {by} {' '.join(landscape.said(brush))}"
    data = done[["name", *axes]].assign(inside=inside)
    drawn_boxes(show.figure(fig, f"parallel {key}", data, ("box",)), list(axes.values()), brush)
    if not inside.any():
        show.nothing("The brush holds no reading", "Let go of a part of it with the buttons above the figure.")
        return
    parts(seen, asked, rows[landscape.kept(rows, {k: v for k, v in brush.items() if k != LOSS})], done[inside], by, key)
    listed(done[inside], list(axes))


def parts(seen: load.Opened, stage: Stage | None, rows: pd.DataFrame, done: pd.DataFrame, by: str, key: str) -> None:
    """What matters, each setting by itself, and two at a time, of what is brushed."""
    axes = landscape.axes_of(done, list(stage.axes) if stage else ())
    settings = [a for a in axes.values() if a.name != LOSS]
    shares = landscape.importance(done, settings)
    order = [s.name for s in shares] or [a.name for a in settings]
    with show.figures():
        if shares:
            show.figure(landscape_figures.importance(shares), f"importance {key}")
        else:
            show.nothing("Too few readings to say what matters", "Ten of them, in two groups, are the least.")
        pairs(done, axes, order, key)
    if order:
        name, evidence = stage.name if stage else "", seen.evidence.get(stage.name, {}) if stage else {}
        shown = pd.concat([done, rows[rows.status == "diverged"]])
        kinds = [(g.name, g.rows, {"size": 8, **g.look}) for g in landscape_figures.groups(done, by)]
        show.open_clicked(
            show.figure(
                figures.searched(shown, order[:SLICES], evidence, name, kinds), f"slices {key}", None, ("points",)
            )
        )
    if stage and any(k in stage.axes for k in SHAPE) and done.flops.max() < 1.2 * done.flops.min():
        show.figure(figures.aspect(done, stage.name), f"aspect {key}")


def pairs(done: pd.DataFrame, axes: dict[str, Axis], order: list[str], key: str) -> None:
    """The loss over two settings that the reader chooses."""
    numbers = [n for n in order if not axes[n].names]
    usual = [p for p in (("lr", "batch_tokens"), SHAPE, ("lr", "width"), ("lr", "decay")) if set(p) <= set(numbers)]
    choices = {f"{x} × {y}": (x, y) for x, y in [*usual, *((a, b) for i, a in enumerate(numbers) for b in numbers[:i])]}
    if not choices:
        show.nothing("There is no map of two settings", "Two numbers must differ among what is kept here.")
        return
    with st.container():
        pair = st.selectbox("The loss over", list(choices), key="pair", bind="query-params")
        x, y = (axes[n] for n in choices.get(pair, next(iter(choices.values()))))
        fig = landscape_figures.contours(done, x, y, landscape.smoothed(done, x, y))
        show.open_clicked(show.figure(fig, f"map {key} {pair}", None, ("points",)))


def listed(done: pd.DataFrame, names: list[str]) -> None:
    """What is kept as a table, the best first; a row that is chosen opens its trial, by keyboard too."""
    st.subheader("The readings that are kept")
    rows = done.sort_values(LOSS).head(LISTED).reset_index(drop=True)
    columns = ["name", *(n for n in names if n != LOSS), *(k for k in ("D", "seed") if k not in names), LOSS]
    numbers = {"lr": show.significant("lr", 3), LOSS: show.decimal("loss (nats/token)"), "name": "trial"}
    lengths = {"D": "D (tokens)", "warmup": "warmup (tokens)"}
    numbers |= {k: st.column_config.NumberColumn(label, format="localized") for k, label in lengths.items()}
    found = st.dataframe(
        rows[columns],
        hide_index=True,
        column_config=numbers,
        on_select="rerun",
        selection_mode="single-row",
        alt=f"The best {len(rows)} readings",
    )
    more = f"; the first {LISTED} of {len(done):,}, all of them are in the CSV above" if len(done) > LISTED else ""
    st.caption(f"How to read this: the best first; a row that is chosen opens its trial{more}.")
    for i in found["selection"]["rows"]:
        address.open_trial(*(address.stage_and_number(rows["name"].iloc[i]) or ("", 0)))


if __name__ == "__main__":  # Streamlit runs a page as a script
    page(show.opened())
