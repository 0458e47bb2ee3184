"""Valleys: how the loss depends on the learning rate, on each searched setting, and on the shape."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from dashboard import figures, groups, load, show
from dashboard.style import short
from tunnel.space import SHAPE
from tunnel.study import Stage

ABOVE, BEST, LOSS = "above each valley's minimum", "above each shape's best", "loss"
AT_ONCE = 3  # stages below one another; of more, one is chosen  *assumed*
LAWFUL = "best decay at each rung"


def search(seen: load.Opened, stage: Stage) -> None:
    """A search's settings, and its shapes where it searched those."""
    rows = load.of_stage(seen, stage.name)
    done = rows[rows.status == "complete"]
    if not len(done):
        show.nothing(f"Stage {show.plain(stage.name)} has no finished trial yet", "Its first one brings this figure.")
        return
    if any(k in stage.axes for k in SHAPE):
        show.figure(figures.aspect(done, stage.name), f"aspect {stage.name}")
    if done.D.nunique() > 1 and stage.rungs is not None:
        rungs = [short(d) for d in sorted(done.D.unique())]
        key = f"rung {seen.root.name} {stage.name}"
        rung = st.segmented_control("At D (tokens)", rungs, default=rungs[-1], required=True, key=key)
        rows = rows[(rows.D.map(short) == rung) | (rows.status == "diverged")]
    if stage.decays or stage.rungs is not None:
        rows = rows.sort_values("loss").drop_duplicates("run")  # a trial's value is its best loss
    axes = [k for k in stage.axes if k in rows]
    show.figure(figures.searched(rows, axes, seen.evidence.get(stage.name, {}), stage.name), f"searched {stage.name}")


def listed(seen: load.Opened, stage: Stage) -> None:
    """A listed stage's fans; where it lists more than shapes and rungs, one group of them at a time."""
    done = load.of_stage(seen, stage.name)
    done = done[done.status == "complete"]
    if not len(done):
        show.nothing(
            f"Stage {show.plain(stage.name)} has no reading yet",
            "Its fans appear here one by one as their forks finish.",
        )
        return
    found = groups.of(done, stage)
    fit = seen.fit if seen.fit and seen.fit.get("stage") == stage.name else None
    if fit and len(found) > 1:
        found = {LAWFUL: lawful(done, seen), **found}
    name = next(iter(found))
    if len(found) > 1:
        name = st.selectbox("Of these", list(found), key=f"group {seen.root.name} {stage.name}")
    fit = fit if len(found) == 1 or name == LAWFUL else None
    above = ABOVE if fit and fit["surface"]["curved"] else BEST
    how = st.segmented_control("Show", [above, LOSS], default=above, required=True, key=f"show {stage.name} {above}")
    show.figure(figures.valleys(found[name], fit, how == above), f"valleys {stage.name} {name}")


def lawful(done: pd.DataFrame, seen: load.Opened) -> pd.DataFrame:
    """The readings that a law is fitted to: of the study's own rules, each trunk's best decay at each rung."""
    own = done[done.rules == seen.asked.rules] if seen.asked else done
    return (own if len(own) else done).sort_values("loss").drop_duplicates(["run", "D"])


def page(seen: load.Opened) -> None:
    stages = seen.asked.stage if seen.asked else ()
    if not stages:
        show.nothing("The study's question cannot be read", "The folder has no whole study.toml.")
    stages = tuple(sorted(stages, key=lambda s: s.kind == "search"))  # the ladder first: what the law rests on
    if len(stages) > AT_ONCE:
        begun = list(dict.fromkeys(seen.complete.stage))
        names = [s.name for s in stages]
        last = names.index(begun[-1]) if begun and begun[-1] in names else 0
        chosen = st.selectbox("Stage", names, index=last, key=f"valleys of {seen.root.name}")
        stages = tuple(s for s in stages if s.name == chosen)
    for stage in stages:
        st.subheader(f"Stage {show.plain(stage.name)}")
        if stage.kind == "search":
            search(seen, stage)
        else:
            listed(seen, stage)


if __name__ == "__main__":  # Streamlit runs a page as a script
    page(show.opened())
