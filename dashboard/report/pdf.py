"""The page as a PDF, by a browser that is there; without its dates, so that the same page gives the same bytes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-pdf-header-footer",
    "--generate-pdf-document-outline",
)
SECONDS = 120  # that a browser may take on a busy machine  *assumed*
DATE = re.compile(rb"/(CreationDate|ModDate) \(D:[0-9]{14}")
NEVER = b"19700101000000"
OURS = b"%% tunnel report\n"  # a comment behind the PDF's end: what `tunnel report` may replace


class NoPdf(Exception):
    """There is no PDF, and why."""


def browser() -> str:
    """A browser on the path. Raises NoPdf."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise NoPdf(f"no browser on the path ({', '.join(BROWSERS[:3])})")
    return found


def require_letters(lang: str) -> None:
    """Raises NoPdf where the fonts lack a language's letters: a PDF carries its fonts, and boxes help nobody."""
    asker = shutil.which("fc-list")
    if lang == "en" or asker is None:
        return
    known = subprocess.run([asker, f":lang={lang}", "family"], capture_output=True, text=True, check=False)
    if not known.stdout.strip():
        raise NoPdf(f"no font here has the letters of “{lang}”: install fonts-noto-cjk or fonts-ipafont, say")


def printed(page: Path, lang: str) -> bytes:
    """A page's PDF, A4 by its own style sheet. Raises NoPdf."""
    command = [browser(), *FLAGS]
    require_letters(lang)
    with tempfile.TemporaryDirectory(prefix="tunnel-report-") as own:
        made = Path(own) / "report.pdf"
        command += [f"--user-data-dir={own}/profile", f"--print-to-pdf={made}"]
        command += ["--no-sandbox"] * (os.geteuid() == 0)  # which chromium refuses to root; the page runs nothing
        try:
            ran = subprocess.run([*command, page.resolve().as_uri()], capture_output=True, timeout=SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as e:
            raise NoPdf(f"{command[0]} did not print: {type(e).__name__}") from None
        if not made.is_file():
            raise NoPdf(f"{command[0]} did not print: exit {ran.returncode}")
        return DATE.sub(lambda found: b"/" + found[1] + b" (D:" + NEVER, made.read_bytes()) + OURS
