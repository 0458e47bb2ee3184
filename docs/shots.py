"""README's pictures: a real browser looks at the demo's dashboard and report. `make shots`, after `make demo`.

python docs/shots.py runs/quickstart [--out docs]
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from dashboard import report
from dashboard.report import pdf

WIDTH, HEIGHT = 1280, 860
PATIENCE = 120_000  # ms for a page on a busy machine  *assumed*
PLOT = "[data-testid=stPlotlyChart]"
PAGES = {"quickstart": "laws", "studies": ""}  # a picture's name, and the page of the dashboard that it shows
REPORTS = {"report": "en", "report.ja": "ja"}
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--hide-scrollbars"]


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The dashboard of a folder, as `tunnel dashboard` starts it."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "tunnel.cli", "dashboard", str(folder), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health").close()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


def of_dashboard(browser: Any, study: Path, out: Path) -> Iterator[Path]:
    with served(study) as address:
        for name, page in PAGES.items():
            view = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
            view.goto(f"{address}/{page}?study={study.name}")
            view.locator(".js-plotly-plot .main-svg").first.wait_for(timeout=PATIENCE)
            view.wait_for_timeout(1500)  # plotly's own animation, and fonts
            shown = view.locator(PLOT).first if page else view  # a figure, or all that one sees first
            shown.screenshot(path=out / f"{name}.png")
            view.close()
            yield out / f"{name}.png"


def of_report(browser: Any, study: Path, out: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as own:
        for name, lang in REPORTS.items():
            try:
                pdf.require_letters(lang)
            except pdf.NoPdf as e:
                print(f"{out / name}.png is left as it is: {e}")
                continue
            page = Path(own) / f"{name}.html"
            report.write(study, lang, page, print_pdf=False)
            view = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
            view.goto(page.as_uri())
            view.screenshot(path=out / f"{name}.png")
            view.close()
            yield out / f"{name}.png"


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("study", type=Path)
    ask.add_argument("--out", type=Path, default=Path("docs"))
    told = ask.parse_args()
    found = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=found, args=FLAGS)
        for take in (of_dashboard, of_report):
            for path in take(browser, told.study, told.out):
                print(f"{path}: {path.stat().st_size:,} bytes")
        browser.close()


if __name__ == "__main__":
    main()
