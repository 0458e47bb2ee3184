"""A real browser walks a study's pages: opens each, fits it, names what can be clicked; and takes pictures of it all.

Pictures, at two widths and in both themes, go to $TUNNEL_SHOTS, where that is set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit")

import test_dashboard
from browsing import DEMO, LAST, LONG, WALKED, browsing, opened, serving, settled, walked, watched
from test_dashboard import running

from dashboard.app_pages.studies import ROW
from dashboard.app_pages.studies import SHOWN as WIDTHS_OF

finished = test_dashboard.finished  # a fixture
SHOTS = os.environ.get("TUNNEL_SHOTS")
WIDTHS, THEMES = (1280, 2560), ("light", "dark")

pytestmark = [pytest.mark.slow, pytest.mark.fault(18)]


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = DEMO if (DEMO / "check.json").exists() else request.getfixturevalue("finished")
    folder = walked(source, tmp_path_factory.mktemp("walked"))
    running(folder / "swept")
    return folder


@pytest.fixture(scope="module")
def served(runs: Path) -> Iterator[str]:
    with serving(runs) as address:
        yield address


@pytest.fixture
def view() -> Iterator[Any]:
    with watched() as page:
        yield page


@pytest.mark.parametrize("page", WALKED)
def test_a_page_opens_by_its_address_fits_and_has_a_name_for_everything(view: Any, served: str, page: str) -> None:
    """For screen readers: every figure and table says what it is, every button and box what it does."""
    opened(view, served, page)
    assert view.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    nameless = view.evaluate(
        """() => [...document.querySelectorAll('[data-testid=stMain] :is(button, input, [role=slider], [role=img])')]
        .filter(e => e.offsetParent && !(e.innerText || e.getAttribute('aria-label') || e.getAttribute('title')
          || e.getAttribute('aria-labelledby') || (e.labels && e.labels.length)))
        .filter(e => !e.closest('.js-plotly-plot, [data-testid=stDataFrame], [aria-hidden=true]'))
        .map(e => e.outerHTML.slice(0, 200))"""
    )
    assert nameless == []
    charts = view.locator("[data-testid=stPlotlyChart]").count()
    named = "[data-testid=stPlotlyChart] [aria-label], [data-testid=stPlotlyChart][aria-label]"
    assert view.locator(named).count() >= charts


def test_a_click_on_a_point_opens_its_trial(view: Any, served: str) -> None:
    opened(view, served, "")
    view.locator(".js-plotly-plot .scatterlayer .point").first.click(force=True)
    view.get_by_role("heading", name="Its settings").wait_for()
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
    view.get_by_label("Search", exact=True).fill("copy")
    view.get_by_label("Search", exact=True).press("Enter")
    view.wait_for_url(re.compile("search=copy"))
    view.get_by_text("1 of 3 studies").wait_for()
    settled(view)
    box = view.locator("[data-testid=stDataFrame]").first.bounding_box()
    heading = view.get_by_role("heading", name="again/<b>a copy<b> *of* [it](x)")
    view.mouse.click(box["x"] + WIDTHS_OF["study"] + WIDTHS_OF["open"] / 2, box["y"] + 1.5 * ROW)
    heading.wait_for()
    view.get_by_role("link", name="Runs & cost").click()
    view.get_by_role("heading", name=LAST["costs"]).wait_for()
    assert "study=again" in view.url


def test_a_watched_trial_stays_watched_while_the_page_draws_itself_anew(view: Any, served: str, runs: Path) -> None:
    opened(view, served, "live", "&watch=ladder.3", study="swept")
    for i in range(3):
        running(runs / "swept", tokens=20 + i)
        view.get_by_text(re.compile(rf"{20 + i} of 40 tokens")).first.wait_for()
    assert "watch=ladder.3" in view.url


@pytest.mark.skipif(not SHOTS, reason="TUNNEL_SHOTS does not say where to put pictures")
@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_pictures(served: str, width: int, theme: str) -> None:
    folder = Path(str(SHOTS))
    folder.mkdir(parents=True, exist_ok=True)
    with browsing(width=width, theme=theme) as view:
        view.set_default_timeout(LONG)
        for page in WALKED:
            view.set_viewport_size({"width": width, "height": 1000})
            told = ("&watch=ladder.3", "swept") if page == "live" else ("", "demo")
            opened(view, served, page, *told)
            tall = view.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
            view.set_viewport_size({"width": width, "height": max(tall, 600) + 80})
            settled(view)
            view.screenshot(path=folder / f"{page or 'studies'}-{width}-{theme}.png")
