"""The report: whole at every state of a study, in both languages, the same numbers, nothing fetched, names as text."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("streamlit")

import pandas as pd
import plotly.graph_objects as go
from conftest import CALIBRATION
from typer.testing import CliRunner

from dashboard import load, report, style
from dashboard.report import answer, axes, drawing, facts, figures, markup, pdf, rest
from dashboard.report.texts import LANGUAGES, SAID, TEXTS
from dashboard.report.words import FIELD, Words, pattern_of
from tunnel import cli
from tunnel.answers import comparisons, forecasts, recommend
from tunnel.errors import UserError
from tunnel.sweeps import launch as full_size
from tunnel.sweeps import sweep

HERE = Path(__file__).parent.parent
CODE = sorted((HERE / "dashboard" / "report").glob("*.py"))
EVIL = "<script>alert(1)</script>"
TARGET = """[[target]]
name = "big"
width = 256
depth = 4
tokens = "1M"
"""
STUDY = f"""question = "Which lr? {{question}}"{CALIBRATION}{TARGET}[[stage]]
name = "ladder"
kind = "{{kind}}"
shapes = [[32, 4], [64, 4], [96, 4], [128, 4]]
fan = [0.5, 1, 2]
rungs = {{{{ tokens = ["250k", "1M"] }}}}
"""
STATES = ("nothing", "measuring", "measured", "forecast", "inside", "judged", "compared")
TABLE = {
    "rows": [{"shape": "32×4", "loss": 3.125}, {"shape": "64×4", "loss": None}],
    "words": ["<b>One wins.</b>"],
}


def asked(folder: Path, kind: str = "ladder", question: str = "") -> Path:
    """A folder with a question."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.toml").write_text(STUDY.format(kind=kind, question=question))
    return folder


def clone(root: Path, to: Path, *without: str) -> Path:
    return Path(shutil.copytree(root, to, ignore=shutil.ignore_patterns("trunks", "*.lock", *without)))


def cut(root: Path) -> Path:
    """A study as if it had been stopped in its ladder."""
    for path in sorted((root / "records").glob("*.json"))[5:]:
        path.unlink()
    return root


def without_target(root: Path) -> Path:
    (root / "study.toml").write_text(STUDY.replace(TARGET, "").format(kind="ladder", question=""))
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A study's folder in each state: one ladder is swept, and what followed is taken away or asked otherwise."""
    at = tmp_path_factory.mktemp("runs")
    full = asked(at / "inside" / "tiny")
    study, keep = sweep.frozen(full)
    sweep.sweep(study, keep)
    recommend.recommend(study, keep)
    told = clone(full, at / "forecast" / "tiny")
    full_size.train(study, keep)
    forecasts.check(keep, study.target[0].name)
    swept = clone(told, at / "measured" / "tiny", "recommendation.json", "forecasts.jsonl", "fits")
    return {
        "nothing": asked(at / "nothing" / "tiny"),
        "measuring": cut(clone(swept, at / "measuring" / "tiny", "*.parquet")),
        "measured": swept,
        "forecast": told,
        "inside": full,
        "judged": asked(clone(swept, at / "judged" / "tiny"), "verdict"),
        "compared": without_target(clone(swept, at / "compared" / "tiny")),
    }


@pytest.fixture(scope="module")
def pages(folders: dict[str, Path]) -> dict[tuple[str, str], str]:
    """Every state's page in every language."""
    known = {state: facts.read(root) for state, root in folders.items()}
    return {(state, lang): report.page(known[state], Words(lang)) for state in STATES for lang in LANGUAGES}


class Page(HTMLParser):
    """A page as its elements, and the text in each; a tag that is not closed, or closed twice, is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.path: list[tuple[str, dict[str, str | None]]] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[str, ...], bool, str]] = []  # path, whether it says that it is English, text
        self.feed(text)
        self.close()
        assert not self.path, self.path

    def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((name, dict(attrs)))
        if name not in markup.VOID:
            self.path.append((name, dict(attrs)))

    def handle_endtag(self, name: str) -> None:
        assert self.path.pop()[0] == name

    def handle_data(self, data: str) -> None:
        names = tuple(n for n, _ in self.path)
        english = any(a.get("lang") == "en" for _, a in self.path[1:]) or "code" in names
        if data.strip() and "style" not in names:
            self.texts.append((names, english, data.strip()))

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for n, attrs in self.found if n == name]

    def within(self, name: str) -> str:
        return "\n".join(text for names, _, text in self.texts if name in names)


def made(root: Path, lang: str = "en") -> str:
    return report.page(facts.read(root), Words(lang))


# the table of texts


@pytest.mark.parametrize("key", TEXTS)
def test_a_text_has_both_languages_and_the_same_fields(key: str) -> None:
    en, ja = TEXTS[key]
    assert en
    assert ja
    assert sorted(FIELD.findall(en)) == sorted(FIELD.findall(ja))


def test_what_figures_say_has_both_languages_and_no_field_that_is_not_there() -> None:
    assert len({said for said, *_ in SAID}) == len(SAID)
    for said, en, ja in SAID:
        assert set(FIELD.findall(en)) <= set(FIELD.findall(said))
        assert set(FIELD.findall(en)) == set(FIELD.findall(ja))
        assert re.fullmatch(pattern_of(said), FIELD.sub("x", said))


def strings(tree: ast.AST) -> Iterator[ast.Constant]:
    """String constants, less docstrings and what an error says to whoever calls."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            skipped.add(id(node.body[0].value))  # type: ignore[attr-defined]
        if isinstance(node, ast.Raise):
            skipped |= {id(n) for n in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node


@pytest.mark.parametrize("path", [p for p in CODE if p.stem != "texts"], ids=lambda p: p.stem)
def test_no_text_stands_in_code(path: Path) -> None:
    """What is a sentence, or Japanese, belongs to the table."""
    for node in strings(ast.parse(path.read_text())):
        assert not re.search(r"[a-z]{2,} [a-z]{2,} [a-z]{2,}|[\u3040-\u9fff]", node.value), f"{path.name}:{node.lineno}"


def test_every_key_is_used_and_every_key_that_is_asked_exists() -> None:
    literal, begun_with, asked_for = set[str](), set[str](), set[str]()
    for path in (p for p in CODE if p.stem != "texts"):
        tree = ast.parse(path.read_text())
        literal |= {n.value for n in strings(tree)}
        begun_with |= {
            n.values[0].value
            for n in ast.walk(tree)
            if isinstance(n, ast.JoinedStr) and isinstance(n.values[0], ast.Constant)
        }
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "w" and n.args]
        asked_for |= {n.args[0].value for n in calls if isinstance(n.args[0], ast.Constant)}
    assert asked_for <= set(TEXTS)
    made = ("d_", "n_", *(b for b in begun_with if len(b) > 1))  # of valleys_title whole names are made
    assert not [k for k in TEXTS if k not in literal and not k.startswith(made)]


@pytest.mark.parametrize(
    ("lang", "said", "expected"),
    [
        ("ja", "2 h 1 min", "2 時間 1 分"),
        ("ja", "12 min", "12 分"),
        ("ja", "42 s", "42 秒"),
        ("en", "2 h 1 min", "2 h 1 min"),
        ("ja", "rolling, inside", "小型モデル（区間内）"),
        ("ja", "law “floor” at D = 400k", "法則（400k トークン）"),
        ("ja", EVIL, EVIL),
    ],
)
def test_what_others_say_is_said_in_the_pages_language(lang: str, said: str, expected: str) -> None:
    assert Words(lang).said(said) == expected


def test_a_field_that_holds_braces_is_text() -> None:
    assert Words("en")("answer_diverged", target="{lr}").startswith("{lr} was then")


# the answer


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_study_without_a_target_compares(
    folders: dict[str, Path], lang: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(comparisons.TABLES, "Who wins", lambda asked, keep: TABLE if len(keep.readings()) else None)
    load.comparison_at.clear()
    page = Page(made(folders["compared"], lang))
    assert TEXTS["answer_compared"][LANGUAGES.index(lang)] in page.within("main")
    assert [t for p, english, t in page.texts if "tbody" in p and english] == ["32×4", "3.125", "64×4", "–"]
    assert "<b>One wins.</b>" in page.within("main")
    assert "forecast" not in page.within("header")


def test_what_is_under_way_or_done_is_not_a_next_step(folders: dict[str, Path]) -> None:
    w, known = Words("en"), {state: facts.read(root) for state, root in folders.items()}
    for state, running, kept, expected in (
        ("nothing", False, False, ["plan", "sweep"]),
        ("nothing", True, False, ["status"]),
        ("measured", False, True, ["recommend"]),
        ("forecast", True, True, ["export", "check"]),
        ("judged", False, True, ["dashboard"]),
        ("compared", False, True, ["compare", "dashboard"]),
    ):
        told = replace(known[state], running=running, judged=replace(known[state].judged, kept=kept))
        assert re.findall(r"tunnel (\w+) ", rest.steps(told, w)) == expected, state


# the page


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("state", STATES)
def test_a_page_is_whole_at_every_state(state: str, lang: str, pages: dict[tuple[str, str], str]) -> None:
    page = Page(pages[state, lang])
    assert page.of("html") == [{"lang": lang}]
    assert TEXTS[f"state_{state}"][LANGUAGES.index(lang)] in page.within("header")
    assert len(page.of("h1")) == 1
    levels = [int(n[1]) for n, _ in page.found if re.fullmatch(r"h[1-6]", n)]
    assert all(b <= a + 1 for a, b in zip([0, *levels], levels, strict=False))
    assert all(svg.get("role") == "img" or svg.get("aria-hidden") == "true" for svg in page.of("svg"))
    assert all(th["scope"] in ("col", "row") for th in page.of("th"))
    assert bool(page.of("figure")) == (state != "nothing")
    ids = [a["id"] for _, a in page.found if a.get("id")]
    assert len(ids) == len(set(ids))
    assert not re.search(r"\b(nan|None|inf)\b", " ".join(t for _, _, t in page.texts))


def test_a_page_fetches_nothing(pages: dict[tuple[str, str], str]) -> None:
    text = pages["inside", "en"]
    page = Page(text)
    fetching = {"script", "img", "link", "iframe", "object", "embed", "form", "a", "use", "image"}
    assert not fetching & {n for n, _ in page.found}
    assert not [a for _, attrs in page.found for a in attrs if a.startswith("on") or a in ("href", "src", "style")]
    policy = next(m["content"] or "" for m in page.of("meta") if m.get("http-equiv") == "Content-Security-Policy")
    sheet = text.split("<style>")[1].split("</style>")[0]
    assert f"'sha256-{base64.b64encode(hashlib.sha256(sheet.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "url(" not in sheet
    assert "@import" not in sheet


@pytest.mark.parametrize("state", STATES)
def test_both_languages_have_the_same_numbers(state: str, pages: dict[tuple[str, str], str]) -> None:
    texts = [" ".join(t for _, _, t in Page(pages[state, lang]).texts) for lang in LANGUAGES]
    numbers = [sorted(re.findall(r"\d+\.\d+", text)) for text in texts]
    assert numbers[0] == numbers[1]
    drawn = [len(re.findall(r"<path", pages[state, lang])) for lang in LANGUAGES]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("state", STATES)
def test_the_japanese_page_has_no_english_that_is_not_marked(state: str, pages: dict[tuple[str, str], str]) -> None:
    for path, english, text in Page(pages[state, "ja"]).texts:
        if not english and "h1" not in path:  # the question is the study's
            assert not re.search(r"[A-Za-z]{2,} [A-Za-z]{2,} [A-Za-z]{2,}", text), text


def test_screen_and_page_say_the_same(folders: dict[str, Path], pages: dict[tuple[str, str], str]) -> None:
    known, text = facts.read(folders["inside"]), Page(pages["inside", "en"]).within("main")
    assert known.told is not None
    assert known.check is not None
    said = text.split("\n")
    for name, value in (("forecast", known.told["forecast"]), ("measured", known.check["measured"])):
        assert said[said.index(TEXTS[f"card_{name}"][0]) + 1] == style.nats(value)
    for value in (known.told["low"], known.told["high"], known.check["error_percent"]):
        assert style.nats(abs(value))[:4] in text
    assert f"reached {style.nats(known.check['measured'])}" in text
    shown = next(figures.law(known, Words("en")))
    ours, theirs = (set(re.findall(r"\d\.\d{3}", t)) for t in (shown.title, shown.figure.layout.meta["finding"]))
    assert len(ours) == 2
    assert ours <= theirs


def test_the_same_study_gives_the_same_bytes(
    folders: dict[str, Path], pages: dict[tuple[str, str], str], tmp_path: Path
) -> None:
    assert made(clone(folders["inside"], tmp_path / "elsewhere" / "tiny"), "ja") == pages["inside", "ja"]


def test_hostile_names_stay_text(folders: dict[str, Path], tmp_path: Path) -> None:
    root = clone(folders["measured"], tmp_path / '"><img src=x onerror=alert(1)>')
    (root / "study.toml").write_text(STUDY.format(kind="ladder", question=EVIL + "{x}`&amp;"))
    rows = pd.read_parquet(root / "readings.parquet").assign(stage=EVIL)
    rows.to_parquet(root / "readings.parquet")
    text = made(root)
    page = Page(text)
    assert "<script" not in text
    assert "<img" not in text
    assert page.within("h1") == f"Which lr? {EVIL}{{x}}`&amp;"
    assert EVIL in page.within("figure")
    assert root.name in page.within("footer")


@pytest.mark.parametrize(
    ("value", "text"),
    [(28672, "28,672"), (0.0, "0"), (1e-8, "1e-08"), (10.6667, "10.67"), (None, "–"), ("1-sqrt", "1-sqrt")],
)
def test_a_value_as_a_person_writes_it(value: object, text: str) -> None:
    assert answer.written(value) == text


# the drawing


def test_a_drawing_has_every_value_at_its_place() -> None:
    fig = go.Figure(go.Scatter(x=[1, 10, 100], y=[0, 5, None], mode="markers", marker={"size": 8}, name="seen"))
    fig.update_xaxes(type="log", range=[0, 2])
    fig.update_yaxes(range=[0, 10])
    x, y = axes.axes_of(fig, "x", 100, 300)["x"], axes.axes_of(fig, "y", 220, 20)["y"]
    assert [x.at(v) for v in (1, 10, 100, 0, None)] == [100, 200, 300, None, None]
    assert [y.at(v) for v in (0, 5, 10)] == [220, 120, 20]
    assert [t for _, t in y.ticks_on()] == ["0", "2", "4", "6", "8", "10"]
    made = drawing.drawn(fig, "k", "<title>", "about")
    assert made.svg.count("a4 4") == 4  # two circles of two arcs each: the third mark has no value
    assert "&lt;title&gt;" in made.svg
    assert [name for _, name in made.legend] == ["seen"]


def test_error_bars_hold_the_range_open_and_reach_where_they_should() -> None:
    bars = {"type": "data", "symmetric": False, "array": [3.0], "arrayminus": [1.0]}
    fig = go.Figure(go.Scatter(x=[1.0], y=[5.0], error_y=bars, mode="markers"))
    y = axes.axes_of(fig, "y", 0, 100)["y"]
    assert y.low < 4.0
    assert y.high > 8.0


@pytest.mark.parametrize(
    "fig",
    [
        go.Figure(go.Bar(x=[1], y=[2])),
        go.Figure(go.Heatmap(z=[[1, 2]])),
        go.Figure(go.Scatter(x=[1], y=[2], mode="markers", marker={"symbol": "hourglass"})),
    ],
)
def test_what_is_not_drawn_is_refused(fig: go.Figure) -> None:
    with pytest.raises((ValueError, KeyError), match=r"bar|heatmap|hourglass"):
        drawing.drawn(fig, "k", "", "")


def test_text_is_escaped_and_markup_is_not() -> None:
    inner = markup.tag("b", "<i>")
    assert markup.tag("p", inner, "&", title='"') == '<p title="&quot;"><b>&lt;i&gt;</b>&amp;</p>'


# files


def test_the_command_writes_one_page(folders: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    asked_for = ["report", str(folders["forecast"]), "--out", str(out), "--no-pdf", "--json"]
    try:
        ran = CliRunner().invoke(cli.app, asked_for)
    finally:
        logging.disable(logging.NOTSET)  # the command silences Streamlit, and its process ends
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.stdout)
    assert told["path"] == str(out)
    assert told["pdf"] is None
    assert told["state"] == "forecast"
    assert told["bytes"] == out.stat().st_size < 300_000


def test_a_foreign_file_is_left_as_it_is(folders: dict[str, Path], tmp_path: Path) -> None:
    ladder, page = folders["nothing"], tmp_path / "page.html"
    page.write_text("mine")
    with pytest.raises(UserError, match="not replaced"):
        report.write(ladder, out=page, print_pdf=False)
    assert page.read_text() == "mine"
    page.unlink()
    page.symlink_to(tmp_path / "else")
    with pytest.raises(UserError, match="not replaced"):
        report.write(ladder, out=page, print_pdf=False)
    page.unlink()
    (tmp_path / "page.pdf").write_bytes(b"%PDF mine")
    with pytest.raises(UserError, match="not replaced"):
        report.write(ladder, out=page)
    assert not page.exists()
    report.write(ladder, out=page, print_pdf=False)
    assert report.write(ladder, out=page, print_pdf=False)["path"] == str(page)  # its own is replaced


def test_a_study_without_a_folder_gets_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no study's folder yet"):
        report.write(tmp_path / "new", print_pdf=False)
    assert not (tmp_path / "new").exists()


def test_a_language_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="en, ja"):
        report.write(tmp_path, "fr", print_pdf=False)


def test_without_a_browser_or_letters_there_is_a_page_and_a_reason(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ladder = folders["nothing"]
    monkeypatch.setenv("PATH", str(tmp_path))
    told = report.write(ladder, "ja", tmp_path / "page.html")
    assert told["pdf"] is None
    assert "no browser" in told["no_pdf"]
    for name, script in (("chromium", "exit 1"), ("fc-list", "true")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        os.chmod(tmp_path / name, 0o755)
    assert "letters of “ja”" in report.write(ladder, "ja", tmp_path / "page.html")["no_pdf"]
    assert "did not print" in report.write(ladder, "en", tmp_path / "page.html")["no_pdf"]


@pytest.mark.slow
def test_a_real_browser_prints_the_same_pdf_twice(folders: dict[str, Path], tmp_path: Path) -> None:
    if shutil.which("chromium") is None:
        pytest.skip("chromium is not installed")
    out = tmp_path / "page.html"
    first = [report.write(folders["inside"], out=out), out.with_suffix(".pdf").read_bytes()]
    assert first[0]["pdf"] == str(out.with_suffix(".pdf"))
    assert first[1].startswith(b"%PDF")
    assert first[1].endswith(pdf.OURS)
    report.write(folders["inside"], out=out)
    assert out.with_suffix(".pdf").read_bytes() == first[1]


@pytest.mark.slow
def test_a_real_browser_shows_it_without_a_complaint(folders: dict[str, Path], tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if shutil.which("chromium") is None:
        pytest.skip("chromium is not installed")
    report.write(folders["inside"], "ja", tmp_path / "page.html", print_pdf=False)
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        for width in (360, 1280):
            view = browser.new_page(viewport={"width": width, "height": 900})
            said, fetched = list[str](), list[str]()
            view.on("console", lambda m, said=said: said.append(m.text))
            view.on("request", lambda r, fetched=fetched: fetched.append(r.url))
            view.goto((tmp_path / "page.html").as_uri())
            assert not said
            assert len(fetched) == 1
            assert view.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            assert view.evaluate("getComputedStyle(document.querySelector('h1')).fontSize") in ("30px", "25px")
        browser.close()
