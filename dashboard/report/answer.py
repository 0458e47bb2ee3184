"""The report's upper half: the question, its answer in numbers, and the settings. Facts and words in, HTML out."""

from __future__ import annotations

import math
from typing import Any

from dashboard.figures import least, shape_name
from dashboard.judge import UNITS
from dashboard.report.facts import Facts
from dashboard.report.figures import setting_name
from dashboard.report.markup import Markup, table, tag
from dashboard.report.words import Words
from dashboard.style import nats, short

TOKENS = ("warmup", "tokens", "batch_tokens")
PLACES = 6  # significant digits of a whole number that is written whole  *assumed*


def head(facts: Facts, w: Words) -> Markup:
    asked, rows = facts.seen.asked, facts.seen.complete
    parts = [tag("p", w("eyebrow"), class_="eyebrow"), tag("h1", asked.question if asked else w("no_question"))]
    parts.append(tag("p", tag("span", w(f"state_{facts.state}"), class_=f"state {facts.state}")))
    parts.append(tag("p", w("what"), class_="soft"))
    if len(rows):
        first, last = (w.date(pick(rows.started.astype(str))) for pick in (min, max))
        parts.append(tag("p", w("based", n=f"{len(rows):,}", first=first, last=last), class_="soft"))
    if facts.running:
        parts.append(tag("p", w("running"), class_="note"))
    if facts.seen.problems:
        problems = tag("ul", *(tag("li", p) for p in facts.seen.problems[:10]), class_="plain", lang="en")
        parts += [tag("p", w("problems"), class_="note"), problems]
    return tag("header", *parts)


def answer(facts: Facts, w: Words) -> Markup:
    """What is known now, first in a sentence, then in numbers."""
    lines = sentences(facts, w)
    parts = [tag("p", lines[0], class_="lead"), *(tag("p", line) for line in lines[1:])]
    if facts.is_old:
        parts.append(tag("p", w("older", command="tunnel recommend"), class_="note"))
    if facts.told:
        parts += [cards(facts, w), tag("p", w("unit"), class_="note")]
    return tag("section", tag("h2", w("h_answer")), *parts, *judged(facts, w), *compared(facts))


def sentences(facts: Facts, w: Words) -> list[str]:
    told, target, rows = facts.told, facts.target or "", facts.seen.complete
    if told is not None:
        return forecast(facts, told, w)
    found = []
    if facts.state == "measuring":
        found = [far(facts, w)]
    elif facts.check is None:
        each, all_ = verdicts(facts, w), w(f"answer_{facts.state}", target=target)
        found = [all_, *each] if facts.state == "compared" else [*each, all_]
    if len(rows) and facts.state != "judged":
        best = least(rows)
        shape = shape_name(best.width, best.depth)
        found.append(w("answer_best", shape=shape, lr=f"{best.lr:.3g}", loss=nats(best.loss)))
    return [*found, *outcome(facts, w)]


def far(facts: Facts, w: Words) -> str:
    if facts.status is None:
        return w("answer_part")
    t = facts.status["trials"]
    return w("answer_measuring", done=t["complete"] + t["pruned"] + t["diverged"], planned=t["planned"])


def forecast(facts: Facts, told: dict[str, Any], w: Words) -> list[str]:
    name, check, written = told["target"]["name"], facts.check, told.get("registered")
    lr = f"{told['settings']['lr']['value']:.3g}"
    found = [w("answer_train", target=name, lr=lr, forecast=nats(told["forecast"]))]
    found.append(w("answer_interval", low=nats(told["low"]), high=nats(told["high"])))
    if check is not None and check.get("registered"):
        found.append(w("answer_before", target=name, date=w.date(check["registered"])))
    elif written:
        found.append(w("answer_written", target=name, date=w.date(written)))
    return [*found, *outcome(facts, w)]


def outcome(facts: Facts, w: Words) -> list[str]:
    check = facts.check
    if check is None:
        return []
    if check["measured"] is None:
        return [w("answer_diverged", target=check["target"])]
    values = {"measured": nats(check["measured"]), "error": f"{abs(check['error_percent']):.2f}"}
    return [w(f"answer_{facts.state}", target=check["target"], **values)]


def cards(facts: Facts, w: Words) -> Markup:
    """The answer's numbers; a description list, so that each is read with its name."""
    assert facts.told is not None
    told, check = facts.told, facts.check
    t, lr = told["target"], told["settings"]["lr"]
    size = {"width": t["width"], "depth": t["depth"], "tokens": short(t["tokens"])}
    known = check is not None and check["measured"] is not None
    found = [
        (w("card_forecast"), nats(told["forecast"]), ends(told["low"], told["high"], w)),
        *([(w("card_measured"), nats(check["measured"]), w(f"card_{facts.state}"))] if check and known else []),
        (w("card_lr"), f"{lr['value']:.3g}", ends(lr["low"], lr["high"], w)),
        (w("card_size", target=t["name"]), short(t["N"]), w("card_size_note", **size)),
        (w("card_reach"), w("card_reach_value", ratio=f"{told['compute_ratio']:.2g}"), None),
    ]
    rows = [
        tag("div", tag("dt", name), tag("dd", value), tag("dd", note, class_="note") if note else None)
        for name, value, note in found
    ]
    return tag("dl", *rows, class_="cards")


def ends(low: float | None, high: float | None, w: Words) -> str | None:
    if low is None or high is None or low == high:
        return None
    return w("card_interval", low=written(low), high=written(high))


def verdict_name(name: str, w: Words) -> str:
    return w(f"v_{name}") if w.has(f"v_{name}") else name


def verdicts(facts: Facts, w: Words) -> list[str]:
    """A sentence a setting: what its best value does, over what."""
    found = []
    for setting, own in facts.judged.by_setting.items():
        by = dict[str, list[str]]()
        for axis in (a for a in UNITS if a in own["over"]):
            by.setdefault(own["over"][axis]["verdict"], []).append(w(f"over_{axis}"))
        told = [w("told_over", verdict=verdict_name(v, w), axes=w("told_and").join(axes)) for v, axes in by.items()]
        if told:
            found.append(w("told_setting", setting=setting_name(setting, w), told=w("told_then").join(told)))
    return found


def judged(facts: Facts, w: Words) -> list[Markup]:
    """The verdicts as a table: what serves larger models, setting by setting, under the study's own rule."""
    rows: list[list[Markup | str | None]] = []
    for setting, found in facts.judged.by_setting.items():
        for axis in (a for a in UNITS if a in found["over"]):
            o = found["over"][axis]
            known = o["penalty_percent"] is not None and o["penalty_high"] is not None
            worse = {"value": f"{o['penalty_percent']:.2g}", "high": f"{o['penalty_high']:.2g}"} if known else {}
            verdict, penalty = verdict_name(o["verdict"], w), w("penalty", **worse) if known else w("none")
            limit = w("percent", value=f"{o['limit_percent']:.2g}") if known else w("none")
            rows.append([setting_name(setting, w), w(f"over_{axis}"), verdict, penalty, limit])
    if not rows:
        return []
    names = [w(f"col_{k}") for k in ("setting", "over", "verdict", "penalty", "limit")]
    return [table(names, rows, w("verdicts_caption"), numbers=(3, 4))]


def compared(facts: Facts) -> list[Markup]:
    """What the study's bodies show side by side, in the tunnel's own words."""
    found = []
    for title, told in facts.compared.items():
        rows: list[list[Markup | str | None]] = [[cell(v) for v in row.values()] for row in told["rows"]]
        shown = table(list(told["rows"][0]), rows, title) if rows else tag("h3", title)
        found.append(tag("div", shown, *(tag("p", line) for line in told["words"]), lang="en"))
    return found


def cell(value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return written(value) if number or value is None else str(value)


# settings


def settings(facts: Facts, w: Words) -> Markup | None:
    """What the target is trained with: value, interval, and where it comes from."""
    told = facts.told
    if told is None:
        return None
    name, own = told["target"]["name"], {k: s for k, s in told["settings"].items() if w.has(f"s_{k}")}
    first = {k: (k != "lr", not s.get("readings")) for k, s in own.items()}  # and what was measured before the others
    own = dict(sorted(own.items(), key=lambda row: first[row[0]]))
    rows = [[setting_name(k, w), value(k, s, w), interval(k, s, w), source(s, w)] for k, s in own.items()]
    heads = [w(f"col_{k}") for k in ("setting", "value", "interval", "source")]
    more = len(told["settings"]) - len(own)
    rule = told["run"]["trunk"]["rules"] if "run" in told else ""
    notes = [w("settings_read"), w("settings_more", n=more, rule=rule) if more and rule else None]
    shown = table(heads, [list(r) for r in rows], w("settings_caption", target=name), numbers=(1,))
    return tag(
        "section",
        tag("h2", w("h_settings", target=name)),
        shown,
        *(tag("p", n, class_="note") for n in notes if n),
    )


def value(name: str, setting: dict[str, Any], w: Words) -> str:
    text = written(setting["value"])
    return w("value_unit", value=text, unit=w("unit_tokens")) if name in TOKENS else text


def written(value: Any) -> str:
    """A value as a person writes it.

    >>> written(28672), written(0.008250357), written("1-sqrt")
    ('28,672', '0.00825', '1-sqrt')
    """
    if value is None or isinstance(value, str):
        return value or "–"
    number = float(value)
    if number.is_integer() and abs(number) < 1e15:
        return f"{number:,.0f}"
    return f"{number:.4g}" if 1 <= abs(number) < 10**PLACES else f"{number:.3g}"


def interval(name: str, setting: dict[str, Any], w: Words) -> str:
    low, high = setting["low"], setting["high"]
    if low is None or high is None or low == high or not all(map(math.isfinite, (low, high))):
        return w("none")
    low, high = (round(low), round(high)) if name in TOKENS else (low, high)
    key = "tried" if best_of(setting) else "between"
    return w(key, low=written(low), high=written(high))


def best_of(setting: dict[str, Any]) -> bool:
    """Whether a value is a search's best trial, where no minimum could be fitted: then low and high are its range."""
    return "best trial" in setting["source"]


def source(setting: dict[str, Any], w: Words) -> str:
    said, n = setting["source"], len(setting.get("readings") or [])
    if n:
        return w("from_best" if best_of(setting) else "from_readings", n=n)
    if said == "the study":
        return w("from_study")
    return w("from_rule", rule=said.removeprefix("rule ")) if said.startswith("rule ") else w("from_else")
