"""A real browser walks a study's pages: opens, clicks through to a trial, follows a link, and takes pictures of it all.

The study is the demo's, where `make demo` left one (or $TUNNEL_DEMO says where), else a small calibration study.
Pictures of every page, at two widths and in both themes, go to $TUNNEL_SHOTS, where that is set.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit")

import test_dashboard
from test_dashboard import APP, browsing, running, serving

finished = test_dashboard.finished  # a fixture
DEMO = Path(os.environ.get("TUNNEL_DEMO", Path(APP).parent.parent / "runs" / "quickstart"))
SHOTS = os.environ.get("TUNNEL_SHOTS")
LONG = 240_000  # ms; the machine is shared
WIDTHS, THEMES = (1280, 2560), ("light", "dark")
OURS = {  # page, and a heading or a figure's words that it ends with
    "": "Stages",
    "live": "Last events",
    "compare": "Where their settings differ",
    "costs": "Who did what",
    "trial": "Its settings",
}
OWN = re.compile(r"(http://127\.0\.0\.1|ws://127\.0\.0\.1|data:|blob:)")
KNOWN = re.compile(r"/_stcore/(health|host-config)$")  # Streamlit looks for its own root below a page's address

pytestmark = [pytest.mark.slow, pytest.mark.fault(18)]


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the demo's study, a copy of it, and one that is swept."""
    source = DEMO if (DEMO / "check.json").exists() else request.getfixturevalue("finished")
    folder = tmp_path_factory.mktemp("walked")
    leave = shutil.ignore_patterns("trunks")
    for name in ("demo", "again/<b>a copy</b> *of* [it](x)".replace("/", os.sep, 1).replace("</b>", ""), "swept"):
        shutil.copytree(source, folder / name, ignore=leave)
    running(folder / "swept")
    return folder


@pytest.fixture(scope="module")
def served(runs: Path) -> Iterator[str]:
    with serving(runs) as address:
        yield address


@pytest.fixture
def view() -> Iterator[Any]:
    """A page whose scripts throw nothing, whose console has no error, and that asks nobody else for anything."""
    said: list[str] = []
    with browsing() as page:
        page.set_default_timeout(LONG)
        page.on(
            "console",
            lambda m: said.append(m.text) if m.type == "error" and not KNOWN.search(m.location["url"]) else None,
        )
        page.on(
            "request", lambda r: None if re.match(r"(https?://127\.0\.0\.1|data:|blob:)", r.url) else said.append(r.url)
        )
        yield page
    assert not said


def opened(view: Any, served: str, page: str, query: str = "study=demo") -> None:
    view.goto(f"{served}/{page}?{query}")
    view.get_by_role("heading", name=OURS[page], exact=True).wait_for()
    settled(view)


def settled(view: Any) -> None:
    """Waits until nothing is loaded and no script runs any more."""
    view.wait_for_function(
        """() => !document.querySelector('[data-testid=stSkeleton], [data-testid=stStatusWidget], [data-stale=true]')
        && [...document.querySelectorAll('[data-testid=stPlotlyChart]')].every(e => e.querySelector('.main-svg'))"""
    )
    view.wait_for_timeout(500)
    assert view.locator("[data-testid=stException]").count() == 0


@pytest.mark.parametrize("page", OURS)
def test_a_page_opens_by_its_address_and_fits(view: Any, served: str, page: str) -> None:
    opened(view, served, page, "study=demo" + "&trial=ladder.0" * (page == "trial"))
    assert view.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_click_on_a_point_opens_its_trial(view: Any, served: str) -> None:
    opened(view, served, "")
    view.locator(".js-plotly-plot .scatterlayer .point").first.click(force=True)
    view.get_by_role("heading", name=OURS["trial"]).wait_for()
    named = re.search(r"trial=([\w.-]+)\.(\d+)", view.url)
    assert named is not None
    view.get_by_role("heading", name=f"Stage {named[1]}, trial {named[2]}").wait_for()
    assert "study=demo" in view.url
    view.get_by_role("button", name=re.compile("^After: ")).click()
    view.get_by_role("heading", name=f"Stage {named[1]}, trial {int(named[2]) + 1}").wait_for()
    view.go_back()
    view.get_by_role("heading", name=f"Stage {named[1]}, trial {named[2]}", exact=True).wait_for()


def test_a_click_on_open_shows_that_study_on_every_page(view: Any, served: str) -> None:
    opened(view, served, "")
    names = view.locator("[data-testid=stDataFrame] canvas").first.text_content()
    assert "demo" in names
    assert "<b>a copy" in names
    view.get_by_label("Search").fill("copy")
    view.get_by_label("Search").press("Enter")
    view.wait_for_url(re.compile("search=copy"))
    view.get_by_text("1 of 3 studies").wait_for()
    settled(view)
    box = view.locator("[data-testid=stDataFrame]").first.bounding_box()
    heading = view.get_by_role("heading", name="again/<b>a copy<b> *of* [it](x)")
    for x in (40, 200, 260, 320):
        view.mouse.click(box["x"] + x, box["y"] + 52)
        view.wait_for_timeout(1500)
        if heading.count():
            break
    heading.wait_for()
    view.get_by_role("link", name="Runs & cost").click()
    view.get_by_role("heading", name=OURS["costs"]).wait_for()
    assert "study=again" in view.url


def test_a_watched_trial_stays_watched_while_the_page_draws_itself_anew(view: Any, served: str, runs: Path) -> None:
    opened(view, served, "live", "study=swept&watch=ladder.3")
    for i in range(3):
        running(runs / "swept", tokens=20 + i)
        view.get_by_text(re.compile(rf"{20 + i} of 40 tokens")).first.wait_for()
    assert "watch=ladder.3" in view.url


@pytest.mark.skipif(not SHOTS, reason="TUNNEL_SHOTS does not say where to put pictures")
@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_pictures(served: str, runs: Path, width: int, theme: str) -> None:
    folder = Path(str(SHOTS))
    folder.mkdir(parents=True, exist_ok=True)
    with browsing(width=width, theme=theme) as view:
        view.set_default_timeout(LONG)
        for page in OURS:
            study = "study=swept&watch=ladder.3" if page == "live" else "study=demo&trial=ladder.0"
            opened(view, served, page, study)
            view.screenshot(path=folder / f"{page or 'studies'}-{width}-{theme}.png")
