"""What the pages share: the chosen study, figures with their sentence, the live strip, and states without data."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from dashboard import address, ledger, load, takeaway
from dashboard.style import duration, nats

log = logging.getLogger(__name__)
PICTURES = ("png", "svg")
WIDE = 900  # pixels that a figure takes before another one may stand beside it  *measured here*
EVERY = 2.0  # seconds between looks at a running sweep  *assumed*
TAG = re.compile(r"<(?!br>|/?extra>)")  # but for our own
MARKUP = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>$~:])")


def folder() -> Path:
    """What the launcher was given: a study's folder or a folder of studies."""
    return Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs")


def plain(text: str) -> str:
    """A name as Markdown shows it unchanged."""
    return MARKUP.sub(r"\\\1", " ".join(text.split()))


def choose(found: dict[str, Path]) -> Path:
    """The sidebar's choice of study; it lives in the address too, so that a page can be linked to."""
    asked = st.query_params.get("study")
    if st.session_state.get("study") not in found:
        if asked is not None and asked not in found:
            st.warning(
                f"There is no study {plain(asked)} here (any more); this is another one.", icon=":material/link_off:"
            )
        st.session_state["study"] = asked if asked in found else load.newest(found)
    with st.sidebar:
        st.selectbox("Study", list(found), key="study")
        pictures()
    name = st.session_state["study"]
    st.query_params["study"] = name
    return found[name]


def opened() -> load.Opened:
    """The chosen study's folder, for a page."""
    found: load.Opened = st.session_state["opened"]
    return found


def figure(
    fig: go.Figure, key: str, data: pd.DataFrame | None = None, select: Sequence[str] = ()
) -> dict[str, list[dict[str, Any]]]:
    """A figure, the sentence that says how to read it, and its data as CSV; the toolbar saves it as a picture.

    `data`: what the CSV holds, where that is not simply what is drawn. `select`: "points" and "box", which can then be
    clicked and brushed; returns what is selected: points and boxes. A new selection draws the page anew.
    """
    about, study = fig.layout.meta, str(st.session_state.get("study", ""))
    name = takeaway.file_name(study, key.replace(study, " "))
    picture = {"format": st.session_state.get("picture") or PICTURES[0], "filename": name, "scale": 2}
    bar = {"displaylogo": False, "displayModeBar": "hover", "toImageButtonOptions": picture}
    drawn: dict[str, Any] = {"key": key, "alt": about["finding"], "config": bar}
    if select:
        drawn |= {"on_select": "rerun", "selection_mode": list(select)}
    with st.container():
        found = st.plotly_chart(as_text(fig.to_dict()), **drawn)
        with st.container(horizontal=True, vertical_alignment="top", gap="small", wrap=False):
            st.caption(f"How to read this: {about['read']}", width="stretch")
            st.download_button(
                "CSV",
                lambda: ledger.csv(takeaway.table(fig) if data is None else data),
                f"{name}.csv",
                "text/csv",
                key=f"csv {key}",
                help="The data of this figure; its toolbar saves it as a picture.",
                type="tertiary",
                icon=":material/download:",
                on_click="ignore",
            )
    selected: Any = found["selection"] if select else {}
    return {k: list(selected.get(k, ())) for k in ("points", "box")}


def named(rows: pd.DataFrame) -> pd.DataFrame:
    """Readings with the names of their trials, which a click on them opens."""
    each = zip(rows.stage, rows.trial, strict=True)
    return rows.assign(name=[address.trial_of(s, t) if pd.notna(t) else "" for s, t in each])


def open_clicked(found: dict[str, list[dict[str, Any]]]) -> None:
    """Opens the trial of the reading that was clicked in a figure, where one was."""
    for point in found["points"]:
        name = point.get("customdata")
        name = name[0] if isinstance(name, list) else name
        known = address.stage_and_number(str(name)) if name else None
        if known is not None:
            address.open_trial(*known)


def figures() -> Any:
    """A place for figures: beside each other where the screen is wide, else one below the other."""
    return st.grid(2, min_column_width=WIDE, gap="medium")


def pictures() -> None:
    """The sidebar's choice of what the camera in every figure's toolbar saves."""
    about = "The camera in a figure's toolbar saves it so; CSV of its data is below each figure."
    st.segmented_control(
        "Pictures as", PICTURES, default=PICTURES[0], format_func=str.upper, required=True, key="picture", help=about
    )


def as_text(value: Any) -> Any:
    """A figure's values with names as they are: plotly takes what stands in angle brackets for markup."""
    if isinstance(value, str):
        return TAG.sub("&lt;", value)
    if isinstance(value, dict):
        return {k: as_text(v) for k, v in value.items()}
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype == object):
        return [as_text(v) for v in value]
    return value


def cards(values: Sequence[tuple[str, str, str | None]]) -> None:
    """Label, value and help of a row of cards, all of one size."""
    with st.grid(4, gap="small", min_column_width=190):
        for label, value, about in values:
            st.metric(label, value, help=about, border=True, height="stretch")


def nothing(what: str, then: str) -> None:
    """A page's state before there is anything to show: what is missing, and what brings it."""
    with st.container(border=True):
        st.markdown(f"**{what}**")
        st.markdown(then)


def no_target(seen: load.Opened) -> bool:
    """Whether a study has no target, which is then said in place of what would need one."""
    if seen.compares:
        nothing(
            "This study has no target, so it forecasts nothing",
            "What its models show side by side is on the pages Landscape, Valleys & transfer and Compare, and "
            "`tunnel compare` prints it. A `[[target]]` added to its file asks for a forecast.",
        )
    return seen.compares


def failed(e: Exception) -> bool:
    """What a visitor sees of a page that cannot be drawn: nothing of the folder's; what happened is in the log."""
    log.error("a page cannot be drawn", exc_info=e)
    st.error(
        "This page cannot be drawn; the other pages can. What happened is in the log of `tunnel dashboard`.",
        icon=":material/error:",
    )
    return True


def state_of(status: dict[str, Any] | None, alive: load.Alive | None) -> str:
    """One word for a study: as `tunnel status` says, unless the sweep that it takes for running is gone."""
    if alive and alive.running:
        return "running"
    if status is None:
        return "unknown"
    return "interrupted" if status["state"] == "running" else str(status["state"])


def live(root: Path) -> None:
    """The strip of a running sweep; where none runs, a line if one was cut off, and no timer."""
    alive = load.alive(root)
    if alive is None:
        return
    if not alive.running:
        st.info(
            f"The sweep stopped {duration(alive.age)} ago in stage {plain(alive.progress['stage'])}; "
            "the same command goes on from there.",
            icon=":material/pause_circle:",
        )
        return
    strip(str(root), alive.progress["stage"], alive.progress["finished"])


@st.fragment(run_every=EVERY)
def strip(root: str, stage: str, finished: int) -> None:
    """Progress and ETA; draws the page anew when a trial has finished, or the sweep has."""
    alive = load.alive(Path(root))
    if alive is None or not alive.running or (alive.progress["stage"], alive.progress["finished"]) != (stage, finished):
        st.rerun(scope="app")
    p = alive.progress
    left = f"about {duration(alive.left)} left of this stage" if alive.left is not None else "no pace yet"
    best = f" · best {nats(p['best'])} nats per token" if p.get("best") is not None else ""
    st.progress(alive.share, f"Stage {plain(p['stage'])}: {p['finished']} of {p['planned']} trials · {left}{best}")


def bar(label: str) -> Any:
    return st.column_config.ProgressColumn(label, format="percent", min_value=0.0, max_value=1.0)


def decimal(label: str, digits: int = 4) -> Any:
    return st.column_config.NumberColumn(label, format=f"%.{digits}f")


def significant(label: str, digits: int = 4) -> Any:
    return st.column_config.NumberColumn(label, format=f"%.{digits}g")


def trials(key: str) -> Any:
    """A column of trials' names (`address.trial_of`): a click, or Enter, opens the page of one."""
    return st.column_config.ButtonColumn("trial", key=key, on_click=open_trial, args=(key,), type="tertiary")


def open_trial(key: str) -> None:
    known = address.stage_and_number(st.session_state[key].label)
    if known is not None:
        address.open_trial(*known)


def old(seen: load.Opened, name: str, command: str, older: bool = False) -> None:
    """Why a result does not rest on the folder as it is now. `name`: its file; `older`: of an older tunnel's schema."""
    why = "The study's file, its readings or the tunnel changed since this was made"
    if load.newer(seen, name):
        why = "There are newer readings than this rests on"
    elif older:
        why = "An older version of the tunnel made this, in its own way"
    st.info(f"{why}; `{command}` makes it anew.", icon=":material/update:")


def verdict(check: dict[str, Any] | None, recommendation: dict[str, Any] | None, compares: bool = False) -> str:
    """The forecast's fate in a few words."""
    if check and check["measured"] is not None:
        return "inside" if check["inside"] else "outside"
    if check or recommendation:
        return "diverged" if check else "not yet measured"
    return "no target" if compares else "no forecast yet"
