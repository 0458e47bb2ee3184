"""Valleys & transfer: where a setting's best value lies, and whether it stays there over width, depth, D and batch."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import streamlit as st

from dashboard import figures, groups, judge, load, show, stability_figures, transfer_figures
from dashboard.judge import UNITS, Found, Judged
from tunnel.study import Stage

ABOVE, BEST, LOSS = "above each valley's minimum", "above each shape's best", "loss"
LAWFUL = "best decay at each rung"
PANELS = 6  # rules beside each other: as many as there are colours


def table(by_rules: Mapping[str, Found]) -> pd.DataFrame:
    """The verdicts, one rule and axis a row."""
    return pd.DataFrame(
        [
            {
                "rules": rules,
                "over": axis,
                "verdict": o["verdict"],
                "penalty": o["penalty_percent"],
                "upper bound": o["penalty_high"],
                "limit": o["limit_percent"],
                "in noise": o["penalty_noise"],
                "octaves": o["drift_octaves"],
                "low": o["low"],
                "high": o["high"],
                "seeds": min(m["seeds"] for m in o["minima"]),
                "reason": o["reason"],
            }
            for rules, found in by_rules.items()
            for axis, o in found["over"].items()
        ]
    )


COLUMNS = {
    "penalty": st.column_config.NumberColumn("penalty (%)", format="%.3g"),
    "upper bound": st.column_config.NumberColumn("90% bound (%)", format="%.3g"),
    "limit": st.column_config.NumberColumn("limit (%)", format="%.3g"),
    "in noise": st.column_config.NumberColumn("penalty (× noise)", format="%.2g"),
    "octaves": st.column_config.NumberColumn("octaves per 10×", format="%+.2f"),
    "low": st.column_config.NumberColumn("90% low", format="%+.2f"),
    "high": st.column_config.NumberColumn("90% high", format="%+.2f"),
}


def verdicts(setting: str, by_rules: Mapping[str, Found]) -> None:
    if not any(f["over"] for f in by_rules.values()):
        why = "; ".join(dict.fromkeys(f["reason"] for f in by_rules.values()))
        show.nothing(f"There is no verdict on {show.plain(setting)} yet", show.plain(why))
        return
    show.figure(transfer_figures.verdicts(setting, by_rules), f"verdicts {setting}")
    st.dataframe(table(by_rules), hide_index=True, placeholder="–", column_config=COLUMNS, alt=f"Verdicts on {setting}")
    st.caption(
        "How to read this: penalty is what the largest loss among the sizes comes to, noise is one seed's standard "
        "deviation of the loss, and octaves are how far the best value moves over a tenfold size."
    )


def along(seen: load.Opened, told: Judged, setting: str) -> None:
    """One axis: its valleys and its drift, the rules beside each other."""
    axes = [a for a in UNITS if any(a in f["over"] for f in told.by_rules(setting).values())]
    if not axes:
        return
    st.subheader("Valleys and drift")
    left, middle, right = st.columns([2, 2, 2])
    axis = left.segmented_control("Over", axes, default=axes[0], required=True, key="over", bind="query-params")
    axis = axis if axis in axes else axes[0]
    found = judge.lines(seen, told, setting, axis)
    places = list(dict.fromkeys(one.place for one in found))
    place = middle.selectbox("At", places, key="at", bind="query-params")
    how = right.segmented_control("Show", [ABOVE, LOSS], default=ABOVE, required=True, key="shown", bind="query-params")
    shown = [one for one in found if one.place == place][:PANELS]
    key = f"{seen.root.name} {setting} {axis} {place}"
    moves = transfer_figures.drift(setting, shown)
    with show.figures():
        show.figure(transfer_figures.valleys(setting, shown, how == ABOVE), f"valleys {key}")
        if moves is not None:
            show.figure(moves, f"drift {key}")
        else:
            show.nothing("No valley here has a minimum", "Their lowest points lie at an edge: widen the range.")


# fans


def fans(seen: load.Opened) -> None:
    """Loss against lr of a listed stage, with the joint fit of all its valleys where it is the ladder's."""
    begun = set(seen.complete.stage)
    stages = {s.name: s for s in (seen.asked.stage if seen.asked else ()) if not s.searches and s.name in begun}
    if not stages:
        return
    st.subheader("Fans: loss against lr, per shape")
    left, middle, right = st.columns([2, 2, 2])
    ladders = [n for n, s in stages.items() if s.kind == "ladder"]
    names = list(stages)
    first = names.index((ladders or names)[-1])
    name = left.selectbox("Stage", names, index=first, key="fans", bind="query-params")
    done = load.of_stage(seen, name)
    done = done[done.status == "complete"]
    fit = seen.fit if seen.fit and seen.fit.get("stage") == name else None
    found = parts(seen, stages[name], done, lawful=fit is not None)
    part = middle.selectbox("Of these", list(found), key="part", bind="query-params") if len(found) > 1 else groups.ALL
    fit = fit if len(found) == 1 or part == LAWFUL else None
    above = ABOVE if fit and fit["surface"]["curved"] else BEST
    how = right.segmented_control(
        "Show", [above, LOSS], default=above, required=True, key="fans shown", bind="query-params"
    )
    rows = found.get(part, next(iter(found.values())))
    show.figure(figures.valleys(rows, fit, how != LOSS), f"fans {seen.root.name} {name} {part}")


def parts(seen: load.Opened, stage: Stage, done: pd.DataFrame, lawful: bool) -> dict[str, pd.DataFrame]:
    """A stage's readings as figures may hold them; those that its law is fitted to first."""
    found = groups.of(done, stage)
    return {LAWFUL: groups.lawful(done, seen), **found} if lawful and len(found) > 1 else found


def coordinates(by_rules: Mapping[str, Found]) -> None:
    st.subheader("Coordinate check")
    checked = {r: c for r, f in by_rules.items() if (c := f.get("coordinates")) and c["over"]}
    if not checked:
        show.nothing(
            "There is no coordinate check yet",
            "`tunnel verdict` makes it: ten steps of each shape, which take minutes. "
            "It needs three widths at one depth, and a family that reads a corpus.",
        )
        return
    show.figure(stability_figures.coordinates(checked), "coordinates")
    if (lines := stability_figures.changed(checked)) is not None:
        show.figure(lines, "changes")
    for rules, c in checked.items():
        st.markdown(f"- {show.plain(rules)} **{c['verdict']}**: {show.plain(c['reason'])}")


def breaks(by_rules: Mapping[str, Found]) -> None:
    st.subheader("Where training breaks")
    known = {r: f["lr_max"] for r, f in by_rules.items() if f.get("lr_max") and f["lr_max"]["shapes"]}
    if known:
        show.figure(stability_figures.lr_max(known), "lr_max")
    else:
        show.nothing("Nothing was read at several learning rates yet", "A fan's readings bring this figure.")


def noise(by_rules: Mapping[str, Found]) -> None:
    st.subheader("Seed noise")
    known = {r: f["noise"] for r, f in by_rules.items() if f["noise"]}
    if not known:
        show.nothing("No shape was read with two seeds yet", "`seeds` of a stage's budget repeat its trials.")
        return
    rules = next(iter(known))
    if len(known) > 1:
        rules = st.segmented_control("Rules", list(known), default=rules, required=True, key="noise rules")
    show.figure(stability_figures.noise(known[rules]), f"noise {rules}")


def state(seen: load.Opened, told: Judged) -> None:
    """What the verdicts rest on, where that is not simply verdict.json."""
    running = (alive := load.alive(seen.root)) is not None and alive.running
    if told.kept and told.old:
        show.old(seen, "verdict.json", "tunnel verdict")
    elif not told.kept:
        more = "the sweep goes on, and they may change" if running else "`tunnel verdict` adds the coordinate check"
        made = f"These verdicts are made of the {len(seen.complete)} readings so far"
        st.info(f"{made}; {more}.", icon=":material/science:")


def page(seen: load.Opened) -> None:
    told = judge.judged(seen)
    if told.by_setting:
        state(seen, told)
        names = list(told.by_setting)
        setting = names[0]
        if len(names) > 1:
            setting = st.segmented_control(
                "Setting", names, default=names[0], required=True, key="setting", bind="query-params"
            )
            setting = setting if setting in names else names[0]
        by_rules = told.by_rules(setting)
        verdicts(setting, by_rules)
        along(seen, told, setting)
    else:
        why = "No setting was read at three values of one shape. A stage of kind verdict reads several."
        show.nothing("There is no verdict yet", f"The study {show.plain(told.why)}." if told.why else why)
    fans(seen)
    if told.by_setting:
        if setting == "lr":
            coordinates(by_rules)
            breaks(by_rules)
        noise(by_rules)


if __name__ == "__main__":  # Streamlit runs a page as a script
    page(show.opened())
