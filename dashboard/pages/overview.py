"""Overview: the studies, how far they are, what they cost, and what became of their forecasts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import curve_figures, load, show
from dashboard.style import duration, money, nats, short


def cards(seen: load.Opened, status: dict[str, Any] | None) -> None:
    icon, word = show.STATES[show.state_of(status, load.alive(seen.root))]
    told, check, done = seen.recommendation, seen.check, seen.complete
    with st.container(horizontal=True):
        st.metric("State", word, icon=icon, border=True)
        if status:
            t = status["trials"]
            finished = t["complete"] + t["pruned"] + t["diverged"]
            rest = [f"{t[k]} {k}" for k in ("pruned", "diverged", "failed", "running") if t[k]]
            st.metric("Trials", f"{finished} of {t['planned']}", border=True, help=", ".join(rest) or None)
        st.metric("Finished models (readings)", len(done), border=True)
        if status:
            tokens = status["tokens"]
            share = f"{tokens['trained'] / tokens['from_scratch']:.0%}" if tokens["from_scratch"] else "–"
            st.metric("Tokens trained", short(tokens["trained"]), border=True)
            st.metric("… of what they take from scratch", share, border=True, help="Forks share their trunk's tokens.")
            st.metric("Trial time spent", duration(status["seconds"]), border=True)
            st.metric(
                "Cost", money(status["cost"], status["currency"]), border=True, help="Trial time at the study's price."
            )
            if status["eta_seconds"]:
                st.metric(
                    "Trial time left",
                    duration(status["eta_seconds"]),
                    border=True,
                    help="All stages, at the pace so far.",
                )
    with st.container(horizontal=True):
        st.metric("Best loss of a proxy (nats per token)", nats(done.loss.min()) if len(done) else "–", border=True)
        st.metric("Forecast for the target", nats(told["forecast"]) if told else "–", border=True)
        st.metric("… 90% interval", f"{nats(told['low'])} to {nats(told['high'])}" if told else "–", border=True)
        measured = check["measured"] if check else None
        st.metric("Measured", nats(measured) if measured is not None else "–", border=True)
        st.metric("Verdict", show.verdict(check, told), border=True)


def stages(status: dict[str, Any]) -> None:
    rows = [
        {"stage": k, "trials": f"{v['done']} of {v['planned']}", "done": min(v["done"] / v["planned"], 1.0)}
        for k, v in status["stages"].items()
    ]
    st.dataframe(pd.DataFrame(rows), hide_index=True, column_config={"done": show.bar("done")})


def row(name: str, root: Path) -> dict[str, Any]:
    """A study as a line of the table of studies."""
    seen, status = load.opened(root), load.status(root)
    told, check = seen.recommendation, seen.check
    return {
        "study": name,
        "state": show.state_of(status, load.alive(root)),
        "readings": len(seen.complete),
        "best": float(seen.complete.loss.min()) if len(seen.complete) else None,
        "forecast": told["forecast"] if told else None,
        "measured": check["measured"] if check else None,
        "error": check["error_percent"] if check else None,
        "verdict": show.verdict(check, told),
        "cost": money(status["cost"], status["currency"]) if status else "–",
    }


def page(seen: load.Opened) -> None:
    status = load.status(seen.root)
    cards(seen, status)
    if len(seen.complete):
        show.figure(curve_figures.progress(seen.complete), "progress")
    else:
        show.nothing(
            "No model is finished yet",
            "The first reading appears when the first trial's first decay ends; the strip above says how far it is.",
        )
    if status:
        st.subheader("Stages")
        stages(status)
    st.subheader("All studies here")
    table = pd.DataFrame([row(name, root) for name, root in load.studies(show.folder()).items()])
    numbers = {
        k: show.decimal(f"{label} (nats per token)")
        for k, label in (("best", "best proxy"), ("forecast", "forecast"), ("measured", "measured"))
    }
    st.dataframe(
        table,
        hide_index=True,
        column_config={**numbers, "error": st.column_config.NumberColumn("error (%)", format="%+.2f")},
    )


page(show.opened())
