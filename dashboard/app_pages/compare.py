"""Compare: studies or stages side by side, where their settings differ, and their losses on one axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import streamlit as st

from dashboard import compare, load, show, study_figures
from dashboard.compare import Side
from dashboard.style import short

Lines = Mapping[str, pd.DataFrame]
AGAINST: dict[str, tuple[Callable[[Sequence[Side]], Lines], str, str, bool]] = {
    "compute of a model": (
        compare.frontiers,
        "compute of the one model (FLOPs)",
        "each mark is a finished model that none of as little compute beats; lower and more to the left is better.",
        True,
    ),
    "compute spent": (
        compare.spent,
        "compute of all readings so far (FLOPs)",
        "the line is the best loss that was found for what all models together had taken by then.",
        True,
    ),
    "tokens": (
        compare.curves,
        "tokens",
        "the line is the training loss of each side's best model, its trunk and the decay at its end.",
        False,
    ),
}
LR = "lr"


def chosen(found: Mapping[str, object], names: Sequence[str], study: str) -> list[str]:
    """The sides that the reader wants; at first the chosen study and another one, or its first two stages."""
    own = [n for n in names if n.startswith(study + compare.BETWEEN)]
    others = [n for n in found if n != study]
    first = [study, others[0]] if others else own[:2] or [study]
    wanted: list[str] = st.multiselect(
        "Studies or stages",
        names,
        default=first,
        key="with",
        bind="query-params",
        max_selections=compare.MOST,
        help="A study, or one of its stages: type to search. The address keeps them.",
    )
    return wanted


def axis(sides: Sequence[Side]) -> None:
    """The sides' losses on one axis, against what the reader chooses."""
    shared = compare.common(sides)
    ways = [*AGAINST, *([LR] if shared else [])]
    way = st.segmented_control("Loss against", ways, default=ways[0], required=True, key="against", bind="query-params")
    if way == LR and shared:
        labels = {f"{shape} at D {short(tokens)}": (shape, tokens) for shape, tokens in shared}
        at = st.selectbox("At", list(labels), index=len(labels) - 1, key="at", bind="query-params")
        shape, tokens = labels.get(at, shared[-1])
        lines: Lines = compare.valleys(sides, shape, tokens)
        title, read, marks = "peak lr (per step)", f"each mark is the best model of shape {at} at this lr.", True
    else:
        make, title, read, marks = AGAINST.get(way, AGAINST[ways[0]])
        lines = make(sides)
    if not lines:
        show.nothing("There is nothing to draw yet", "None of these has a finished model, or a curve that was kept.")
        return
    fig = study_figures.compared(lines, title, compare.finding(lines), read, marks)
    show.figure(fig, f"compare {way}")
    missing = [s.name for s in sides if s.name not in lines]
    if missing:
        st.caption(f"Not drawn, for want of readings or curves: {show.plain(', '.join(missing))}.")


def page(seen: load.Opened) -> None:
    found = load.studies(show.folder())
    names = compare.names(found)
    wanted = chosen(found, names, st.session_state["study"])
    sides = [s for name in wanted if (s := compare.side(name, found)) is not None]
    if len(sides) < 2:
        show.nothing("Choose at least two", "Studies or stages of them: their settings and losses stand side by side.")
        return
    for doubt in compare.doubts(sides):
        st.warning(show.plain(doubt), icon=":material/balance:")
    axis(sides)
    st.subheader("What came of them")
    came = compare.results(sides)
    st.dataframe(came, hide_index=True, placeholder="–", height="content", alt="Outcomes side by side")
    st.caption("How to read this: a column a side; forecast and measured are the target's loss, where it has one.")
    st.subheader("Where their settings differ")
    table = compare.differences(sides)
    if len(table):
        st.dataframe(table, hide_index=True, placeholder="not set", alt="Settings that differ, side by side")
        st.caption("How to read this: keys are the study file's; what all sides share is left out.")
    else:
        show.nothing("Nowhere", "All of them ask the same; a seed of their own may still tell them apart.")


if __name__ == "__main__":  # Streamlit runs a page as a script
    page(show.opened())
