"""Recommendation: settings with intervals and evidence, cautions, what a budget buys, and what to take away."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import answer_figures, bundles, load, show, spend
from dashboard.style import duration, money, nats, short
from tunnel import export
from tunnel.answers import worth
from tunnel.space import DIMENSIONS

LENGTHS = ("warmup", "tokens", "batch_tokens")
WIDTHS = {"setting": 158, "value": 84, "90% interval": 164, "unit": 134, "source": 440}  # pixels of columns
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


# settings and their evidence


def listed(told: dict[str, Any]) -> None:
    """The settings, one a row; a row that is chosen shows what it rests on, below."""
    table = settings(told)

    def chosen() -> None:
        rows = st.session_state["settings"]["selection"]["rows"]
        if rows and table.setting[rows[0]] in resting(told):
            st.session_state["evidence"] = table.setting[rows[0]]

    st.dataframe(
        table,
        hide_index=True,
        key="settings",
        column_config={name: st.column_config.Column(width=width) for name, width in WIDTHS.items()},
        height="content",
        on_select=chosen,
        selection_mode="single-row",
        alt="The target's settings",
    )
    st.caption(
        "How to read this: an interval is where 90% of the resampled readings put the best value; exact means set by "
        "the study, or derived by the rule; a row that is chosen shows its readings below."
    )


def resting(told: dict[str, Any]) -> list[str]:
    """The settings that rest on readings."""
    return [name for name, s in told["settings"].items() if s.get("readings")]


def evidence(seen: load.Opened, told: dict[str, Any]) -> None:
    """The readings behind one setting."""
    names = resting(told)
    if not names:
        show.nothing("No setting rests on readings", "All are the study's own, or follow from them by the rule.")
        return
    first = names.index("lr") if "lr" in names else 0
    name = st.selectbox("The readings behind", names, index=first, key="evidence", bind="query-params")
    setting = told["settings"][name]
    rows = show.named(seen.readings[seen.readings.fingerprint.isin(setting["readings"]) & seen.readings.loss.notna()])
    if name == "aspect":
        rows = rows.assign(aspect=rows.width / rows.depth)
    if not len(rows) or name not in rows:
        show.nothing("Its readings are not here", "They were removed from this folder, or are another version's.")
        return
    fig = answer_figures.evidence(name, setting, rows)
    show.open_clicked(show.figure(fig, f"evidence {seen.root.name} {name}", None, ("points",)))


# what a budget buys


@st.fragment
def budget(seen: load.Opened, told: dict[str, Any]) -> None:
    """A compute budget: N, D, hours, money and the loss to expect."""
    found = spend.ways(told, seen.fit)
    if not found:
        show.nothing("No law says what a budget buys", "`tunnel fit` makes it, from a ladder's readings.")
        return
    price = seen.asked.price if seen.asked else None
    left, right = st.columns([3, 2])
    labels = {f"{t:.3g} ×": t for t in spend.TIMES}
    chosen = left.select_slider(
        "Compute, as a multiple of the target's", list(labels), value="1 ×", key="budget", bind="query-params"
    )
    way = right.segmented_control(
        "More goes", list(found), default=next(iter(found)), required=True, key="split", bind="query-params"
    )
    way = way if way in found else next(iter(found))
    at = spend.spent(told, found[way], labels[chosen], price)
    far = f"{at.beyond:+.2g} decades from the largest reading's compute." if at.beyond else None
    show.cards(
        [
            ("Compute (FLOPs, 6ND)", f"{at.C:.3g}", far),
            ("N (parameters)", short(at.N), "Non-embedding."),
            ("D (tokens)", short(at.D), None),
            ("Loss (nats/token)", nats(at.loss), f"To expect, by the law “{found[way]['law']}”."),
            ("Time", duration(at.seconds), "Of one device, at the target's pace."),
            ("Cost", money(at.cost, told["target"]["currency"]), "At the study's price."),
        ]
    )
    path = spend.curve(told, found[way], spend.TIMES, price)
    fig = answer_figures.budget(path, at, told, found[way]["law"], told["target"]["currency"])
    show.figure(fig, f"budget {seen.root.name} {way}")


# what to take away


def downloads(seen: load.Opened, told: dict[str, Any]) -> None:
    root = seen.root
    left, middle, right = st.columns([2, 1, 1], vertical_alignment="bottom")
    known = {t["name"]: t for t in export.targets() if t["status"] != "refused"}
    first = list(known).index("hf") if "hf" in known else 0
    to = left.selectbox("Trainer", list(known), index=first, key="to", bind="query-params")
    world = int(middle.number_input("Processes (data parallel)", 1, 100_000, 1, key="world", bind="query-params"))
    lossy = right.toggle(
        "Allow lossy", key="lossy", bind="query-params", help="Writes the nearest there is where it cannot be exact."
    )
    carries, cannot = (", ".join(known[to][k]) or "nothing" for k in ("carries", "cannot carry"))
    st.caption(show.plain(f"It carries {carries}. It cannot carry {cannot}."))
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
        kept(root, to)
        wanted = st.button(f"Make the bundle for {to}", icon=":material/build:", key=f"make {to}")
    identity = f"{told.get('registered')} {told.get('readings_hash')}"
    making = (str(root), to, world, lossy, identity)
    if wanted:
        st.session_state["making"] = making
    if st.session_state.get("making") == making:
        made(bundles.made(told, identity, to, world, lossy), f"{root.name}-{to}.zip")
    for label, text in bundles.shell(root, told, to, world, lossy).items():
        st.caption(label)
        st.code(text, language="bash", wrap_lines=True)


def kept(root: Any, to: str) -> None:
    """A bundle that was exported already."""
    found = bundles.exported(root, to)
    if found is None:
        return
    if found[1] > bundles.LARGEST_BUNDLE:
        st.markdown(f"The bundle has {short(found[1])}B; it lies in {show.plain(str(found[0]))}")
        return
    st.download_button(
        f"Bundle for {to} (zip)",
        lambda: bundles.packed(found[0]),
        f"{root.name}-{to}.zip",
        "application/zip",
        icon=":material/folder_zip:",
        on_click="ignore",
        help="As `tunnel export` wrote it.",
    )


def made(found: bundles.Bundle, name: str) -> None:
    """A bundle that was made here: what it carries, how the job is started, and the zip."""
    if found.why:
        st.error(show.plain(found.why), icon=":material/block:")
        return
    said = [f"{found.exact} fields are exact"]
    said += [
        f"{k}: {', '.join(names)}" for k in ("approximated", "impossible", "lossy") if (names := getattr(found, k))
    ]
    st.success(show.plain("; ".join(said) + "."), icon=":material/verified:")
    st.download_button(
        f"Take {name}", found.packed, name, "application/zip", icon=":material/folder_zip:", on_click="ignore"
    )
    with st.expander("How the job is started"):
        st.code(found.readme, language="markdown", wrap_lines=True)


def model_card(seen: load.Opened, told: dict[str, Any]) -> None:
    text = bundles.card(seen.root, told)
    if text is None:
        show.nothing("There is no model card yet", "It appears with the trained target: `tunnel train`.")
        return
    st.code(text, language="markdown", wrap_lines=True)
    st.caption("How to read this: what `tunnel export --model hf` puts beside the weights.")


def page(seen: load.Opened) -> None:
    told = seen.recommendation
    if told is None and show.no_target(seen):
        return
    if told is None:
        show.nothing(
            "There is no recommendation yet",
            "`tunnel recommend` makes it from the finished ladder, and registers its forecast before the target.",
        )
        return
    if load.outdated(seen, told) and not load.begun(seen.root):  # what was registered before a target's start stands
        show.old(seen, "recommendation.json", "tunnel recommend")
    cards(told)
    st.subheader("Cautions")
    cautions(told)
    st.subheader("Settings")
    listed(told)
    evidence(seen, told)
    st.subheader("What a budget buys")
    budget(seen, told)
    st.subheader("Take it to your trainer")
    downloads(seen, told)
    st.subheader("Model card")
    model_card(seen, told)
    st.subheader("Optimizer groups")
    if told["groups"]:
        numbers = {k: show.significant(k) for k in ("lr", "eps", "init_std", "weight_decay")}
        st.dataframe(pd.DataFrame(told["groups"]), hide_index=True, column_config=numbers, alt="Optimizer groups")
        st.caption("How to read this: a parameter belongs to the group whose pattern matches its name; lr is per step.")
    else:
        st.markdown("None: this family has no parameters.")
    st.subheader("Where the forecast comes from")
    st.code(told["formula"], language=None, wrap_lines=True)
    for line in told["rejected"]:
        st.markdown(f"- {show.plain(line)}")


if __name__ == "__main__":  # Streamlit runs a page as a script
    page(show.opened())
