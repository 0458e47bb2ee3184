"""What the commands that answer print: laws, verdicts, recommendations, forecasts."""

from __future__ import annotations

from typing import Any

from tunnel.answers import worth
from tunnel.show.words import between, number, out, share, table, yes

SHOWN = 20  # marked rows listed one by one; --json has them all


def ladder(f: dict[str, Any]) -> None:
    if "horizon" in f:
        horizon(f["horizon"])
    if "minima" not in f:
        return
    cell = ("N", "D", "lr", "lr_low", "lr_high", "loss", "low", "high")
    rows = [[f"{m['width']}×{m['depth']}", *(m[k] for k in cell)] for m in f["minima"]]
    table("Valley minima", ["shape", "N", "D", "lr*", "low", "high", "loss", "low", "high"], rows)
    d = f["lr_drift"]
    moves = [f"{d[f'per_10x_{k}_octaves']:+.2f} per 10× {k}" for k in "NDB" if f"per_10x_{k}_octaves" in d]
    out.print(f"lr* drifts in octaves by {', '.join(moves)}")
    for name, law in f["laws"].items():
        params = ", ".join(f"{k} {number(v)}" for k, v in law["params"].items())
        chosen = "  ← chosen by hold-out" if name == f["chosen"] else ""
        missed = f"off by {100 * f['scores'][name]:.2f}% on hold-outs" if name in f["scores"] else "no hold-out"
        out.print(f"{name}: {params}; {law['status']}; {missed}{chosen}")
    used = f.get("rows") or {"marked": []}
    for m in used["marked"]:
        out.print(f"marked: N {number(m['N'])}, D {number(m['D'])}: {m['reason']}")
    if used["marked"]:
        out.print(f"the chosen law is fitted to {used['window']} ({used['loss']})")
    mixes(f.get("mixes", []))
    t = f["forecast"]
    out.print(f"target {t['target']}: {t['value']:.4f} nats per token, 90% interval {t['low']:.4f} to {t['high']:.4f}")
    optimal(f.get("optimal"))


def mixes(rows: list[dict[str, Any]]) -> None:
    """What the decay's own data did to each slice, in words."""
    for r in rows:
        out.print(f"decay_mix.{r['source']} {r['share']:.3g}: {r['words']}", markup=False, highlight=False)


def horizon(h: dict[str, Any]) -> None:
    """How lr, batch and weight decay move with D: their best at each rung, and the signs in words."""
    out.print(f"\nhorizon, stage {h['stage']}: {h['status']}, {h['runs']} runs, {h['n']} readings", style="bold")
    if h["reason"]:
        out.print(h["reason"])
    names = [k for k in ("lr", "weight_decay", "tau", "batch_best") if any(k in row for row in h.get("best", []))]
    rows = [
        [row["N"], row["D"], row["batch_tokens"], *(between(row.get(k)) for k in names)] for row in h.get("best", [])
    ]
    if rows:
        table("Best settings, with 90% intervals", ["N", "D", "at batch", *(f"{k}*" for k in names)], rows)
    for line in h["words"]:
        out.print(line)


def fit(r: dict[str, Any]) -> None:
    used = r.get("rows") or {"loss": f"Huber {r['delta']:g}", "marked": []}
    loss = used["loss"]
    least = "none" if r["objective"] is None else f"{r['objective']:.7g}"  # too few points
    out.print(f"law {r['law']}: {r['status']}, {r['n']} rows, objective {least} ({loss}) {r['reason']}".rstrip())
    intervals = r.get("intervals") or {}
    rows = [[k, v, *(intervals.get(k) or (None, None))] for k, v in r["params"].items()]
    table("Parameters, 90% by bootstrap", ["parameter", "value", "low", "high"], rows)
    for line in (r.get("rejected") or {}).values():
        out.print(f"rejected: {line}")
    if used["marked"]:
        out.print(f"{used['outside']} of {used['of']} rows marked; the fit takes {used['window']}, {used['used']}")
    for mark in used["marked"][:SHOWN]:
        out.print(f"row {mark['row']}: {mark['reason']}")
    tried = [[t["law"], t["rows"], t["loss"], t["score_percent"], "←" * t["chosen"]] for t in r.get("tried") or []]
    if tried:
        table("Tried on the hold-outs", ["law", "rows", "loss", "error at the fit's edge, %", "chosen"], tried)
    doubts(r)
    optimal(r.get("optimal"))


def doubts(r: dict[str, Any]) -> None:
    """What is told beside a fit: its spread over losses and floors, the budgets' minima, the stabler count."""
    rows = [[w["loss"], w["floor"], *w["params"].values()] for w in r.get("spread") or []]
    if rows:
        names = ["loss", "E held at", *r["spread"][0]["params"]]
        table("E is not identified: what other losses and floors would give", names, rows)
    minima = r.get("isoflop")
    if minima:
        p = minima["params"]
        path = f"N* = {p['G']:.3g}·C^{p['g']:.3f}, D* = {p['K']:.3g}·C^{p['k']:.3f}; " if p["g"] is not None else ""
        out.print(f"budgets' own minima: {path}{minima['status']}; {minima['reason'].split(' (')[0]}".rstrip("; "))
    for axis, found in (r.get("counts") or {}).items():
        scores = ", ".join(f"{k} {v:.2g}%" for k, v in found["score_percent"].items() if v is not None)
        out.print(f"counting {axis}, {found['law']} misses the hold-outs by: {scores}; stabler: {found['stabler']}")


def optimal(told: dict[str, Any] | None) -> None:
    """What a budget buys: N, D and loss with 90% intervals, FLOPs; the best aspect."""
    if told is None:
        return
    out.print(f"\nbudget {told['flops']:.3g} FLOPs, law {told['law']}: {told['status']}", style="bold")
    for line in filter(None, (told["instead"], told["reason"])):
        out.print(line)
    names = ["N", "D", "tokens_per_parameter", "loss"]
    rows = [
        [s["name"], s["count"], *(between(s[k]) for k in names), s["training"], s["inference"]] for s in told["splits"]
    ]
    columns = ["what", "FLOPs =", "N", "D", "D/N", "loss", "training", "serving"]
    table("Best splits, with 90% intervals", columns, rows)
    for s in (s for s in told["splits"] if s["saved_percent"]):
        out.print(f"{s['name']}: {s['saved_percent']:.1f}% of all FLOPs saved against the compute-optimal model")
    shape = told["aspect"]
    if shape and "aspect" in shape:
        at = f"width/depth {between(shape['aspect'])} at equal N: {shape['width']:.0f}×{shape['depth']:.1f} layers"
        out.print(f"{at}; {shape['status']} {shape['reason']}".rstrip("; "))
    elif shape:
        out.print(f"width against depth: {shape['reason']}")


def verdicts(found: dict[str, Any]) -> None:
    """A table per setting and rule, then the coordinate check, the noise and where training breaks."""
    columns = ["over", "verdict", "sizes", "seeds", "penalty %", "at most", "limit", "octaves per 10×", "low", "high"]
    for name, own in found.items():
        for rules, v in {own["rules"]: own, **own["compared"]}.items():
            table(f"{name} under {rules}: {v['verdict']}", columns, [verdict_row(a, o) for a, o in v["over"].items()])
            for line in [f"over {a}: {o['reason']}" for a, o in v["over"].items()] or [v["reason"]]:
                out.print(line)
            checked = v.get("coordinates")
            if checked:
                out.print(f"coordinate check: {checked['verdict']}; {checked['reason']}")
            edge = v.get("lr_max")
            if edge and edge["law"]:
                out.print(f"lr_max ({edge['status']}): exp({edge['law']['a']:.3g} {edge['law']['b']:+.3g} log N)")
    rows = [list(n.values()) for n in next(iter(found.values()))["noise"]]
    columns = ["width", "depth", "D", "B", "noise %", "low", "high", "seeds", "effect wanted %", "seeds needed"]
    table("Seed noise of the loss, one standard deviation", columns, rows)


def verdict_row(axis: str, v: dict[str, Any]) -> list[Any]:
    sizes = " ".join(number(m["at"], 6) for m in v["minima"])
    seeds = min(m["seeds"] for m in v["minima"])
    numbers = [v[k] for k in ("penalty_percent", "penalty_high", "limit_percent", "drift_octaves", "low", "high")]
    return [axis, v["verdict"], sizes, seeds, *(None if x is None else round(x, 4) for x in numbers)]


def recommendation(r: dict[str, Any]) -> None:
    t = r["target"]
    out.print(f"\n{t['name']}: {t['width']}×{t['depth']}, {t['N']:,} parameters, {t['tokens']:,} tokens", style="bold")
    rows = [[k, *(s[x] for x in ("value", "low", "high")), behind(s), s["source"]] for k, s in r["settings"].items()]
    columns = ["setting", "value", "low", "high", "readings", "source"]
    table("Recommended settings, with 90% intervals", columns, rows)
    out.print(
        f"forecast: {r['forecast']:.4f} {r['unit']}, 90% interval {r['low']:.4f} to {r['high']:.4f}{ends(r)} "
        f"(law {r['law']}); registered {r['registered']}"
    )
    far = r.get("extrapolation", {"C": r["compute_ratio"]})
    out.print(f"beyond the largest readings: {', '.join(f'{x:.3g} × {k}' for k, x in far.items())}")
    mixes(r.get("mixes", []))
    for text in r.get("forced", []):
        out.print(f"forced: {text}", style="red")
    remedies = r.get("remedies") or [{"text": text, "run": ""} for text in r["cautions"]]
    for caution in remedies:
        out.print(f"caution: {caution['text']}", style="yellow")
        for line in caution["run"].splitlines():
            out.print(f"    {line}", markup=False, highlight=False)


def behind(setting: dict[str, Any]) -> str:
    """How many readings a setting rests on."""
    return str(len(setting["readings"])) if setting["readings"] else ""


def ends(r: dict[str, Any]) -> str:
    """An interval in % of the loss and of the compute, where it is known."""
    known = r.get("interval_percent")
    if known is None:
        return ""
    low, high = (f"{loss:+.2g}%, as {worth.said(c)}" for loss, c in zip(known["loss"], known["compute"], strict=True))
    return f" ({low}, to {high})"


def running(c: dict[str, Any]) -> None:
    """Where a target stands that still trains."""
    live = c["live"]
    forecast = f"forecast {c['forecast']:.4f}, 90% interval {c['low']:.4f} to {c['high']:.4f}"
    out.print(f"target {c['target']}: {share(live['progress'])} of {live['of']:,} tokens; {forecast}")
    if live["alarm"]:
        out.print(f"alarm: {live['alarm']['text']}", style="red")
    elif live["inside"]:
        out.print(f"inside the bundle, {live['off_percent']:+.2f}% off what forecast and ladder say", style="green")
    else:
        out.print(live["reason"] or "too early to say whether it is inside the bundle")
    if live["course"]:
        out.print("on course for {value:.4f} ({low:.4f} to {high:.4f})".format(**live["course"]))


def check(c: dict[str, Any]) -> None:
    if "live" in c:
        running(c)
        return
    if c["measured"] is None:
        out.print(f"target {c['target']} diverged; forecast {c['forecast']:.4f}", style="red")
        return
    word, style = ("inside", "green") if c["inside"] else ("outside", "red")
    known = "error_compute_percent" in c
    compute = f" (by its law {worth.said(c['error_compute_percent'])} gives what was measured)" if known else ""
    out.print(
        f"target {c['target']}: forecast {c['forecast']:.4f}, measured {c['measured']:.4f}, "
        f"error {c['error_percent']:+.2f}%{compute}, "
        f"{word} the 90% interval {c['low']:.4f} to {c['high']:.4f}",
        style=style,
    )


def contrast(c: dict[str, Any]) -> None:
    """The recommended lr, half and double it: forecast, measured, and which was best."""
    columns = [
        "run",
        "lr",
        "forecast",
        "low",
        "high",
        "measured",
        "error %",
        "inside",
        "told above best %",
        "measured %",
    ]
    numbers = ("lr", "forecast", "low", "high", "measured", "error_percent")
    rises = ("rise_percent", "rise_measured_percent")
    rows = [[r["target"], *(r[k] for k in numbers), yes(r["inside"]), *(r.get(k) for k in rises)] for r in c["runs"]]
    table("The recommended lr, half and double it", columns, rows)
    if c["holds"] is not None:
        given = "diverged" if c["given_away_percent"] is None else f"gives away {c['given_away_percent']:.2f}%"
        noise = f"noise alone is {c['noise_percent']:.2f}%"
        line = f"best at {c['best']:g} × the recommended lr; the recommended one {given}, {noise}"
        out.print(line, style="green" if c["holds"] else "red")


def forecasts(f: dict[str, Any]) -> None:
    """Every forecast and its fate, then the counts."""
    columns = ["kind", "of", "registered", "forecast", "low", "high", "measured", "error %", "inside"]
    numbers = ("forecast", "low", "high", "measured", "error_percent")
    rows = [
        [r["kind"], r["target"], r["registered"][:19], *(r[k] for k in numbers), yes(r["inside"]) or r["status"]]
        for r in f["forecasts"]
    ]
    table("All forecasts, oldest first", columns, rows)
    counts = {"all": f["all"], **f["by_kind"], **f["by_distance"]}
    means = ("mean_error_percent", "bias_percent", "half_width_percent", "score_percent")
    told = [
        [k, s["of"], s["inside"], share(s["coverage"]), *(s[m] for m in means)] for k, s in counts.items() if s["of"]
    ]
    table(
        "How they fared, in % of the loss",
        ["forecasts", "of", "inside 90%", "coverage", "mean error", "bias", "half width", "interval score"],
        told,
    )
    if not f["enough"]:
        out.print("fewer lie inside than 90% intervals allow", style="red")
