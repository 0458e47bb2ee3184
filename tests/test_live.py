"""A running target in its bundle: what a fault does is told near its step, what a ladder's own kind does is not."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY
from test_cli import Call, here
from test_money import hook

from tunnel.answers import counterfactual, forecasts, live, recommend, running
from tunnel.errors import UserError
from tunnel.folder import audit, store
from tunnel.folder.store import Store
from tunnel.run import RunSpec, Trial
from tunnel.study import Study
from tunnel.study.money import Notify
from tunnel.sweeps import alarm, early, launch, sweep
from tunnel.training import forks

__all__ = ["here", "hook"]
KNEE, STEPS, BATCH = 0.8, 240, 1000
SIZES, RUNGS, SEEDS = (3e4, 1e5, 3e5, 9e5), (1e5, 2e5), (0, 1)
TARGET, LONGEST = 4e6, 2e5
INTERVAL = 0.02  # half of the forecast's, of log loss


# simulated ladders


def simulated(n: float, d: float, seed: int, rng: np.random.Generator, lr: float = 1.0) -> live.Curve:
    """A run on a law of N and tokens, whose last tenth falls with its lr; its order of data makes noise in common.

    `lr`: over the best one. Too high it costs loss until the lr has fallen.
    """
    at = (np.arange(STEPS) + 1) / STEPS
    multiplier = np.clip((1 - at) / (1 - KNEE), 0, 1)
    base = 1.2 + 20 / n**0.34 + 12 / (d * at) ** 0.3 + 0.1 * multiplier + 0.08 * math.log(lr) ** 2 * (0.3 + multiplier)
    common = np.random.default_rng([seed, int(d)]).normal(0, 0.02, STEPS)
    loss = base * np.exp(common + rng.normal(0, 0.004) * multiplier + rng.normal(0, 0.004, STEPS))
    return live.Curve(n, d, KNEE * d, 0.05 * d, seed, d * at, loss, float(base[-1] * math.exp(rng.normal(0, 0.002))))


def ladder(rng: np.random.Generator) -> list[live.Curve]:
    return [simulated(n, d, s, rng) for n in SIZES for d in RUNGS for s in SEEDS]


def told(curves: list[live.Curve], run: live.Curve, rng: np.random.Generator | None = None) -> dict[str, Any]:
    """The verdict on a run whose final loss was forecast, with an honest error where there is an `rng`."""
    error = rng.normal(0, INTERVAL / 1.645) if rng else 0.0
    forecast = run.final * math.exp(error)
    seen = replace(run, final=forecast)
    band = live.band(curves, seen, forecast * math.exp(-INTERVAL), forecast * math.exp(INTERVAL))
    return live.judged(band, seen, BATCH)


@pytest.mark.parametrize(("seed", "runs", "most"), [(0, 40, 5), (7, 20, 3)])  # an order of data that the ladder has
def test_runs_of_the_ladder_s_own_kind_stay_inside(seed: int, runs: int, most: int) -> None:
    """At most 1 in 20 is promised, at a size 4 times beyond the ladder's; so many or fewer are 95% and 98% of cases."""
    left = 0
    for i in range(runs):
        rng = np.random.default_rng(i)
        left += told(ladder(rng), simulated(TARGET, LONGEST, seed, rng), rng)["alarm"] is not None
    assert left <= most


FAULTS: dict[str, Callable[[live.Curve, float], np.ndarray]] = {  # by what a curve becomes of from a place on
    "harder data": lambda c, at: np.where(c.tokens > at, 1.06 * c.loss, c.loss),
    "data seen before": lambda c, at: np.where(c.tokens > at, 0.94 * c.loss, c.loss),
    "a slow divergence": lambda c, at: c.loss * np.exp(np.maximum(c.tokens / at - 1, 0) ** 1.0 * 0.6),
    "not a number": lambda c, at: np.where(c.tokens > at, np.nan, c.loss),
}


@pytest.mark.parametrize("where", [0.4, 0.7])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_near_its_step(fault: str, where: float) -> None:
    rng = np.random.default_rng(3)
    curves, run = ladder(rng), simulated(TARGET, LONGEST, 0, rng)
    bad = replace(run, loss=FAULTS[fault](run, where * LONGEST))
    found = told(curves, bad)["alarm"]
    slice_ = LONGEST / live.fineness(curves)
    assert found is not None
    assert where * LONGEST - slice_ < found["tokens"] <= where * LONGEST + (5 if "slow" in fault else 1.01) * slice_
    assert found["step"] == found["tokens"] // BATCH
    assert (found["percent"] > 0) is (fault != "data seen before")


def test_too_high_a_learning_rate_is_told_before_half_of_the_run() -> None:
    rng = np.random.default_rng(5)
    curves = ladder(rng)
    run, best = (simulated(TARGET, LONGEST, 0, rng, lr) for lr in (8.0, 1.0))
    found = told(curves, replace(run, final=best.final))["alarm"]
    assert found is not None
    assert found["tokens"] < LONGEST / 2


@pytest.mark.parametrize("seen", [STEPS, STEPS // 2 + 7])
def test_a_spike_is_no_alarm(seen: int) -> None:
    """One of a whole slice (6 rows) and the next one's first row, at which the run may stand; then all is as before."""
    for i in (4, 5, 6, 8):
        rng = np.random.default_rng(i)
        curves, run = ladder(rng), simulated(TARGET, LONGEST, 0, rng)
        assert STEPS / live.fineness(curves) == 6
        loss = run.loss.copy()
        loss[STEPS // 2 : STEPS // 2 + 7] *= 4
        assert told(curves, replace(run, tokens=run.tokens[:seen], loss=loss[:seen]))["alarm"] is None


def test_units_of_loss_and_names_of_tokens_say_nothing() -> None:
    """Bits instead of nats, and a batch of another size: the same alarm, at the same place."""
    rng = np.random.default_rng(6)
    curves, run = ladder(rng), simulated(TARGET, LONGEST, 0, rng)
    bad = replace(run, loss=FAULTS["harder data"](run, 1e5))
    other = [replace(c, loss=1.44 * c.loss, final=1.44 * c.final, N=7 * c.N) for c in (*curves, bad)]
    one, two = told(curves, bad), told(other[:-1], other[-1])
    assert one["alarm"]["tokens"] == two["alarm"]["tokens"]
    assert one["alarm"]["percent"] == pytest.approx(two["alarm"]["percent"], rel=1e-6)
    assert one["slices"][9]["high"] == pytest.approx(two["slices"][9]["high"] / 1.44, rel=1e-6)


def test_what_was_said_stays_said() -> None:
    """A run that goes on changes nothing of what its slices said: no alarm comes late, or goes away."""
    rng = np.random.default_rng(8)
    curves, run = ladder(rng), simulated(TARGET, LONGEST, 0, rng)
    bad = replace(run, loss=FAULTS["harder data"](run, 1e5))
    raised = []
    for n in range(0, STEPS + 1, 20):
        raised.append(told(curves, replace(bad, tokens=bad.tokens[:n], loss=bad.loss[:n]))["alarm"])
    first = next(i for i, a in enumerate(raised) if a)
    assert raised[:first] == [None] * first
    assert all(a == raised[-1] for a in raised[first:])
    assert first * 20 / STEPS < 0.5 + 3 / live.fineness(curves) + 20 / STEPS


def test_it_is_on_course_for_its_own_final_loss() -> None:
    """The interval of what a run is on course for at 60% holds its final loss, and is narrower than the forecast's."""
    held, narrow = 0, []
    for i in range(30):
        rng = np.random.default_rng(i)
        curves, run = ladder(rng), simulated(TARGET, LONGEST, 0, rng)
        n = int(0.6 * STEPS)
        course = told(curves, replace(run, tokens=run.tokens[:n], loss=run.loss[:n]), rng)["course"]
        held += course["low"] <= run.final <= course["high"]
        narrow.append(math.log(course["high"] / course["low"]) / 2 / INTERVAL)
    assert held >= 24  # 90% of 30, less 2 standard deviations
    assert np.median(narrow) < 0.8


@pytest.mark.parametrize("curves", [0, 3])
def test_of_too_few_curves_there_is_no_bundle(curves: int) -> None:
    rng = np.random.default_rng(1)
    found = told(ladder(rng)[:curves], simulated(TARGET, LONGEST, 0, rng))
    assert found["inside"] is None
    assert found["alarm"] is None
    assert "needs" in found["reason"]


# in a study's folder

OLD = TINY[TINY.index("shapes = [[32, 2], [64, 4]]") :]
NEW = """shapes = [[32, 2], [48, 3], [64, 4], [80, 5]]
fan = [0.5, 1, 2]
rungs = { tokens = ["250k", "500k", "1M"] }
"""


@pytest.fixture(scope="module")
def recommended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Store]:
    """A ladder on the calibration body, with the target's recommendation; read only."""
    folder = tmp_path_factory.mktemp("live")
    path = folder / "tiny.toml"
    path.write_text(
        TINY.replace(OLD, NEW).replace("lr = { low = 1e-3, high = 1e-1 }", "lr = { low = 2e-2, high = 3e-2 }")
    )
    asked, keep = sweep.opened(path, folder / "out")
    sweep.sweep(asked, keep)
    recommend.recommend(asked, keep)
    return asked, keep


@pytest.fixture
def study(recommended: tuple[Study, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Study, Store]:
    """A copy of it, whose target tells much oftener where it is, and is looked at each time."""
    monkeypatch.setattr(forks, "SLICE_SECONDS", 0.02)
    monkeypatch.setattr(alarm, "LOOK_SECONDS", -1.0)
    monkeypatch.setattr(alarm, "SHARE", 1e9)
    return recommended[0], Store(shutil.copytree(recommended[1].root, tmp_path / "out"))


STAMPED = {"registered", "git", "previous", "hash"}  # what the chain adds to a forecast
WRONG = 12.0  # times the recommended lr: the loss rises beyond what the forecast itself leaves open


def spoilt(keep: Store, factor: float = 1.0, min_ratio: float = 0.0) -> RunSpec:
    """Lets the target train at a multiple of its lr, or decay to a part of that."""
    path = keep.path("recommendation.json")
    kept = json.loads(path.read_text())
    kept["run"]["trunk"]["settings"]["lr"] *= factor
    kept["run"]["min_ratio"] = min_ratio
    path.write_text(json.dumps(kept))
    return RunSpec.model_validate(kept["run"])


def test_a_good_target_raises_none(study: tuple[Study, Store]) -> None:
    asked, keep = study
    launch.train(asked, keep)
    assert forecasts.alarms(keep) == {}
    assert running.check(asked, keep)["inside"]
    assert sweep.status(asked, keep)["alarms"] == []


def test_a_bad_target_is_told_once_and_trains_on(
    study: tuple[Study, Store], hook: Any, monkeypatch: pytest.MonkeyPatch, here: Call
) -> None:
    asked, keep = study
    monkeypatch.setenv("HOOK", f"http://127.0.0.1:{hook.server_port}")
    asked = asked.model_copy(update={"notify": Notify(url_env="HOOK")})
    run = spoilt(keep, WRONG)
    launch.train(asked, keep)
    found = forecasts.alarms(keep)[run.fingerprint]
    assert found["text"].startswith("big left")
    assert found["percent"] > 0
    assert found["tokens"] < run.tokens
    assert keep.record(run.fingerprint) is not None, "an alarm stops nothing"
    noted = [line for line in audit.shown(keep.root)["lines"] if line["what"] == "alarmed"]
    assert [line["about"]["run"] for line in noted] == [run.fingerprint]
    (heard,) = (json.loads(body) for _, body in hook.heard)
    assert (heard["event"], heard["text"]) == ("alarm", found["text"])
    code, out, _ = here("status", keep.root)
    assert code == 0
    assert found["text"] in " ".join(out.split())


@pytest.mark.parametrize("ends_at", [0.0, 1.0])
def test_a_decay_off_the_trunk_is_watched_too(study: tuple[Study, Store], ends_at: float) -> None:
    """One whose lr does not fall is told in the decay; the trunk was as good as the other's."""
    asked, keep = study
    run = spoilt(keep, min_ratio=ends_at)
    batch = run.trunk.settings.batch_tokens
    half = run.replaced(decay_start=run.decay_start // 2 // batch * batch)
    list(forks.grow(Trial(stage="other", number=0, runs=(half,)), keep, None))
    told = early.decay_now(asked, keep)
    raised = forecasts.alarms(keep)
    assert set(raised) == ({told["fingerprint_of"]} if ends_at else set())
    for found in raised.values():
        assert found["text"].startswith(f"big, decayed from {half.decay_start:,} tokens on, left its own course")
        assert half.decay_start <= found["tokens"] < told["D"]


@pytest.fixture(scope="module")
def contrasted(recommended: tuple[Study, Store], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The forecasts of a counterfactual."""
    keep = Store(shutil.copytree(recommended[1].root, tmp_path_factory.mktemp("contrast") / "out"))
    return counterfactual.registered(recommended[0], keep, None, None)


@pytest.mark.parametrize("told", [1.0, 0.7])
def test_of_a_counterfactual_the_run_at_the_recommended_lr_is_watched(
    study: tuple[Study, Store], contrasted: list[dict[str, Any]], told: float
) -> None:
    """`told`: of the honest forecasts. At half and double that lr a run may leave the bundle of well-tuned ones."""
    asked, keep = study
    entries = [{k: v for k, v in e.items() if k not in STAMPED} for e in contrasted]
    forecasts.register_all(keep, [{**e, **{k: told * e[k] for k in ("forecast", "low", "high")}} for e in entries])
    launch.contrast(asked, keep)
    (own,) = (e["run"] for e in contrasted if e["factor"] == 1.0)
    assert set(forecasts.alarms(keep)) == (set() if told == 1.0 else {own})


KEYS = {"forecast", "low", "high", "measured", "error_percent", "inside", "compute_ratio", "registered", "started"}


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (WRONG, 1)])
def test_check_says_where_an_unfinished_target_stands(
    study: tuple[Study, Store], here: Call, factor: float, code: int
) -> None:
    asked, keep = study
    with pytest.raises(UserError, match="not finished"):
        running.check(asked, keep)
    run = spoilt(keep, factor)
    launch.train(asked, keep)
    keep.path("records", f"{run.fingerprint}.json").unlink()
    keep.path("curves", f"{run.fingerprint}.parquet").unlink()  # at the end of its trunk
    exit_, out, _ = here("check", keep.root, "--json")
    found = json.loads(out)
    assert exit_ == code
    assert set(found) >= KEYS
    assert found["measured"] is None
    assert found["live"]["progress"] == pytest.approx(run.decay_start / run.tokens, abs=0.02)
    assert found["live"]["inside"] is (code == 0)
    exit_, out, _ = here("check", keep.root)
    assert exit_ == code
    assert ("inside the bundle" if code == 0 else "alarm: big left") in out


def test_before_its_first_row_it_is_too_early(study: tuple[Study, Store]) -> None:
    asked, keep = study
    run = RunSpec.model_validate(recommend.stored(asked, keep)[1]["run"])
    forecasts.begin(keep, "big", run.fingerprint)
    found = running.check(asked, keep)["live"]
    assert (found["inside"], found["tokens"], found["alarm"]) == (None, 0, None)
    assert not keep.path("alarms.json").exists()
    assert store.read_json(keep.path("target.json"))["big"]["run"] == run.fingerprint
