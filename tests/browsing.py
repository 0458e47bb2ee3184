"""A real browser before a real dashboard: what its tests share.

The study that is walked is the demo's, where `make demo` left one (or $TUNNEL_DEMO says where), else a small
calibration study.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dashboard import launch
from dashboard.app import HELP, LINKED, PAGES

CHROMIUM = Path("/usr/bin/chromium")
ARGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DEMO = Path(os.environ.get("TUNNEL_DEMO", Path(__file__).parent.parent / "runs" / "quickstart"))
LONG = 240_000  # ms; the machine is shared
LAST = {  # a page, and a text that stands near its end
    "": "Stages",
    "live": "Last events",
    "landscape": "The readings that are kept",
    "transfer": "Seed noise",
    "curves": "All trunks of",
    "laws": "Forms that were tried",
    "recommendation": "Where the forecast comes from",
    "forecasts": "All forecasts",
    "compare": "Where their settings differ",
    "costs": "Who did what",
    "trial": "Its attempts",
    "glossary": "What is concluded",
}
WALKED = ["", *(page for page in PAGES if page != "studies"), *LINKED, *HELP]
QUERY = {"trial": "&trial=ladder.0"}
NAME = "again/<b>a copy<b> *of* [it](x)".replace("/", os.sep, 1)
OWN = re.compile(r"(https?://127\.0\.0\.1|data:|blob:)")
KNOWN = re.compile(r"/_stcore/(health|host-config)$")  # Streamlit looks for its own root below a page's address


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A folder on loopback, as `tunnel dashboard` serves it."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    server = subprocess.Popen(launch.command(folder, port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(150):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health"):
                    break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


@contextmanager
def browsing(width: int = 1280, theme: str = "light") -> Iterator[Any]:
    """A page of a real browser; what its scripts throw fails the test."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed")
    errors: list[str] = []
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=str(CHROMIUM), args=ARGS)
        view = browser.new_page(viewport={"width": width, "height": 1000 * width // 1280}, color_scheme=theme)
        view.on("pageerror", lambda e: errors.append(str(e)))
        yield view
        browser.close()
    assert not errors


@contextmanager
def watched() -> Iterator[Any]:
    """A page whose console has no error, and that asks nobody else for anything."""
    said: list[str] = []

    def console(m: Any) -> None:
        if m.type == "error" and not KNOWN.search(m.location["url"]):
            said.append(m.text)

    with browsing() as page:
        page.set_default_timeout(LONG)
        page.on("console", console)
        page.on("request", lambda r: None if OWN.match(r.url) else said.append(r.url))
        yield page
    assert not said


def walked(source: Path, folder: Path) -> Path:
    """A folder of a study, a copy of it whose name is markup, and one that is to be swept."""
    for name in ("demo", NAME, "swept"):
        shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("trunks"))
    return folder


def opened(view: Any, served: str, page: str, query: str = "", study: str = "demo") -> None:
    """Goes to a page and waits until all of it is there, and nothing failed."""
    view.goto(f"{served}/{page}?study={study}{QUERY.get(page, '')}{query}")
    view.locator("[data-testid=stCaptionContainer]").first.wait_for()
    if page in LAST:
        view.get_by_text(LAST[page], exact=True).first.wait_for()
    settled(view)


def settled(view: Any) -> None:
    """Waits until nothing is loaded and no script runs any more."""
    view.wait_for_function(
        """() => !document.querySelector('[data-testid=stSkeleton], [data-testid=stStatusWidget], [data-stale=true]')
        && [...document.querySelectorAll('[data-testid=stPlotlyChart]')].every(e => e.querySelector('.main-svg'))"""
    )
    view.wait_for_timeout(500)
    assert view.locator("[data-testid=stException]").count() == 0
    assert view.get_by_text("This page cannot be drawn").count() == 0


def drawn(view: Any, i: int = 0) -> Any:
    """The i-th figure, in sight."""
    figure = view.locator("[data-testid=stPlotlyChart]").nth(i)
    figure.scroll_into_view_if_needed()
    view.wait_for_timeout(500)
    return figure


def place(view: Any, i: int, x: float, y: float) -> tuple[float, float]:
    """Where a value of a figure's first axes is on the screen."""
    drawn(view, i)
    found = view.evaluate(
        """([i, x, y]) => {
            const gd = document.querySelectorAll('[data-testid=stPlotlyChart]')[i].querySelector('.js-plotly-plot');
            const box = gd.getBoundingClientRect(), full = gd._fullLayout;
            const at = (a, v) => a._offset + (a.type === 'log' ? a.l2p(Math.log10(v)) : a.l2p(v));
            return [box.x + at(full.xaxis, x), box.y + at(full.yaxis, y)];
        }""",
        [i, x, y],
    )
    return found[0], found[1]
