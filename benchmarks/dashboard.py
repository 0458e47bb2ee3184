"""The dashboard against optuna-dashboard and optuna.visualization: one study of 10,000 trials × 20 values, one run.

The study is made here, by the tunnel's own plan: a folder with 200,000 records as the store writes them, and a plain
SQLite study of Optuna's with the same trials, parameters and intermediate values, and nothing of ours in it.

    python benchmarks/dashboard.py                          # about five minutes; needs the bench extra and chromium
    python benchmarks/dashboard.py --keep /tmp/wide         # makes the study there, or takes it from there

A visit is a new browser without a cache, from its first request until the study's first figure stands with data in it;
bytes are counted on the socket, by a relay that stands before both servers. Exits 1 where a ratio is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import optuna

sys.path.remove(str(Path(__file__).resolve().parent))  # this file is not the package of its name

from dashboard import launch
from tunnel import plan, study
from tunnel.families import synthetic
from tunnel.folder import database, store
from tunnel.folder.store import Store
from tunnel.proposals import distributions
from tunnel.run import Record

TRIALS, RUNGS = 10_000, 20
STEP = 840 * 1024  # tokens between two rungs: whole batches of every size
FIRST_VIEW, BYTES, FIGURE, FASTER = 0.2, 0.1, 0.5, 10.0  # what the issue asks: ratios, seconds, times
REFRESHES, GROWTH = 1800, 30e6  # of an hour at two seconds each; bytes that it may take at most  *assumed*
LIMIT = 120  # seconds that a visit is waited for: optuna-dashboard asks anew each 10, and a busy machine never ends
SETTLED = 10.0  # seconds that a server stands before its first visit; ours reads ahead in them  *assumed*
CHROMIUM = "/usr/bin/chromium"
ARGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
DRAWN = """() => [...document.querySelectorAll('.js-plotly-plot')].some(
    e => (e._fullData || []).some(t => (t._length || 0) >= 100) && e.querySelector('.main-svg'))"""  # with data in it
QUESTION = """question = "Which settings train the proxy best?"
family = "synthetic"
[model]
head_dim = 32
base_width = 64
base_depth = 4
seq_len = 128
[[target]]
name = "big"
width = 512
depth = 16
tokens = "1B"
[[stage]]
name = "search"
kind = "search"
rungs = {{ tokens = {rungs} }}
  [stage.space]
  width = 64
  depth = 4
  lr = {{ low = 1e-3, high = 1e-1 }}
  warmup = {{ low = 0.01, high = 0.2 }}
  decay = {{ low = 0.05, high = 0.4 }}
  min_ratio = {{ low = 0.001, high = 0.2, log = true }}
  weight_decay = {{ low = 0.001, high = 0.3, log = true }}
  beta2 = {{ low = 0.9, high = 0.999 }}
  batch_tokens = {{ low = 1024, high = 8192, step = 1024, log = false }}
  [stage.budget]
  trials = {trials}
  [stage.sampler]
  name = "random"
"""
Trial = dict[str, Any]  # number, params, runs, values {D: loss}


# the study


def made(root: Path, trials: int) -> Path:
    """The study's folder, with Optuna's own beside it as plain.db; taken as it is where it is there already."""
    if (root / "study" / "readings.parquet").exists():
        return root
    folder = root / "study"
    (folder / "records").mkdir(parents=True)
    text = QUESTION.format(trials=trials, rungs=[STEP * (i + 1) for i in range(RUNGS)])
    (folder / "study.toml").write_text(text)
    resolved = {
        "scale": "full",
        "schema": 2,
        "stages": {"search": {"handed_on": {}, "evidence": {}, "when": store.now()}},
    }
    store.write_json(folder / "study.resolved.json", resolved)
    parts = [(folder, range(i, trials, 64)) for i in range(64)]
    with Pool(2) as pool:
        done = [x for found in pool.starmap(measured, parts) for x in found]
    told = sorted((t for t, _ in done), key=lambda t: t["number"])
    frame = Store(folder).table([row for _, rows in done for row in rows])
    frame.to_parquet(folder / "readings.parquet", index=False)
    axes = study.load(folder / "study.toml").stage[0].axes
    written(folder, "search", told, axes, ours=True)
    written(root / "plain", "search", told, axes, ours=False)
    return root


def measured(folder: Path, numbers: range) -> list[tuple[Trial, list[dict[str, Any]]]]:
    """Trains trials by arithmetic, and writes their records."""
    asked = study.load(folder / "study.toml")
    stage, began = asked.stage[0], datetime(2026, 11, 1, tzinfo=UTC)
    base, dims, found = plan.values_of(asked, stage, {}), distributions(stage.axes), []
    for number in numbers:
        rng = np.random.default_rng(number)
        params = {k: drawn(d, rng) for k, d in dims.items()}
        trial = plan.trial(asked, stage, {**base, **params}, number=number)
        n = synthetic.count(trial.trunk.shape, trial.trunk.body)
        per_token = synthetic.flops_per_token(trial.trunk.shape, trial.trunk.body)
        rows, values, start = [], {}, began + timedelta(seconds=40 * number)
        for run in trial.runs:
            loss = surface(n, run.tokens, params) * (1 + 0.0005 * rng.normal())
            record = Record(
                fingerprint_of=run.fingerprint, run=run, stage=stage.name, trial=number, status="complete",
                N=n, D=run.tokens, C=6.0 * n * run.tokens, flops=per_token * run.tokens, loss=loss,
                bpb=loss / math.log(2), tokens_trained=run.decay_tokens + STEP,
                started=start.isoformat(), seconds=2.0, host=f"node-{number % 16}",
            )  # fmt: skip
            path = folder / "records" / f"{run.fingerprint}.json"
            path.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
            rows.append(store.flat(record))
            values[run.tokens] = loss
        runs = {"runs": [r.fingerprint for r in trial.runs], "trunk": trial.trunk.fingerprint, "D": trial.rung}
        found.append(({"number": number, "params": params, "values": values, "at": start, **runs}, rows))
    return found


def drawn(d: Any, rng: np.random.Generator) -> Any:
    if isinstance(d, optuna.distributions.IntDistribution):
        return int(rng.integers(0, (d.high - d.low) // d.step + 1) * d.step + d.low)
    low, high = (math.log(x) if d.log else x for x in (d.low, d.high))
    x = float(rng.uniform(low, high))
    return min(max(math.exp(x), d.low), d.high) if d.log else x


def surface(n: float, tokens: float, p: Trial) -> float:
    """The calibration body's loss, and a little for what it does not know."""
    truth = synthetic.TRUTH
    off, decay = math.log(p["lr"] / truth.best_lr(n, tokens)), math.log(p["decay"] / truth.decay)
    more = 0.004 * math.log(p["weight_decay"] / 0.03) ** 2 + 0.2 * p["min_ratio"] + 0.5 * (p["beta2"] - 0.95) ** 2
    return truth.best_loss(n, tokens) + truth.h * off**2 + truth.k * decay**2 + more


def written(folder: Path, name: str, trials: list[Trial], axes: Any, ours: bool) -> None:
    """A study in Optuna's own tables, as its storage writes them; `ours`: with what the sampler notes of each trial."""
    folder.mkdir(exist_ok=True)
    storage = database.storage(folder)
    theirs = optuna.create_study(study_name=name, storage=storage, direction="minimize")
    theirs.set_metric_names(["loss"])
    storage.engine.dispose()
    kinds = {k: (d, optuna.distributions.distribution_to_json(d)) for k, d in distributions(axes).items()}
    db = sqlite3.connect(folder / database.SQLITE)
    with db:
        ids = [(t["number"] + 1, t) for t in trials]
        times = [
            (i, t["number"], 1, "COMPLETE", str(t["at"])[:19], str(t["at"] + timedelta(seconds=40))[:19])
            for i, t in ids
        ]
        into(db, "trials", "trial_id, number, study_id, state, datetime_start, datetime_complete", times)
        params = [(i, k, d.to_internal_repr(t["params"][k]), j) for i, t in ids for k, (d, j) in kinds.items()]
        into(db, "trial_params", "trial_id, param_name, param_value, distribution_json", params)
        last = [(i, 0, t["values"][max(t["values"])], "FINITE") for i, t in ids]
        into(db, "trial_values", "trial_id, objective, value, value_type", last)
        each = [(i, d, x, "FINITE") for i, t in ids for d, x in t["values"].items()]
        into(db, "trial_intermediate_values", "trial_id, step, intermediate_value, intermediate_value_type", each)
        if ours:
            notes = [
                (i, k, json.dumps(v))
                for i, t in ids
                for k, v in {"candidate": t["number"], "seed": 0, **{k: t[k] for k in ("runs", "trunk", "D")}}.items()
            ]
            into(db, "trial_user_attributes", "trial_id, key, value_json", notes)
    db.close()


def into(db: sqlite3.Connection, table: str, columns: str, rows: list[tuple[Any, ...]]) -> None:
    db.executemany(f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' * len(rows[0]))})", rows)


# visits


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def serving(command: list[str], port: int, path: str, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A server, from when it answers."""
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **more)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{path}").close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise SystemExit(f"{command[:4]} does not answer")
        yield server
    finally:
        server.terminate()
        server.wait(20)


class Relay:
    """Passes on what browser and server say to each other, and counts the server's bytes."""

    def __init__(self, to: int) -> None:
        self.to, self.bytes = to, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                browser, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                return
            for one, two, counts in ((browser, server, False), (server, browser, True)):
                threading.Thread(target=self.pass_on, args=(one, two, counts), daemon=True).start()

    def pass_on(self, one: socket.socket, two: socket.socket, counts: bool) -> None:
        with suppress(OSError):
            while part := one.recv(1 << 16):
                self.bytes += len(part) if counts else 0
                two.sendall(part)
        for s in (one, two):
            with suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.listener.close()


def visit(browser: Any, port: int, path: str) -> tuple[float, int]:
    """Seconds until the first figure stands, at most LIMIT, and the bytes that came by when nothing more did."""
    from playwright.sync_api import TimeoutError

    relay = Relay(port)
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    view = context.new_page()
    began = time.perf_counter()
    view.goto(f"http://127.0.0.1:{relay.port}{path}", wait_until="commit", timeout=120_000)
    with suppress(TimeoutError):
        view.wait_for_function(DRAWN, timeout=1000 * LIMIT)
    seconds, before = time.perf_counter() - began, -1
    while relay.bytes != before:
        before = relay.bytes
        view.wait_for_timeout(3000)
    context.close()
    relay.close()
    return seconds, relay.bytes


def first_views(root: Path, visits: int) -> dict[str, list[tuple[float, int]]]:
    """By server, (seconds, bytes) of the first visit after a start, `visits` times."""
    from playwright.sync_api import sync_playwright

    found: dict[str, list[tuple[float, int]]] = {"optuna-dashboard": [], "ours": []}
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        for _ in range(visits):
            port = free_port()
            theirs = [str(Path(sys.executable).with_name("optuna-dashboard")), "--port", str(port)]
            with serving([*theirs, f"sqlite:///{root}/plain/{database.SQLITE}"], port, "/dashboard/"):
                time.sleep(SETTLED)
                found["optuna-dashboard"].append(visit(browser, port, "/dashboard/studies/1"))
            port = free_port()
            with serving(launch.command(root / "study", port), port, launch.HEALTH):
                time.sleep(SETTLED)
                found["ours"].append(visit(browser, port, "/?study=study"))
        browser.close()
    return found


# figures


def figures(root: Path) -> list[tuple[str, float, float]]:
    """What is drawn, our seconds and theirs: from values in memory to the JSON that a browser gets."""
    from dashboard import landscape, landscape_figures, load, study_figures
    from dashboard.address import trial_of

    readings = load.opened(root / "study").complete
    last = readings[readings.D.max() == readings.D]
    names = [trial_of(s, n) for s, n in zip(last.stage, last.trial, strict=True)]
    last = last.assign(name=names).reset_index(drop=True)
    axes = landscape.axes_of(last, list(study.load(root / "study" / "study.toml").stage[0].axes))
    lr, decay, every = axes["lr"], axes["weight_decay"], list(axes.values())
    inside = np.ones(len(last), bool)
    theirs = optuna.load_study(study_name="search", storage=database.storage(root / "plain"))
    theirs.get_trials()
    v = optuna.visualization
    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "losses as they came": (
            lambda: study_figures.progress(readings),
            lambda: v.plot_optimization_history(theirs),
        ),
        "parallel coordinates": (
            lambda: landscape_figures.parallel(last, every, inside, {}, landscape_figures.BY_LOSS),
            lambda: v.plot_parallel_coordinate(theirs),
        ),
        "contour": (
            lambda: landscape_figures.contours(last, lr, decay, landscape.smoothed(last, lr, decay)),
            lambda: v.plot_contour(theirs, params=["lr", "weight_decay"]),
        ),
        "importance": (
            lambda: landscape_figures.importance(landscape.importance(last, every)),
            lambda: v.plot_param_importances(theirs),
        ),
    }
    return [(name, seconds(ours), seconds(other, 1)) for name, (ours, other) in pairs.items()]


def seconds(make: Callable[[], Any], times: int = 3) -> float:
    """The median of several: a figure made, and as JSON; of this process' CPU, since the machine is shared."""
    taken = []
    for _ in range(times):
        began = time.process_time()
        make().to_json()
        taken.append(time.process_time() - began)
    return statistics.median(taken)


# memory

REFRESHING = """
import sys
from dashboard import live, show
show.EVERY, seen, last = 0.2, [0], live.events
def counted(*args):
    seen[0] += 1
    open(sys.argv[2], "w").write(str(seen[0]))
    return last(*args)
live.events = counted
from streamlit.web import cli
sys.argv = ["streamlit", *sys.argv[3:]]
cli.main()
"""


def memory(refreshes: int) -> tuple[int, float, float]:
    """Refreshes of a running sweep's Live page in a real browser; the server's bytes after a tenth of them, and all."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as temporary:
        folder, port, count = Path(temporary) / "small", free_port(), Path(temporary) / "count"
        small(folder)
        command = launch.command(folder.parent, port)
        command = [command[0], "-c", REFRESHING, "-", str(count), *command[3:]]
        with serving(command, port, launch.HEALTH) as server, sync_playwright() as p:
            browser = p.chromium.launch(executable_path=CHROMIUM, args=ARGS)
            browser.new_page().goto(f"http://127.0.0.1:{port}/live?study=small")
            began, early, done = time.monotonic(), 0.0, 0
            while done < refreshes and time.monotonic() - began < 240:
                running(folder, done)
                time.sleep(0.05)
                done = int(count.read_text() or 0) if count.exists() else 0
                if not early and done >= refreshes / 10:
                    early = resident(server.pid)
            late = resident(server.pid)
            browser.close()
    return done, early, late


def small(folder: Path) -> None:
    """A study of 30 trials in 600 readings, whose sweep this process plays."""
    made(folder.parent / "made", 30)
    shutil.move(folder.parent / "made" / "study", folder)
    shutil.rmtree(folder.parent / "made")
    store.write_json(folder / "driver.lock", {"host": socket.gethostname(), "pid": os.getpid(), "since": store.now()})
    running(folder, 0)


def running(folder: Path, at: int) -> None:
    """progress.json as a driver writes it, one step on."""
    trial = {
        "what": "64×4 lr 0.01",
        "phase": "trunk",
        "tokens": 1000 * (at % 4000),
        "of": 4_000_000,
        "loss": 3 + 1 / (1 + at),
    }
    progress = {"stage": "search", "when": store.now(), "planned": 30, "finished": 30, "best": 3.0, "seconds": 10.0}
    more = {"flops": {"planned": 4e15, "done": 1e15}, "eta_seconds": 30.0, "running": {str(n): trial for n in range(8)}}
    store.write_json(folder / "progress.json", progress | more)


def resident(pid: int) -> float:
    """Bytes of memory that a process and its children hold."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# the whole


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="where the study lies, or is made")
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--visits", type=int, default=2)
    parser.add_argument("--refreshes", type=int, default=REFRESHES)
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    root = args.keep or Path(tempfile.mkdtemp(prefix="dashboard-"))
    root.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    made(root, args.trials)
    print(
        f"{args.trials:,} trials × {RUNGS} values: made, or found, in {time.perf_counter() - began:.0f} s", flush=True
    )
    missed = [*views(root, args.visits), *drawn_figures(root), *remembered(args.refreshes)]
    if args.keep is None:
        shutil.rmtree(root)
    print("missed: " + ", ".join(missed) if missed else "all that is asked is met")
    return 1 if missed else 0


def views(root: Path, visits: int) -> list[str]:
    found = first_views(root, visits)
    theirs, ours = (
        tuple(statistics.median(v) for v in zip(*found[k], strict=True)) for k in ("optuna-dashboard", "ours")
    )
    for name, (s, b) in (("optuna-dashboard", theirs), ("ours", ours)):
        print(f"first view   {name:18} {s:7.2f} s {b / 1e6:8.2f} MB  (median of {visits}: {found[name]})")
    ratios = {"first view": (ours[0] / theirs[0], FIRST_VIEW), "bytes": (ours[1] / theirs[1], BYTES)}
    for name, (ratio, most) in ratios.items():
        print(f"{name:12} ratio {ratio:.3f} (asked: at most {most})", flush=True)
    return [name for name, (ratio, most) in ratios.items() if ratio > most]


def drawn_figures(root: Path) -> list[str]:
    missed = []
    for name, ours, theirs in figures(root):
        ratio = f"{theirs / ours:.0f} times (asked: {FASTER:.0f})"
        print(f"figure       {name:22} {ours:6.3f} s (asked: {FIGURE}), theirs {theirs:6.2f} s: {ratio}", flush=True)
        missed += [name] if ours > FIGURE or theirs / ours < FASTER else []
    return missed


def remembered(refreshes: int) -> list[str]:
    done, early, late = memory(refreshes)
    first, last = f"{early / 1e6:.0f} MB after {refreshes // 10} refreshes", f"{late / 1e6:.0f} MB after {done}"
    print(f"memory       {first}, {last} (asked: {refreshes}, and at most {GROWTH / 1e6:.0f} MB more)")
    return ["memory"] if done < refreshes or late - early > GROWTH else []


if __name__ == "__main__":
    sys.exit(main())
