"""Overview: the studies, how far they are, what they cost, and what became of their forecasts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import curve_figures, load, show
from dashboard.style import duration, money, nats, short


def cards(seen: load.Opened, status: dict[str, Any] | None) -> None:
    """State and cost, then the losses: expected and measured."""
    told, check, done = seen.recommendation, seen.check, seen.complete
    state, finished = show.state_of(status, load.alive(seen.root)), "–"
    tokens, shared, spent, cost = "–", "–", "–", "–"
    if status:
        t, k = status["trials"], status["tokens"]
        finished = f"{t['complete'] + t['pruned'] + t['diverged']} of {t['planned']}"
        tokens, spent = short(k["trained"]), duration(status["seconds"])
        shared = f"{k['trained'] / k['from_scratch']:.0%}" if k["from_scratch"] else "–"
        cost = money(status["cost"], status["currency"])
    measured = check["measured"] if check else None
    show.cards(
        [
            ("State", state, None),
            ("Finished trials", finished, "One candidate at one seed: a trunk with its forks."),
            ("Finished models", str(len(done)), "Readings: every decay forked off a trunk ends in one."),
            ("Best proxy (nats/token)", nats(done.loss.min()) if len(done) else "–", None),
            ("Tokens trained", tokens, None),
            (
                "Share of from scratch",
                shared,
                "Tokens trained, of those that the same models take without shared trunks.",
            ),
            ("Device time", spent, "All that its sweeps held of the devices, idle and failed time included."),
            ("Cost", cost, "Device time at the study's price."),
            ("Forecast (nats/token)", nats(told["forecast"]) if told else "–", "Of the target's loss."),
            ("90% interval", f"{nats(told['low'])} – {nats(told['high'])}" if told else "–", None),
            ("Measured (nats/token)", nats(measured) if measured is not None else "–", "The target's loss."),
            (
                "Verdict",
                show.verdict(check, told),
                "Where the measured loss lies: inside or outside of the forecast's interval.",
            ),
        ]
    )


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
        "best proxy": float(seen.complete.loss.min()) if len(seen.complete) else None,
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
    numbers = {k: show.decimal(k) for k in ("best proxy", "forecast", "measured")}
    error = st.column_config.NumberColumn("error (%)", format="%+.2f")
    st.dataframe(table, hide_index=True, placeholder="–", column_config={**numbers, "error": error})
    st.caption("How to read this: losses are in nats per token; error is forecast ÷ measured − 1.")


if __name__ == "__main__":  # Streamlit runs a page as a script
    page(show.opened())
