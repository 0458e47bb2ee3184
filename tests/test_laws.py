"""The laws: golden numbers, recovered truths, invariances, hostile tables, hold-outs, intervals, optima."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from tunnel import laws
from tunnel.backtests import backtest, intervals
from tunnel.fitting import powers
from tunnel.fitting.models import Norm, Product, Sum
from tunnel.laws import Misfit, chinchilla, frontier, optimum, size

DATA = Path(os.environ.get("TUNNEL_DATA", Path(__file__).parents[2] / "shared" / "data"))

# SCIENCE.md §9: the minimum of each fan's valley, four shapes on one path, and the target that was then
# trained
LADDER_N = {"32x2": 23712, "48x3": 79824, "64x4": 188992, "80x5": 368880}
LADDER_D = (62_500, 125_000, 250_000, 500_000)
LADDER_LOSS = (
    (2.491, 2.353, 2.174, 1.991),
    (2.488, 2.346, 2.138, 1.898),
    (2.506, 2.375, 2.099, 1.818),
    (2.477, 2.288, 2.055, 1.792),
)
TARGET = {"N": np.array([1_509_504.0]), "D": np.array([500_000.0])}
MEASURED = 1.696
OF_LOSS = [name for name in laws.names() if laws.get(name).KIND == "loss"]


def csv(folder: str, name: str) -> np.ndarray:
    path = DATA / folder / name
    if not path.is_file():
        pytest.skip(f"no {path}: set TUNNEL_DATA to the folder of public tables")
    return np.genfromtxt(path, delimiter=",", names=True, dtype=None, encoding="utf-8")


def chinchilla_points(excluded: bool) -> dict[str, np.ndarray]:
    rows = csv("chinchilla_epoch", "chinchilla_epoch.csv")
    rows = rows if excluded else rows[rows["excluded_by_epoch"] == 0]
    return laws.columns({"N": rows["N"], "D": rows["D"], "C": rows["flops"], "loss": rows["loss"]})


def ladder() -> dict[str, np.ndarray]:
    cells = [
        (n, d, loss, i)
        for i, n in enumerate(LADDER_N.values())
        for d, loss in zip(LADDER_D, LADDER_LOSS[i], strict=True)
    ]
    return laws.columns(dict(zip(("N", "D", "loss", "run"), map(np.array, zip(*cells, strict=True)), strict=True)))


def surface(p: dict[str, float], n: np.ndarray, d: np.ndarray) -> np.ndarray:
    return p["E"] + p["A"] / n ** p["alpha"] + p["B"] / d ** p["beta"]


def random_truth(rng: np.random.Generator) -> dict[str, float]:
    """A surface whose three parts are of one order somewhere in the middle of the grid."""
    alpha, beta = rng.uniform(0.15, 0.8, 2)
    return {
        "E": rng.uniform(0.3, 3),
        "A": rng.uniform(0.3, 2) * 1e8**alpha,
        "B": rng.uniform(0.3, 2) * 1e10**beta,
        "alpha": alpha,
        "beta": beta,
    }


def grid(truth: dict[str, float], noise: float = 0.0, seed: int = 0) -> dict[str, np.ndarray]:
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(1e9, 1e11, 6)))
    loss = surface(truth, n, d) * np.exp(np.random.default_rng(seed).normal(0, noise, n.size))
    return laws.columns({"N": n, "D": d, "loss": loss})


TRUTH = {"E": 1.8, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.29}


# --- the fit
# -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("excluded", "n", "best"), [(False, 240, 1.0182741e-3), (True, 245, 1.82602e-3)])
def test_objective_is_the_best_known_on_chinchillas_points(excluded, n, best):
    found = chinchilla.fit(chinchilla_points(excluded), 1e-3)
    assert (found.n, found.status) == (n, "converged")
    assert found.objective <= best


def test_parameters_on_chinchillas_points():
    found = chinchilla.fit(chinchilla_points(False)).params
    golden = {"E": 1.81722, "A": 477.83, "B": 2143.42, "alpha": 0.34731, "beta": 0.36717}  # SCIENCE.md §4
    assert found == pytest.approx(golden, rel=1e-4)


def test_bootstrap_of_chinchillas_points_has_the_published_spread():
    table = chinchilla_points(False)
    draws = intervals.bootstrap("chinchilla", table, chinchilla.fit(table), draws=400).draws
    published = {"E": 0.0257, "alpha": 0.0154, "beta": 0.0206}  # SCIENCE.md §4
    for name, value in published.items():
        assert np.std(draws[:, chinchilla.PARAMS.index(name)]) == pytest.approx(value, rel=0.25), name


def test_larger_runs_are_extrapolated_as_well_as_the_field_does():
    table = chinchilla_points(False)
    small, large = table["C"] <= 1e20, table["C"] > 1e21
    found = chinchilla.fit(laws.take(table, small))
    error = np.abs(np.log(chinchilla.predict(found.params, laws.take(table, large)) / table["loss"][large]))
    assert error.mean() <= 0.016
    assert error.max() <= 0.041  # issue 4


@pytest.mark.parametrize("seed", range(12))
def test_truth_is_recovered_on_random_surfaces(seed):
    truth = random_truth(np.random.default_rng(seed))
    found = chinchilla.fit(grid(truth))
    assert found.status == "converged"
    assert found.params["alpha"] == pytest.approx(truth["alpha"], abs=1e-3)
    assert found.params["beta"] == pytest.approx(truth["beta"], abs=1e-3)
    assert found.params["E"] == pytest.approx(truth["E"], rel=1e-3)


def huber(r: np.ndarray, delta: float) -> np.ndarray:
    return np.where(np.abs(r) <= delta, r**2 / 2, delta * (np.abs(r) - delta / 2))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("delta", [1e-3, 1e-1])
def test_no_other_optimiser_gets_lower(seed, delta):
    truth = random_truth(np.random.default_rng(seed + 50))
    table = grid(truth, noise=0.01, seed=seed)
    found = chinchilla.fit(table, delta)

    def objective(p: np.ndarray) -> float:
        logs = [p[0] + 0 * table["N"], p[1] - p[2] * np.log(table["N"]), p[3] - p[4] * np.log(table["D"])]
        return float(huber(np.log(table["loss"]) - np.logaddexp.reduce(logs), delta).sum())

    own = np.log([found.params["E"], found.params["A"], 1, found.params["B"], 1])
    own[[2, 4]] = found.params["alpha"], found.params["beta"]
    assert objective(own) == pytest.approx(found.objective, rel=1e-9)
    true = [np.log(truth["E"]), np.log(truth["A"]), truth["alpha"], np.log(truth["B"]), truth["beta"]]
    rng = np.random.default_rng(0)
    starts = [own, *(np.array(true) * rng.uniform(0.8, 1.2, 5) for _ in range(6))]
    assert min(minimize(objective, s, method="L-BFGS-B").fun for s in starts) >= found.objective * (1 - 1e-6)


MODELS = {
    "sum": (Sum(2), [0.6, 0.9, 1.1, 0.35, 0.4]),
    "norm": (Norm(), [0.6, 0.9, 0.3, 0.35, 0.4]),
    "product": (Product(), [0.6, 0.9, 1.1, 0.35, 0.4, 0.2]),
    "four, no floor": (Sum(4, False), [0.6, 0.9, 1.1, 0.3, 0.35, 0.4, 0.9, 1.4]),
}


@pytest.mark.parametrize("misfit", [Misfit(5e-3), Misfit(np.inf), Misfit(5e-3, above=0.3)])
@pytest.mark.parametrize("name", MODELS)
def test_derivatives_are_those_of_the_objective(name, misfit):
    rng = np.random.default_rng(3)
    model, theta = MODELS[name][0], np.array([MODELS[name][1]])
    z, w = rng.normal(size=(model.k, 40)), rng.uniform(0.5, 2, 40)
    y = powers.log_loss(model, theta, z)[0] + rng.normal(0, 0.01, 40)

    def at(t: np.ndarray) -> powers.State:
        return powers.evaluate(model, t, z, y, w, misfit)

    step = 1e-7
    for j in range(theta.shape[1]):
        shift = np.zeros_like(theta)
        shift[0, j] = step
        up, down = at(theta + shift), at(theta - shift)
        assert (up.f - down.f) / (2 * step) == pytest.approx(at(theta).g[:, j], rel=1e-4, abs=1e-8)
        assert (up.g - down.g)[0] / (2 * step) == pytest.approx(at(theta).h[0, j], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("law", ["chinchilla", "frontier", "size", "kaplan", "isoflop"])
def test_fit_does_not_depend_on_units_or_row_order(law):
    module, table = laws.get(law), grid(TRUTH, noise=0.003)
    order = np.random.default_rng(1).permutation(len(table["N"]))
    here = module.fit(table)
    shuffled = module.fit(laws.take(table, order))
    billions = module.fit(
        {
            "N": table["N"] / 1e9,
            "D": table["D"] / 1e9,
            "C": table["C"] / 1e18,
            "loss": table["loss"] / np.log(2),
        }
    )
    exponents = [p for p in module.PARAMS if p not in ("E", "A", "B", "G", "K")]
    for other in (shuffled, billions):
        assert other.objective == pytest.approx(here.objective, rel=1e-8)
        assert [other.params[p] for p in exponents] == pytest.approx([here.params[p] for p in exponents], rel=1e-5)
    if "E" in module.PARAMS:
        assert billions.params["E"] == pytest.approx(here.params["E"] / np.log(2), rel=1e-5)


def test_weights_count_as_repeats():
    table = grid(TRUTH, noise=0.003)
    twice = laws.take(table, np.r_[np.arange(36), np.arange(12)])
    weighted = table | {"weight": np.where(np.arange(36) < 12, 2.0, 1.0)}
    assert chinchilla.fit(weighted).objective == pytest.approx(chinchilla.fit(twice).objective, rel=1e-9)
    assert chinchilla.fit(weighted).params == pytest.approx(chinchilla.fit(twice).params, rel=1e-5)


def _points(n, d, loss):
    return {"N": np.asarray(n), "D": np.asarray(d), "loss": np.asarray(loss)}


N9, D9 = np.repeat([1e6, 1e7, 1e8], 3), np.tile([1e8, 1e9, 1e10], 3)
HOSTILE = {
    "nothing": (_points([], [], []), "too few points", "0 rows"),
    "one point": (_points([1e9], [1e10], [2.5]), "too few points", "1 rows"),
    "equal N": (
        _points(np.full(9, 1e9), np.geomspace(1e8, 1e10, 9), np.linspace(3, 2, 9)),
        "too few points",
        "alpha",
    ),
    "equal D": (
        _points(np.geomspace(1e8, 1e10, 9), np.full(9, 1e9), np.linspace(3, 2, 9)),
        "too few points",
        "beta",
    ),
    "equal loss": (_points(N9, D9, np.full(9, 2.0)), "bound hit", "the loss does not fall"),
    "loss rises with N": (_points(N9, D9, 1 + (N9 / 1e6) ** 0.1 + 10 / D9**0.1), "bound hit", "A is zero"),
    "no floor": (_points(N9, D9, 30 / N9**0.2 + 60 / D9**0.2), "bound hit", "E = 0"),
    "NaN and negative rows": (
        _points([np.nan, -1, 1e8], [1e9, 1e9, 1e9], [2, 2, np.inf]),
        "too few points",
        "0 rows",
    ),
    "int64 overflow": (
        _points((N9 * 1000).astype(np.int64), (D9 * 1e7).astype(np.int64), surface(TRUTH, N9 * 1e3, D9 * 1e7)),
        "converged",
        "",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_table_gets_a_status_and_a_reason(case):
    table, status, reason = HOSTILE[case]
    found = chinchilla.fit(table)
    assert found.status == status
    assert reason in found.reason
    assert found.usable == all(np.isfinite(list(found.params.values())))


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("law", sorted(set(laws.names()) - {"chinchilla"}))
def test_no_law_raises_on_a_hostile_table(law, case):
    found = laws.get(law).fit(HOSTILE[case][0])
    assert found.status in laws.STATUSES
    assert found.status == "converged" or found.reason


def test_what_the_data_does_not_identify_is_named_with_its_range():
    """Two levels far apart and one in between under noise cannot tell a small exponent from a large floor."""
    n, d = (v.ravel() for v in np.meshgrid([1e8, 1.5e8, 2e8], np.geomspace(1e9, 1e11, 6)))
    loss = surface(TRUTH, n, d) * np.exp(np.random.default_rng(0).normal(0, 0.01, n.size))
    found = chinchilla.fit(_points(n, d, loss))
    assert found.status in ("flat", "bound hit")
    assert "alpha" in found.reason
    low, high = found.ranges["alpha"]
    assert low < TRUTH["alpha"] < high


def test_a_million_rows_end():
    rng = np.random.default_rng(0)
    n, d = np.exp(rng.uniform(np.log([[1e7], [1e9]]), np.log([[1e10], [1e12]]), (2, 200_000)))
    found = chinchilla.fit(_points(n, d, surface(TRUTH, n, d) * np.exp(rng.normal(0, 0.005, n.size))))
    assert found.params["alpha"] == pytest.approx(TRUTH["alpha"], abs=0.002)


def test_optimal_shape_of_a_budget_is_the_numeric_minimum():
    flops = np.array([1e20, 1e23])
    n, d = chinchilla.optimal(TRUTH, flops)
    assert 6 * n * d == pytest.approx(flops)
    tried = n * np.geomspace(0.5, 2, 2001)[:, None]
    assert tried[surface(TRUTH, tried, flops / 6 / tried).argmin(axis=0), [0, 1]] == pytest.approx(n, rel=1e-3)


def test_minicpms_average_law_gives_its_tokens_per_parameter():
    n, d = chinchilla.optimal({"A": 7.15e-2, "alpha": 0.29, "B": 0.300, "beta": 0.23}, 1e21 / 1e18)  # billions
    assert d / n == pytest.approx(191.87, rel=0.05)  # as printed; 183.9 from the rounded coefficients (SCIENCE.md §4)


# --- the registry
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", laws.names())
def test_every_file_of_the_folder_is_a_law(name):
    law = laws.get(name)
    assert law.__doc__
    assert law.KIND in ("loss", "settings")
    assert {"N", "D"} & set(law.COLUMNS) or "C" in law.COLUMNS
    table = grid(TRUTH) | {
        "lr": np.geomspace(1e-3, 1e-2, 36),
        "batch_tokens": np.tile([1e5, 2e5, 4e5], 12),
        "width": np.tile([128.0, 192.0, 256.0], 12),
        "depth": np.repeat([2.0, 4.0, 8.0], 12),
    }
    table["N_total"] = table["N"] * np.tile([1.0, 2.0], 18)
    found = law.fit(table)
    assert (found.law, tuple(found.params)) == (name, tuple(law.PARAMS))
    assert len(law.predict(found.params, table)) == 36
    if law.KIND == "loss":
        assert law.refit(laws.take(table, law.select(table)), found, np.ones((3, found.n))).shape == (
            3,
            len(law.PARAMS),
        )


def test_the_registry_is_the_folder():
    assert {"chinchilla", "frontier", "size", "optimum"} <= set(laws.names())
    with pytest.raises(KeyError, match="chinchilla"):
        laws.get("backtest")


# --- frontier and size
# -------------------------------------------------------------------------------------------------


def test_frontier_takes_the_best_of_each_budget_that_no_cheaper_one_beats():
    table = {"C": np.array([1e18, 1.01e18, 2e18, 4e18, 8e18]), "loss": np.array([3.0, 2.9, 2.7, 2.8, 2.5])}
    assert frontier.select(table).tolist() == [1, 2, 4]


def test_frontier_answers_only_on_the_readings_path():
    c = np.geomspace(1e18, 1e20, 9)
    table = laws.columns({"N": 0.1 * c**0.5, "D": c**0.5 / 0.6, "loss": 1.8 + 900 * c**-0.16})
    ahead = {"N": np.array([0.1 * 1e22**0.5]), "D": np.array([1e22**0.5 / 0.6])}
    assert frontier.answers(table, ahead) == ""
    assert "path" in frontier.answers(table, {"N": ahead["N"] * 4, "D": ahead["D"] / 4})
    found = frontier.fit(table)
    assert found.params == pytest.approx({"E": 1.8, "A": 900, "a": 0.16}, rel=1e-3)


def test_size_fits_the_rows_at_the_targets_own_length():
    rows = laws.take(ladder(), size.select(ladder(), TARGET))
    found = size.fit(rows, delta=1.0)  # δ beyond every residual: least squares, as SCIENCE.md §9 did
    assert found.params == pytest.approx({"A": 2.97, "a": 0.0399}, rel=0.01)
    assert size.answers(ladder(), TARGET) == ""
    assert "several" in size.answers(ladder(), {"N": np.array([1e6, 1e6]), "D": np.array([5e5, 1e6])})
    assert "0 sizes" in size.answers(ladder(), {"N": np.array([1e6]), "D": np.array([5e6])})


# --- hold-outs and the choice
# ------------------------------------------------------------------------------------------


def test_holdouts_expand_and_leave_out_whole_runs():
    folds = {f.label.split(" ")[0] + str(len(f.test)): f for f in backtest.holdouts(ladder())}
    table = ladder()
    for fold in folds.values():
        assert not set(fold.train) & set(fold.test)
        assert table[fold.axis][fold.train].max() < table[fold.axis][fold.test].min()
        if fold.axis != "D":
            assert not set(table["run"][fold.train]) & set(table["run"][fold.test])
    sizes = {f"{a}{k}" for a in ("N", "D") for k in (4, 8)}  # one level of four left out, then two
    assert sizes <= set(folds)


@pytest.mark.parametrize(
    ("n", "d", "axis"),
    [(10, 1, "N"), (1, 10, "D"), (10, 10, "C"), (10, 2, "N"), (4, 3, "C"), (1, 1, "all"), (0.5, 0.5, "all")],
)
def test_question_asked_by_a_target(n, d, axis):
    table = grid(TRUTH)
    assert (
        backtest.question(table, {"N": table["N"].max(keepdims=True) * n, "D": table["D"].max(keepdims=True) * d})
        == axis
    )


def test_distance_is_in_decades_beyond_the_fit():
    train = laws.columns({"N": [1e7, 1e8], "D": [1e9, 1e10], "loss": [3, 2]})
    ask = {"N": np.array([1e8, 1e9, 1e8, 1e10, 1e5]), "D": np.array([1e10, 1e9, 1e11, 1e12, 1e10])}
    assert backtest.distance(train, ask) == pytest.approx([0, 1, 1, 4, 2])


def test_the_ladder_is_answered_at_its_own_d_and_the_forecast_holds():
    choice = backtest.choose(ladder(), TARGET)
    assert (choice.law, choice.axis) == ("floor", "N")
    assert max(choice.scores["size"], choice.scores["floor"]) < choice.scores["chinchilla"]
    assert {*choice.rejected, "floor"} == set(OF_LOSS)
    assert all(text.endswith(".") for text in choice.rejected.values())
    power = intervals.forecast("size", ladder(), TARGET)
    assert abs(power.value[0] / MEASURED - 1) < 0.01  # SCIENCE §9
    found = intervals.forecast(choice.law, ladder(), TARGET)
    assert found.low[0] < MEASURED < found.high[0]
    assert found.high[0] / found.low[0] < 1.06**2


def test_a_true_surface_is_answered_by_itself():
    table = grid(TRUTH, noise=0.002)
    target = {"N": np.array([1e10]), "D": np.array([1e11])}
    assert backtest.choose(table, target).law == "chinchilla"


@pytest.mark.parametrize(
    "condition",
    [
        "rw|hp=tuned|warmup=short|decay=const|count=standard|val",
        "rw|hp=tuned|warmup=long|decay=const|count=kaplan|train",
    ],
)
def test_porians_tuned_budgets_are_answered_on_their_path(condition):
    points, optima = (
        csv("porian_isoflop", "porian_isoflop_points.csv"),
        csv("porian_isoflop", "porian_published_optima.csv"),
    )
    points = points[(points["condition"] == condition) & (points["flops"] <= 1.7e18)]
    optima = optima[(optima["condition"] == condition) & (optima["flops"] >= 6.3e18)]
    table = laws.columns({"N": points["n"], "D": points["t"], "C": points["flops"], "loss": points["loss"]})
    targets = laws.columns({"N": optima["n_star"], "D": optima["t_star"], "C": optima["flops"]})
    for law in ("frontier", "isoflop"):
        assert laws.get(law).answers(table, targets) == ""
        found = intervals.forecast(law, table, targets)
        error = np.abs(np.log(found.value / optima["loss_star"]))
        assert error.mean() <= 0.005  # issue 4
        assert ((found.low < optima["loss_star"]) & (optima["loss_star"] < found.high)).all()


def test_one_point_is_forecast_by_nobody():
    one = _points([1e9], [1e10], [2.5])
    choice = backtest.choose(one, TARGET)
    assert {*choice.rejected, choice.law} == set(OF_LOSS)
    assert np.isnan(intervals.forecast(choice.law, one, TARGET).value).all()


# --- intervals
# ---------------------------------------------------------------------------------------------------------


def test_intervals_widen_with_distance_and_noise():
    table = grid(TRUTH, noise=0.003)
    targets = {"N": np.geomspace(1e9, 1e12, 7), "D": np.full(7, 1e11)}
    misses = backtest.own_misses("chinchilla", table, targets, "N")
    width = [
        np.log(f.high / f.low)
        for f in (
            intervals.forecast("chinchilla", table, targets, misses=misses, noise=s, draws=100) for s in (0, 0.01)
        )
    ]
    assert (np.diff(width[0]) > 0).all()
    assert (width[1] > width[0]).all()


def test_the_formula_and_its_inputs_give_the_interval():
    found = intervals.forecast("size", ladder(), TARGET, noise=0.002)
    p = found.parts
    far = (p["d0"] + p["d"][0]) / p["d0"]
    inputs = (p["t_p"] * p["s"][0], p["t_h"] * p["c"] * far, p["a"] * p["d"][0], p["z"] * p["noise"])
    half = np.sqrt(sum(part**2 for part in inputs))
    assert found.high[0] == pytest.approx(found.value[0] * np.exp(half))
    assert found.as_dict()["value"] == [found.value[0]]


def test_given_resamples_are_fitted_one_by_one_or_in_a_batch_alike():
    table = ladder()
    rng = np.random.default_rng(0)
    tables = [table | {"loss": table["loss"] * np.exp(rng.normal(0, 0.005, 16))} for _ in range(20)]
    backwards = [laws.take(t, np.arange(16)[::-1]) for t in tables]
    rows = laws.take(table, size.select(table, TARGET))
    found = intervals.bootstrap("size", rows, size.fit(rows), resamples=tables).draws
    alone = np.array([[size.fit(laws.take(t, size.select(t, TARGET))).params[p] for p in size.PARAMS] for t in tables])
    assert found == pytest.approx(alone, rel=1e-4)
    again = intervals.bootstrap("size", rows, size.fit(rows), resamples=iter(backwards)).draws
    assert again == pytest.approx(found)
    # a resample with other rows (a valley lost) is fitted alone, on its rows at the target's D
    fewer = [laws.take(t, t["N"] > 3e4) for t in tables]
    lost = intervals.bootstrap("size", rows, size.fit(rows), resamples=fewer, targets=TARGET).draws
    at = laws.take(fewer[0], size.select(fewer[0], TARGET))
    assert len(at["N"]) == 3
    assert lost[0] == pytest.approx([size.fit(at).params[p] for p in size.PARAMS])


def test_rows_of_one_run_move_together():
    """Four forks of a trunk with one error tell less than four trunks: the interval must know."""
    rng = np.random.default_rng(0)
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e9, 8), np.geomspace(1e9, 1e11, 4), indexing="ij"))
    loss = surface(TRUTH, n, d) * np.exp(np.repeat(rng.normal(0, 0.01, 8), 4))
    table = _points(n, d, loss)
    fit = chinchilla.fit(table)
    spread = [
        np.std(intervals.bootstrap("chinchilla", t, fit, draws=200).draws[:, 0])
        for t in (table, table | {"run": np.repeat(np.arange(8), 4)})
    ]
    assert spread[1] > spread[0] * 1.2


# --- lr and batch
# ------------------------------------------------------------------------------------------------------

STEP = {
    "lr": 1.79,
    "lr_N": -0.713,
    "lr_D": 0.307,
    "batch": 0.58,
    "batch_N": 0.0,
    "batch_D": 0.571,
}  # Step Law, 2503.04715


def valley(n, d, lr, batch, noise=0.0, seed=0):
    best = optimum.predict(STEP, {"N": n, "D": d})
    x, y = np.log(lr / best[:, 0]), np.log(batch / best[:, 1])
    loss = surface(TRUTH, n, d) + 0.03 * x**2 + 0.02 * y**2 - 0.01 * x * y
    loss = loss * np.exp(np.random.default_rng(seed).normal(0, noise, len(n)))
    return laws.columns({"N": n, "D": d, "lr": lr, "batch_tokens": batch, "loss": loss})


def scattered(count, seed, noise=0.001):
    rng = np.random.default_rng(seed)
    n, d = np.exp(rng.uniform(np.log([[1e7], [1e9]]), np.log([[5e8], [5e10]]), (2, count)))
    best = optimum.predict(STEP, {"N": n, "D": d}) * np.exp(rng.uniform(-1.5, 1.5, (count, 2)))
    return valley(n, d, best[:, 0], best[:, 1], noise, seed)


def factorial(noise=0.001):
    axes = ([6e7, 2e8, 5e8], [2e9, 1e10, 5e10], np.geomspace(2e-4, 1.5e-2, 9), np.geomspace(3e4, 2e6, 7))
    return valley(*(v.ravel() for v in np.meshgrid(*axes)), noise=noise)


FAR = {"N": np.array([1e9]), "D": np.array([1e11])}


@pytest.mark.parametrize("table", [scattered(60, 1), scattered(400, 2), factorial()], ids=["few", "many", "cells"])
def test_optimum_is_recovered_beyond_the_table(table):
    found, answer, ranges = optimum.settings(table, FAR, draws=60)
    best = optimum.predict(STEP, FAR)[0]
    assert found.status == "converged"
    assert answer["lr"][0] == pytest.approx(best[0], rel=0.15)
    assert answer["batch_tokens"][0] == pytest.approx(best[1], rel=0.2)
    assert answer["lr_low"][0] < answer["lr"][0] < answer["lr_high"][0]
    assert answer["batch_low"][0] < answer["batch_tokens"][0] < answer["batch_high"][0]
    assert all(low < found.params[name] < high for name, (low, high) in ranges.items())
    assert set(ranges) == set(optimum.PARAMS)
    assert answer["lr_low"][0] * 0.9 < best[0] < answer["lr_high"][0] * 1.1


def test_optimum_does_not_depend_on_units_or_row_order():
    table = scattered(60, 3)
    here = optimum.fit(table)
    order = np.random.default_rng(0).permutation(60)
    scaled = laws.take(table, order) | {
        "lr": table["lr"][order] * 1e3,
        "batch_tokens": table["batch_tokens"][order] / 1e6,
    }
    there = optimum.fit(scaled)
    assert there.params["lr"] == pytest.approx(here.params["lr"] * 1e3, rel=1e-6)
    assert there.params["batch"] == pytest.approx(here.params["batch"] / 1e6, rel=1e-6)
    assert there.params["lr_N"] == pytest.approx(here.params["lr_N"], rel=1e-6)


def test_a_setting_that_does_not_vary_keeps_its_value():
    table = scattered(60, 4)
    fixed = valley(table["N"], table["D"], table["lr"], np.full(60, 2.0**19))
    found, answer, _ = optimum.settings(fixed, FAR, draws=20)
    assert "batch_tokens does not vary" in found.reason
    assert [answer[k][0] for k in ("batch_tokens", "batch_low", "batch_high")] == pytest.approx([2.0**19] * 3)


def bowl(table):
    """A valley in the batch alone."""
    return 0.02 * np.log(table["batch_tokens"] / optimum.predict(STEP, table)[:, 1]) ** 2


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"lr": lambda t: t["lr"] * 0 + 1e-3, "batch_tokens": lambda t: t["lr"] * 0 + 1e5}, "too few points"),
        ({"loss": lambda t: surface(TRUTH, t["N"], t["D"]) - 0.03 * np.log(t["lr"] * 1e3) ** 2 / 9}, "flat"),
        (
            {"loss": lambda t: surface(TRUTH, t["N"], t["D"]) + 0.01 * np.log(t["lr"] / 1e3) ** 2 + bowl(t)},
            "bound hit",
        ),
    ],
    ids=["nothing varies", "a ridge", "outside the range"],
)
def test_optimum_says_where_there_is_none(change, status):
    table = scattered(60, 5)
    found = optimum.fit(table | {name: f(table) for name, f in change.items()})
    assert found.status == status
    assert found.reason
