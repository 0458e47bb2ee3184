"""Recommendation: the target's settings with intervals, evidence and cautions, and the files to take away."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import load, show
from dashboard.style import duration, money, nats, short
from tunnel.answers import worth
from tunnel.space import DIMENSIONS

LENGTHS = ("warmup", "tokens", "batch_tokens")
UNITS = {
    **{k: "tokens" for k in LENGTHS},
    "decay": "fraction of D",
    "aspect": "channels per layer",
    "lr": "per step, base shape",
    "clip": "gradient norm",
    "min_ratio": DIMENSIONS["min_ratio"].unit,
}


def written(value: Any) -> str:
    """A setting's value: whole numbers whole, others to four digits."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def interval(name: str, setting: dict[str, Any]) -> str:
    low, high = setting["low"], setting["high"]
    if low is None or high is None:
        return "–"
    if low == high:
        return "exact"
    if name in LENGTHS:
        low, high = round(low), round(high)
    tried = "tried " if setting["source"].startswith("best trial") else ""  # it has a range, and no fitted minimum
    return f"{tried}{written(low)} to {written(high)}"


def settings(told: dict[str, Any]) -> pd.DataFrame:
    """One row a setting: those that were searched first."""
    rows: list[dict[str, str]] = [
        {
            "setting": name,
            "value": written(s["value"]),
            "90% interval": interval(name, s),
            "unit": "per step" if name.startswith("lr_") else UNITS.get(name, ""),
            "source": s["source"] + (f" ({len(s['readings'])} readings)" if s.get("readings") else ""),
        }
        for name, s in told["settings"].items()
    ]
    rows.sort(key=lambda r: r["90% interval"] in ("exact", "–"))
    return pd.DataFrame(rows)


def cards(told: dict[str, Any]) -> None:
    t, registered = told["target"], told.get("registered")
    when = datetime.fromisoformat(registered).strftime("%Y-%m-%d %H:%M:%S UTC") if registered else "never"
    show.cards(
        [
            ("Target", str(t["name"]), None),
            ("N (parameters)", short(t["N"]), f"Non-embedding, {t['width']}×{t['depth']}."),
            ("D (tokens)", short(t["tokens"]), None),
            ("C ÷ largest reading's", f"{told['compute_ratio']:.3g}", "How far beyond the proxies the target lies."),
            ("Forecast (nats/token)", nats(told["forecast"]), f"Registered: {when}"),
            ("90% interval", f"{nats(told['low'])} – {nats(told['high'])}", in_compute(told)),
            ("Time", duration(t["seconds"]), "At the pace of the largest proxies."),
            ("Cost", money(t["cost"], t["currency"]), None),
        ]
    )
    st.caption(f"Forecast registered: {when}")


def in_compute(told: dict[str, Any]) -> str | None:
    """The interval in % of the loss and of the compute, where the file has it."""
    known = told.get("interval_percent")
    if known is None:
        return None
    ends = [
        f"{loss:+.2g}% of the loss is {worth.said(c)}" for loss, c in zip(known["loss"], known["compute"], strict=True)
    ]
    return "By the fitted law, on the way to the target: " + "; ".join(ends) + "."


def cautions(told: dict[str, Any]) -> None:
    """Each with what to run to remove it."""
    remedies = told.get("remedies") or [{"text": text, "run": ""} for text in told["cautions"]]
    for text in told.get("forced", []):
        st.error(f"Forced: {show.plain(text)}", icon=":material/gavel:")
    for caution in remedies:
        st.warning(show.plain(caution["text"]), icon=":material/warning:")
        if caution["run"]:
            with st.expander("What removes it"):
                st.code(caution["run"], language="toml", wrap_lines=True)
    if not remedies:
        st.markdown("None.")


def downloads(root: Path) -> None:
    with st.container(horizontal=True):
        path = root / "recommendation.json"
        st.download_button(
            "recommendation.json",
            path.read_bytes,
            "recommendation.json",
            "application/json",
            icon=":material/download:",
            on_click="ignore",
        )
        found = load.bundle(root)
        if found is None:
            st.markdown("No bundle yet: `tunnel export DIR --to hf` writes it.")
        elif found[1] > load.LARGEST_BUNDLE:
            st.markdown(f"The bundle has {short(found[1])}B; it lies in {show.plain(str(found[0]))}")
        else:
            name = f"{root.name}-{found[0].name}.zip"
            st.download_button(
                f"Bundle for {found[0].name} (zip)",
                lambda: load.packed(found[0]),
                name,
                "application/zip",
                icon=":material/folder_zip:",
                on_click="ignore",
            )


def page(seen: load.Opened) -> None:
    told = seen.recommendation
    if told is None:
        show.nothing(
            "There is no recommendation yet",
            "`tunnel recommend` makes it from the finished ladder, and registers its forecast before the target.",
        )
        return
    show.old(told, seen, "tunnel recommend")
    cards(told)
    downloads(seen.root)
    st.subheader("Cautions")
    cautions(told)
    st.subheader("Settings")
    st.table(settings(told).map(show.plain), hide_index=True)
    st.caption(
        "How to read this: an interval is where 90% of the resampled readings put the best value; "
        "exact means set by the study, or derived by the rule."
    )
    st.subheader("Optimizer groups")
    if told["groups"]:
        numbers = {k: show.significant(k) for k in ("lr", "eps", "init_std", "weight_decay")}
        st.dataframe(pd.DataFrame(told["groups"]), hide_index=True, column_config=numbers)
        st.caption("How to read this: a parameter belongs to the group whose pattern matches its name; lr is per step.")
    else:
        st.markdown("None: this family has no parameters.")
    st.subheader("Where the forecast comes from")
    st.code(told["formula"], language=None, wrap_lines=True)
    for line in told["rejected"]:
        st.markdown(f"- {show.plain(line)}")


if __name__ == "__main__":  # Streamlit runs a page as a script
    page(show.opened())
