"""Studies: all of them, what runs, how far they are, what they cost and found; and the chosen one in more words."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from dashboard import load, show, studies, study_figures
from dashboard.style import clock, duration, money, nats, short

SUMMING = 0.4  # seconds that a look at the table may take before the rest is left to the next one  *assumed*
NEXT = 1.0  # seconds until then  *assumed*
IDLE = 10.0  # seconds between looks where nothing runs  *assumed*
ROWS, ROW = 12, 35  # that are in sight, and pixels of one: Streamlit's own
SHOWN = {  # the columns in their order, and the pixels of each: down to the verdict they fit on 1280
    "open": 58,
    "study": 124,
    "state": 76,
    "done": 84,
    "left": 76,
    "cost": 84,
    "best": 74,
    "forecast": 74,
    "measured": 78,
    "verdict": 92,
    "error": 76,
    "seconds": 100,
    "readings": 78,
    "changed": 110,
    "question": 420,
}
SEARCHED = ("study", "question")


# all studies


def listing(found: dict[str, Any]) -> None:
    """The table with its search and filter; draws itself anew while there is something to wait for."""
    table = studies.table(found, SUMMING)
    wait = NEXT if (table.state == "").any() else show.EVERY if (table.state == "running").any() else IDLE
    st.fragment(listed, run_every=wait)(wait)


def listed(wait: float) -> None:
    table = studies.table(load.studies(show.folder()), SUMMING)
    counted = int((table.state != "").sum())
    if (wait == NEXT) == (counted == len(table)):
        st.rerun(scope="app")  # another pace
    left, right = st.columns([2, 1])
    text = left.text_input(
        "Search", key="search", bind="query-params", placeholder="a part of a name or of a question", type="search"
    )
    states = sorted(set(table.state) - {""})
    chosen = right.multiselect("State", states, key="state", bind="query-params", placeholder="all")
    rows = matching(table, text or "", chosen)
    st.session_state["listed"] = list(rows.study)
    unit, size = clock(float(rows.seconds.max()) if rows.seconds.notna().any() else 0.0)
    shown = rows.assign(
        open="Open", seconds=rows.seconds / size, left=rows.left.map(lambda s: duration(s) if pd.notna(s) else None)
    )
    shown = shown.assign(changed=pd.to_datetime(rows.changed, unit="s", utc=True))
    currencies = sorted(set(rows.currency) - {""})
    order = [*SHOWN, *(["currency"] if len(currencies) > 1 else [])]
    st.dataframe(
        shown[order],
        hide_index=True,
        placeholder="–",
        height=ROW * (min(max(len(rows), 1), ROWS) + 1) + 2,
        key="studies",
        column_config=columns(unit, currencies),
        alt=f"{len(rows)} studies, one a row",
    )
    waiting = "" if counted == len(table) else f" {len(table) - counted} are still being counted."
    st.caption(
        f"How to read this: {len(rows)} of {len(table)} studies; losses are in nats per token, error is forecast ÷ "
        f"measured − 1. A click on a column's name sorts by it; Open shows a study below, and on every page.{waiting}"
    )


def columns(unit: str, currencies: list[str]) -> dict[str, Any]:
    cost = f"cost ({currencies[0]})" if len(currencies) == 1 else "cost"
    found = {
        "study": st.column_config.TextColumn("study", pinned=True),
        "done": show.bar("trials done"),
        "left": st.column_config.TextColumn("time left"),
        "best": show.decimal("best proxy"),
        "forecast": show.decimal("forecast"),
        "measured": show.decimal("measured"),
        "error": st.column_config.NumberColumn("error (%)", format="%+.2f"),
        "cost": st.column_config.NumberColumn(cost, format="%.4g"),
        "seconds": show.decimal(f"device time ({unit})", 2),
        "changed": st.column_config.DatetimeColumn("last change", format="distance"),
    }
    sized = {k: {**found.get(k, st.column_config.Column()), "width": width} for k, width in SHOWN.items()}
    button = st.column_config.ButtonColumn("", key="open", on_click=choose, type="tertiary", width=SHOWN["open"])
    return {**sized, "open": button}


def choose() -> None:
    """A click on a row's Open: this study from now on, on all pages."""
    row, names = st.session_state["open"].row, st.session_state.get("listed", [])
    if row < len(names):
        st.session_state["study"] = names[row]
    st.rerun(scope="app")


def matching(table: pd.DataFrame, text: str, states: list[str]) -> pd.DataFrame:
    """The rows with all words of a search in name or question, and one of the states; no word and no state is any."""
    said = table[list(SEARCHED)].agg(" ".join, axis=1).str.casefold()
    keep = pd.Series(True, index=table.index)
    for word in text.casefold().split():
        keep &= said.str.contains(word, regex=False)
    return table[keep & (table.state.isin(states) if states else True)].reset_index(drop=True)


# the chosen one


def cards(seen: load.Opened, status: dict[str, Any] | None) -> None:
    """State and cost, then the target's losses, where it has one."""
    told, done = seen.recommendation, seen.complete
    state, finished = show.state_of(status, load.alive(seen.root)), "–"
    tokens, shared, spent, cost = "–", "–", "–", "–"
    if status:
        t, k = status["trials"], status["tokens"]
        finished = f"{t['complete'] + t['pruned'] + t['diverged']} of {t['planned']}"
        tokens, spent = short(k["trained"]), duration(status["seconds"])
        shared = f"{k['trained'] / k['from_scratch']:.0%}" if k["from_scratch"] else "–"
        cost = money(status["cost"], status["currency"])
    found = [
        ("State", state, None),
        ("Finished trials", finished, "One candidate at one seed: a trunk with its forks."),
        ("Finished models", str(len(done)), "Readings: every decay forked off a trunk ends in one."),
        ("Best proxy (nats/token)", nats(done.loss.min()) if len(done) else "–", None),
        ("Tokens trained", tokens, None),
        ("Share of from scratch", shared, "Tokens trained, of those that the same models take without shared trunks."),
        ("Device time", spent, "All that its sweeps held of the devices, idle and failed time included."),
        ("Cost", cost, "Device time at the study's price."),
    ]
    show.cards(found if seen.compares and told is None else [*found, *outcome(seen)])


def outcome(seen: load.Opened) -> list[tuple[str, str, str | None]]:
    """The target's losses: expected and measured."""
    told, check = seen.recommendation, seen.check
    measured = check["measured"] if check else None
    where = "Where the measured loss lies: inside or outside of the forecast's interval."
    return [
        ("Forecast (nats/token)", nats(told["forecast"]) if told else "–", "Of the target's loss."),
        ("90% interval", f"{nats(told['low'])} – {nats(told['high'])}" if told else "–", None),
        ("Measured (nats/token)", nats(measured) if measured is not None else "–", "The target's loss."),
        ("Verdict", show.verdict(check, told, seen.compares), where),
    ]


def stages(status: dict[str, Any]) -> None:
    rows = [
        {"stage": k, "trials": f"{v['done']} of {v['planned']}", "done": min(v["done"] / v["planned"], 1.0)}
        for k, v in status["stages"].items()
    ]
    st.dataframe(pd.DataFrame(rows), hide_index=True, column_config={"done": show.bar("done")}, alt="Stages")


def compared(seen: load.Opened) -> None:
    """What the study's bodies show side by side, as `tunnel compare` has it."""
    for title, table in load.comparison(seen).items():
        st.subheader(show.plain(title))
        st.dataframe(pd.DataFrame(table["rows"]), hide_index=True, placeholder="–", alt=title)
        for line in table["words"]:
            st.markdown(f"- {show.plain(line)}")


def page(seen: load.Opened) -> None:
    found = load.studies(show.folder())
    if len(found) > 1:
        listing(found)
        st.subheader(show.plain(st.session_state["study"]))
    status = load.status(seen.root)
    cards(seen, status)
    if len(seen.complete):
        show.open_clicked(show.figure(study_figures.progress(seen.complete), "progress", None, ("points",)))
    else:
        show.nothing(
            "No model is finished yet",
            "The first reading appears when the first trial's first decay ends; the page Live says how far it is.",
        )
    compared(seen)
    if status:
        st.subheader("Stages")
        stages(status)


if __name__ == "__main__":  # Streamlit runs a page as a script
    page(show.opened())
