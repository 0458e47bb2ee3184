"""Forecasts: written down before the reading is known, once, and counted; what an error is worth in compute."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY

from tunnel import study
from tunnel.answers import counterfactual, forecasts, recommend, rolling, worth
from tunnel.errors import Stopped, UserError
from tunnel.families.synthetic import TRUTH
from tunnel.folder import store
from tunnel.folder.store import Store
from tunnel.laws import chinchilla
from tunnel.study import Study
from tunnel.sweeps import launch, sweep
from tunnel.valleys import nearby

LADDER = TINY[TINY.index("shapes = [[32, 2], [64, 4]]") :]
SLACK = timedelta(seconds=0.1)  # a record says when it began and how long it took, by two clocks
SHAPES = """shapes = [[32, 2], [48, 3], [64, 4]]
fan = [0.5, 1, 2]
widen = 0
rungs = { tokens = ["250k", "500k", "1M"] }
"""
TEXT = TINY.replace(LADDER, SHAPES).replace("lr = { low = 1e-3, high = 1e-1 }", "lr = { low = 2e-2, high = 3e-2 }")


def asked_in(folder: Path, text: str = TEXT) -> tuple[Study, Store]:
    path = folder / "tiny.toml"
    path.write_text(text)
    return sweep.opened(path, folder / "out")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Store]:
    """A ladder of three shapes on the calibration body; read only."""
    asked, keep = asked_in(tmp_path_factory.mktemp("forecasts"))
    sweep.sweep(asked, keep)
    return asked, keep


@pytest.fixture
def copied(swept: tuple[Study, Store], tmp_path: Path) -> tuple[Study, Store]:
    return swept[0], Store(shutil.copytree(swept[1].root, tmp_path / "out"))


# errors in compute

CHINCHILLA = {"E": 1.81722, "A": 477.83, "B": 2143.42, "alpha": 0.34731, "beta": 0.36717}


def optimum(flops: float) -> tuple[float, float]:
    n, d = chinchilla.optimal(CHINCHILLA, flops)
    return float(n), float(d)


def chinchilla_path(flops: float) -> dict[str, Any]:
    return worth.path("chinchilla", CHINCHILLA, *optimum(flops), optimum(flops / 100))


def loss_at(flops: float) -> float:
    n, d = optimum(flops)
    return float(chinchilla.predict(CHINCHILLA, {"N": np.array([n]), "D": np.array([d])})[0])


@pytest.mark.parametrize(("flops", "percent"), [(1e19, 7.7), (1e21, 14.0), (1e23, 30.0)])  # SCIENCE §5
def test_half_a_percent_of_the_loss_in_compute(flops: float, percent: float) -> None:
    way = chinchilla_path(flops)
    assert worth.compute_percent(way, 0.995 * loss_at(flops)) == pytest.approx(percent, rel=0.05)
    assert worth.compute_percent(way, loss_at(flops)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("times", [0.1, 0.5, 2.0, 30.0])
def test_compute_is_the_law_s_inverse(times: float) -> None:
    assert worth.compute_percent(chinchilla_path(1e21), loss_at(times * 1e21)) == pytest.approx(
        100 * (times - 1), rel=1e-6
    )


def test_below_the_floor_no_compute_will_do() -> None:
    assert worth.compute_percent(chinchilla_path(1e21), 1.8) is None
    assert worth.compute_percent(None, 2.0) is None
    assert worth.compute_percent({**chinchilla_path(1e21), "params": {"E": None}}, 2.0) is None


def test_a_law_at_one_d_gives_all_compute_to_n() -> None:
    way = worth.path("size", {"A": 3.0, "a": 0.04}, 1e6, 4e5, (2e5, 1e5))
    assert way["share"] == 1.0
    assert worth.compute_percent(way, 3.0 * 2e6**-0.04) == pytest.approx(100.0)


# readings nearby


def readings(rng: np.random.Generator, n: int, noise: float = 0.003) -> dict[str, np.ndarray]:
    """Readings of a random law with a valley in lr that drifts, D and lr anew each."""
    a, b, drift = rng.uniform(0.2, 0.4), rng.uniform(0.2, 0.4), rng.uniform(-0.3, 0.1)
    size, d, off = 10 ** rng.uniform(4.5, 6, n), 10 ** rng.uniform(5, 6, n), rng.uniform(-0.8, 0.8, n)
    lr = 0.01 * (d / 3e5) ** drift * np.exp(off)
    loss = (1.2 + 10 * size**-a + 20 * d**-b) * np.exp(0.05 * off**2 + noise * rng.standard_normal(n))
    return {"N": size, "D": d, "lr": lr, "loss": loss}


def taken(table: dict[str, np.ndarray], rows: slice) -> dict[str, np.ndarray]:
    return {k: v[rows] for k, v in table.items()}


def test_intervals_of_readings_nearby_hold() -> None:
    """Over random laws and noises, 8 readings forecast from 12 to 60 others."""
    rng, inside, wide = np.random.default_rng(5), [], []
    for _ in range(60):
        n, noise = int(rng.integers(12, 60)), float(rng.choice([0.001, 0.003, 0.01]))
        table = readings(rng, n + 8, noise)
        told = nearby.told(taken(table, slice(8, None)), taken(table, slice(8)))
        inside += (np.abs(told.value - np.log(table["loss"][:8])) <= told.half()).tolist()
        wide += (told.half() / (1.645 * noise)).tolist()
    assert 0.87 <= np.mean(inside) <= 0.99
    assert np.median(wide) < 5  # of what noise alone would take


def test_units_and_the_order_of_rows_do_not_matter() -> None:
    table = readings(np.random.default_rng(1), 30)
    known, asked = taken(table, slice(5, None)), taken(table, slice(5))
    told = nearby.told(known, asked)
    other = nearby.told({k: v[::-1] for k, v in known.items()}, asked)
    assert other.value == pytest.approx(told.value, rel=1e-9)
    scale = {"N": 1e-3, "D": 1e-6, "lr": 7.0, "loss": 1.0}
    other = nearby.told(*({k: v * scale[k] for k, v in t.items()} for t in (known, asked)))
    assert other.value == pytest.approx(told.value, rel=1e-6)
    assert other.half() == pytest.approx(told.half(), rel=1e-6)


def test_an_interval_grows_with_the_distance() -> None:
    table = readings(np.random.default_rng(2), 40)
    far = {"N": np.geomspace(1e6, 1e9, 6), "D": np.full(6, 1e6), "lr": np.full(6, 0.01)}
    assert (np.diff(nearby.told(table, far).half()) > 0).all()


@pytest.mark.parametrize("change", [{"N": -1.0}, {"lr": 0.0}, {"loss": math.nan}, {"D": math.inf}])
def test_values_without_a_logarithm_are_refused(change: dict[str, float]) -> None:
    table = readings(np.random.default_rng(3), 20)
    for name, value in change.items():
        table[name][3] = value
    with pytest.raises(ValueError, match="logarithm"):
        nearby.told(table, taken(readings(np.random.default_rng(4), 2), slice(2)))
    with pytest.raises(ValueError, match="5 readings"):
        nearby.told(taken(table, slice(5)), taken(table, slice(1)))


# rolling registration


def entries(keep: Store, kind: str = "rolling") -> list[dict[str, Any]]:
    return [e for e in store.chain(keep.path(forecasts.FILE)) if forecasts.kind_of(e) == kind]


def ended(keep: Store, run: str) -> datetime:
    record = keep.record(run)
    assert record is not None
    return datetime.fromisoformat(record.started) + timedelta(seconds=record.seconds)


def test_every_next_reading_is_forecast_before_it_is_known(swept: tuple[Study, Store]) -> None:
    _, keep = swept
    told, rows = entries(keep), keep.readings()
    ladder = rows[rows.stage == "ladder"]
    assert len(told) == len({e["run"] for e in told})
    assert {e["run"] for e in told} <= set(ladder.fingerprint)
    assert len(told) >= 0.8 * len(ladder)
    ends = {fp: ended(keep, fp) for fp in rows.fingerprint}
    for e in told:
        when = datetime.fromisoformat(e["registered"])
        assert when < ends[e["run"]]
        assert e["parts"]["readings"] <= sum(end - SLACK < when for end in ends.values())
        assert {"git", "corpus_hash", "readings_hash", "formula", "low", "high"} <= set(e)


def test_how_they_fared_is_joined_and_counted(swept: tuple[Study, Store]) -> None:
    _, keep = swept
    found = forecasts.every(keep)
    rows, all_of = found["forecasts"], found["all"]
    assert all_of["of"] == len(rows) == found["by_kind"]["rolling"]["of"]
    assert all_of["inside"] == sum(r["low"] <= r["measured"] <= r["high"] for r in rows)
    assert all_of["of"] == sum(s["of"] for s in found["by_distance"].values())
    assert found["enough"]
    assert all_of["mean_error_percent"] < 2.0


@pytest.mark.parametrize(
    "calls", [7, pytest.param(11, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_a_sweep_that_is_cut_off_forecasts_nothing_twice(tmp_path: Path, calls: int) -> None:
    asked, keep = asked_in(tmp_path, TINY)
    left = [calls]

    def cut(live: object) -> None:
        left[0] -= 1
        if left[0] % calls == 0 and left[0] > -40:
            raise Stopped("cut")

    for _ in range(20):
        try:
            sweep.sweep(asked, keep, watch=cut)
            break
        except Stopped:
            continue
    assert left[0] < -calls  # more than once
    assert entries(keep)
    assert max(Counter(e["run"] for e in entries(keep)).values()) == 1
    assert all(datetime.fromisoformat(e["registered"]) < ended(keep, e["run"]) for e in entries(keep))


def test_what_cannot_be_forecast_breaks_no_sweep(copied: tuple[Study, Store], caplog: pytest.LogCaptureFixture) -> None:
    asked, keep = copied
    keep.path(forecasts.FILE).write_text('{"no": "chain"}\n')
    for path in list(keep.path("records").glob("*.json"))[-1:]:
        path.unlink()  # something is left to do
    assert sweep.sweep(asked, keep)["state"] == "complete"
    assert "no forecasts from here on" in caplog.text
    assert keep.path(forecasts.FILE).read_text() == '{"no": "chain"}\n'
    with pytest.raises(UserError, match="hash chain"):
        forecasts.every(keep)


def test_intervals_widen_as_forecasts_miss(swept: tuple[Study, Store]) -> None:
    asked, keep = swept
    mine = rolling.Rolling(keep, asked.stage_named("ladder"))
    assert not mine.status
    before = mine.widening()
    mine.rows = {fp: {**row, "loss": row["loss"] * 1.5} for fp, row in mine.rows.items()}
    assert before < 1.5
    assert mine.widening() > 2.0
    assert rolling.Rolling(keep, asked.stage_named("calibrate")).status  # a search is not forecast


@pytest.mark.parametrize(
    ("inside", "of", "likely"),
    [(9, 10, True), (7, 10, True), (5, 10, False), (80, 100, False), (86, 100, True), (0, 0, True)],
)
def test_too_few_inside_is_said(inside: int, of: int, likely: bool) -> None:
    rows = [
        {"inside": i < inside, "kind": "rolling", "distance": 0.0, "status": "complete", "error_percent": 1.0}
        | {"low": 1.0, "high": 2.0, "measured": 1.5, "score_percent": 1.0}
        for i in range(of)
    ]
    assert forecasts.judged(rows)["enough"] is likely


# recommendation


def test_a_recommendation_says_how_far_it_reaches_and_what_would_help(copied: tuple[Study, Store]) -> None:
    asked, keep = copied
    told = recommend.recommend(asked, keep)
    assert told["extrapolation"]["C"] == pytest.approx(told["compute_ratio"])
    low, high = told["interval_percent"]["compute"]
    assert low is None or low > 0
    assert high < 0
    assert told["cautions"] == [c["text"] for c in told["remedies"]]
    assert all(c["run"] and c["about"] for c in told["remedies"])
    assert told["forced"] == []
    only = entries(keep, "target")
    assert [e["registered"] for e in only] == [told["registered"]]
    assert only[0]["corpus_hash"] == told["corpus_hash"]


def test_the_lines_that_remove_a_caution_are_a_revision(copied: tuple[Study, Store]) -> None:
    """What a remedy adds as a stage can be pasted, and changes nothing that was asked."""
    asked, keep = copied
    told = recommend.recommend(asked, keep)
    stages = [c["run"] for c in told["remedies"] if "[[stage]]" in c["run"]]
    assert stages
    for lines in stages:
        revised = study.parse(TEXT + lines, keep.root)
        assert not study.changes(asked, revised)
    ladder = next(c["run"] for c in told["remedies"] if c["about"] == "seeds").splitlines()[0]
    assert ladder == "[stage.ladder.budget]  seeds = [0, 1]"


def test_it_refuses_what_it_cannot_know_and_writes_down_what_it_was_forced_to(copied: tuple[Study, Store]) -> None:
    before, keep = copied
    asked = before.model_copy(update={"target": (before.target[0].model_copy(update={"tokens": 16_000_000}),)})
    with pytest.raises(UserError, match=r"over 4 × the longest rung.*--force") as e:
        recommend.recommend(asked, keep)
    assert e.value.key == "target.big"
    assert not keep.path("recommendation.json").exists()
    assert not entries(keep, "target")
    told = recommend.recommend(asked, keep, force=True)
    assert len(told["forced"]) == 1
    forced = [c for c in told["remedies"] if c["about"] == "forced"]
    assert f"tunnel extend {keep.root} --tokens 16M" in forced[0]["run"]
    assert json.loads(keep.path("recommendation.json").read_text())["forced"] == told["forced"]


# counterfactual


def test_the_recommended_lr_half_and_double_are_forecast_and_then_run(copied: tuple[Study, Store]) -> None:
    asked, keep = copied
    before = recommend.recommend(asked, keep)
    found = launch.contrast(asked, keep)
    told = entries(keep, "counterfactual")
    assert [e["factor"] for e in told] == list(counterfactual.FACTORS)
    assert all(datetime.fromisoformat(e["registered"]) < ended(keep, e["run"]) for e in told)
    assert found["holds"]
    assert found["inside"] == 3
    middle = found["runs"][1]
    assert middle["lr"] == pytest.approx(TRUTH.best_lr(middle["N"], middle["D"]), rel=0.3)
    assert middle["N"] > keep.readings().query("stage == 'ladder'").N.max()
    half, _, double = ([r[k] for k in ("rise_percent", "rise_measured_percent")] for r in found["runs"])
    assert half[0] + double[0] == pytest.approx(half[1] + double[1], rel=0.5)  # the curvature, wherever the minimum is
    assert launch.contrast(asked, keep) == found
    assert len(entries(keep, "counterfactual")) == 3
    assert recommend.recommend(asked, keep) == before  # they are no evidence


def test_a_wrong_lr_is_found_out(copied: tuple[Study, Store]) -> None:
    """Had the recommended lr been twice as high, its half would have been better."""
    asked, keep = copied
    recommend.recommend(asked, keep)
    launch.contrast(asked, keep)
    told = entries(keep, "counterfactual")
    moved = [{**e, "factor": f} for e, f in zip(told[:2], (0.5, 1.0), strict=True)]
    runs = [{**moved[0], "run": told[1]["run"]}, {**moved[1], "run": told[2]["run"]}]
    judged = counterfactual.judged(keep, runs)
    assert judged["best"] == 0.5
    assert not judged["holds"]


def test_what_is_not_affordable_is_refused_with_its_price(copied: tuple[Study, Store]) -> None:
    asked, keep = copied
    with pytest.raises(UserError, match="hours") as e:
        launch.contrast(asked, keep, hours=1e-9)
    assert e.value.key == "--hours"
    assert not entries(keep, "counterfactual")


# the target


def test_the_check_is_in_loss_and_in_compute(copied: tuple[Study, Store]) -> None:
    asked, keep = copied
    told = recommend.recommend(asked, keep)
    launch.train(asked, keep)
    found = forecasts.check(keep, "big")
    assert found["error_compute_percent"] == pytest.approx(worth.compute_percent(told["path"], found["measured"]))
    assert found["error_compute_percent"] * found["error_percent"] > 0
    counted = [r for r in forecasts.every(keep)["forecasts"] if r["kind"] == "target"]
    assert [r["measured"] for r in counted] == [found["measured"]]


def test_only_the_last_forecast_before_the_start_counts(copied: tuple[Study, Store]) -> None:
    asked, keep = copied
    recommend.recommend(asked, keep)
    first = entries(keep, "target")[0]
    skipped = {"registered", "git", "previous", "hash"}
    again = {k: v for k, v in first.items() if k not in {*skipped, "path"}}  # as it was registered before 0.3
    forecasts.register(keep, {**again, "forecast": 9.0, "readings_hash": "other"})
    launch.train(asked, keep)
    kinds: Callable[[], list[str]] = lambda: [  # noqa: E731
        r["status"] for r in forecasts.every(keep)["forecasts"] if r["kind"] == "target"
    ]
    assert kinds() == ["superseded", "complete"]
    found = forecasts.check(keep, "big")
    assert found["forecast"] == 9.0
    assert "error_compute_percent" not in found
