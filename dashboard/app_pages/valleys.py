"""Valleys: how the loss depends on the learning rate, on each searched setting, and on the shape."""

from __future__ import annotations

import streamlit as st

from dashboard import figures, load, show
from tunnel.space import SHAPE
from tunnel.study import Stage

ABOVE, LOSS = "above each valley's minimum", "loss"


def search(seen: load.Opened, stage: Stage) -> None:
    """A search's settings, and its shapes where it searched those."""
    rows = seen.readings[seen.readings.stage == stage.name]
    done = rows[rows.status == "complete"]
    if not len(done):
        show.nothing(f"Stage {show.plain(stage.name)} has no finished trial yet", "Its first one brings this figure.")
        return
    if any(k in stage.axes for k in SHAPE):
        show.figure(figures.aspect(done, stage.name), f"aspect {stage.name}")
    axes = [k for k in stage.axes if k in rows]
    show.figure(figures.searched(rows, axes, seen.evidence.get(stage.name, {}), stage.name), f"searched {stage.name}")


def ladder(seen: load.Opened, stage: Stage) -> None:
    """A ladder's fans."""
    done = seen.complete[seen.complete.stage == stage.name]
    if not len(done):
        show.nothing(
            f"Stage {show.plain(stage.name)} has no reading yet",
            "Its fans appear here one by one as their forks finish.",
        )
        return
    fit = seen.fit if seen.fit and seen.fit.get("stage") == stage.name else None
    relative = False
    if fit and fit["surface"]["curved"]:
        how = st.segmented_control("Show", [ABOVE, LOSS], default=ABOVE, required=True, key=f"show {stage.name}")
        relative = how == ABOVE
    show.figure(figures.valleys(done, fit, relative), f"valleys {stage.name}")


def page(seen: load.Opened) -> None:
    stages = seen.asked.stage if seen.asked else ()
    if not stages:
        show.nothing("The study's question cannot be read", "The folder has no whole study.toml.")
    for stage in sorted(stages, key=lambda s: s.kind == "search"):  # the ladder first: it is what the law rests on
        st.subheader(f"Stage {show.plain(stage.name)}")
        if stage.kind == "search":
            search(seen, stage)
        else:
            ladder(seen, stage)


if __name__ == "__main__":  # Streamlit runs a page as a script
    page(show.opened())
