"""The landscape's arithmetic on surfaces whose truth is known, brushes that come back, speed at 10,000 trials."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("plotly")

from dashboard import figures, landscape, landscape_figures, spend, whatif
from dashboard.landscape import Axis

SLOWEST = 0.5 * 3  # seconds for a figure of 10,000 trials: the 0.5, three times for a busy machine
BYTES = 2_800_000  # of a figure: a tenth of what optuna-dashboard sends for such a study (PLATFORM)
SETTINGS = ("lr", "batch_tokens", "decay", "weight_decay", "beta2")


def trials(n: int, noise: float = 0.0, seed: int = 0, **spread: float) -> pd.DataFrame:
    """Log loss is a sum of parabolas, one of each setting, of the given heights; everything else does nothing."""
    rng = np.random.default_rng(seed)
    at = {k: rng.uniform(0, 1, n) for k in SETTINGS}
    log = sum((spread.get(k, 0.0) * ((u - 0.5) ** 2) for k, u in at.items()), np.zeros(n))
    values = {k: 10 ** (3 * u - 4) for k, u in at.items()} | {
        "batch_tokens": (2 ** (8 + 5 * at["batch_tokens"])).round()
    }
    known = {"width": 64, "depth": 4, "D": 1e5, "status": "complete", "stage": "s", "seed": 0}
    loss = 2 * np.exp(log + noise * rng.standard_normal(n))
    return pd.DataFrame(values | known).assign(loss=loss, name=[f"s.{i}" for i in range(n)])


def shares(rows: pd.DataFrame) -> dict[str, landscape.Share]:
    axes = [a for a in landscape.axes_of(rows).values() if a.name != "loss"]
    return {s.name: s for s in landscape.importance(rows, axes)}


# what matters


def test_importance_recovers_the_shares_of_a_known_surface() -> None:
    """Independent parabolas of heights 2 and 1: their variances are as 4 to 1, so 80% and 20%."""
    found = shares(trials(4000, lr=2.0, decay=1.0))
    assert list(found)[:2] == ["lr", "decay"]
    assert found["lr"].value == pytest.approx(0.8, abs=0.03)
    assert found["decay"].value == pytest.approx(0.2, abs=0.03)
    assert all(found[k].value < 0.01 for k in ("beta2", "weight_decay", "batch_tokens"))


def test_importance_of_nothing_is_nothing() -> None:
    means = [np.mean([s.value for s in shares(trials(60, noise=0.1, seed=seed)).values()]) for seed in range(10)]
    assert np.mean(means) < 0.06  # what chance gives is taken off


def test_an_interval_of_importance_holds_what_more_trials_say() -> None:
    """90% of them should; 40 of 60 is where chance would leave it once in 10,000."""
    truth = shares(trials(4000, noise=0.05, lr=0.5))["lr"].value
    inside = 0
    for seed in range(60):
        s = shares(trials(200, noise=0.05, seed=seed, lr=0.5))["lr"]
        inside += s.low <= truth <= s.high
    assert inside >= 40


def test_too_few_trials_have_no_importance() -> None:
    assert shares(trials(9, lr=1.0)) == {}


# a map


@pytest.mark.parametrize("n", [40, 400, 4000])
def test_a_map_has_its_minimum_where_the_surface_has(n: int) -> None:
    rows = trials(n, lr=1.0, batch_tokens=1.0)
    axes = landscape.axes_of(rows)
    found = landscape.smoothed(rows, axes["lr"], axes["batch_tokens"])
    assert found is not None
    j, i = np.unravel_index(np.nanargmin(found.loss), found.loss.shape)
    assert abs(math.log10(found.x[i]) - -2.5) < 0.5
    assert abs(math.log2(found.y[j]) - 10.5) < 0.8
    assert np.nanmin(found.loss) >= rows.loss.min() - 1e-9


def test_a_map_follows_a_plane_exactly_and_says_nothing_far_from_readings() -> None:
    rng = np.random.default_rng(0)
    u, v = rng.uniform(0, 1, (2, 300))
    rows = pd.DataFrame({"lr": 10**u, "decay": 10**v, "loss": np.exp(0.3 * u - 0.2 * v)})
    x, y = (Axis(k, 1.0, 10.0, log=True) for k in ("lr", "decay"))
    found = landscape.smoothed(rows, x, y)
    assert found is not None
    side = np.linspace(0, 1, landscape.GRID)
    plane = np.exp(0.3 * side[None, :] - 0.2 * side[:, None])
    assert np.nanmax(np.abs(found.loss[2:-2, 2:-2] / plane[2:-2, 2:-2] - 1)) < 0.01
    corner = rows[(rows.lr < 3) | (rows.decay < 3)]
    left = landscape.smoothed(corner, x, y)
    assert left is not None
    assert np.isnan(left.loss[-1, -1])
    assert not np.isnan(left.loss[0, 0])


def test_too_few_readings_make_no_map() -> None:
    axes = landscape.axes_of(trials(40))
    assert landscape.smoothed(trials(7), axes["lr"], axes["decay"]) is None
    assert landscape.smoothed(trials(40).assign(lr=0.1), axes["lr"], axes["decay"]) is None


# axes and brushes


def test_only_what_differs_is_an_axis_and_the_loss_is_the_last() -> None:
    rows = trials(20, lr=1.0).assign(decay=0.2, beta2=np.linspace(0.95, 0.951, 20))
    assert list(landscape.axes_of(rows, ["weight_decay"])) == ["weight_decay", "lr", "batch_tokens", "loss"]


def test_an_axis_and_its_values_are_inverses() -> None:
    for a in (Axis("lr", 0.001, 0.1, log=True), Axis("width", 32, 512)):
        at = np.linspace(0, 1, 5)
        assert a.at(pd.Series([a.value(t) for t in at])) == pytest.approx(at)


BRUSHES: list[dict] = [
    {},
    {"lr": (0.001, 0.01)},
    {"lr": (0.001, 0.01), "decay_shape": frozenset({"linear", "1-sqrt"})},
    {"loss": (1.5, 2.5), "decay_shape": frozenset()},
]
AXES = {
    "lr": Axis("lr", 1e-4, 0.1, log=True),
    "decay_shape": Axis("decay_shape", names=("1-sqrt", "linear", "sqrt")),
    "loss": Axis("loss", 1.0, 3.0, log=True),
}


@pytest.mark.parametrize("brush", BRUSHES)
def test_a_brush_comes_back_from_the_address(brush: dict) -> None:
    assert landscape.read(landscape.said(brush), AXES) == brush


@pytest.mark.parametrize(
    "text", ["", "lr", "lr:1", "lr:a:b", "lr:2:1", "nothing:1:2", "lr=linear", "decay_shape:1:2", "lr:nan:nan"]
)
def test_nonsense_in_the_address_brushes_nothing(text: str) -> None:
    found = landscape.read([text], AXES)
    assert not found or found == {"decay_shape": frozenset()}


def test_a_box_over_an_axis_keeps_what_passes_through_it() -> None:
    rows = trials(100, lr=1.0).assign(decay_shape=["linear", "sqrt"] * 50)
    axes = list(landscape.axes_of(rows).values())
    names = [a.name for a in axes]
    i = names.index("lr")
    brush = landscape.brushed([{"x": [i - 0.3, i + 0.3], "y": [0.25, 0.5]}], axes)
    assert list(brush) == ["lr"]
    at = axes[i].at(rows.lr)
    assert (landscape.kept(rows, brush) == ((at >= 0.25) & (at <= 0.5))).all()
    j = names.index("decay_shape")
    both = landscape.brushed([{"x": [i, i], "y": [0, 1]}, {"x": [j - 0.1, j + 0.1], "y": [1.1, 0.6]}], axes)
    assert set(rows[landscape.kept(rows, both)].decay_shape) == {"sqrt"}
    assert landscape.brushed([{"x": [i + 0.1, i + 0.4], "y": [0, 1]}], axes) == {}


# speed


@pytest.fixture(scope="module")
def many() -> pd.DataFrame:
    return trials(10_000, noise=0.1, lr=1.0)


def parallel(rows: pd.DataFrame) -> object:
    axes = landscape.axes_of(rows)
    brush = {"lr": (0.001, 0.05)}
    return landscape_figures.parallel(rows, list(axes.values()), landscape.kept(rows, brush), brush, "loss")


def slices(rows: pd.DataFrame) -> object:
    kinds = [(g.name, g.rows, g.look) for g in landscape_figures.groups(rows, "loss")]
    return figures.searched(rows, list(SETTINGS), {}, "s", kinds)


def contours(rows: pd.DataFrame) -> object:
    axes = landscape.axes_of(rows)
    x, y = axes["lr"], axes["batch_tokens"]
    return landscape_figures.contours(rows, x, y, landscape.smoothed(rows, x, y))


def importance(rows: pd.DataFrame) -> object:
    return landscape_figures.importance(list(shares(rows).values()))


@pytest.mark.parametrize("draw", [parallel, slices, contours, importance])
def test_each_figure_of_ten_thousand_trials_is_fast_and_small(many: pd.DataFrame, draw: Callable) -> None:
    draw(many.head(100))  # plotly's own imports
    start = time.process_time()
    fig = draw(many)
    took = time.process_time() - start
    assert took < SLOWEST
    assert len(fig.to_json()) < BYTES  # type: ignore[attr-defined]


# what a budget buys


PARAMS = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}  # Hoffmann et al. 2022, approach 3
TOLD = {
    "target": {"N": 1e9, "tokens": 2e10, "seconds": 3600.0, "cost": 2.0, "currency": "USD"},
    "path": {"law": "chinchilla", "params": PARAMS, "N": 1e9, "D": 2e10, "share": 0.4},
    "compute_ratio": 100.0,
}


def test_the_target_s_own_budget_buys_the_target() -> None:
    at = spend.spent(TOLD, TOLD["path"], 1.0, None)
    assert (at.N, at.D, at.seconds, at.cost) == pytest.approx((1e9, 2e10, 3600, 2))
    assert at.beyond == pytest.approx(2)


@pytest.mark.parametrize("times", [1 / 64, 1.0, 64.0])
@pytest.mark.parametrize("way", [spend.AS_TARGET, spend.OPTIMAL])
def test_a_budget_is_spent_whole(times: float, way: str) -> None:
    at = spend.spent(TOLD, spend.ways(TOLD, ladder())[way], times, None)
    assert 6 * at.N * at.D == pytest.approx(at.C) == pytest.approx(1.2e20 * times)


def test_no_other_split_of_a_budget_is_better_than_the_optimal_one() -> None:
    at = spend.spent(TOLD, {"law": "chinchilla", "params": PARAMS}, 3.0, None)
    for factor in (0.7, 1.4):
        n, d = at.N * factor, at.D / factor
        other = PARAMS["E"] + PARAMS["A"] / n ** PARAMS["alpha"] + PARAMS["B"] / d ** PARAMS["beta"]
        assert other > at.loss


def test_a_law_without_parameters_is_no_way_to_split() -> None:
    unfitted = ladder() | {"laws": {"chinchilla": {"params": PARAMS | {"A": None}, "reason": "too few"}}}
    assert set(spend.ways(TOLD, unfitted)) == {spend.AS_TARGET}
    assert spend.ways({}, None) == {}


# what another form would have told


def ladder(**params: float) -> dict:
    """A ladder's minima on a known law of N and D."""
    known = PARAMS | params
    minima = []
    for i, n in enumerate((1e6, 3e6, 1e7, 3e7)):
        for d in (2e8, 4e8, 8e8, 1.6e9):
            loss = known["E"] + known["A"] / n ** known["alpha"] + known["B"] / d ** known["beta"]
            minima.append({"N": n, "D": d, "C": 6 * n * d, "loss": loss, "width": 64 * 2**i, "depth": 2 + i})
    curve = [{"N": n, "D": 1.6e9} for n in np.geomspace(1e6, 2e8, 5)]
    return {
        "minima": minima,
        "chosen": "chinchilla",
        "forecast": {"target": "t", "N": 1e8, "D": 1.6e9, "value": 0.0, "low": 0.0, "high": 0.0},
        "curve": curve,
        "surface": {"curved": True},
        "noise": 0.001,
        "laws": {"chinchilla": {"params": known, "reason": ""}},
        "rows": {"window": "all rows", "loss": "Huber 0.001"},
    }


def test_the_right_form_tells_the_truth_whatever_the_loss() -> None:
    truth = PARAMS["E"] + PARAMS["A"] / 1e8 ** PARAMS["alpha"] + PARAMS["B"] / 1.6e9 ** PARAMS["beta"]
    assert "chinchilla" in whatif.able(ladder())[0]
    for t in (whatif.told(ladder(), "chinchilla", loss) for loss in whatif.LOSSES):
        assert t.value == pytest.approx(truth, rel=2e-3), t.loss
        assert t.low < truth < t.high
        assert t.fit is not None
        assert t.fit["forecast"]["value"] == t.value


def test_residuals_of_the_right_form_are_nothing() -> None:
    found = whatif.residuals(ladder(), "chinchilla", "huber")
    assert found is not None
    assert found.used.all()
    assert np.abs(found.percent).max() < 0.1
    one_d = whatif.residuals(ladder(), "size", "huber")
    assert one_d is not None
    assert set(one_d.D) == {1.6e9}


def test_curves_of_equal_compute_have_their_best_in_the_middle() -> None:
    budgets, why = whatif.iso_flop(ladder())
    assert not why
    for b in budgets:
        assert b.N[0] < b.best[0] < b.N[-1]
        assert b.best[1] <= b.loss.min() + 1e-9
    assert whatif.iso_flop(ladder() | {"laws": {}})[0] == []


def test_a_law_that_puts_the_best_size_far_off_splits_no_budget() -> None:
    far = ladder() | {"laws": {"chinchilla": {"params": PARAMS | {"A": 1.0}}}}
    params, why = whatif.splits(far)
    assert params is None
    assert "cannot be told" in why
    assert set(spend.ways(TOLD, far)) == {spend.AS_TARGET}


def test_a_parabola_finds_the_best_size_of_a_budget() -> None:
    n = np.geomspace(1e4, 1e6, 9)
    rows = pd.DataFrame({"N": n, "D": 1e12 / 6 / n, "C": 1e12, "loss": 2 * np.exp(0.01 * np.log(n / 1e5) ** 2)})
    worse = rows.assign(loss=rows.loss * 1.2)
    [found] = whatif.parabolas(pd.concat([rows, worse], ignore_index=True))
    assert found.best[0] == pytest.approx(1e5, rel=0.05)
    assert found.read is not None
    assert set(found.read[1]) <= set(rows.loss)
    assert whatif.parabolas(rows[rows.N < 1e5]) == []


def test_the_loss_that_a_fit_was_made_with_is_known_by_its_words() -> None:
    assert whatif.own_loss(ladder()) == "huber"
    assert whatif.own_loss(ladder() | {"rows": {"window": "all rows", "loss": "least squares"}}) == "squares"
