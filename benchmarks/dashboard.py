"""The dashboard against optuna-dashboard and optuna.visualization: one study of 10,000 trials × 20 values, one run.

The study is made here (`wide`), 200,000 readings of it.

    python benchmarks/dashboard.py                          # about half an hour of a quiet machine
    python benchmarks/dashboard.py --keep /tmp/wide         # makes the study there, or takes it from there

A visit is a new browser without a cache, from its first request until the study's first figure stands with data in it;
bytes are counted on the socket, by a relay that stands before both servers. What is asked is printed last, with what
was skipped for want of a browser, or of the bench extra. Exits 1 where something is missed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from found import Found
from wide import RUNGS, TRIALS, made

sys.path.remove(str(Path(__file__).resolve().parent))  # this file is not the package of its name

from dashboard import launch
from tunnel import study
from tunnel.folder import database, store

FIRST_VIEW, BYTES, FIGURE, FASTER = 0.2, 0.1, 0.5, 10.0  # what the issue asks: ratios, seconds, times
REFRESHES, GROWTH = 1800, 30.0  # of an hour at two seconds each; MB that it may take at most  *assumed*
HURRY = 0.2  # seconds between them here
PATIENCE = 5.0  # times as long as they would take at that pace
LIMIT = 120  # seconds that a visit is waited for: optuna-dashboard asks anew each 10, and a busy machine never ends
SETTLED = 10.0  # seconds that a server stands before its first visit; ours reads ahead in them  *assumed*
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
THEIRS = Path(sys.executable).with_name("optuna-dashboard")
ARGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
DRAWN = """() => [...document.querySelectorAll('.js-plotly-plot')].some(
    e => (e._fullData || []).some(t => (t._length || 0) >= 100) && e.querySelector('.main-svg'))"""  # with data in it


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
            with serving(
                [str(THEIRS), "--port", str(port), f"sqlite:///{root}/plain/{database.SQLITE}"], port, "/dashboard/"
            ):
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
    from dashboard import figures as shapes
    from dashboard import landscape, landscape_figures, load, study_figures
    from dashboard.address import trial_of

    readings = load.opened(root / "study").complete
    last = readings[readings.D.max() == readings.D]
    names = [trial_of(s, n) for s, n in zip(last.stage, last.trial, strict=True)]
    last = last.assign(name=names).reset_index(drop=True)
    axes = landscape.axes_of(last, list(study.load(root / "study" / "study.toml").stage[0].axes))
    lr, decay, every = axes["lr"], axes["weight_decay"], list(axes.values())
    inside, settings = np.ones(len(last), bool), [name for name in axes if name != landscape.LOSS]
    kinds = [(g.name, g.rows, {"size": 8, **g.look}) for g in landscape_figures.groups(last, landscape_figures.BY_LOSS)]
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
        "slices": (
            lambda: shapes.searched(last, settings, {}, "search", kinds),
            lambda: v.plot_slice(theirs),
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
count, every, *rest = sys.argv[2:]
show.EVERY, seen, last = float(every), [0], live.events
def counted(*args):
    seen[0] += 1
    open(count, "w").write(str(seen[0]))
    return last(*args)
live.events = counted
from streamlit.web import cli
sys.argv = ["streamlit", *rest]
cli.main()
"""


def memory(refreshes: int) -> tuple[int, float, float]:
    """Refreshes of a running sweep's Live page in a real browser; the server's bytes after a tenth of them, and all."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as temporary:
        folder, port, count = Path(temporary) / "small", free_port(), Path(temporary) / "count"
        small(folder)
        command = launch.command(folder.parent, port)
        command = [command[0], "-c", REFRESHING, "-", str(count), str(HURRY), *command[3:]]
        with serving(command, port, launch.HEALTH) as server, sync_playwright() as p:
            browser = p.chromium.launch(executable_path=CHROMIUM, args=ARGS)
            browser.new_page().goto(f"http://127.0.0.1:{port}/live?study=small")
            began, early, done = time.monotonic(), 0.0, 0
            while done < refreshes and time.monotonic() - began < PATIENCE * HURRY * refreshes:
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
    found, skipped = Found(), list[str]()
    browser = "" if CHROMIUM and importlib.util.find_spec("playwright") else "no chromium, or no playwright"
    if why := browser or ("" if THEIRS.exists() else "no optuna-dashboard (the bench extra)"):
        skipped.append(f"first view and bytes: {why}")
    else:
        views(found, root, args.visits)
    drawn_figures(found, root)
    if browser:
        skipped.append(f"memory: {browser}")
    else:
        remembered(found, args.refreshes)
    if args.keep is None:
        shutil.rmtree(root)
    print("", *found.lines, *(f"skipped     {why}" for why in skipped), sep="\n")
    return 1 if found.missed else 0


def views(found: Found, root: Path, visits: int) -> None:
    seen = first_views(root, visits)
    middle = {k: tuple(statistics.median(v) for v in zip(*seen[k], strict=True)) for k in seen}
    for name, (s, b) in middle.items():
        print(f"first view   {name:18} {s:7.2f} s {b / 1e6:8.2f} MB  (median of {visits}: {seen[name]})", flush=True)
    theirs, ours = middle["optuna-dashboard"], middle["ours"]
    found.at_most("first view: seconds, over optuna-dashboard's", ours[0] / theirs[0], FIRST_VIEW)
    found.at_most("first view: bytes, over optuna-dashboard's", ours[1] / theirs[1], BYTES)


def drawn_figures(found: Found, root: Path) -> None:
    for name, ours, theirs in figures(root):
        print(f"figure       {name:22} {ours:6.3f} s, theirs {theirs:6.2f} s", flush=True)
        found.at_most(f"{name}: seconds", ours, FIGURE)
        found.at_least(f"{name}: times faster than optuna.visualization", theirs / ours, FASTER)


def remembered(found: Found, refreshes: int) -> None:
    done, early, late = memory(refreshes)
    print(f"memory       {early / 1e6:.0f} MB after {refreshes // 10:,} refreshes, {late / 1e6:.0f} MB after {done:,}")
    found.at_least("refreshes of a running sweep's page", done, refreshes)
    found.at_most("MB that it grew by in nine tenths of them", (late - early) / 1e6, GROWTH)


if __name__ == "__main__":
    sys.exit(main())
