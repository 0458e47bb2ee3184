"""What the commands that work print: plans, progress, states, what was trained, freed, compared."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from tunnel.show.evidence import check, ladder, recommendation
from tunnel.show.words import duration, join, money, number, out, share, size, sparkline, table
from tunnel.sweeps import sweep
from tunnel.sweeps.limits import figure
from tunnel.sweeps.status import Live

QUIET_SECONDS = 15.0  # between lines where there is no terminal


@contextmanager
def progress() -> Iterator[sweep.Watch]:
    """A watcher that draws a bar per stage with its ETA; without a terminal, a line now and then."""
    if not out.is_terminal:
        yield lines()
        return
    columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeElapsedColumn()]
    with Progress(*columns, TextColumn("ETA {task.fields[eta]}"), console=out) as bars:
        tasks: dict[str, TaskID] = {}

        def watch(live: Live) -> None:
            if live.stage not in tasks:
                tasks[live.stage] = bars.add_task(live.stage, total=live.total, state="", eta="")
            task, done = tasks[live.stage], min(live.now(), live.total)
            bars.update(task, total=live.total, completed=done, state=state(live), eta=eta(live))

        yield watch


def lines() -> sweep.Watch:
    said: dict[str, float] = {}

    def watch(live: Live) -> None:
        clock = time.monotonic()
        over = live.finished >= live.planned
        if clock - said.get(live.stage, 0.0) < QUIET_SECONDS and not (over and said.get(live.stage) != -1):
            return
        if said.get(live.stage) == -1:
            return
        said[live.stage] = -1 if over else clock
        share = min(live.now() / live.total, 1.0) if live.total else 1.0
        spent = clock - live.started
        out.print(f"{live.stage}: {100 * share:.0f}%, {state(live)}, {duration(spent)} so far, ETA {eta(live)}")

    return watch


def eta(live: Live) -> str:
    left = live.left()
    return "unknown" if left is None else duration(left)


def state(live: Live) -> str:
    best = f", best {live.best:.4f}" if live.best is not None else ""
    bad = f", {live.diverged} diverged" if live.diverged else ""
    return f"{live.finished}/{live.planned} trials{best}{bad}"


def plan(p: dict[str, Any]) -> None:
    out.print(p["question"], style="italic")
    rows = [stage_row(s, p["currency"]) for s in [*p["stages"], *p["targets"]]]
    columns = ["stage", "kind", "trials", "readings", "tokens", "saved by forks", "FLOPs", "device time", "cost", "lr"]
    table(f"What would run, on {p['device']}", columns, rows)
    shapes = [
        [s["name"], r["shape"], r["N"], r["D"], r["C"], r["flops"], r["flops"] / r["C"]]
        for s in [*p["stages"], *p["targets"]]
        for r in s["shapes"]
    ]
    table("Shapes, each at its longest D", ["stage", "shape", "N", "D", "6ND", "full FLOPs", "full / 6ND"], shapes)
    spent = f"{p['flops']:.3g} FLOPs, {duration(p['seconds'])} of one device, {money(p['cost'], p['currency'])}"
    out.print(f"proxies: {p['runs']:,} readings, {spent}{of_target(p)}")
    if "eta_seconds" in p:
        out.print(f"device time at the pace that was measured here; for what is left: ETA {duration(p['eta_seconds'])}")
    limits(p["limits"])


def of_target(found: dict[str, Any]) -> str:
    share = found["of_target"]
    if share is None:
        return ""
    return f"; {100 * share['cost']:.3g}% of the target's cost, {100 * share['flops']:.3g}% of its FLOPs"


def limits(rows: list[dict[str, Any]]) -> None:
    """What is taken, or would be, of the study's limits."""
    for r in rows:
        said = f"budget.{r['name']}: {figure(r['taken'])} of {figure(r['limit'])} {r['unit']} ({100 * r['share']:.3g}%)"
        out.print(said, style="yellow" if r["share"] > 0.8 else None)


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


def status(s: dict[str, Any]) -> None:
    out.print(s["question"], style="italic")
    out.print(f"{s['folder']}: {s['state']}")
    table("Trials", list(s["trials"]), [list(s["trials"].values())])
    table("Stages", ["stage", "planned", "done"], [[n, v["planned"], v["done"]] for n, v in s["stages"].items()])
    t = s["tokens"]
    part = f" ({t['trained'] / t['from_scratch']:.2f} of it)" if t["from_scratch"] else ""
    out.print(f"{s['readings']:,} readings from {t['trained']:,} tokens; from scratch: {t['from_scratch']:,}{part}")
    rows = [
        [state, r["spans"], duration(r["seconds"]), share(r["share"]), money(r["cost"], s["currency"])]
        for state, r in s["held"].items()
    ]
    if rows:
        table("What the devices were held for", ["by", "spans", "device time", "share", "cost"], rows)
    spent = f"{s['flops']:.3g} FLOPs in {duration(s['training_seconds'])} of training"
    held = f"{duration(s['seconds'])} of one device, {money(s['cost'], s['currency'])}{of_target(s)}"
    out.print(f"{spent}; held {held}; ETA {duration(s['eta_seconds'])}")
    limits(s["limits"])
    for alarm in s["alarms"]:
        out.print(f"alarm: {alarm['text']} ({alarm['when'][:19]})", style="red")
    by_slice(s.get("slices", []))
    forgetting(s.get("forgetting", []))


def by_slice(rows: list[dict[str, Any]]) -> None:
    """Each stage's best reading, on every source's held-out slice."""
    if not rows:
        return
    names = list(dict.fromkeys(n for r in rows for n in r["slices"]))
    columns = ["stage", "shape", "D", "decay_mix", "the loss", *(f"loss on {n}" for n in names)]
    mixes = [join([f"{k} {v:.3g}" for k, v in r["decay_mix"].items()]) or "none" for r in rows]
    head = ("stage", "shape", "D")
    shown = [
        [*(r[k] for k in head), mix, r["loss"], *(r["slices"].get(n) for n in names)]
        for r, mix in zip(rows, mixes, strict=True)
    ]
    table("Best readings by held-out slice, nats per token", columns, shown)


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


def run(found: dict[str, Any]) -> None:
    """The whole answer at a look, and where everything lies."""
    status(found["status"])
    if "comparison" in found:
        comparison(found["comparison"])
        return
    ladder(found["fit"])
    recommendation(found["recommendation"])
    check(found["check"])
    folder = found["folder"]
    names = ["study.toml", "study.resolved.json", "records/", "curves/", "trunks/", "optuna.db", "readings.parquet"]
    names += ["fits/", "recommendation.json", "forecasts.jsonl", "check.json"]
    table("Files", ["what", "path"], [[n, f"{folder}/{n}"] for n in names] + [["bundle", found["bundle"]]])


def comparison(found: dict[str, Any]) -> None:
    """Tables of answers, each with what it says in a sentence."""
    for name, told in found["tables"].items():
        table(name, list(told["rows"][0]) if told["rows"] else [], [list(r.values()) for r in told["rows"]])
        for line in told["words"]:
            out.print(line)
    if not found["tables"]:
        out.print("nothing of this study is compared")


def targets(found: dict[str, Any]) -> None:
    rows = [
        [t["name"], t["status"], join(t.get("carries")), join(t.get("cannot carry")), t.get("reason", "")]
        for t in found["targets"]
    ]
    table("Export targets", ["target", "status", "carries", "cannot carry", "reason"], rows)


def bundle(found: dict[str, Any]) -> None:
    if "model" in found:
        exact = "bit for bit" if found["exact"] else "made again on another machine, near the record's"
        out.print(f"{found['model']} model in {found['out']}, {exact}: {join(found['files'])}")
        return
    fidelity = found.get("fidelity", {})
    out.print(f"{found['target']} bundle in {found['out']}: {join(found['files'])}")
    out.print(
        f"{fidelity.get('exact', 0)} fields exact; approximated: {join(fidelity.get('approximated')) or 'none'}; "
        f"impossible: {join(fidelity.get('impossible')) or 'none'}"
    )


def report(found: dict[str, Any]) -> None:
    out.print(f"{found['path']}: {found['bytes']:,} bytes, and everything in it")
    out.print(found["pdf"] or f"no PDF: {found['no_pdf']}")


def trained(r: dict[str, Any]) -> None:
    loss = (
        f"loss {r['loss']:.4f}, {r['bpb']:.4f} bits per byte"
        if r["loss"] is not None
        else f"diverged at {r['diverged_at']:,} tokens"
    )
    out.print(f"{r['stage']}: {r['status']}, {loss}, {r['D']:,} tokens in {duration(r['seconds'])}")


def submitted(found: dict[str, Any]) -> None:
    """A job that was begun, and how to follow it from anywhere."""
    out.print(f"job {found['job']}: {found['command']}", soft_wrap=True)
    for what, command in found["follow"].items():
        out.print(f"  {what:<7} {command}", soft_wrap=True)
    for name in found["environment"]:
        out.print(f"the cluster's head must have {name} in the environment that it was started in", soft_wrap=True)


def extended(s: dict[str, Any]) -> None:
    for name, rung in s["extended"].items():
        out.print(f"stage {name}: a rung more, {number(rung)}")
    status(s)


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
