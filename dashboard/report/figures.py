"""The report's figures: the dashboard's own, with a title and a way to read them in the report's words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from dashboard import figures as searched
from dashboard import forecast_figures, groups, law_figures, load, study_figures, transfer_figures
from dashboard.report.drawing import drawn
from dashboard.report.facts import Facts
from dashboard.report.markup import Markup, tag
from dashboard.report.words import Words
from dashboard.style import nats, short

SETTINGS = 3  # whose verdicts are drawn  *assumed*
VALLEY = 3  # learning rates that can show a lowest point  *derived*


@dataclass(frozen=True)
class Shown:
    """A figure with its finding and how to read it."""

    key: str
    figure: go.Figure
    title: str
    read: str


def all_of(facts: Facts, w: Words) -> list[Shown]:
    """Those that the study's state gives rise to, what answers first."""
    found = [*law(facts, w), *verdicts(facts, w), *valleys(facts, w), *record(facts, w)]
    return [*found, *(progress(facts, w) if facts.state in ("measuring", "measured") else ())]


def law(facts: Facts, w: Words) -> Iterator[Shown]:
    fit = facts.seen.fit
    if fit is None or facts.told is None:
        return
    told, measured = fit["forecast"], law_figures.measured_of(fit, facts.check)
    values = {"target": told["target"], **{k: nats(told[k]) for k in ("value", "low", "high")}}
    key = "law_title" if measured is None else "law_title_measured"
    title = w(key, **values, measured=nats(measured or 0.0))
    read = w("law_read", target=told["target"], d=short(told["D"]))
    yield Shown("law", law_figures.law(fit, facts.check), title, read)


def valleys(facts: Facts, w: Words) -> Iterator[Shown]:
    """The ladder's fans, as the law takes them."""
    seen, fit = facts.seen, facts.seen.fit
    stage = next((s for s in seen.asked.stage if s.name == facts.ladder), None) if seen.asked else None
    rows = load.of_stage(seen, stage.name) if stage else seen.readings.head(0)
    rows = rows[rows.status == "complete"]
    if stage is None or not len(rows) or rows.groupby(["width", "depth", "D"]).lr.nunique().max() < VALLEY:
        return
    found = groups.of(rows, stage)
    rows = groups.lawful(rows, seen) if fit and len(found) > 1 else next(iter(found.values()))
    yield Shown("valleys", searched.valleys(rows, fit, relative=True), valleys_title(fit, w), w("valleys_read"))


def valleys_title(fit: Mapping[str, Any] | None, w: Words) -> str:
    if fit is None:
        return w("valleys_plain")
    if not fit["surface"]["curved"]:
        return w("valleys_open")
    moves = {f"along_{k.lower()}": w(f"{k.lower()}_{moving(fit['lr_drift'], k)}") for k in "DN"}
    return w("valleys_title", **moves)


def moving(drift: Mapping[str, Any], along: str) -> str:
    """falls, rises or still: no surer than the drift's interval."""
    value, low, high = drift[f"per_10x_{along}_octaves"], drift.get(f"{along}_low"), drift.get(f"{along}_high")
    if low is not None and high is not None and low <= 0 <= high:
        return "still"
    return "falls" if value < 0 else "rises"


def record(facts: Facts, w: Words) -> Iterator[Shown]:
    """Forecasts against outcomes, where more than the target's own is known."""
    told = facts.known
    if len(told) > 1:
        title = w("record_title", inside=sum(r["inside"] for r in told), of=len(told))
        yield Shown("record", forecast_figures.in_order(told), title, w("record_read"))


def verdicts(facts: Facts, w: Words) -> Iterator[Shown]:
    """Of settings with a penalty that is known: the others' marks would all stand at the edge."""
    judged = [s for s in facts.judged.by_setting if any(known(f) for f in facts.judged.by_rules(s).values())]
    for i, setting in enumerate(judged[:SETTINGS]):
        fig = transfer_figures.verdicts(setting, facts.judged.by_rules(setting))
        yield Shown(f"verdicts-{i}", fig, w("verdicts_title", setting=setting_name(setting, w)), w("verdicts_read"))


def known(found: Mapping[str, Any]) -> bool:
    return any(o["penalty_percent"] is not None for o in found["over"].values())


def setting_name(name: str, w: Words) -> str:
    """A setting in plain words; its own name where the table has none."""
    return w(f"s_{name}") if w.has(f"s_{name}") else name


def progress(facts: Facts, w: Words) -> Iterator[Shown]:
    rows = facts.seen.complete
    if len(rows):
        title = w("progress_title", n=f"{len(rows):,}", loss=nats(rows.loss.min()))
        yield Shown("progress", study_figures.progress(rows), title, w("progress_read"))


def element(shown: Shown, w: Words) -> Markup:
    """A figure on the page: heading, drawing, legend, and how to read it."""
    made = drawn(shown.figure, shown.key, shown.title, shown.read, w.said)
    names = [tag("li", swatch, tag("span", name)) for swatch, name in made.legend]
    legend = tag("ul", *names, class_="legend") if names else None
    read = tag("figcaption", w("how_to_read", text=shown.read))
    return tag("figure", tag("h3", shown.title), made.svg, legend, read)
