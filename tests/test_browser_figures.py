"""A real browser works with the figures: brushes, clicks through to a trial, switches a law, takes a bundle away.

Study, console and pictures as in test_browser.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("streamlit")

import test_browser
from test_browser import LONG, SHOTS, THEMES, WIDTHS, settled
from test_dashboard import browsing

finished, runs, served, view = (getattr(test_browser, name) for name in ("finished", "runs", "served", "view"))
PAGES = {  # page, and what it ends with
    "landscape": "The readings that are kept",
    "transfer": "Seed noise",
    "curves": None,
    "laws": "Forms that were tried",
    "recommendation": "Where the forecast comes from",
    "glossary": "What is concluded",
}

pytestmark = [pytest.mark.slow, pytest.mark.fault(18)]


def opened(view: Any, served: str, page: str, query: str = "") -> None:
    view.goto(f"{served}/{page}?study=demo{query}")
    if (last := PAGES[page]) is not None:
        view.get_by_role("heading", name=last, exact=True).wait_for()
    view.locator("[data-testid=stCaptionContainer]").first.wait_for()
    settled(view)


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


@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_by_its_address_and_fits(view: Any, served: str, page: str) -> None:
    opened(view, served, page)
    assert view.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_brush_keeps_a_part_of_the_whole_page_and_stays_in_the_address(view: Any, served: str) -> None:
    opened(view, served, "landscape", "&space=ladder")
    before = view.get_by_text(re.compile(r"^Of \d+ readings")).first.text_content()
    left, top = place(view, 0, -0.2, 1.05)
    right, bottom = place(view, 0, 0.2, 0.6)
    view.mouse.move(left, top)
    view.mouse.down()
    view.mouse.move((left + right) / 2, (top + bottom) / 2, steps=5)
    view.mouse.move(right, bottom, steps=5)
    view.mouse.up()
    view.wait_for_url(re.compile("brush="))
    settled(view)
    after = view.get_by_text(re.compile(r"^Of \d+ of \d+ readings")).first.text_content()
    assert before != after
    address = view.url
    view.goto("about:blank")
    view.goto(address)
    settled(view)
    assert view.get_by_text(re.compile(r"^Of \d+ of \d+ readings")).first.text_content() == after
    view.get_by_role("button", name=re.compile("✕")).first.click()
    view.get_by_text(re.compile(r"^Of \d+ readings")).first.wait_for()
    assert "brush=" not in view.url


def test_a_click_on_a_point_opens_its_trial(view: Any, served: str) -> None:
    opened(view, served, "landscape", "&space=ladder")
    drawn(view, 2)
    view.locator("[data-testid=stPlotlyChart]").nth(2).locator(".scatterlayer .point").first.click(force=True)
    view.wait_for_url(re.compile(r"trial=ladder\.\d+"))
    view.get_by_role("heading", name=re.compile(r"^Stage ladder, trial \d+")).wait_for()
    assert "study=demo" in view.url


def test_curves_are_what_the_address_says(view: Any, served: str) -> None:
    """A trunk, and what it is drawn against; a change is written there."""
    opened(view, served, "curves", "&curves=ladder&against=FLOPs")
    first = view.url
    assert "tree=" in first
    axis = view.locator("[data-testid=stPlotlyChart]").first.get_by_text("training compute (FLOPs)")
    axis.first.wait_for()
    view.get_by_text("tokens", exact=True).first.click()
    view.wait_for_url(re.compile(r"^(?!.*against=FLOPs)"))


def test_another_form_moves_the_forecast(view: Any, served: str) -> None:
    opened(view, served, "laws", "&form=size")
    view.get_by_text(re.compile(r"^By size, .* the forecast is")).wait_for()
    view.get_by_text("What all other forms and losses tell").click()
    view.get_by_text(re.compile("other fits lie inside")).first.wait_for()


def test_a_bundle_and_a_figure_s_data_are_taken_away(view: Any, served: str, tmp_path: Path) -> None:
    opened(view, served, "recommendation", "&to=json")
    view.get_by_role("button", name="Make the bundle for json").click()
    with view.expect_download() as download:
        view.get_by_role("button", name=re.compile("^(?:\\S+ )?Take demo-json.zip")).click()
    download.value.save_as(tmp_path / "bundle.zip")
    packed = zipfile.ZipFile(io.BytesIO((tmp_path / "bundle.zip").read_bytes()))
    manifest = json.loads(packed.read("manifest.json"))
    assert manifest["target"] == "json"
    assert set(manifest["files"]) == set(packed.namelist()) - {"manifest.json"}
    with view.expect_download() as download:
        view.get_by_test_id("stDownloadButton").get_by_text("CSV", exact=True).first.click()
    download.value.save_as(tmp_path / "figure.csv")
    assert {"series", "x", "y"} <= set(pd.read_csv(tmp_path / "figure.csv"))


def test_a_budget_is_moved_by_keyboard(view: Any, served: str) -> None:
    opened(view, served, "recommendation")
    slider = view.get_by_role("slider").first
    slider.focus()
    slider.press("ArrowRight")
    view.wait_for_url(re.compile("budget="))


@pytest.mark.parametrize("page", [p for p in PAGES if p != "glossary"])
def test_what_can_be_clicked_has_a_name(view: Any, served: str, page: str) -> None:
    """For screen readers: every figure says its finding, every button and box what it is."""
    opened(view, served, page)
    nameless = view.evaluate(
        """() => [...document.querySelectorAll('[data-testid=stMain] :is(button, input, [role=slider], [role=img])')]
        .filter(e => e.offsetParent && !(e.innerText || e.getAttribute('aria-label') || e.getAttribute('title')
          || e.getAttribute('aria-labelledby') || (e.labels && e.labels.length)))
        .filter(e => !e.closest('.js-plotly-plot, [data-testid=stDataFrame], [aria-hidden=true]'))
        .map(e => e.outerHTML.slice(0, 200))"""
    )
    assert nameless == []
    charts = view.locator("[data-testid=stPlotlyChart]").count()
    assert charts
    assert (
        view.locator("[data-testid=stPlotlyChart] [aria-label], [data-testid=stPlotlyChart][aria-label]").count()
        >= charts
    )


@pytest.mark.skipif(not SHOTS, reason="TUNNEL_SHOTS does not say where to put pictures")
@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_pictures(served: str, runs: Path, width: int, theme: str) -> None:
    folder = Path(str(SHOTS))
    folder.mkdir(parents=True, exist_ok=True)
    with browsing(width=width, theme=theme) as view:
        view.set_default_timeout(LONG)
        for page in PAGES:
            opened(view, served, page)
            tall = view.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
            view.set_viewport_size({"width": width, "height": tall + 80})
            settled(view)
            view.screenshot(path=folder / f"{page}-{width}-{theme}.png")
            view.set_viewport_size({"width": width, "height": 1000})
