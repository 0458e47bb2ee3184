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
from browsing import drawn, opened, place, settled

finished, runs, served, view = (getattr(test_browser, name) for name in ("finished", "runs", "served", "view"))

pytestmark = [pytest.mark.slow, pytest.mark.fault(18)]


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


@pytest.mark.parametrize("form", ["png", "svg"])
def test_a_picture_is_taken_by_keyboard(view: Any, served: str, tmp_path: Path, form: str) -> None:
    opened(view, served, "laws")
    view.get_by_text(form.upper(), exact=True).first.click()
    settled(view)
    drawn(view)
    camera = view.locator(".js-plotly-plot .modebar-btn[aria-label^=Download]").first
    camera.focus()
    view.wait_for_function("e => getComputedStyle(e.parentElement).opacity === '1'", arg=camera.element_handle())
    with view.expect_download() as download:
        view.keyboard.press("Enter")
    assert download.value.suggested_filename == f"demo-law.{form}"
    download.value.save_as(tmp_path / "picture")
    assert (tmp_path / "picture").read_bytes().startswith(b"\x89PNG" if form == "png" else b"<svg")


def test_a_budget_is_moved_by_keyboard(view: Any, served: str) -> None:
    opened(view, served, "recommendation")
    slider = view.get_by_role("slider").first
    slider.focus()
    slider.press("ArrowRight")
    view.wait_for_url(re.compile("budget="))
