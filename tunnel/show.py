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

from tunnel import sweep

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
            bars.update(tasks[live.stage], completed=min(live.now(), live.total), state=state(live))

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


def ladder(f: dict[str, Any]) -> None:
    rows = [
        [f"{m['width']}×{m['depth']}", m["N"], m["D"], m["lr"], m["loss"], m["low"], m["high"]] for m in f["minima"]
    ]
    table("Valley minima", ["shape", "N", "D", "lr*", "loss", "low", "high"], rows)
    d = f["lr_drift"]
    out.print(f"lr* drifts {d['per_10x_N_octaves']:+.2f} octaves per 10× N and {d['per_10x_D_octaves']:+.2f} per 10× D")
    for name, law in f["laws"].items():
        params = ", ".join(f"{k} {number(v)}" for k, v in law["params"].items())
        chosen = "  ← chosen by hold-out" if name == f["chosen"] else ""
        missed = f"off by {100 * f['scores'][name]:.2f}% on hold-outs" if name in f["scores"] else "no hold-out"
        out.print(f"{name}: {params}; {law['status']}; {missed}{chosen}")
    t = f["forecast"]
    out.print(f"target {t['target']}: {t['value']:.4f} nats per token, 90% interval {t['low']:.4f} to {t['high']:.4f}")


def fit(r: dict[str, Any]) -> None:
    out.print(
        f"law {r['law']}: {r['status']}, {r['n']} rows, objective {r['objective']:.7g} (Huber, delta {r['delta']:g})"
    )
    intervals = r.get("intervals") or {}
    rows = [[k, v, *(intervals.get(k) or (None, None))] for k, v in r["params"].items()]
    table("Parameters, 90% by bootstrap", ["parameter", "value", "low", "high"], rows)
    for line in r.get("rejected") or []:
        out.print(f"rejected: {line}")


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


def doctor(found: dict[str, Any]) -> None:
    table(
        "This machine",
        ["check", "found", "ok"],
        [[c["check"], c["found"], "yes" if c["ok"] else "NO"] for c in found["checks"]],
    )
