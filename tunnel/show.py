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

from tunnel.sweeps import sweep

WIDE = 160  # columns where there is no terminal to ask
out = Console() if sys.stdout.isatty() else Console(width=WIDE)
BARS = " ▁▂▃▄▅▆▇█"
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
    t = f["forecast"]
    out.print(f"target {t['target']}: {t['value']:.4f} nats per token, 90% interval {t['low']:.4f} to {t['high']:.4f}")


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
    out.print(
        f"law {r['law']}: {r['status']}, {r['n']} rows, objective {r['objective']:.7g} (Huber, delta {r['delta']:g})"
    )
    intervals = r.get("intervals") or {}
    rows = [[k, v, *(intervals.get(k) or (None, None))] for k, v in r["params"].items()]
    table("Parameters, 90% by bootstrap", ["parameter", "value", "low", "high"], rows)
    for line in r.get("rejected") or []:
        out.print(f"rejected: {line}")


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
    rows = [[k, s["value"], s["low"], s["high"], s["source"]] for k, s in r["settings"].items()]
    table("Recommended settings, with 90% intervals", ["setting", "value", "low", "high", "source"], rows)
    out.print(
        f"forecast: {r['forecast']:.4f} {r['unit']}, 90% interval {r['low']:.4f} to {r['high']:.4f} (law {r['law']}), "
        f"{r['compute_ratio']:.1f} × the largest reading's compute; registered {r['registered']}"
    )
    for caution in r["cautions"]:
        out.print(f"caution: {caution}", style="yellow")


def check(c: dict[str, Any]) -> None:
    if c["measured"] is None:
        out.print(f"target {c['target']} diverged; forecast {c['forecast']:.4f}", style="red")
        return
    word, style = ("inside", "green") if c["inside"] else ("outside", "red")
    out.print(
        f"target {c['target']}: forecast {c['forecast']:.4f}, measured {c['measured']:.4f}, "
        f"error {c['error_percent']:+.2f}%, {word} the 90% interval {c['low']:.4f} to {c['high']:.4f}",
        style=style,
    )


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
