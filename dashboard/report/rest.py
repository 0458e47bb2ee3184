"""The report's lower half: how far to trust it, what it cost, what to do next, and what the words mean."""

from __future__ import annotations

import shlex
from decimal import Decimal

from dashboard.cost_figures import LOST
from dashboard.report.facts import Facts
from dashboard.report.markup import Markup, table, tag
from dashboard.report.words import Words
from dashboard.style import money, share
from tunnel import __version__

TERMS = ("loss", "small", "lr", "warmup", "law", "interval", "forecast", "token", "parameters")
ABOUT = ("edge", "fit", "seeds", "data", "drift", "batch", "shape", "forced")
STATUS = ("status", "status {dir}")
UNDER_WAY = ("plan", "sweep", "resume", "train")  # where something runs
STEPS = {  # what a state asks for: the table's text, and the command
    "nothing": (("plan", "plan {dir}"), ("sweep", "sweep {dir}")),
    "measuring": (("resume", "sweep {dir}"), STATUS),
    "measured": (("recommend", "recommend {dir}"),),
    "compared": (("compare", "compare {dir}"), ("look", "dashboard {dir}")),
    "judged": (("verdict", "verdict {dir}"), ("look", "dashboard {dir}")),
    "forecast": (("export", "export {dir} --to hf"), ("train", "train {dir}"), ("check", "check {dir}")),
    "inside": (("export", "export {dir} --to hf"), ("promote", "promote {dir}")),
    "outside": (("why", "plan {dir} --next 3"),),
    "diverged": (("why", "plan {dir} --next 3"),),
}


# trust


def trust(facts: Facts, w: Words) -> Markup | None:
    told = facts.told
    if told is None:
        return None
    ratio = f"{told['compute_ratio']:.2g}"
    lines = [w("trust_reach", target=told["target"]["name"], ratio=ratio)]
    fit = facts.seen.fit
    worst = [abs(h["error_percent"]) for h in fit["holdouts"] if h["law"] == fit["chosen"]] if fit else []
    if worst:
        lines.append(w("trust_holdouts", worst=f"{max(worst):.2g}"))
    known = facts.known
    if known:
        lines.append(w("trust_record", inside=sum(r["inside"] for r in known), of=len(known)))
    if facts.forecasts and not facts.forecasts["enough"]:
        lines.append(w("trust_few"))
    if told.get("forced"):
        lines.append(w("trust_forced"))
    return tag("section", tag("h2", w("h_trust")), *(tag("p", line) for line in lines), *cautions(facts, w))


def cautions(facts: Facts, w: Words) -> list[Markup]:
    """Each caution in a plain sentence, then as the tunnel says it, and what removes it."""
    assert facts.told is not None
    plain = [{"about": "else", "text": text, "run": ""} for text in facts.told["cautions"]]
    found = facts.told.get("remedies") or plain
    items = []
    for about in dict.fromkeys(c["about"] for c in found):
        own = [c for c in found if c["about"] == about]
        parts = [tag("p", w(f"about_{about if about in ABOUT else 'else'}"))]
        for c in own:
            parts.append(tag("p", w("detail"), tag("span", c["text"], lang="en"), class_="note"))
            parts += [tag("pre", tag("code", c["run"]), lang="en")] if c["run"] else []
        items.append(tag("li", *parts, class_="caution"))
    return [tag("h3", w("h_cautions")), tag("ol", *items)] if items else []


# cost


def cost(facts: Facts, w: Words) -> Markup:
    status, told, check, asked = facts.status, facts.told, facts.check, facts.seen.asked
    parts: list[Markup] = []
    if status is None or asked is None:
        return tag("section", tag("h2", w("h_cost")), tag("p", w("cost_unknown")))
    currency, rows = status["currency"], list[list[Markup | str | None]]()
    if status["seconds"] > 0:
        rows.append([w("cost_small"), w.duration(status["seconds"]), money(status["cost"], currency)])
        lost = [row for state, row in status["held"].items() if state in LOST]
        if lost:
            gone = sum((Decimal(row["cost"]) for row in lost), Decimal(0))
            rows.append([w("cost_lost"), w.duration(sum(row["seconds"] for row in lost)), money(gone, currency)])
    if told is not None:
        t = told["target"]
        seconds, spent = w.duration(t["seconds"]), money(t["cost"], t["currency"])
        rows.append([w("cost_expected", target=t["name"]), seconds, spent])
    if check is not None and check.get("seconds"):
        spent = money(asked.price.cost(check["seconds"]), currency)
        rows.append([w("cost_measured", target=check["target"]), w.duration(check["seconds"]), spent])
    if rows:
        heads = [w(f"col_{k}") for k in ("what", "time", "money")]
        parts.append(table(heads, rows, w("cost_caption"), numbers=(1, 2)))
        hour = money(asked.price.cost(3600), currency)
        parts.append(tag("p", w("cost_price", price=hour, device=asked.price.device or "–"), class_="note"))
    k = status["tokens"]
    if k["from_scratch"] and k["trained"] < k["from_scratch"]:
        parts.append(tag("p", w("cost_shared", share=w.said(share(k["trained"] / k["from_scratch"]))), class_="note"))
    return tag("section", tag("h2", w("h_cost")), *(parts or [tag("p", w("cost_nothing"))]))


# next


def steps(facts: Facts, w: Words) -> Markup:
    where = shlex.quote(facts.name)
    past = (UNDER_WAY if facts.running else ()) + (("verdict",) if facts.judged.kept else ())
    rows = [row for row in STEPS[facts.state] if row[0] not in past] or [STATUS]
    items = [
        tag("li", tag("p", w(f"next_{key}", target=facts.target or "")), tag("pre", tag("code", f"tunnel {line}")))
        for key, line in ((key, line.replace("{dir}", where)) for key, line in rows)
    ]
    note = tag("p", w("next_where", study=facts.name), class_="note")
    return tag("section", tag("h2", w("h_next")), tag("ol", *items, class_="next"), note)


# words, and where it comes from


def glossary(w: Words) -> Markup:
    rows = [part for term in TERMS for part in (tag("dt", w(f"w_{term}")), tag("dd", w(f"w_{term}_is")))]
    return tag("section", tag("h2", w("h_words")), tag("dl", *rows, class_="words"))


def origin(facts: Facts, w: Words) -> Markup:
    known = [(w("origin_study"), facts.name)]
    if facts.seen.resting_on and len(facts.seen.complete):
        known.append((w("origin_hash"), facts.seen.resting_on))
    known.append((w("origin_made"), w("made_by", version=__version__)))
    rows = [part for name, said in known for part in (tag("dt", name), tag("dd", said))]
    return tag("footer", tag("h2", w("h_origin")), tag("dl", *rows, class_="words note"))
