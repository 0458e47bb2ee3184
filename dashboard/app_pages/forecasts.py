"""Forecasts: all that this study ever registered, what was measured then, and how far to trust the next one."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from dashboard import forecast_figures, load, show
from tunnel.answers import worth

MEANS = {
    "mean_error_percent": "mean error (%)",
    "half_width_percent": "half width (%)",
    "score_percent": "interval score (%)",
}


def counts(found: dict[str, Any]) -> pd.DataFrame:
    """How forecasts fared: all, by kind, and by distance."""
    groups = {"all": found["all"], **found["by_kind"], **found["by_distance"]}
    return pd.DataFrame(
        [
            {"forecasts": name, "of": s["of"], "inside": s["inside"], "coverage": s["coverage"]}
            | {title: s[key] for key, title in MEANS.items()}
            for name, s in groups.items()
            if s["of"]
        ]
    )


def listed(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Every forecast, the newest first."""
    fates = {True: "inside", False: "outside"}
    return pd.DataFrame(
        [
            {
                "what": r["target"],
                "kind": r["kind"],
                "registered": pd.Timestamp(r["registered"]),
                **{k: r[k] for k in ("forecast", "low", "high", "measured")},
                "error (%)": r["error_percent"],
                "fate": fates.get(r["inside"], r["status"]),
                "score (%)": r["score_percent"],
                "beyond (decades)": r["distance"],
                "law": r["law"],
            }
            for r in reversed(rows)
        ]
    )


def cards(found: dict[str, Any]) -> None:
    s = found["all"]
    known = s["of"] > 0
    show.cards(
        [
            ("Forecasts", str(len(found["forecasts"])), f"{found['waiting']} of them wait for their run."),
            ("Inside 90%", f"{s['inside']} of {s['of']}" if known else "–", "Of those whose outcome is known."),
            ("Mean error", f"{s['mean_error_percent']:.2f}%" if known else "–", "In % of the loss, without sign."),
            ("Interval score", f"{s['score_percent']:.2f}%" if known else "–", "Width, and 20 × what lay outside."),
        ]
    )
    if not found["enough"]:
        st.warning(
            "Fewer lay inside than 90% intervals allow: take the next ones for too narrow.", icon=":material/warning:"
        )


def target(check: dict[str, Any] | None) -> None:
    """The target's own error, in loss and in compute."""
    if check is None or check["error_percent"] is None or "error_compute_percent" not in check:
        return
    compute = worth.said(check["error_compute_percent"])
    text = (
        f"Target {check['target']}: forecast off by {check['error_percent']:+.2f}% of the loss; by its law, {compute}"
    )
    st.markdown(show.plain(f"{text} gives what was measured."))


def page(seen: load.Opened) -> None:
    found, why = load.forecasts(seen.root)
    if found is None or not found["forecasts"]:
        show.nothing(
            "There are no forecasts yet",
            show.plain(why)
            or "While a sweep runs, every next reading is forecast before it is known, as soon as enough are read; "
            "`tunnel recommend` registers the target's.",
        )
        return
    cards(found)
    target(seen.check)
    rows = found["forecasts"]
    if found["all"]["of"]:
        show.figure(forecast_figures.in_order(rows), "in order")
        show.figure(forecast_figures.by_distance(rows), "by distance")
        formats = {title: show.decimal(title, 2) for title in MEANS.values()}
        percent = st.column_config.NumberColumn("coverage", format="percent")
        st.dataframe(counts(found), hide_index=True, column_config={"coverage": percent, **formats})
        st.caption("How to read this: an interval score is the width, and 20 times what lay outside; less is better.")
    three = [r for r in rows if r["kind"] == "counterfactual"][-3:]
    if three:
        st.subheader("The recommended lr, half and double it")
        show.figure(forecast_figures.contrast(three), "contrast")
    st.subheader("All forecasts")
    numbers = {k: show.decimal(k) for k in ("forecast", "low", "high", "measured")}
    percents = {k: show.decimal(k, 2) for k in ("error (%)", "score (%)", "beyond (decades)")}
    st.dataframe(listed(rows), hide_index=True, column_config={**numbers, **percents})


if __name__ == "__main__":  # Streamlit runs a page as a script
    page(show.opened())
