"""Where a budget goes: closed form against numeric minimum, serving, counts, aspect, intervals; the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tunnel import cli, laws
from tunnel.answers import budget
from tunnel.errors import UserError
from tunnel.laws import chinchilla, fan, kaplan
from tunnel.sweeps import sweep
from tunnel.valleys import allocate
from tunnel.valleys.allocate import Budget, Count

TRUTH = {"E": 1.8, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.29}
MINICPM = {"E": 0.31, "A": 7.15e-2, "alpha": 0.29, "B": 0.300, "beta": 0.23}  # N, D in billions, C in 1e18 FLOPs


def grid(noise=2e-3, seed=0, per=1.0, n=5):
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e9, n), np.geomspace(1e9, 1e11, n)))
    loss = chinchilla.predict(TRUTH, {"N": n, "D": d}) * np.exp(np.random.default_rng(seed).normal(0, noise, n.size))
    return laws.columns({"N": n, "D": d, "C": 6 * n * d * per, "loss": loss})


# --- trained


@pytest.mark.parametrize("flops", [1e18, 1e21, 5.76e23])
def test_the_closed_form_is_the_numeric_minimum(flops):
    closed = allocate.trained("chinchilla", TRUTH, flops)
    numeric = allocate.least(lambda n: allocate.loss_of("chinchilla", TRUTH, n, flops / 6 / n), (flops / 6) ** 0.5)
    assert numeric == pytest.approx(closed.N, rel=1e-4)
    assert pytest.approx(flops) == 6 * closed.N * closed.D
    almost = allocate.trained("chinchilla", TRUTH, flops, Count(1e-12))  # the numeric way, at the same count
    assert (almost.N, almost.loss) == pytest.approx((closed.N, closed.loss), rel=1e-4)


def test_minicpms_average_law_gives_its_tokens_per_parameter():
    best = allocate.trained("chinchilla", MINICPM, 1e21 / 1e18)
    assert pytest.approx(183.9, rel=1e-3) == best.D / best.N  # from the rounded coefficients; SCIENCE.md §4
    assert pytest.approx(191.87, rel=0.05) == best.D / best.N  # as printed


def test_chinchillas_law_at_gophers_budget_is_its_authors_finding():
    published = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}  # SCIENCE.md §4
    best = allocate.trained("chinchilla", published, 5.76e23)
    assert 15 < best.D / best.N < 25  # about 20 tokens per parameter: 70B and 1.4T (arXiv 2203.15556)
    assert 6e10 < best.N < 8e10


@pytest.mark.parametrize("law", ["kaplan", "fan"])
def test_other_laws_are_split_numerically(law):
    params = {
        "kaplan": {"E": 1.5, "A": 1e10, "B": 3e10, "alpha": 0.35, "beta": 0.3},
        "fan": TRUTH | {"h": 0.05, "lr": 0.05, "lr_N": -0.3, "lr_D": 0.0, "lr_B": 0.0, "batch": 1.0},
    }[law]
    best = allocate.trained(law, params, 1e21)
    near = best.N * np.array([0.9, 1.0, 1.1])
    loss = {"kaplan": kaplan, "fan": fan}[law].predict(params, {"N": near, "D": 1e21 / 6 / near})
    assert loss.argmin() == 1
    if law == "fan":  # at its best lr it is chinchilla
        assert pytest.approx(allocate.trained("chinchilla", TRUTH, 1e21).N, rel=1e-3) == best.N


def test_no_optimum_is_nan_not_a_number():
    rising = TRUTH | {"alpha": 1e-3}  # parameters buy next to nothing at any size: the smallest is best
    assert np.isnan(allocate.trained("kaplan", rising | {"A": 0.0}, 1e21).N)
    assert np.isnan(allocate.least(lambda n: n, 1e9))
    assert np.isnan(allocate.least(lambda n: n, float("nan")))


# --- counts and serving


def test_a_count_is_recovered_from_the_readings_own_flops():
    table = grid()
    own = Count(40.0, 0.37)
    told = allocate.counted(table | {"C": own.token(table["N"]) * table["D"]})
    assert (told.k, told.m) == pytest.approx((own.k, own.m), rel=1e-6)
    assert allocate.counted(table) == allocate.SIX
    assert allocate.counted(grid(per=1.4)).token(np.array([1e8])) == pytest.approx(6 * 1.4 * 1e8)


def test_what_is_overhead_in_small_models_makes_the_best_model_larger():
    six, full = (allocate.trained("chinchilla", TRUTH, 1e19, c) for c in (allocate.SIX, Count(1e5, 0.6)))
    assert full.N > six.N
    assert full.loss > six.loss
    assert full.training == pytest.approx(float(Count(1e5, 0.6).token(np.array(full.N))) * full.D)


@pytest.mark.parametrize("tokens", [1e10, 1e12, 1e14])
def test_a_model_that_serves_is_smaller_trained_longer_and_cheapest_in_all(tokens):
    flops = 1e21
    best, own = allocate.trained("chinchilla", TRUTH, flops), allocate.served("chinchilla", TRUTH, flops, tokens)
    assert own.N < best.N
    assert own.D > best.D
    assert chinchilla.predict(TRUTH, {"N": [own.N], "D": [own.D]})[0] == pytest.approx(best.loss, rel=1e-6)
    assert own.training == pytest.approx(6 * own.N * own.D)
    assert own.inference == pytest.approx(2 * own.N * tokens)
    room = best.loss - TRUTH["E"]
    for n in own.N * np.array([0.8, 0.95, 1.05, 1.3]):  # the D of equal loss, in closed form: nothing is cheaper
        left = room - TRUTH["A"] / n ** TRUTH["alpha"]
        d = (TRUTH["B"] / left) ** (1 / TRUTH["beta"]) if left > 0 else np.inf
        assert 6 * n * d + 2 * n * tokens > own.training + own.inference


def test_serving_nothing_much_is_training_alone():
    best, own = allocate.trained("chinchilla", TRUTH, 1e21), allocate.served("chinchilla", TRUTH, 1e21, 1.0)
    assert pytest.approx((best.N, best.D), rel=1e-3) == (own.N, own.D)


# --- width against depth


def shapes(best=64.0, noise=1e-3, seed=0, off=(0.3, 0.6, 1, 1.7, 3), drift=0.0):
    """Readings of four sizes at several aspects about their middle, whose best is best·(N/1e8)^drift."""
    rng = np.random.default_rng(seed)
    rows = [(n, d, 40.0 * (n / 1e7) ** 0.15 * k) for n in (1e7, 3e7, 1e8, 3e8) for k in off for d in (1e9, 4e9, 1.6e10)]
    n, d, aspect = np.array(rows).T
    depth = (n / (12 * aspect**2)) ** (1 / 3)
    n = n * np.exp(rng.normal(0, 0.02, len(n)))  # shapes are never quite of equal N
    rise = 0.01 * np.log(aspect / (best * (n / 1e8) ** drift)) ** 2
    loss = chinchilla.predict(TRUTH, {"N": n, "D": d}) * np.exp(rise + rng.normal(0, noise, len(n)))
    run = np.unique(depth, return_inverse=True)[1]
    return {"N": n, "D": d, "loss": loss, "width": aspect * depth, "depth": depth, "run": run}


@pytest.mark.parametrize("drift", [0.0, 0.2])
def test_the_best_aspect_is_recovered_at_the_size_asked(drift):
    found = allocate.aspect("chinchilla", TRUTH, shapes(drift=drift), 3e8)
    truth = 64 * 3**drift
    assert found["status"] == "converged"
    assert 0.97 * found["aspect"]["low"] < truth < 1.03 * found["aspect"]["high"]
    assert found["aspect"]["value"] == pytest.approx(truth, rel=0.1)
    assert found["width"] / found["depth"] == pytest.approx(found["aspect"]["value"])
    assert 12 * found["width"] ** 2 * found["depth"] == pytest.approx(3e8, rel=0.05)


@pytest.mark.parametrize(
    ("changed", "status", "reason"),
    [
        ({"off": (1,)}, "flat", "one aspect"),
        ({"best": 3000.0, "noise": 1e-4}, "bound hit", "widen"),
    ],
)
def test_an_aspect_that_the_readings_do_not_show_is_said(changed, status, reason):
    found = allocate.aspect("chinchilla", TRUTH, shapes(**changed), 1e8)
    assert (found["status"], reason in found["reason"]) == (status, True)


def test_no_widths_no_aspect():
    assert allocate.aspect("chinchilla", TRUTH, grid(), 1e8)["status"] == "too few points"


# --- the answer


def test_intervals_hold_the_truth_and_the_splits_agree():
    told = allocate.optimal("chinchilla", grid(per=1.4), Budget(1e21, 1e12), draws=60)
    assert told["status"] == "converged"
    six, own, serving = told["splits"]
    assert (six["count"], own["count"]) == ("6·N·D", "6·N·(1 + 0.4·N^-0)·D")
    truth = allocate.trained("chinchilla", TRUTH, 1e21)
    for k, value in (("N", truth.N), ("D", truth.D), ("tokens_per_parameter", truth.D / truth.N)):
        assert six[k]["low"] < value < six[k]["high"]
        assert six[k]["high"] / six[k]["low"] < 4
    assert six["loss"]["low"] < truth.loss < six["loss"]["high"]
    assert serving["N"]["value"] < own["N"]["value"] < six["N"]["value"]
    assert serving["saved_percent"] > 0
    json.dumps(told, allow_nan=False)


def test_a_law_that_cannot_split_gives_way_to_one_that_can():
    cannot = {name for name in laws.names() if allocate.answers(name)}
    assert {"size", "floor", "frontier", "shape", "isoflop", "optimum"} == cannot
    told = allocate.optimal("size", grid(n=4), Budget(1e21), draws=20)
    assert told["law"] == "chinchilla"
    assert "size" in told["instead"]


def test_too_few_readings_have_no_optimum():
    told = allocate.optimal("chinchilla", laws.take(grid(), np.arange(3)), Budget(1e21))
    assert (told["status"], told["splits"]) == ("too few points", [])


# --- the command line


def tunnel(*args: object) -> tuple[int, str, str]:
    out = CliRunner().invoke(cli.app, list(map(str, args)))
    return out.exit_code, out.stdout, str(out.exception or "")


def test_fit_takes_a_budget_of_a_table(tmp_path: Path):
    table = grid()
    rows = "\n".join(f"{n},{d},{loss}" for n, d, loss in zip(table["N"], table["D"], table["loss"], strict=True))
    (tmp_path / "runs.csv").write_text(f"N,D,loss\n{rows}\n")
    fit = ("fit", tmp_path / "runs.csv", "--law", "chinchilla")
    code, out, _ = tunnel(*fit, "--budget", "1e21", "--json")
    assert code == 0
    told = json.loads(out)["optimal"]
    assert (told["flops"], told["inference_tokens"]) == (1e21, 0)
    assert told["splits"][0]["N"]["value"] == pytest.approx(allocate.trained("chinchilla", TRUTH, 1e21).N, rel=0.2)


@pytest.mark.parametrize(
    ("flops", "inference", "key"),
    [
        (-1.0, None, "--budget"),
        (float("nan"), None, "--budget"),
        (float("inf"), None, "--budget"),
        (None, "2T", "--budget"),
        (1e21, "many", "--inference"),
        (1e21, "-3", "--inference"),
        (1e21, "inf", "--inference"),
    ],
)
def test_a_wrong_budget_is_one_line(flops, inference, key):
    with pytest.raises(UserError, match=key):
        budget.asked(flops, inference)


def test_no_budget_is_none_and_an_optimum_of_settings_has_none(tmp_path: Path):
    assert budget.asked(None, None) is None
    assert budget.asked(1e21, "1.5T") == Budget(1e21, 1.5e12)
    (tmp_path / "runs.csv").write_text("N,D,loss\n1e6,1e8,3\n")
    code, _, error = tunnel("fit", tmp_path / "runs.csv", "--law", "optimum", "--budget", "1e21")
    assert (code, "--budget" in error) == (1, True)  # main() makes it 2: tests/test_cli.py


@pytest.mark.slow
def test_fit_takes_a_budget_of_a_study(study_file: Callable[..., Path], tmp_path: Path):
    path = study_file(
        ("shapes = [[32, 2], [64, 4]]", "shapes = [[32, 2], [48, 3], [64, 4], [96, 6]]"),
        ('["50k", "100k"]', '["50k", "100k", "200k", "400k"]'),
        ("lr = { low = 1e-3, high = 1e-1 }", "lr = { low = 1.5e-2, high = 2.5e-2 }"),
    )
    asked, keep = sweep.opened(path, tmp_path / "out")
    sweep.sweep(asked, keep)
    code, out, error = tunnel("fit", keep.root, "--budget", "1e13", "--json")
    assert code == 0, error
    found = json.loads(out)
    assert "minima" in found
    counts = [s["count"] for s in found["optimal"]["splits"]]
    assert counts[0] == "6·N·D"
    assert "N^-" in counts[1]  # as the readings were counted: attention and readout too
    assert "optimal" not in json.loads(tunnel("fit", keep.root, "--json")[1])
    assert "Best splits" in tunnel("fit", keep.root, "--budget", "1e13")[1]
