"""What the commands print for people: tables, bars and one-line answers. No arithmetic of its own."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tunnel.answers import worth
from tunnel.sweeps import sweep

WIDE = 160  # columns where there is no terminal to ask
out = Console() if sys.stdout.isatty() else Console(width=WIDE)
BARS = " ▁▂▃▄▅▆▇█"
SHOWN = 20  # marked rows listed one by one; --json has them all
QUIET_SECONDS = 15.0  # between lines where there is no terminal


def number(x: Any, digits: int = 4) -> str:
    """A number as people read it: 1.25e+20, 0.0123, 499,712; "" for None."""
    if x is None:
        return ""
    if isinstance(x, str):
        return x
    if isinstance(x, int) or (isinstance(x, float) and x.is_integer() and 10 <= abs(x) < 1e9):
        return f"{int(x):,}"
    return f"{x:.{digits}g}"


def duration(seconds: float) -> str:
    """
    >>> duration(42), duration(3700), duration(1e6)
    ('42 s', '1.0 h', '11.6 days')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def sparkline(values: list[float]) -> str:
    return "".join(BARS[round(v * (len(BARS) - 1))] for v in values)


def table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    shown = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for i, column in enumerate(columns):
        shown.add_column(column, justify="left" if i == 0 else "right", overflow="fold", no_wrap=i == 0)
    for row in rows:
        shown.add_row(*[number(v) for v in row])
    out.print(shown)


@contextmanager
def progress() -> Iterator[sweep.Watch]:
    """A watcher that draws a bar per stage with its ETA; without a terminal, a line now and then."""
    if not out.is_terminal:
        yield lines()
        return
    columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeElapsedColumn()]
    with Progress(*columns, TextColumn("ETA"), TimeRemainingColumn(), console=out) as bars:
        tasks: dict[str, TaskID] = {}

        def watch(live: sweep.Live) -> None:
            if live.stage not in tasks:
                tasks[live.stage] = bars.add_task(live.stage, total=live.total, state="")
            bars.update(tasks[live.stage], total=live.total, completed=min(live.now(), live.total), state=state(live))

        yield watch


def lines() -> sweep.Watch:
    said: dict[str, float] = {}

    def watch(live: sweep.Live) -> None:
        clock = time.monotonic()
        over = live.finished >= live.planned
        if clock - said.get(live.stage, 0.0) < QUIET_SECONDS and not (over and said.get(live.stage) != -1):
            return
        if said.get(live.stage) == -1:
            return
        said[live.stage] = -1 if over else clock
        share = min(live.now() / live.total, 1.0) if live.total else 1.0
        spent = clock - live.started
        left = live.left()
        eta = "unknown" if left is None else duration(left)
        out.print(f"{live.stage}: {100 * share:.0f}%, {state(live)}, {duration(spent)} so far, ETA {eta}")

    return watch


def state(live: sweep.Live) -> str:
    best = f", best {live.best:.4f}" if live.best is not None else ""
    bad = f", {live.diverged} diverged" if live.diverged else ""
    return f"{live.finished}/{live.planned} trials{best}{bad}"


def plan(p: dict[str, Any]) -> None:
    out.print(p["question"], style="italic")
    rows = [stage_row(s, p["currency"]) for s in [*p["stages"], *p["targets"]]]
    columns = ["stage", "kind", "trials", "readings", "tokens", "saved by forks", "FLOPs", "device time", "cost", "lr"]
    table(f"What would run, on {p['device']}", columns, rows)
    shapes = [
        [s["name"], f"{r['width']}×{r['depth']}", r["N"], r["D"], r["C"], r["flops"], r["flops"] / r["C"]]
        for s in [*p["stages"], *p["targets"]]
        for r in s["shapes"]
    ]
    table("Shapes, each at its longest D", ["stage", "shape", "N", "D", "6ND", "full FLOPs", "full / 6ND"], shapes)
    spent = f"{p['flops']:.3g} FLOPs, {duration(p['seconds'])} of one device, {money(p['cost'], p['currency'])}"
    out.print(f"proxies: {p['runs']:,} readings, {spent}")


def stage_row(s: dict[str, Any], currency: str) -> list[Any]:
    saved = f"{100 * (1 - s['tokens'] / s['from_scratch']):.0f}%"
    cost = money(s["cost"], currency)
    head = [s["name"], s["kind"], s["trials"], s["runs"], f"{s['tokens']:.3g}", saved, f"{s['flops']:.3g}"]
    return [*head, duration(s["seconds"]), cost, sparkline(s["schedule"][::2])]


def next_runs(p: dict[str, Any]) -> None:
    """What to add to a ladder, in order; each interval is expected given the additions before it."""
    n, per = p["next"], p["next"]["target_flops"]
    was, law = n["before"], f"law {n['law']}"
    out.print(
        f"target {n['target']}: {was['loss']:.4f} ± {was['half_percent']:.2g}% ({law}), lr* {was['lr']:.3g} "
        f"({was['lr_low']:.3g} to {was['lr_high']:.3g}), 90%"
    )
    columns = ["add", "trials", "readings", "FLOPs", "of the target's", "device time", "cost"]
    columns += ["± % before", "after, expected", "gain", "lr* low", "lr* high"]
    rows = [
        [*(r[k] for k in ("add", "trials", "readings")), f"{r['flops']:.3g}", f"{r['flops'] / per:.2g} ×"]
        + [duration(r["seconds"]), money(r["cost"], p["currency"])]
        + [f"{v:.2g}" for v in (r["before"]["half_percent"], r["after"]["half_percent"], r["gain_percent"])]
        + [f"{r['after'][k]:.3g}" for k in ("lr_low", "lr_high")]
        for r in n["runs"]
    ]
    if rows:
        table(f"What to add to stage {n['stage']}, most narrowed per FLOP first", columns, rows)
        out.print("in the study file, then `tunnel sweep`:")
    else:
        out.print(f"nothing beside stage {n['stage']}'s readings is expected to narrow it by {n['least_percent']:g}%")
    for line in n["lines"]:
        out.print(f"  {line}", markup=False, highlight=False)
    for line in n["limits"]:
        out.print(f"note: {line}", style="yellow")


def money(amount: float, currency: str) -> str:
    return f"{amount:,.2f} {currency}"


def status(s: dict[str, Any]) -> None:
    out.print(s["question"], style="italic")
    out.print(f"{s['folder']}: {s['state']}")
    table("Trials", list(s["trials"]), [list(s["trials"].values())])
    table("Stages", ["stage", "planned", "done"], [[n, v["planned"], v["done"]] for n, v in s["stages"].items()])
    t = s["tokens"]
    share = f" ({t['trained'] / t['from_scratch']:.2f} of it)" if t["from_scratch"] else ""
    out.print(f"{s['readings']:,} readings from {t['trained']:,} tokens; from scratch: {t['from_scratch']:,}{share}")
    spent = f"{s['flops']:.3g} FLOPs in {duration(s['seconds'])} of training, {money(s['cost'], s['currency'])}"
    out.print(f"{spent}; ETA {duration(s['eta_seconds'])}")
    forgetting(s.get("forgetting", []))


def forgetting(rows: list[dict[str, Any]]) -> None:
    """Where data joined: what each reading knows of the old and of the new."""
    if not rows:
        return
    names = list(rows[-1]["slices"])
    columns = ["stage", "shape", "lr", "D", *(f"loss on {n}" for n in names), f"{names[0]} before", "forgotten"]
    shown = [
        [r["stage"], r["shape"], r["lr"], r["D"], *(r["slices"].get(n) for n in names), r["before"], r["forgotten"]]
        for r in rows
    ]
    table("Held-out loss since data joined, nats per token", columns, shown)


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
    t = f["forecast"]
    out.print(f"target {t['target']}: {t['value']:.4f} nats per token, 90% interval {t['low']:.4f} to {t['high']:.4f}")
    optimal(f.get("optimal"))


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


def between(known: dict[str, float] | None) -> str:
    """
    >>> between({"value": 0.0123, "low": 0.01, "high": 0.015})
    '0.0123 (0.01 to 0.015)'
    """
    return "" if known is None else "{value:.3g} ({low:.3g} to {high:.3g})".format(**known)


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
    tried = [[t["law"], t["rows"], t["loss"], t["score_percent"], t["chosen"]] for t in r.get("tried") or []]
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


def check(c: dict[str, Any]) -> None:
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


def yes(inside: bool | None) -> str:
    return "" if inside is None else "yes" if inside else "NO"


def share(x: float | None) -> str:
    return "" if x is None else f"{100 * x:.0f}%"


def run(found: dict[str, Any]) -> None:
    """The whole answer at a look, and where everything lies."""
    status(found["status"])
    ladder(found["fit"])
    recommendation(found["recommendation"])
    check(found["check"])
    folder = found["folder"]
    names = ["study.toml", "study.resolved.json", "records/", "curves/", "trunks/", "optuna.db", "readings.parquet"]
    names += ["fits/", "recommendation.json", "forecasts.jsonl", "check.json"]
    table("Files", ["what", "path"], [[n, f"{folder}/{n}"] for n in names] + [["bundle", found["bundle"]]])


def targets(found: dict[str, Any]) -> None:
    rows = [
        [t["name"], t["status"], join(t.get("carries")), join(t.get("cannot carry")), t.get("reason", "")]
        for t in found["targets"]
    ]
    table("Export targets", ["target", "status", "carries", "cannot carry", "reason"], rows)


def join(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value or "")


def bundle(found: dict[str, Any]) -> None:
    fidelity = found.get("fidelity", {})
    out.print(f"{found['target']} bundle in {found['out']}: {join(found['files'])}")
    out.print(
        f"{fidelity.get('exact', 0)} fields exact; approximated: {join(fidelity.get('approximated')) or 'none'}; "
        f"impossible: {join(fidelity.get('impossible')) or 'none'}"
    )


def trained(r: dict[str, Any]) -> None:
    loss = (
        f"loss {r['loss']:.4f}, {r['bpb']:.4f} bits per byte"
        if r["loss"] is not None
        else f"diverged at {r['diverged_at']:,} tokens"
    )
    out.print(f"{r['stage']}: {r['status']}, {loss}, {r['D']:,} tokens in {duration(r['seconds'])}")


def extended(s: dict[str, Any]) -> None:
    for name, rung in s["extended"].items():
        out.print(f"stage {name}: a rung more, {number(rung)}")
    status(s)


def size(n: float) -> str:
    """
    >>> size(512), size(2_500_000), size(3e12)
    ('512 bytes', '2.5 MB', '3.0 TB')
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "bytes" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def prunable(p: dict[str, Any]) -> None:
    rows = [[k["what"], k["count"], size(k["bytes"])] for k in p["kinds"].values()]
    table(f"{p['folder']}: what nobody needs any more", ["what", "how many", "size"], rows)
    kept = f"kept: {p['kept']['count']:,} checkpoints, {size(p['kept']['bytes'])}"
    done = f"freed {size(p['bytes'])}" if p["freed"] else f"would free {size(p['bytes'])}; --yes frees it"
    out.print(f"{done}; {kept}")


def rerun(r: dict[str, Any]) -> None:
    first = r["first_difference"]
    if first is None:
        out.print(f"run {r['run']}: equal bit for bit ({join(r['compared'])})", style="green")
    else:
        where = f"{first['tensor']} at " if first["tensor"] else ""
        out.print(f"run {r['run']}: {r['differences']} differences, first in {first['what']}", style="red")
        out.print(f"{where}{first['tokens']:,} tokens: recorded {first['recorded']}, again {first['again']}")
    for name, (then, here) in r["other"].items():
        out.print(f"note: {name} was {then}, is {here}", style="yellow")
    for what in r["skipped"]:
        out.print(f"not compared: {what}")


def doctor(found: dict[str, Any]) -> None:
    table(
        "This machine",
        ["check", "found", "ok"],
        [[c["check"], c["found"], "yes" if c["ok"] else "NO"] for c in found["checks"]],
    )
