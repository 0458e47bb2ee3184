"""What the pages Studies, Live and Compare say, from tables and small folders; test_dashboard opens the pages."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("streamlit")

from conftest import TINY

from dashboard import compare, live, load, studies, study_figures
from dashboard.app_pages.studies import matching
from tunnel.folder import store
from tunnel.sweeps import sweep


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two studies, one of them finished, and what is none."""
    root = tmp_path_factory.mktemp("runs")
    (root / "tiny.toml").write_text(TINY)
    sweep.sweep(*sweep.opened(root / "tiny.toml", root / "deep" / "one"))
    (root / "two").mkdir()
    other = TINY.replace("trials = 4", "trials = 6").replace("Which lr?", "Other one?")
    (root / "two" / "study.toml").write_text(other)
    for name in ("deep/one/backup.schema-1", ".hidden"):
        (root / name).mkdir()
        shutil.copy(root / "tiny.toml", root / name / "study.toml")
    return root


# studies


def test_studies_are_found_at_any_depth_and_never_within_another(swept: Path) -> None:
    assert list(load.studies(swept)) == ["deep/one", "two"]
    assert list(load.studies(swept / "two")) == ["two"]
    assert load.studies(swept / "nowhere") == {}


def test_the_table_says_what_status_says(swept: Path) -> None:
    table = studies.table(load.studies(swept)).set_index("study")
    status = sweep.status(*sweep.frozen(swept / "deep" / "one"))
    one, two = table.loc["deep/one"], table.loc["two"]
    assert (one.state, one.done, one.readings) == ("complete", 1.0, status["readings"])
    assert one.best == load.opened(swept / "deep" / "one").complete.loss.min()
    assert (one.cost, one.currency, one.seconds) == (float(status["cost"]), status["currency"], status["seconds"])
    assert (two.state, two.done, two.readings, two.question) == ("not started", 0.0, 0, "Other one?")
    assert pd.isna(two.best)
    assert one.verdict == two.verdict == "no forecast yet"


def test_a_table_without_time_says_what_is_quick_and_the_rest_later(swept: Path, tmp_path: Path) -> None:
    shutil.copytree(swept / "deep" / "one", tmp_path / "one")
    check = dict.fromkeys(load.CHECK, 1.0) | {"target": "big", "inside": True}
    store.write_json(tmp_path / "one" / "check.json", check)
    found = load.studies(tmp_path)
    hurried = studies.table(found, seconds=-1).iloc[0]
    assert (hurried.state, hurried.measured, hurried.verdict) == ("", 1.0, "inside")
    assert studies.table(found).iloc[0].state == "complete"
    assert studies.table(found, seconds=-1).iloc[0].state == "complete", "it is known by now"
    next((tmp_path / "one" / "records").glob("*.json")).unlink()
    assert studies.table(found, seconds=-1).iloc[0].state == "", "it is another one now"


ROWS = pd.DataFrame(
    {
        "study": ["a", "b[x]", "c"],
        "question": ["Which LR?", "which (", "lr"],
        "state": ["running", "complete", "complete"],
    }
)


@pytest.mark.parametrize(
    ("text", "states", "names"),
    [
        ("", [], ["a", "b[x]", "c"]),
        ("lr", [], ["a", "c"]),
        ("WHICH lr", [], ["a"]),
        ("(", [], ["b[x]"]),
        ("b[x]", [], ["b[x]"]),
        ("nothing", [], []),
        ("lr", ["complete"], ["c"]),
    ],
)
def test_a_search_takes_words_as_they_are(text: str, states: list[str], names: list[str]) -> None:
    assert list(matching(ROWS, text, states).study) == names


# live


def reading(**changed: Any) -> dict[str, Any]:
    row = {"stage": "s", "trial": 1, "status": "complete", "width": 32, "depth": 2, "lr": 0.01, "D": 1000, "loss": 3.0}
    row |= {"warmup": 100, "decay_start": 800, "diverged_at": None, "clip_rate": None, "spikes": None, "seconds": 5.0}
    return row | {"started": "2026-01-01T00:00:00+00:00", "fingerprint": "f"} | changed


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"diverged_at": 50}, ["in warmup, after 50 of 1k tokens"]),
        ({"diverged_at": 500, "lr": 0.08}, ["in the stable phase", "8 × the best lr"]),
        ({"diverged_at": 900, "lr": 0.011}, ["in the decay", "close to the best lr"]),
        ({"clip_rate": 0.5, "spikes": 3.0}, ["it is not known when", "50% of the steps clipped", "3 spikes"]),
    ],
)
def test_why_a_trial_diverged(changed: dict[str, Any], said: list[str]) -> None:
    rows = pd.DataFrame([reading(), reading(trial=2, status="diverged", loss=None) | changed])
    found = live.diverged(rows)
    assert list(found.trial) == ["s.2"]
    assert all(part in found.why[0] for part in said), found.why[0]


def test_a_trial_that_was_tried_again_counts_once() -> None:
    told = {0: ("failed", None), 1: ("complete", 0), 2: ("failed", None)}
    asks = {n: {"state": state, "retry_of": retry} for n, (state, retry) in told.items()}
    assert live.counted(asks) == {"complete": 1, "failed": 1}


def test_states_rungs_and_events_are_the_folders(swept: Path) -> None:
    root = swept / "deep" / "one"
    seen, status = load.opened(root), load.status(root)
    assert status is not None
    states = live.states(root, status).set_index("stage")
    assert (states.planned == states.complete).all()
    assert list(states.index) == ["calibrate", "ladder"]
    rungs = live.rungs(seen.readings)
    assert rungs.finished.sum() == len(seen.complete)
    events = live.events(root, seen.readings)
    assert events["when"].is_monotonic_decreasing
    assert {"reading", "trial complete"} <= set(events.what)


def test_a_running_trials_losses_are_remembered_until_it_ends(tmp_path: Path) -> None:
    traces = live.Traces()

    def look(tokens: int, *numbers: int) -> None:
        running = {str(n): {"tokens": tokens, "loss": 1.0 / tokens} for n in numbers}
        traces.look(tmp_path, {"stage": "s", "running": running})

    for tokens in (1, 2, 2, 4):
        look(tokens, 3, 4)
    traces.look(tmp_path / "other", {"stage": "s", "running": {}})
    assert traces.of(tmp_path, "s", 3) == {1.0: 1.0, 2.0: 0.5, 4.0: 0.25}
    look(5, 4)
    assert traces.of(tmp_path, "s", 3) == {}
    assert len(traces.of(tmp_path, "s", 4)) == 4


@pytest.mark.parametrize("count", [0, 1, 5, 61, 5000])
def test_a_sparkline_is_short_and_ends_where_the_losses_do(count: int) -> None:
    losses = pd.Series(range(count), dtype=float)
    found = live.thinned(losses)
    assert len(found) <= 2 * live.TRACE
    assert list(found[-1:]) == list(losses[-1:])


# compare


@pytest.fixture
def sides(swept: Path) -> list[compare.Side]:
    found, names = load.studies(swept), ("deep/one", "two", "deep/one · ladder", "deep/one · calibrate")
    return [s for n in names if (s := compare.side(n, found))]


def test_settings_that_differ_are_all_that_is_listed(sides: list[compare.Side]) -> None:
    one, two, *stages = sides
    assert compare.differences([one, two]).values.tolist() == [["stage.calibrate.budget.trials", "4", "6"]]
    assert not len(compare.differences([one, one]))
    keys = set(compare.differences(stages).setting)
    assert {"stage.kind", "stage.name", "handed on.lr"} <= keys
    assert not any(k.startswith("model.") for k in keys)


def test_outcomes_and_lines_stand_side_by_side(sides: list[compare.Side], swept: Path) -> None:
    one, two, ladder, _ = sides
    table = compare.results(sides).set_index("")
    assert table.loc["finished models", "two"] == "0"
    assert table.loc["finished models", "deep/one"] == str(len(one.done))
    assert compare.side("three", load.studies(swept)) is None
    for make in (compare.frontiers, compare.spent):
        lines = make(sides)
        assert two.name not in lines
        assert lines[one.name].y.min() == one.done.loss.min()
        assert lines[one.name].x.is_monotonic_increasing
        assert lines[one.name].y.is_monotonic_decreasing
    valley = compare.valleys([one, ladder], *compare.common([one, ladder])[-1])
    pd.testing.assert_frame_equal(valley[one.name], valley[ladder.name])


def test_other_data_is_not_compared_without_a_word(sides: list[compare.Side]) -> None:
    one, _, ladder, _ = sides
    other = ladder.seen.readings.assign(corpus_hash="another", seq_len=7)
    seen = load.Opened(**{**vars(ladder.seen), "readings": other})
    said = " ".join(compare.doubts([one, compare.Side("x", seen)]))
    assert "other data" in said
    assert "differ in length" in said


def test_very_many_losses_are_thinned_and_the_best_stay() -> None:
    rows = pd.DataFrame([reading(trial=i, loss=4 - i / 9000 + (i % 7) / 10) for i in range(9000)])
    marks, line = study_figures.progress(rows.assign(started=[f"{i:05d}" for i in range(9000)])).data
    assert len(marks.x) <= 2 * study_figures.DRAWN
    assert min(marks.y) == min(line.y) == rows.loss.min()
