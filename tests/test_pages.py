"""Landscape, Curves, Laws, Recommendation and the glossary, as a visitor with an address finds them."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("streamlit")

import mixing
import test_dashboard
from test_dashboard import charts, look, words

from dashboard import bundles, landscape, load, show
from dashboard.glossary import WORDS
from tunnel.folder import store
from tunnel.study import Data
from tunnel.sweeps import pipeline

finished, copied = test_dashboard.finished, test_dashboard.copied
DESIGN = (  # its "Words"
    "study stage trial candidate spec run record trunk fork fan rung reading proxy target family shape role rule N D C "
    "lr multiplier law fit interval verdict recommendation forecast export"
)


def findings(app: object) -> list[str]:
    return [c.proto.alt for c in app.get("plotly_chart")]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory, documents: Data) -> Path:
    """A finished study of dense bodies and mixtures."""
    folder = tmp_path_factory.mktemp("mixture")
    pipeline.run(mixing.study_file(folder, documents), folder / "out")
    return folder / "out"


# landscape


def test_a_brush_in_the_address_filters_the_whole_page(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = load.of_stage(load.opened(finished), "ladder")
    low, high = sorted(rows.lr.unique())[:2]
    app = look(monkeypatch, finished, "landscape", space="ladder", rung="all", brush=f"lr:{low * 0.99}:{high * 1.01}")
    assert not app.exception
    kept = rows[rows.lr <= high * 1.01]
    assert f"Of {len(kept)} of {len(rows)} readings" in findings(app)[0]
    table = app.dataframe[0].value
    assert len(table) == len(kept)
    assert table.lr.max() <= high * 1.01
    assert table.loss.is_monotonic_increasing
    [drop] = [b for b in app.button if "✕" in b.label]
    drop.click().run()
    assert f"Of {len(rows)} readings" in findings(app)[0]
    assert not app.query_params.get("brush")


def test_a_brush_by_hand_is_the_same_as_by_mouse(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = look(monkeypatch, finished, "landscape", space="ladder")
    before = len(app.dataframe[0].value)
    app.selectbox(key="kept setting").select("loss").run()
    best = float(app.dataframe[0].value.loss.iloc[0])
    next(n for n in app.number_input if n.label == "To").set_value(best * 1.001).run()
    app.button(key="keep these").click().run()
    assert 1 <= len(app.dataframe[0].value) < before
    assert "loss:" in str(app.query_params["brush"])


def test_a_brush_that_holds_nothing_says_so(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = look(monkeypatch, finished, "landscape", brush="loss:0.001:0.002")
    assert not app.exception
    assert "The brush holds no reading" in words(app)
    assert charts(app) == 1


@pytest.mark.parametrize("brush", ["", "x", "lr:1", "loss:a:b", "<script>=1", "lr:nan:inf"])
def test_nonsense_in_the_address_is_no_brush(finished: Path, monkeypatch: pytest.MonkeyPatch, brush: str) -> None:
    app = look(monkeypatch, finished, "landscape", space="nothing", rung="9", colour="green", pair="a × b", brush=brush)
    assert not app.exception
    assert "of" not in findings(app)[0].split(" readings")[0].split()[1:]


@pytest.mark.parametrize("space", ["calibrate", "ladder"])
def test_every_stage_has_its_landscape(finished: Path, monkeypatch: pytest.MonkeyPatch, space: str) -> None:
    app = look(monkeypatch, finished, "landscape", space=space, colour="rung", rung="all")
    assert not app.exception
    assert charts(app) >= 3


# curves


@pytest.mark.slow
def test_the_load_of_experts_is_beside_their_curves(mixture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = look(monkeypatch, mixture, "curves", curves="upcycled")
    assert not app.exception
    assert any(f.startswith("The busiest expert of 32×2 with 2 of 4 experts at D = ") for f in findings(app)), findings(
        app
    )
    assert not any("busiest" in f for f in findings(look(monkeypatch, mixture, "curves", curves="dense")))


def test_the_axes_of_curves_are_in_the_address(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = load.of_stage(load.opened(finished), "ladder")
    run = rows[rows.loss == rows.loss.max()].iloc[0]
    query = {"curves": "ladder", "against": "FLOPs", "tree": run.fingerprint}
    app = look(monkeypatch, finished, "curves", **query)
    assert not app.exception
    assert "training compute (FLOPs)" in app.get("plotly_chart")[0].proto.spec
    assert f"{run.width}×{run.depth} at lr {run.lr:.3g}" in findings(app)[0]


# laws


def test_another_form_moves_the_forecast_and_leaves_the_registered_one(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = store.read_json(finished / "fits" / "ladder.json")
    app = look(monkeypatch, finished, "laws")
    assert not app.info
    own = findings(app)[0]
    forms = app.get("button_group")[0]
    other = next(o.content.split(" ")[0] for o in forms.proto.options if "chosen" not in o.content)
    app = look(monkeypatch, finished, "laws", form=other)
    assert not app.exception
    assert findings(app)[0] != own
    assert f"By {other}" in app.info[0].value.replace("\\", "")
    assert store.read_json(finished / "fits" / "ladder.json") == fit
    assert not look(monkeypatch, finished, "laws", form="nothing").exception


# recommendation


def test_the_evidence_of_a_setting_is_its_readings(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = store.read_json(finished / "recommendation.json")
    for name in (n for n, s in told["settings"].items() if s["readings"]):
        app = look(monkeypatch, finished, "recommendation", evidence=name)
        assert not app.exception
        assert f"rests on {len(told['settings'][name]['readings'])} readings" in findings(app)[0]


def test_a_budget_in_the_address_is_spent(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, four = (look(monkeypatch, finished, "recommendation", budget=b) for b in ("1 ×", "4 ×"))
    said = [{m.label: m.value for m in app.metric} for app in (one, four)]
    told = store.read_json(finished / "recommendation.json")
    assert float(said[0]["Loss (nats/token)"]) == pytest.approx(told["forecast"], rel=0.02)
    assert float(said[1]["Compute (FLOPs, 6ND)"]) == pytest.approx(4 * told["target"]["C"], rel=0.01)
    assert float(said[1]["Loss (nats/token)"]) < float(said[0]["Loss (nats/token)"])


def test_a_bundle_is_made_aside_and_the_study_is_left_alone(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    app = look(monkeypatch, finished, "recommendation", to="json")
    app.button(key="make json").click().run()
    assert not app.exception
    assert "fields are exact" in app.success[0].value
    assert "Take calibration-json.zip" in [d.proto.label for d in app.get("download_button")]
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before
    told = store.read_json(finished / "recommendation.json")
    found = bundles.made(told, "any", "json", 1, False)
    assert "manifest.json" in zipfile.ZipFile(io.BytesIO(found.packed)).namelist()


def test_a_trainer_that_cannot_take_it_says_why(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A synthetic family is no model that Megatron trains."""
    app = look(monkeypatch, finished, "recommendation", to="megatron")
    app.button(key="make megatron").click().run()
    assert not app.exception
    assert len(app.error) == 1


@pytest.mark.fault(18)
def test_a_shell_line_is_one_word_for_each_name() -> None:
    told = {"settings": {"lr": {"value": 0.1}, "decay_shape": {"value": "a; rm -rf ~"}, "none": {"value": None}}}
    lines = bundles.shell(Path("/runs/a b'; reboot"), told, "hf", 8, True)
    assert lines["The settings as variables"] == "LR=0.1 DECAY_SHAPE='a; rm -rf ~'"
    assert lines["The bundle for hf"].startswith("""tunnel export '/runs/a b'"'"'; reboot' --to hf --world-size 8""")


def test_the_model_card_is_a_preview_of_what_is_exported(finished: Path, tmp_path: Path) -> None:
    told = store.read_json(finished / "recommendation.json")
    text = bundles.card(finished, told)
    assert text is not None
    assert f"{told['forecast']:.4f}" in text
    assert bundles.card(tmp_path, told) is None
    assert bundles.card(finished, {}) is None


# glossary


def test_every_word_of_the_design_is_explained() -> None:
    known = {w for words in WORDS.values() for name in words for w in re.split(", ", name)}
    assert set(DESIGN.split()) <= known
    assert all(text.endswith(".") for words in WORDS.values() for text in words.values())


def test_the_glossary_is_searched(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "**fork**" in words(look(monkeypatch, finished, "glossary", word="FORK"))
    nothing = look(monkeypatch, finished, "glossary", word="<b>zzz")
    assert not nothing.exception
    assert "No word here" in nothing.info[0].value


# clicks


@pytest.mark.parametrize("data", [None, "", "x", "ladder", "ladder.", ["ladder.x"], "<b>.5", 3])
def test_a_click_on_what_is_no_reading_opens_nothing(data: object, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(show.address, "open_trial", lambda *known: opened.append(known))
    show.open_clicked({"points": [{"customdata": data}], "box": []})
    assert opened in ([], [("<b>", 5)])  # a stage may be called so: it is text there
    show.open_clicked({"points": [{"customdata": ["ladder.7"]}], "box": []})
    assert opened[-1] == ("ladder", 7)


def test_boxes_are_brushes_of_the_axes_that_they_cover(finished: Path) -> None:
    rows = load.opened(finished).complete
    axes = list(landscape.axes_of(rows).values())
    i = [a.name for a in axes].index("lr")
    brush = landscape.brushed([{"x": [i - 0.2, i + 0.2], "y": [-0.1, 1.1]}], axes)
    assert landscape.kept(rows, brush).all()
