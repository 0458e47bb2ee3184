"""The dashboard on real folders: finished, running, just begun, broken, gone; in AppTest and in a real browser."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("streamlit")

from browsing import browsing, serving
from streamlit.testing.v1 import AppTest

from dashboard import bundles, judge, launch, ledger, load, show, wire
from dashboard.app import PAGES
from dashboard.app_pages import costs, curves
from tunnel import sampler, table
from tunnel.answers import champions, forecasts, recommend
from tunnel.errors import UserError
from tunnel.folder import audit, chain, store
from tunnel.sweeps import attempts, sweep
from tunnel.sweeps import launch as full_size
from tunnel.verdicts import verdict

HERE = Path(__file__).parent.parent
APP = str(HERE / "dashboard" / "app.py")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller calibration study, swept, recommended, trained and checked."""
    text = (HERE / "studies" / "calibration.toml").read_text()
    folder = tmp_path_factory.mktemp("runs")
    study, root = folder / "calibration.toml", folder / "calibration"
    study.write_text(text.replace("trials = 24", "trials = 12").replace(", [256, 16]]", "]"))
    asked, keep = sweep.located(study, root)
    sweep.revise(study.read_text(), keep)
    sweep.sweep(asked, keep)
    recommend.recommend(asked, keep)
    full_size.train(asked, keep)
    forecasts.check(keep, asked.target[0].name)
    bundle = root / "export" / "hf"
    bundle.mkdir(parents=True)
    (bundle / "config.json").write_text("{}")
    return root


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "runs" / "calibration", ignore=shutil.ignore_patterns("trunks")))


def cut(root: Path, keep: int) -> Path:
    """A study as it was after its first `keep` records."""
    records = sorted((root / "records").glob("*.json"), key=lambda p: json.loads(p.read_text())["started"])
    for path in records[keep:]:
        path.unlink()
    for name in ("recommendation.json", "check.json", "forecasts.jsonl", "target.json", "readings.parquet"):
        (root / name).unlink()
    shutil.rmtree(root / "fits")
    return root


def running(root: Path, tokens: int = 10) -> Path:
    """Puts the marks of a sweep into the folder; its driver is the process above this one."""
    lock = {"host": socket.gethostname(), "pid": os.getppid(), "since": store.now()}
    progress = {
        "stage": "ladder",
        "when": store.now(),
        "planned": 15,
        "finished": 3,
        "best": 3.1,
        "flops": {"planned": 4e15, "done": 1e15},
        "seconds": 10.0,
        "eta_seconds": 30.0,
        "running": {
            "3": {"what": "64×4 lr 0.01", "phase": "trunk", "tokens": tokens, "of": 40, "loss": 3.5},
            "4": {"what": "64×4 <b>lr</b>", "tokens": 0, "of": 40, "loss": None},
        },
    }
    store.write_json(root / "driver.lock", lock)
    store.write_json(root / "progress.json", progress)
    return root


def look(monkeypatch: pytest.MonkeyPatch, folder: Path, page: str = "studies", **query: str) -> AppTest:
    """A page as a visitor gets it."""
    monkeypatch.setattr(sys, "argv", ["app.py", str(folder)])
    app = AppTest.from_file(APP, default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    if page != "studies":
        app.switch_page(f"app_pages/{page}.py").run()
    return app


def words(app: AppTest) -> str:
    shown = [*app.markdown, *app.caption, *app.subheader, *app.warning, *app.info, *app.title, *app.metric]
    return "\n".join(f"{getattr(e, 'label', '')} {e.value}" for e in shown)


def charts(app: AppTest) -> int:
    return len(app.get("plotly_chart"))


def nameless(spec: dict[str, Any]) -> list[str]:
    """The axes of a figure that are seen and not named; one that shares another's range may have its name there."""
    used = {f"{k}axis{str(t.get(f'{k}axis', k))[1:]}" for t in spec["data"] for k in "xy" if k in t}
    drawn = {name: spec["layout"].get(name, {}) for name in used}
    seen = {name: a for name, a in drawn.items() if a.get("visible") is not False}
    named = {a.get("matches", name[0] + name[5:]) for name, a in seen.items() if a.get("title", {}).get("text")}
    return [name for name, a in seen.items() if a.get("matches", name[0] + name[5:]) not in named]


# every page, on every kind of folder

FINISHED = {
    "studies": 1,
    "live": 0,
    "landscape": 4,
    "transfer": 5,
    "curves": 2,
    "laws": 4,
    "recommendation": 2,
    "forecasts": 5,
    "retention": 0,
    "compare": 1,
    "costs": 2,
}  # figures


@pytest.mark.parametrize(("page", "figures"), FINISHED.items())
def test_a_finished_study(finished: Path, monkeypatch: pytest.MonkeyPatch, page: str, figures: int) -> None:
    app = look(monkeypatch, finished, page)
    assert not app.exception
    assert not app.error
    assert charts(app) == figures
    assert words(app).count("How to read this") >= figures
    for chart in app.get("plotly_chart"):
        assert chart.proto.alt
        assert nameless(json.loads(chart.proto.spec)) == [], chart.proto.alt
    assert all(table.proto.alt for table in app.dataframe)


@pytest.mark.parametrize(
    ("page", "kept"), [*((page, 30) for page in PAGES), ("studies", 0), ("live", 0), ("transfer", 0)]
)
def test_a_study_in_progress(copied: Path, monkeypatch: pytest.MonkeyPatch, page: str, kept: int) -> None:
    app = look(monkeypatch, running(cut(copied, kept)), page)
    assert not app.exception
    assert not app.warning
    assert app.get("progress")[0].value == 25
    assert "30 s left" in app.get("progress")[0].text


@pytest.mark.parametrize("page", PAGES)
def test_a_study_that_only_just_began(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    shutil.copy(finished / "study.toml", tmp_path)
    app = look(monkeypatch, tmp_path, page)
    assert not app.exception
    assert not app.warning
    assert re.search("yet|No student", words(app))
    assert charts(app) == 0


def test_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        app = look(monkeypatch, folder)
        assert not app.exception
        assert "There is no study here yet" in words(app)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.fault(20)
def test_a_folder_that_is_half_there(copied: Path, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    for name in ("recommendation.json", "fits/ladder.json", "check.json"):
        text = (copied / name).read_text()
        (copied / name).write_text(text[: len(text) // 2])
    record, *_ = sorted((copied / "records").glob("*.json"))
    record.write_text("{")
    for curve in (copied / "curves").glob("*.parquet"):
        curve.write_bytes(curve.read_bytes()[:100])
    (copied / "optuna.db").write_bytes(b"no database")
    app = look(monkeypatch, copied, page)
    assert not app.exception
    assert len(app.warning) == 1
    for name in ("recommendation", "fits/ladder", "check", record.stem):
        assert name in app.warning[0].value.replace("\\", "")


def test_values_of_the_wrong_kind_are_problems_not_crashes(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write_json(copied / "recommendation.json", ["not", "an", "object"])
    store.write_json(copied / "fits" / "ladder.json", {"minima": []})
    store.write_json(copied / "progress.json", 3)
    span = '{"session": "s", "stage": "ladder", "trial": 1, "state": "complete", "seconds": 1}\n'
    wrong = ("1}", "Infinity}"), ("1,", "[],"), ('"complete"', "3"), ('"s"', '"s", "when": 4'), ('"complete"', '"new"')
    (copied / "attempts.jsonl").write_text("[]\n3\n" + "".join(span.replace(*w) for w in wrong))
    chain.append(copied / "audit.jsonl", {"about": 3, "when": [], "what": {}})
    (copied.parent / "champion.jsonl").write_text("{}\n")
    store.write_json(copied / "verdict.json", {"lr": {"verdict": "transfers"}})
    (copied / "study.resolved.json").write_text("[]")
    for page in PAGES:
        assert not look(monkeypatch, copied, page).exception


@pytest.mark.fault(20)
def test_a_folder_that_is_deleted_while_it_is_looked_at(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = look(monkeypatch, copied.parent)
    shutil.rmtree(copied)
    app.run()
    assert not app.exception
    assert "There is no study here yet" in words(app)


@pytest.mark.fault(20)
def test_a_folder_that_is_moved_while_it_is_looked_at(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = look(monkeypatch, copied.parent)
    copied.rename(copied.with_name("elsewhere"))
    app.run()
    assert not app.exception
    assert "no study calibration here" in app.warning[0].value
    assert app.selectbox(key="study").value == "elsewhere"


@pytest.mark.fault(13)
@pytest.mark.parametrize(("schema", "said"), [(1, ""), (99, "newer tunnel"), ("x", "no folder's schema")])
def test_a_folder_of_another_schema_is_shown_as_far_as_it_is_known(
    copied: Path, monkeypatch: pytest.MonkeyPatch, schema: object, said: str
) -> None:
    resolved = store.read_json(copied / "study.resolved.json")
    store.write_json(copied / "study.resolved.json", resolved | {"schema": schema})
    if schema == 1:
        shutil.rmtree(copied / "environments", ignore_errors=True)
        (copied / "audit.jsonl").unlink(missing_ok=True)
    for page in ("studies", "costs") if said else PAGES:  # what cannot be read is left out before any page
        app = look(monkeypatch, copied, page)
        assert not app.exception, page
        assert [said in w.value for w in app.warning if "left out" in w.value] == [True] * bool(said), page


def test_a_sweep_that_died_is_not_called_running(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = running(cut(copied, 30))
    (root / "driver.lock").unlink()
    app = look(monkeypatch, root)
    assert not app.exception
    assert "The sweep stopped" in app.info[0].value
    assert not app.get("progress")


def test_a_diverged_reading_breaks_no_page(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sorted((copied / "records").glob("*.json"))[3]
    store.write_json(path, store.read_json(path) | {"status": "diverged", "loss": None, "bpb": None, "diverged_at": 9})
    for page in ("landscape", "transfer", "curves"):
        assert not look(monkeypatch, copied, page).exception, page


@pytest.mark.parametrize("page", ["laws", "recommendation"])
def test_a_result_says_why_it_is_old(copied: Path, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    """Of fewer readings, of others, of an older tunnel; and what was registered before a target's start never is."""
    (copied / "target.json").rename(copied / "kept")
    said = lambda: [i.value for i in look(monkeypatch, copied, page).info]  # noqa: E731
    assert not said()
    first, second, *_ = (copied / "records").glob("*.json")
    first.unlink()
    assert "readings or the tunnel changed" in said()[0]
    path = copied / "fits" / "ladder.json"
    store.write_json(path, store.read_json(path) | {"schema": 3})
    assert ("An older version" in said()[0]) == (page == "laws")
    store.write_json(second, store.read_json(second) | {"started": "2099-01-01T00:00:00+00:00"})
    assert "newer readings" in said()[0]
    (copied / "kept").rename(copied / "target.json")
    assert bool(said()) == (page == "laws")


@pytest.mark.parametrize("page", ["studies", "laws", "recommendation", "costs"])
def test_a_study_without_a_target(copied: Path, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    cut(copied, 60)
    text = (copied / "study.toml").read_text()
    (copied / "study.toml").write_text(re.sub(r"\[\[target\]\].*?(?=\[)", "", text, flags=re.DOTALL))
    app = look(monkeypatch, copied, page)
    assert not app.exception
    assert ("no target, so it forecasts nothing" in words(app)) == (page in ("laws", "recommendation"))
    assert not re.search("[Ff]orecast |target's", words(app))


# what it says is what the commands say


def test_the_studies_page_says_what_status_and_check_say(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {m.label: m.value for m in look(monkeypatch, finished).metric}
    status = sweep.status(*sweep.frozen(finished))
    check = store.read_json(finished / "check.json")
    assert said["State"] == status["state"] == "complete"
    assert said["Finished trials"] == f"{status['trials']['complete']} of {status['trials']['planned']}"
    assert said["Finished models"] == str(status["readings"])
    assert said["Measured (nats/token)"] == f"{check['measured']:.3f}"
    assert said["Verdict"] == ("inside" if check["inside"] else "outside")


def test_the_recommendation_shows_every_setting_and_caution(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = store.read_json(finished / "recommendation.json")
    app = look(monkeypatch, finished, "recommendation")
    table = app.dataframe[0].value
    assert sorted(table.setting) == sorted(told["settings"])
    assert [w.value.replace("\\", "") for w in app.warning] == told["cautions"]
    names = [d.proto.label for d in app.get("download_button")]
    assert [n for n in names if n != "CSV"] == ["recommendation.json", "Bundle for hf (zip)"]


def test_the_study_lives_in_the_address(finished: Path, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = copied.parent / "other"
    shutil.copytree(copied, other)
    app = look(monkeypatch, copied.parent, study="other")
    assert app.selectbox(key="study").value == "other"
    app.selectbox(key="study").select("calibration").run()
    assert app.query_params["study"] == "calibration"
    app.switch_page("app_pages/laws.py").run()
    assert app.selectbox(key="study").value == "calibration"
    gone = look(monkeypatch, copied.parent, study="nothing <b>here</b>")
    assert not gone.exception
    assert "no study nothing" in gone.warning[0].value


@pytest.mark.fault(18)
@pytest.mark.parametrize("name", ["a*b*_c_[x](http://y)", "<script>", ":material/delete: $x$", "# head", "`code`"])
def test_names_are_shown_as_they_are(name: str) -> None:
    assert show.plain(name).replace("\\", "") == name
    assert all(f"\\{c}" in show.plain(name) for c in set(name) & set("*_[]<>#`$:"))


# transfer


def test_the_page_says_what_the_command_says(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = look(monkeypatch, copied, "transfer")
    assert "made of the" in before.info[0].value
    said = verdict.verdicts(*sweep.frozen(copied), check=False)
    after = look(monkeypatch, copied, "transfer")
    assert not after.info
    assert after.dataframe[0].value.equals(before.dataframe[0].value)
    over = {row.over: row.verdict for row in after.dataframe[0].value.itertuples()}
    assert over == {axis: o["verdict"] for axis, o in said["lr"]["over"].items()}
    next((copied / "records").glob("*.json")).unlink()
    assert "readings or the tunnel changed" in look(monkeypatch, copied, "transfer").info[0].value


def test_seeds_are_the_readings_behind_a_minimum(finished: Path) -> None:
    seen = load.opened(finished)
    told = judge.judged(seen)
    for axis, over in told.by_setting["lr"]["over"].items():
        lines = judge.lines(seen, told, "lr", axis)
        assert len(lines) == 1 + len(over["lines"])
        for one in lines:
            for m, place in zip(one.told["minima"], one.seeds, strict=True):
                assert place is not None
                rows = seen.readings[(seen.readings.width == m["width"]) & (seen.readings.stage == "ladder")]
                assert {round(float(x), 9) for x in np.exp(place.cell.y).ravel()} <= set(rows.loss.round(9))


def test_the_coordinate_check_is_shown_where_it_was_made(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = verdict.verdicts(*sweep.frozen(copied), check=False)
    row = {"what": "residual", "step": 1, "slope": 0.0, "low": -0.1, "high": 0.1}
    over = {"width": {"values": [32.0, 64.0, 128.0], "slopes": [row]}}
    checked = {"verdict": "passes", "reason": "all slopes", "control": 0.5, "band": 0.15, "over": over}
    found["lr"]["coordinates"] = checked
    store.write_json(copied / "verdict.json", found)
    app = look(monkeypatch, copied, "transfer")
    assert not app.exception
    assert charts(app) == FINISHED["transfer"] + 1
    assert "**passes**" in words(app)


@pytest.mark.parametrize("text", ["[]", "{", '{"lr": {}}', '{"lr": 3}', '{"lr": {"over": {"D": {}}, "compared": {}}}'])
def test_a_verdict_of_the_wrong_kind_is_a_problem(copied: Path, text: str) -> None:
    (copied / "verdict.json").write_text(text)
    seen = load.opened(copied)
    assert seen.verdict is None
    assert any("verdict" in p for p in seen.problems)


def test_a_stage_shows_the_readings_that_it_shares(copied: Path) -> None:
    """A record is kept under the stage that measured it first; those that ask for it again show it too."""
    path = next(p for p in (copied / "records").glob("*.json") if store.read_json(p)["stage"] == "ladder")
    before = set(load.of_stage(load.opened(copied), "ladder").fingerprint)
    assert path.stem in before
    store.write_json(path, store.read_json(path) | {"stage": "shape"})
    store.Store(copied).share("ladder", [path.stem])
    assert set(load.of_stage(load.opened(copied), "ladder").fingerprint) == before


def test_trunks_of_one_trial_are_one_tree() -> None:
    """Data that joined makes another trunk of the same trial, and an extension another trial of the same trunk."""
    rows = pd.DataFrame({"trial": [1, 1, 5, 2], "run": ["a", "b", "b", "c"], "stage": "v", "lr": 0.1})
    rows = rows.assign(seed=0, width=32, depth=2, rules="minicpm")
    assert list(curves.rooted(rows)) == ["a", "a", "a", "c"]
    assert list(curves.rooted(rows.iloc[::-1])) == ["c", "b", "b", "b"]


# runs & cost


def test_the_ledger_adds_up_to_what_status_says(finished: Path) -> None:
    book, status = ledger.read(load.opened(finished)), sweep.status(*sweep.frozen(finished))
    assert {s: int(n) for s, n in book.trials.state.value_counts().items()} == {"complete": status["trials"]["planned"]}
    assert book.held.seconds.sum() == pytest.approx(status["seconds"])
    assert float(sum(book.held.cost)) == pytest.approx(float(status["cost"]), abs=1e-5)
    idle = status["held"]["idle"]["seconds"]
    assert book.trials.device_seconds.sum() + idle == pytest.approx(status["seconds"])
    assert book.trials.flops.sum() == pytest.approx(status["flops"])
    assert book.trials.tokens.sum() == status["tokens"]["trained"]
    assert book.trials.readings.sum() == status["readings"]
    assert (book.trials.attempts == 1).all()


def test_all_attempts_at_a_trial_are_paid_on_its_row(copied: Path) -> None:
    before = ledger.read(load.opened(copied)).trials.set_index(["stage", "trial"])
    lost = [attempts.Span("x", "ladder", 3, state, s) for state, s in (("failed", 36_000.0), ("interrupted", 18_000.0))]
    attempts.append(store.Store(copied), [*lost, attempts.Span("x", "ladder", None, "idle", 54_000.0, workers=2)])
    book = ledger.read(load.opened(copied))
    after = book.trials.set_index(["stage", "trial"])
    assert after.attempts["ladder", 3] == 3
    assert after.device_seconds["ladder", 3] == pytest.approx(before.device_seconds["ladder", 3] + 54_000)
    hour = sweep.frozen(copied)[0].price.per_hour
    assert after.cost["ladder", 3] == pytest.approx(before.cost["ladder", 3] + 15 * float(hour), abs=1e-5)
    others = after.index != ("ladder", 3)
    assert (after.device_seconds[others] == before.device_seconds[others]).all()
    session = ledger.sessions(book.attempts).set_index("session").loc["x"]
    assert (session.attempts, session.lost, session.workers, session.busy) == (2, 2, 2, pytest.approx(0.5))


def test_what_a_trial_shares_is_counted_where_it_was_measured(finished: Path) -> None:
    asked, keep = sweep.frozen(finished)
    [first, *_] = sampler.states(finished, "ladder")
    again = [first, first | {"number": 99, "state": "running"}]
    rows = ledger.trials(asked, {"ladder": again}, keep.readings(), []).set_index("trial")
    assert rows.readings[0] == rows.readings[99] > 0
    assert rows.tokens[0] > rows.tokens[99] == 0
    assert rows.attempts.isna().all()
    assert rows.device_seconds[0] == rows.training_seconds[0] > rows.device_seconds[99] == 0


def test_a_table_is_filtered_and_its_address_kept(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = next(p for p in (copied / "records").glob("*.json") if store.read_json(p)["stage"] == "ladder")
    store.write_json(path, store.read_json(path) | {"host": "<b>gpu</b>"})
    app = look(monkeypatch, copied, "costs", stage="ladder")
    assert set(app.dataframe[0].value.stage) == {"ladder"}
    app.multiselect(key="host").select("<b>gpu</b>").run()
    assert len(app.dataframe[0].value) == 1  # the trial that ran there too
    app = look(monkeypatch, copied, "costs", row=costs.MODELS, host="<b>gpu</b>", stage="nothing", state="pruned")
    assert list(app.dataframe[0].value.fingerprint) == [path.stem]
    assert not app.multiselect(key="stage").value


@pytest.mark.parametrize(("form", "packed"), [("csv", ledger.csv), ("parquet", ledger.parquet)])
def test_a_download_is_a_runs_table(
    finished: Path, tmp_path: Path, form: str, packed: Callable[[pd.DataFrame], bytes]
) -> None:
    readings = load.opened(finished).complete
    file = tmp_path / f"readings.{form}"
    file.write_bytes(packed(readings))
    again = table.read(file)
    assert again.loss.tolist() == readings.loss.tolist()
    assert again.N.tolist() == readings.N.tolist()


def test_no_cell_is_run_by_a_spreadsheet() -> None:
    rows = pd.DataFrame({"host": ["=HYPERLINK(1)", "@x", "-1+1", "vm", None], "loss": [-1.0, 2, 3, 4, 5]})
    assert ledger.csv(rows).decode().splitlines()[1:] == [
        "'=HYPERLINK(1),-1.0",
        "'@x,2.0",
        "'-1+1,3.0",
        "vm,4.0",
        ",5.0",
    ]


def test_the_page_says_whether_the_chain_is_whole(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copied / "audit.jsonl").unlink(missing_ok=True)
    audit.note(copied, "launched", address="a*b*")
    audit.note(copied, "promoted", champions="<i>x</i>")
    app = look(monkeypatch, copied, "costs")
    assert "The chain is whole" in app.success[0].value
    deeds = next(d.value for d in app.dataframe if "did" in d.value)
    assert list(deeds.did) == ["promoted", "launched"]
    text = (copied / "audit.jsonl").read_text()
    (copied / "audit.jsonl").write_text(text.replace('"promoted"', '"exported"'))
    app = look(monkeypatch, copied, "costs")
    assert "broken at line 2 of audit" in app.error[0].value
    assert not app.success


def test_the_champion_is_told_from_those_before(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ledger.champion_file(copied)
    told = {k: None for k in champions.TOLD} | {"what": "promoted", "target": "big", "folder": str(copied)}
    champions.write(file, told | {"number": 1}, None)
    champions.write(file, told | {"number": 2, "over": 1}, chain.tip(champions.history(file)))
    champions.rollback(file)
    found = ledger.deeds(copied)
    assert [p["number"] for p in found.promotions] == [1, 2]
    assert found.champion == 1
    rows = next(d.value for d in look(monkeypatch, copied, "costs").dataframe if "promotion" in d.value)
    assert list(rows.iloc[:, 0]) == ["", "champion"]


# reading


@pytest.mark.fault(20)
def test_looking_changes_nothing(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in copied.rglob("*") if p.is_file()}
    for page in PAGES:
        look(monkeypatch, copied, page)
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in copied.rglob("*") if p.is_file()} == before


def test_a_new_record_is_seen_and_an_old_one_is_cached(copied: Path) -> None:
    one, two = sorted((copied / "records").glob("*.json"))[:2]
    text = two.read_text()
    two.unlink()
    first = load.opened(copied).readings
    assert two.stem not in set(first.fingerprint)
    store.write_text(two, text)
    assert {one.stem, two.stem} <= set(load.opened(copied).readings.fingerprint)


@pytest.mark.fault(19)
def test_a_bundle_is_packed_without_what_its_links_point_to(copied: Path) -> None:
    (copied / "export" / "hf" / "secret").symlink_to("/etc/passwd")
    folder, size = bundles.exported(copied) or (Path(), 0)
    assert size == 2
    assert zipfile.ZipFile(io.BytesIO(bundles.packed(folder))).namelist() == ["config.json"]


def test_no_torch_and_no_ray_in_the_dashboards_process(finished: Path) -> None:
    code = (
        "import sys; sys.argv = ['app.py', sys.argv[1]]\n"
        "from streamlit.testing.v1 import AppTest\n"
        f"app = AppTest.from_file({APP!r}, default_timeout=60).run()\n"
        "assert not app.exception\n"
        f"for page in {list(PAGES)!r}:\n"
        "    assert not app.switch_page(f'app_pages/{page}.py').run().exception\n"
        "print([m for m in ('torch', 'ray', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(finished)], capture_output=True, text=True, check=True, cwd=HERE
    )
    assert done.stdout.splitlines()[-1] == "[]"


# the launcher


def test_the_launcher_sets_what_is_not_safe_by_default(tmp_path: Path) -> None:
    flags = launch.command(tmp_path, 9999)
    for flag in (
        "--server.address=127.0.0.1",
        "--server.enableCORS=true",
        "--server.enableXsrfProtection=true",
        "--client.showErrorDetails=none",
        "--browser.gatherUsageStats=false",
        "--server.allowedHosts=127.0.0.1",
    ):
        assert flag in flags
    assert flags[-1] == str(tmp_path)


def test_the_launcher_refuses_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        launch.serve(tmp_path / "nowhere", 9999)


# a real server


@pytest.fixture(scope="module")
def served(finished: Path) -> Iterator[str]:
    with serving(finished.parent) as address:
        yield address


@pytest.mark.parametrize(
    ("host", "origin", "answered"),
    [
        ("127.0.0.1", "http://127.0.0.1", True),
        ("evil.example", "http://evil.example", False),
        ("127.0.0.1", "http://evil.example", False),
    ],
)
def test_only_our_own_pages_get_data(served: str, host: str, origin: str, answered: bool) -> None:
    """A page elsewhere, or one that rebinds its name to loopback, opens no stream."""
    port = int(served.rsplit(":", 1)[1])
    lines = [
        "GET /_stcore/stream HTTP/1.1",
        f"Host: {host}:{port}",
        f"Origin: {origin}:{port}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    with socket.create_connection(("127.0.0.1", port), timeout=10) as s:
        s.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        status = s.recv(100).split(b"\r\n")[0].decode()
    assert ("101" in status) == answered, status


def test_it_says_that_it_lives_and_nothing_else(served: str) -> None:
    with urllib.request.urlopen(f"{served}{launch.HEALTH}") as answer:
        assert (answer.status, answer.read()) == (200, b"ok")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_scripts_travel_packed_and_whole(served: str) -> None:
    scripts = sorted((wire.STATIC / "static" / "js").glob("*.js"), key=lambda p: p.stat().st_size)
    for path in (scripts[0], scripts[-1]):
        address = f"{served}/static/js/{path.name}"
        request = urllib.request.Request(address, headers={"Accept-Encoding": "gzip"})
        with urllib.request.urlopen(request) as answer:
            packed = answer.read()
            assert answer.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(packed) == path.read_bytes()
        with urllib.request.urlopen(address) as plain:
            assert plain.read() == path.read_bytes()
    assert wire.packed("static/js/nothing.js") is None
    for name in ("/static/js/../../index.html", "/static/js/a/b.js", "/static/js/x.map", "/static/js/%2e%2e.js"):
        assert not wire.PACKED.fullmatch(name)


def test_a_real_browser_opens_every_page(served: str) -> None:
    with browsing() as view:
        for page, (title, _) in reversed(PAGES.items()):  # the first visit is a deep link
            view.goto(f"{served}/{'' if page == 'studies' else page}?study=calibration")
            view.get_by_role("heading", name=title, exact=True).wait_for(timeout=60_000)
            plots = view.locator(".js-plotly-plot .main-svg")
            if FINISHED[page]:
                plots.first.wait_for(timeout=60_000)
            assert "study=calibration" in view.url
            assert view.locator("[data-testid=stException]").count() == 0
            assert view.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_real_browser_takes_a_filtered_table_away(served: str, finished: Path, tmp_path: Path) -> None:
    with browsing() as view:
        view.goto(f"{served}/costs?study=calibration&row=finished+model&stage=ladder")
        with view.expect_download(timeout=60_000) as download:
            view.get_by_role("button", name="These rows as CSV").click(timeout=60_000)
        assert download.value.suggested_filename == "calibration-finished-models.csv"
        download.value.save_as(tmp_path / "taken.csv")
        assert "stage=ladder" in view.url
    taken = pd.read_csv(tmp_path / "taken.csv")
    readings = load.opened(finished).readings
    assert list(taken.fingerprint) == list(readings.fingerprint[readings.stage == "ladder"])
