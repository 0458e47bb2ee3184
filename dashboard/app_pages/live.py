"""Live: what a study does now. Only these parts draw themselves anew; what was chosen stays chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from dashboard import address, live, load, show, study_figures
from dashboard.style import clock, duration, nats

WATCH = "watch"  # the address' key of the trial that is looked at
IDLE = 10.0  # seconds between looks where nothing runs  *assumed*
LISTED = 200  # rungs that are listed


def head(root: Path, alive: load.Alive | None, status: dict[str, Any] | None) -> None:
    """What state the study is in, in a line, and a bar where it runs."""
    if alive is None:
        state = show.state_of(status, None)
        said = {
            "complete": ("All that was planned is done.", ":material/task_alt:"),
            "not started": ("Nothing was trained yet; `tunnel sweep` starts it.", ":material/hourglass_empty:"),
        }
        text, icon = said.get(state, (f"Nothing runs now; the study is {state}.", ":material/pause_circle:"))
        st.info(f"{text} This page looks again every {IDLE:.0f} s.", icon=icon)
        return
    p = alive.progress
    if not alive.running:
        st.warning(
            f"The sweep stopped {duration(alive.age)} ago in stage {show.plain(p['stage'])}, and its process is gone; "
            "the same command goes on from there.",
            icon=":material/pause_circle:",
        )
        return
    left = f"about {duration(alive.left)} left of this stage" if alive.left is not None else "no pace yet"
    best = f" · best {nats(p['best'])} nats per token" if p.get("best") is not None else ""
    st.progress(alive.share, f"Stage {show.plain(p['stage'])}: {p['finished']} of {p['planned']} trials · {left}{best}")
    if alive.age > live.LONG:
        st.warning(
            f"Its process lives, but said nothing for {duration(alive.age)}; what is shown is from then.",
            icon=":material/sync_problem:",
        )


def staff(alive: load.Alive, seen: load.Opened) -> None:
    """Workers and what each of them takes."""
    found, asked = live.workers(alive.progress), seen.asked
    stage = next((s for s in asked.stage if s.name == alive.progress["stage"]), None) if asked else None
    takes = asked.resources_of(stage) if asked and stage else asked.resources if asked else None
    told = f"{takes.cpus:g} CPU" + f", {takes.gpus:g} GPU" * bool(takes.gpus) if takes else "–"
    hosts = sorted(set(seen.readings.sort_values("started").host.astype(str).iloc[-50:]))
    show.cards(
        [
            ("Workers at work", f"{found[1]} of {found[0]}" if found else "–", "Those without a trial are idle."),
            ("A worker takes", told, "As the study, or its stage, asks."),
            ("Hosts", str(len(hosts)) if hosts else "–", show.plain(", ".join(hosts[:8])) or None),
            ("Last word", f"{duration(alive.age)} ago", "When the sweep last wrote how far it is: about every second."),
        ]
    )


def watch() -> None:
    """A click on a row's trial: it is the one to look at from now on."""
    address.put(WATCH, st.session_state["running"].label)


def work(root: Path, alive: load.Alive) -> None:
    """The running trials, and the losses of the one that is looked at."""
    table = live.running(root, alive.progress)
    if not len(table):
        show.nothing("No trial runs at the moment", "Workers start, or the stage is about to end.")
        return
    unit, size = clock(float(table.seconds.max()) if table.seconds.notna().any() else 0.0)
    st.dataframe(
        table.assign(seconds=table.seconds / size),
        hide_index=True,
        placeholder="–",
        key="at work",
        column_config={
            "trial": st.column_config.ButtonColumn("trial", key="running", on_click=watch, type="tertiary"),
            "done": show.bar("done"),
            "loss": show.decimal("training loss (nats per token)"),
            "falls": st.column_config.LineChartColumn("its last losses", width="medium"),
            "seconds": show.decimal(f"held a device ({unit})", 1),
        },
        alt=f"{len(table)} running trials, one a row",
    )
    st.caption("How to read this: a line a running trial; a click on its name shows its losses below.")
    chosen = address.get(WATCH, "")
    if chosen:
        watched(root, alive.progress, chosen)


def watched(root: Path, progress: dict[str, Any], chosen: str) -> None:
    """The chosen trial: its losses while it runs, its page when it has ended."""
    known = address.stage_and_number(chosen)
    mine = progress["running"].get(str(known[1])) if known and known[0] == progress["stage"] else None
    if known is None or mine is None:
        st.info(f"{show.plain(chosen)} does not run now.", icon=":material/flag:")
        if known is not None and st.button("Open its page", icon=":material/hub:"):
            address.open_trial(*known)
        return
    curve = live.trace(root, *known, mine.get("trunk"))
    if len(curve) < 2:
        show.nothing(f"{show.plain(chosen)} has no curve yet", "Its losses are drawn as they come in.")
        return
    show.figure(study_figures.running(curve, chosen, mine["what"], mine["of"]), "watched")


def tables(seen: load.Opened, status: dict[str, Any] | None) -> None:
    if status is not None:
        st.subheader("Trials by state")
        st.dataframe(
            live.states(seen.root, status),
            hide_index=True,
            column_config={"done": show.bar("done")},
            alt="Trials by stage and state",
        )
        st.caption("How to read this: pruned were stopped early, diverged is an answer too, failed is tried again.")
    found = live.rungs(seen.readings)
    if len(found):
        st.subheader("Rungs")
        columns = {
            "D": st.column_config.NumberColumn("D (tokens)", format="localized"),
            "best": show.decimal("best loss (nats/token)"),
            "lr": show.significant("at lr", 3),
        }
        st.dataframe(
            found.iloc[:LISTED], hide_index=True, placeholder="–", column_config=columns, alt="Readings by rung"
        )
        more = f" The first {LISTED} of {len(found)}." if len(found) > LISTED else ""
        st.caption(f"How to read this: a rung is a reading's D; only equal shapes compare at equal rungs.{more}")
    gone = live.diverged(seen.readings)
    if len(gone):
        st.subheader("Diverged, and why")
        columns = {
            "trial": show.trials("gone"),
            "lr": show.significant("lr", 3),
            "after": st.column_config.NumberColumn("after (tokens)", format="localized"),
            "why": st.column_config.TextColumn("why", width="large"),
        }
        st.dataframe(
            gone.drop(columns="started"), hide_index=True, placeholder="–", column_config=columns, alt="Diverged trials"
        )
    st.subheader("Last events")
    last = live.events(seen.root, seen.readings)
    if not len(last):
        show.nothing("Nothing has happened yet", "Commands, trials and readings are listed here as they come.")
        return
    columns = {
        "when": st.column_config.DatetimeColumn("when (UTC)", format="YYYY-MM-DD HH:mm:ss"),
        "trial": show.trials("event"),
        "about": st.column_config.TextColumn("about", width="large"),
    }
    st.dataframe(last, hide_index=True, placeholder="", column_config=columns, alt="The last events, the newest first")


def parts(root: str) -> None:
    seen = load.opened(Path(root))
    alive, status = load.alive(seen.root), load.status(seen.root)
    head(seen.root, alive, status)
    if alive is not None and alive.running:
        staff(alive, seen)
        st.subheader("At work")
        work(seen.root, alive)
    tables(seen, status)


def page(seen: load.Opened) -> None:
    alive = load.alive(seen.root)
    every = show.EVERY if alive is not None and alive.running else IDLE
    st.fragment(parts, run_every=every)(str(seen.root))


if __name__ == "__main__":  # Streamlit runs a page as a script
    page(show.opened())
