"""Forecasts: the running target in its bundle, all that the study registered, and how far to trust the next one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import forecast_figures, load, show, target_figures
from dashboard.curve_figures import thinned
from dashboard.figures import shape_name
from dashboard.style import nats
from tunnel.answers import worth

ENOUGH = 5  # measured forecasts that a calibration is shown of  *assumed*
EMPTY = pd.DataFrame({"tokens": [], "loss": []})
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


def running(seen: load.Opened) -> None:
    """The target that has begun; looked at again and again while it trains."""
    if load.target(seen.root) is None:
        return
    st.subheader("The running target" if seen.check is None else "The target's run")
    alive = load.alive(seen.root)
    trains = alive is not None and alive.running and str(alive.progress["stage"]).startswith("target:")
    measured = seen.check["measured"] if seen.check else None
    (st.fragment(standing, run_every=show.EVERY) if trains else standing)(seen.root, measured)


def standing(root: Path, measured: float | None) -> None:
    found = load.target(root)
    if found is None:
        return
    awaited, s = found
    live, course = s["live"], s["live"]["course"]
    off, inside = live["off_percent"], {True: "inside", False: "left it", None: "not yet known"}[live["inside"]]
    last = ("On course for", "–", "Nats per token, by its forecast and its slices so far.")
    if measured is not None:
        last = ("Measured", nats(measured), "Nats per token, on held-out data.")
    elif course:
        ends = f"{nats(course['low'])} to {nats(course['high'])}"
        last = ("On course for", nats(course["value"]), f"{ends} nats per token (90%), by forecast and slices so far.")
    show.cards(
        [
            ("Trained", f"{live['progress']:.0%}", f"{target_figures.tokens(s)} tokens."),
            ("Bundle", inside, "Of forecast and ladder. An alarm never stops a run."),
            ("Off what was told", "–" if off is None else f"{off:+.2f}%", "Of the last slice: + is a higher loss."),
            last,
        ]
    )
    if live["alarm"]:
        goes_on = "" if measured is not None else ". It trains on"
        st.error(show.plain(f"{live['alarm']['text']}{goes_on}."), icon=":material/warning:")
    run = awaited.run
    parts = [load.curve(root, run.trunk.fingerprint), load.curve(root, run.fingerprint)]
    drawn = thinned(pd.concat([p[["tokens", "loss"]] for p in parts if p is not None] or [EMPTY]))
    curve = (drawn.tokens.to_numpy(), drawn.loss.to_numpy())
    ladder = [(shape_name(w, d), y) for w, d, y in awaited.normalised()]
    with show.figures():
        show.figure(target_figures.loss(s, curve, measured), "target")
        show.figure(target_figures.normalised(s, ladder), "normalised")


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
    running(seen)
    found, why = load.forecasts(seen.root)
    if found is None or not found["forecasts"]:
        show.nothing(
            "There are no forecasts yet",
            show.plain(why)
            or "While a sweep runs, every next reading is forecast before it is known, as soon as enough are read"
            + ("." if seen.compares else "; `tunnel recommend` registers the target's."),
        )
        return
    st.subheader("How far forecasts can be trusted")
    cards(found)
    target(seen.check)
    rows = found["forecasts"]
    if found["all"]["of"]:
        with show.figures():
            if found["all"]["of"] >= ENOUGH:
                show.figure(forecast_figures.calibration(rows), "calibration")
            show.figure(forecast_figures.in_order(rows), "in order")
            if any(r["distance"] is not None for r in forecast_figures.known(rows)):  # those of 0.1 lack it
                show.figure(forecast_figures.by_distance(rows), "by distance")
        formats = {title: show.decimal(title, 2) for title in MEANS.values()}
        percent = st.column_config.NumberColumn("coverage", format="percent")
        st.dataframe(
            counts(found), hide_index=True, column_config={"coverage": percent, **formats}, alt="How forecasts fared"
        )
        st.caption("How to read this: an interval score is the width, and 20 times what lay outside; less is better.")
    three = [r for r in rows if r["kind"] == "counterfactual"][-3:]
    if three:
        st.subheader("The recommended lr, half and double it")
        show.figure(forecast_figures.contrast(three), "contrast")
    st.subheader("All forecasts")
    numbers = {k: show.decimal(k) for k in ("forecast", "low", "high", "measured")}
    percents = {k: show.decimal(k, 2) for k in ("error (%)", "score (%)", "beyond (decades)")}
    percents["registered"] = st.column_config.DatetimeColumn("registered (UTC)", format="YYYY-MM-DD HH:mm:ss")
    st.dataframe(listed(rows), hide_index=True, column_config={**numbers, **percents}, alt="All forecasts")


if __name__ == "__main__":  # Streamlit runs a page as a script
    page(show.opened())
