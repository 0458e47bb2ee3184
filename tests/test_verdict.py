"""Verdicts recover what was put in: no drift transfers, a drift has its law, an irregular one does not transfer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tunnel import study
from tunnel.errors import UserError
from tunnel.families.synthetic import TRUTH
from tunnel.folder import store
from tunnel.folder.store import Store
from tunnel.sweeps import sweep
from tunnel.valleys import drift
from tunnel.verdicts import cells, verdict

Array = np.ndarray
GRID = tuple(2 ** (i / 2) for i in range(-3, 4))  # seven values, half an octave apart
H = 0.04  # of log loss per squared log value
SIZES = (32.0, 64.0, 128.0, 256.0)


# drift: the mathematics


def a_cell(top: float, rng: np.random.Generator, noise: float = 0.001, seeds: int = 3, bent: float = 0.0) -> drift.Cell:
    """A valley whose minimum lies `top` octaves from the grid's middle; seeds differ by level, tilt and reading."""
    x = np.log(GRID)
    off = x - top * drift.OCTAVE
    tilted = 5 * noise * rng.normal(size=(seeds, 1)) + noise * rng.normal(size=(seeds, 1)) * x
    return drift.Cell(x, 0.7 + H * off**2 + bent * off**3 + tilted + noise * rng.normal(size=(seeds, len(x))))


def judged(
    cells_: Sequence[drift.Cell], rng: np.random.Generator, limit: float = 0.0
) -> tuple[drift.Along, list[drift.Valley]]:
    noise = drift.noise_of(cells_)
    found = [drift.valley(c, noise, rng) for c in cells_]
    sizes = np.array(SIZES[: len(found)])
    return drift.compared(sizes, found, [limit] * len(found), [f"{s:.0f}" for s in sizes]), found


def lost(octaves: float) -> float:
    """% given away by a value that is so far off."""
    return 100 * math.expm1(H * (octaves * drift.OCTAVE) ** 2)


CASES = {
    "no drift": ((0, 0, 0, 0), 0.0, "transfers"),
    "two sizes": ((0, 0), 0.0, "transfers"),
    "an octave per tenfold": (tuple(0.45 - i * math.log10(2) for i in range(4)), 0.0, "drifts by this law"),
    "irregular": ((0, 0.6, -0.5, 0.3), 0.0, "does not transfer"),
    "back where it was": ((0, 0.7, -0.7, 0), 0.0, "does not transfer"),
    "two sizes apart": ((0.5, -0.5), 0.0, "does not transfer"),
    "a drift below the noise": ((0.2, 0.1, 0.0, -0.1), 0.01, "transfers"),
    "below the grid": ((0, -0.5, -1, -1.6), 0.0, "refused"),
    "above the grid": ((1.7, 1, 0, 0), 0.0, "refused"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seeds", [1, 3])
def test_verdicts(name: str, seeds: int) -> None:
    tops, limit, expected = CASES[name]
    for seed in range(5):
        rng = np.random.default_rng(seed)
        found, _ = judged([a_cell(t, rng, seeds=seeds) for t in tops], rng, limit)
        assert found.verdict == expected, found.reason
        if expected == "refused":
            assert "widen the range" in found.reason
            continue
        assert found.penalty is not None
        assert found.octaves is not None
        at_last = lost(tops[0] - tops[-1])
        worst = max(lost(tops[0] - t) for t in tops)
        assert found.penalty.percent == pytest.approx(worst, abs=0.15 + 0.15 * worst)
        assert found.penalty.high >= found.penalty.percent
        if name == "an octave per tenfold":
            assert found.octaves[0] == pytest.approx(-1, abs=0.15)
            assert found.penalty.percent == pytest.approx(at_last, rel=0.15)


def test_the_upper_bound_and_the_drift_s_interval_hold_the_truth_as_often_as_they_say() -> None:
    """90% of both, with three seeds a cell; noise that tilts a seed's whole valley is in it."""
    tops = (0.45, 0.15, -0.15, -0.45)
    slope = -0.3 / math.log10(2)
    bound = drifted = zero = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        found, _ = judged([a_cell(t, rng, noise=0.002) for t in tops], rng)
        assert found.penalty is not None
        assert found.octaves is not None
        bound += found.penalty.high >= lost(0.9)
        drifted += found.octaves[1] <= slope <= found.octaves[2]
        still, _ = judged([a_cell(0, rng, noise=0.002) for _ in tops], rng)
        zero += still.verdict == "transfers"
    assert 46 <= bound <= 60  # 54 expected
    assert 46 <= drifted <= 60
    assert zero >= 57


def test_too_much_noise_settles_nothing() -> None:
    """Neither shown to transfer nor shown not to: more seeds are asked for."""
    found = set()
    for seed in range(10):
        rng = np.random.default_rng(seed)
        along, _ = judged([a_cell(0, rng, noise=0.02, seeds=2) for _ in SIZES], rng)
        found.add(along.verdict)
        if along.verdict == "refused" and "widen" not in along.reason:
            assert "more seeds would settle it" in along.reason
    assert "transfers" not in found
    assert "refused" in found


def test_a_skewed_valley_drifts_no_more_than_a_round_one() -> None:
    """A parabola misses a skewed valley's minimum, by as much in every cell: half a grid step moves nothing else."""
    for shift in (0.0, 0.125, 0.25):
        rng = np.random.default_rng(0)
        tops = (shift, shift + 0.25)
        _, (a, b) = judged([a_cell(t, rng, noise=1e-6, bent=0.01) for t in tops], rng)
        assert b.best - a.best == pytest.approx(0.25 * drift.OCTAVE, abs=0.02)


def test_a_hill_has_no_minimum() -> None:
    x = np.log(GRID)
    rng = np.random.default_rng(0)
    y = 0.7 - 0.001 * x**2 + 0.02 * np.sin(9 * x)  # least inside, and yet no valley
    cell = drift.Cell(x, y + 0.01 * rng.normal(size=(3, len(x))))
    assert drift.valley(cell, drift.noise_of([cell]), rng).fault


def test_an_edge_that_diverges_is_closed() -> None:
    """The best value may be the largest that survives; without a divergence beyond it the range is too narrow."""
    x = np.log(GRID)
    y = np.tile(0.7 - 0.02 * x, (3, 1))
    rng = np.random.default_rng(0)
    for above, fault in ((False, "edge above"), (True, "no curvature")):
        cell = drift.Cell(x, y, above)
        assert drift.valley(cell, drift.noise_of([cell]), rng).fault == fault
    curved = drift.Cell(x, y + 0.02 * (x - x[-1]) ** 2, True)
    found = drift.valley(curved, drift.noise_of([curved]), rng)
    assert not found.fault
    assert found.best == pytest.approx(x[-1])
    assert found.loses(x[-1] + 0.1, drawn=False)[0] == math.inf


def test_seeds_need_not_have_read_every_value() -> None:
    """A seed's own level is taken out: one that read a single value tilts nothing."""
    x = np.log(GRID)
    y = np.tile(0.7 + H * x**2, (3, 1)) + np.array([[0.0], [0.05], [0.03]])
    y[1:, [0, 1, 2, 4, 5, 6]] = np.nan
    cell = drift.Cell(x, y)
    assert cell.means - cell.means.min() == pytest.approx(H * x**2, abs=1e-9)
    assert cell.count.tolist() == [1, 1, 1, 3, 1, 1, 1]
    found = drift.valley(cell, drift.noise_of([cell]), np.random.default_rng(0))
    assert found.best == pytest.approx(0, abs=1e-6)


# cells: from readings


def readings(best_lr: Callable[[dict[str, float]], float], places: list[dict[str, float]], **more: Any) -> pd.DataFrame:
    """A half-octave grid around 0.01 at each place with three seeds; the loss is a parabola in log lr."""
    rows = []
    for place in places:
        own = {"width": 32, "depth": 2, "D": 1e6, "batch_tokens": 1024, "weight_decay": 0.0, **place}
        seeds = int(own.pop("seeds", 3))
        n = own["depth"] * 12 * own["width"] ** 2
        for lr in (0.01 * g for g in GRID):
            for seed in range(seeds):
                rng = np.random.default_rng([seed, int(1e6 * lr), int(n), int(own["D"])])
                loss = 2 * math.exp(H * math.log(lr / best_lr(own)) ** 2) * (1 + 0.0005 * rng.normal())
                rows.append({**own, "N": n, "lr": lr, "seed": seed, "loss": loss})
    same = {"decay": 0.2, "warmup": 4096, "beta2": 0.95, "half_life": 0.2, "min_ratio": 0.0, "decay_shape": "1-sqrt"}
    frame = pd.DataFrame(rows).assign(**same, status="complete", stage="v", rules="minicpm")
    return frame.assign(**more)


def asked(tmp_path: Path) -> study.Study:
    return study.parse(STUDY, tmp_path / "v.toml")


def judged_by_rule(tmp_path: Path, rows: pd.DataFrame) -> dict[str, Any]:
    [found] = verdict.by_rules(asked(tmp_path), rows).values()
    return found


def test_the_axes_are_separate(tmp_path: Path) -> None:
    """Width holds still, depth drifts by a law, D does something else."""
    widths = [{"width": w} for w in (32, 64, 128)]
    depths = [{"depth": d} for d in (4, 8, 16)]
    tokens = [{"D": d} for d in (5e5, 2e6, 4e6)]
    irregular = {5e5: 0.01, 1e6: 0.01, 2e6: 0.016, 4e6: 0.007}

    def best(p: dict[str, float]) -> float:
        return irregular[p["D"]] * (p["depth"] / 2) ** -0.25

    found = judged_by_rule(tmp_path, readings(best, [*widths, *depths, *tokens]))["lr"]
    assert {a: o["verdict"] for a, o in found["over"].items()} == {
        "width": "transfers",
        "depth": "drifts by this law",
        "D": "does not transfer",
    }
    assert (found["verdict"], found["axis"]) == ("does not transfer", "D")
    depth = found["over"]["depth"]
    assert depth["law"]["b"] == pytest.approx(-0.25, abs=0.04)
    assert math.exp(depth["law"]["a"] + depth["law"]["b"] * math.log(16)) == pytest.approx(0.01 * 8**-0.25, rel=0.05)
    assert [m["at"] for m in depth["minima"]] == [2, 4, 8, 16]
    assert depth["fixed"] == {"width": 32, "D": 1e6, "B": 1024}
    for m in depth["minima"]:
        assert m["low"] < m["best"] < m["high"]
        assert m["best"] == pytest.approx(0.01 * (m["at"] / 2) ** -0.25, rel=0.05)
        assert m["seeds"] == 3
    assert depth["penalty_percent"] == pytest.approx(100 * math.expm1(H * (0.25 * math.log(8)) ** 2), rel=0.15)
    assert depth["penalty_noise"] == pytest.approx(depth["penalty_percent"] / 0.05, rel=0.5)
    floors = [n["floor_percent"] for n in found["noise"]]
    assert np.median(floors) == pytest.approx(0.05, rel=0.3)
    assert {n["seeds"] for n in found["noise"]} == {3}


def test_only_like_is_compared_with_like(tmp_path: Path) -> None:
    """The farthest line answers; another weight decay's readings, whose best lr is another, stay out of it."""
    rows = [{"width": w} for w in (32, 64, 128)] + [{"width": w, "weight_decay": 0.2} for w in (32, 64)]
    frame = readings(lambda p: 0.006 if p["weight_decay"] else 0.01, rows)
    found = judged_by_rule(tmp_path, frame)["lr"]["over"]["width"]
    assert found["verdict"] == "transfers"
    assert [m["best"] for m in found["minima"]] == pytest.approx([0.01] * 3, rel=0.05)
    (other,) = found["lines"]
    assert [m["best"] for m in other["minima"]] == pytest.approx([0.006] * 2, rel=0.05)


def test_lengths_that_batches_round_apart_are_one_length(tmp_path: Path) -> None:
    """lr* over the batch, where every batch has its own D and warmup in whole batches."""
    places = [{"batch_tokens": b, "D": 1_000_000 // b * b, "warmup": 30_000 // b * b} for b in (1024, 2048, 4096)]
    frame = readings(lambda p: 0.006 * (p["batch_tokens"] / 1024) ** 0.5, places)
    frame = frame.assign(warmup=30_000 // frame.batch_tokens * frame.batch_tokens)
    found = judged_by_rule(tmp_path, cells.comparable(frame))["lr"]["over"]
    assert list(found) == ["B"]
    assert found["B"]["verdict"] == "drifts by this law"
    assert found["B"]["law"]["b"] == pytest.approx(0.5, abs=0.05)


def test_another_setting_stands_at_its_best_lr(tmp_path: Path) -> None:
    """The best weight decay holds still over width, though the best lr moves with both."""

    def at(weight_decay: float, width: float) -> pd.DataFrame:
        frame = readings(lambda p: 0.01 * (weight_decay / 0.05) ** -0.3 * (width / 32) ** -0.2, [{"width": width}])
        rise = math.exp(0.05 * math.log(weight_decay / 0.2) ** 2)
        return frame.assign(weight_decay=weight_decay, loss=frame.loss * rise)

    frame = pd.concat([at(wd, w) for wd in (0.05, 0.1, 0.2, 0.4, 0.8) for w in (32, 64, 128)])
    found = judged_by_rule(tmp_path, frame)
    assert set(found) == {"lr", "weight_decay"}
    assert found["weight_decay"]["verdict"] == "transfers"
    assert [m["best"] for m in found["weight_decay"]["over"]["width"]["minima"]] == pytest.approx([0.2] * 3, rel=0.1)
    assert found["lr"]["over"]["width"]["law"]["b"] == pytest.approx(-0.2, abs=0.04)


def test_a_value_that_diverged_is_left_out_and_bounds_lr_max(tmp_path: Path) -> None:
    frame = readings(lambda p: 0.01, [{"width": w} for w in (32, 64)])
    dead = (frame.lr > 0.025) & (frame.seed == 1)
    frame = frame.assign(status=np.where(dead, "diverged", "complete"), loss=frame.loss.where(~dead))
    found = judged_by_rule(tmp_path, frame)["lr"]
    assert found["verdict"] == "transfers"
    assert all(max(m["values"]) < 0.025 for m in found["over"]["width"]["minima"])
    assert found["lr_max"]["status"] == "fitted"
    assert all(s["survives"] < 0.0283 <= s["diverges"] * 1.001 for s in found["lr_max"]["shapes"])


def test_a_value_that_diverges_at_the_larger_size_does_not_transfer(tmp_path: Path) -> None:
    frame = readings(lambda p: 0.01 * 32 / p["width"], [{"width": w} for w in (32, 64)])
    dead = (frame.width == 64) & (frame.lr > 0.0075)
    frame = frame.assign(status=np.where(dead, "diverged", "complete"), loss=frame.loss.where(~dead))
    found = judged_by_rule(tmp_path, frame)["lr"]
    assert found["verdict"] == "does not transfer"
    assert "diverges" in found["reason"]
    assert found["penalty_percent"] is None
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("grid", [1, 2])
def test_too_few_values_are_refused(tmp_path: Path, grid: int) -> None:
    frame = readings(lambda p: 0.01, [{"width": w} for w in (32, 64)])
    found = judged_by_rule(tmp_path, frame[frame.lr.isin(sorted(set(frame.lr))[:grid])])
    assert found == {} if grid == 1 else found["lr"]["verdict"] == "refused"


# the whole way: a study file, a sweep, a verdict

STUDY = """
question = "Does the learning rate transfer?"
family = "synthetic"
[model]
head_dim = 16
base_width = 64
base_depth = 4
seq_len = 128
[train]
lr = 0.012
batch_tokens = 1048576
decay = 0.15
[resources]
backend = "inline"
[[target]]
name = "big"
width = 512
depth = 32
tokens = "256M"
[[stage]]
name = "widths"
kind = "verdict"
shapes = [[64, 4], [128, 4]]
fan = [0.5, 0.707, 1, 1.414, 2]
rungs = { tokens = ["16M", "64M", "256M"] }
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[study.Study, Store, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("verdict")
    path = folder / "widths.toml"
    path.write_text(STUDY)
    asked, keep = sweep.opened(path, folder / "out")
    sweep.sweep(asked, keep)
    return asked, keep, verdict.verdicts(asked, keep)


def test_the_synthetic_truth_comes_out_of_a_study(swept: tuple[study.Study, Store, dict[str, Any]]) -> None:
    found = swept[2]
    assert list(found) == ["lr"]
    lr, per = found["lr"], math.log2(10)
    assert lr["rules"] == "minicpm"
    assert lr["compared"] == {}
    assert lr["coordinates"] is None  # nothing to look into
    over = lr["over"]
    assert over["width"]["verdict"] == "transfers"
    assert over["width"]["low"] - 0.1 < 2 * TRUTH.lr_N * per < over["width"]["high"] + 0.1  # N goes as width²
    assert over["D"]["verdict"] == "drifts by this law"
    assert over["D"]["low"] - 0.02 < TRUTH.lr_D * per < over["D"]["high"] + 0.02
    n = 128**2 * 4 * 11.5
    for m in over["D"]["minima"]:
        assert m["best"] == pytest.approx(TRUTH.best_lr(n, m["at"]), rel=0.05)
        assert m["loss"] == pytest.approx(
            TRUTH.best_loss(n, m["at"]), rel=0.02
        )  # a decay of two batches is not the best
    assert lr["noise"] == []
    assert "seeds at a minimum: 1, where 3 are asked" in lr["reason"]
    assert lr["lr_max"]["status"] == "none diverged"
    assert (lr["verdict"], lr["axis"]) == ("drifts by this law", "D")


def test_it_is_kept_until_the_readings_change(swept: tuple[study.Study, Store, dict[str, Any]]) -> None:
    asked, keep, found = swept
    path = keep.path("verdict.json")
    assert store.read_json(path) == found
    kept = json.loads(path.read_text())
    kept["lr"]["reason"] = "as it was"
    path.write_text(json.dumps(kept))
    assert verdict.verdicts(asked, keep)["lr"]["reason"] == "as it was"
    gone = next(iter(keep.path("records").iterdir()))
    text = gone.read_text()
    gone.unlink()
    try:
        assert verdict.verdicts(asked, keep)["lr"]["reason"] != "as it was"
    finally:
        gone.write_text(text)


def test_a_study_that_read_nothing_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sweep it first"):
        verdict.verdicts(asked(tmp_path), Store(tmp_path))


def test_a_control_of_one_seed_is_held_against_the_noise_of_the_others(tmp_path: Path) -> None:
    """One whose best lr falls with width, too irregularly for a law: shown not to transfer, and no more is asked."""
    own = readings(lambda p: 0.01, [{"width": w} for w in (32, 64, 128)])
    fall = {32: 0.014, 64: 0.0075, 128: 0.0075}
    control = readings(lambda p: fall[int(p["width"])], [{"width": w, "seeds": 1} for w in fall], rules="standard")
    found = verdict.by_rules(asked(tmp_path), pd.concat([own, control]))
    assert found["minicpm"]["lr"]["verdict"] == "transfers"
    assert found["standard"]["lr"]["verdict"] == "does not transfer"
    assert found["standard"]["lr"]["noise"] == verdict.by_rules(asked(tmp_path), own)["minicpm"]["lr"]["noise"]
