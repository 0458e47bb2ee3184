"""The law of active and total parameters, and the table that puts dense bodies and mixtures side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import trunk_spec

from tunnel import laws
from tunnel.answers import comparisons
from tunnel.answers import sparse as answers
from tunnel.backtests import backtest
from tunnel.backtests.rows import ALL
from tunnel.errors import UserError
from tunnel.folder import store
from tunnel.folder.store import Store
from tunnel.laws import chinchilla, sparse
from tunnel.run import Mixture, Record, RunSpec, Stability
from tunnel.table import files

BOTH = ("chinchilla", "sparse")
TRUTH = {"E": 1.2, "A": 60.0, "B": 300.0, "alpha": 0.35, "beta": 0.36}
GRID = np.array(
    [(n, n * r, d) for n in np.geomspace(2e4, 1e6, 5) for r in (1, 2, 4) for d in np.geomspace(1e5, 3e6, 5)]
)


def table(g: float, noise: float = 0.0, rows: np.ndarray = GRID) -> dict[str, np.ndarray]:
    """Readings of a known law; `g`: what an idle expert is worth."""
    n, total, d = rows.T
    loss = TRUTH["E"] + TRUTH["A"] / (n * (total / n) ** g) ** TRUTH["alpha"] + TRUTH["B"] / d ** TRUTH["beta"]
    loss = loss * np.exp(np.random.default_rng(0).normal(0, noise, len(n)))
    return laws.columns({"N": n, "N_total": total, "D": d, "loss": loss, "run": np.arange(len(n))})


@pytest.mark.parametrize("g", [0.1, 0.3, 1.0])
def test_truth_is_recovered(g: float) -> None:
    fit = sparse.fit(table(g))
    assert fit.status == "converged"
    assert fit.params == pytest.approx({**TRUTH, "gamma": g * TRUTH["alpha"]}, rel=1e-6)
    assert sparse.worth(fit.params) == pytest.approx(g)
    assert sparse.predict(fit.params, table(g)) == pytest.approx(table(g)["loss"])
    noisy = table(g, 0.002)
    found = sparse.fit(noisy)
    draws = sparse.refit(noisy, found, np.random.default_rng(1).exponential(size=(100, len(GRID))))
    low, high = np.quantile(draws[:, 5] / draws[:, 3], [0.01, 0.99])
    assert low < g < high


def test_where_only_active_parameters_count_it_is_chinchilla_s_and_says_so() -> None:
    fit, plain = sparse.fit(table(0.0)), chinchilla.fit(table(0.0))
    assert fit.status == "bound hit"
    assert fit.reason.endswith("idle experts show no worth")
    assert sparse.predict(fit.params, table(0.0)) == pytest.approx(
        chinchilla.predict(plain.params, table(0.0)), rel=2e-3
    )


@pytest.mark.parametrize("left_out", ["sparsest", "largest"])
def test_what_is_held_out_is_forecast_by_it_and_by_no_law_of_one_n(left_out: str) -> None:
    readings = table(0.4, 0.001)
    out = readings["N_total"] > 3 * readings["N"] if left_out == "sparsest" else readings["N"] > 3e5
    train, test = laws.take(readings, ~out), laws.take(readings, out)

    def missed(law: Any, n: str) -> float:
        seen, asked = ({**t, "N": t[n]} for t in (train, test))
        return float(np.abs(np.log(law.predict(law.fit(seen).params, asked) / test["loss"])).max())

    assert missed(sparse, "N") < 0.005
    assert min(missed(chinchilla, "N"), missed(chinchilla, "N_total")) > 3 * missed(sparse, "N")


def test_the_choice_is_the_law_that_knows_where_there_are_mixtures() -> None:
    targets = laws.columns({"N": np.array([3e6]), "N_total": np.array([1.2e7]), "D": np.array([3e6])})
    assert backtest.choose(table(0.4, 0.001), targets, among=BOTH, windows=(ALL,)).law == "sparse"


def test_a_table_without_mixtures_is_fitted_as_ever() -> None:
    dense = table(0.0, rows=GRID[GRID[:, 0] == GRID[:, 1]])
    without = {k: v for k, v in dense.items() if k != "N_total"}
    for readings in (dense, without):
        choice = backtest.choose(readings, among=BOTH, windows=(ALL,))
        assert (choice.law, list(choice.rejected)) == ("chinchilla", ["sparse"])
        fit = sparse.fit(readings)
        assert (fit.status, "identify gamma" in fit.reason) == ("too few points", True)
        assert (
            sparse.answers(readings, readings)
            == "the readings have no N_total that is not one and the same multiple of N"
        )
    assert sparse.answers(table(0.3), {"N": dense["N"], "D": dense["D"]}) == "the targets have no N_total"


def test_the_runs_table_may_have_total_parameters(tmp_path: Path) -> None:
    pd.DataFrame(table(0.3)).to_csv(tmp_path / "runs.csv", index=False)
    read = files.as_columns(files.read(tmp_path / "runs.csv"))
    assert sparse.fit(read).params == pytest.approx(sparse.fit(table(0.3)).params)
    pd.DataFrame(table(0.3)).assign(N_total=-1).to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(UserError, match="N_total, row 1: must be above 0; got -1"):
        files.read(tmp_path / "bad.csv")


# bodies side by side

SHARES = ((0.4, 0.3, 0.2, 0.1),)
BODIES = {"dense": "32×2 dense", "scratch": "32×2 2 of 4, from scratch", "upcycled": "32×2 2 of 4, upcycled at 2,560"}


def record(body: str, loss: float, seed: int, flops: float = 1e10, lr: float = 0.01) -> Record:
    """A reading of a dense body, of a mixture from scratch, or of an upcycled one."""
    trunk, sparser = trunk_spec(family="moe", seed=seed, lr=lr), body != "dense"
    start = RunSpec(trunk=trunk, decay_start=2560, decay_tokens=0, decay_shape="1-sqrt")
    if sparser:
        trunk = trunk.replaced(shape=trunk.shape.replaced(mixture=Mixture(experts=4, top_k=2)))
    if body == "upcycled":
        trunk = trunk.replaced(start=start)
    run = RunSpec(trunk=trunk, decay_start=8000, decay_tokens=2240, decay_shape="1-sqrt")
    edge = {"attention_logit": 1.0, "log_partition": 1.0, "clip_rate": 0.0, "spikes": 0, "eps_ratio": 0.1}
    return Record(
        fingerprint_of=run.fingerprint,
        run=run,
        stage=body,
        trial=seed,
        status="complete",
        N=1500 if sparser else 1000,
        N_total=3000 if sparser else None,
        D=run.tokens,
        C=6e7,
        flops=flops,
        loss=loss,
        bpb=loss,
        tokens_trained=run.tokens,
        stability=Stability(update_to_weight={}, expert_load=SHARES if sparser else (), **edge),
        started=store.now(),
        seconds=1.0,
        host="here",
    )


def told(keep: Store, records: list[Record]) -> dict[str, Any] | None:
    for r in records:
        keep.write_record(r)
    asked: Any = None  # a table is of readings alone
    return answers.bodies(asked, keep)


def test_bodies_are_compared_by_seed_at_their_best_lr(tmp_path: Path) -> None:
    """Losses move together by seed, 1% for each; a mixture is 2% better in all of them, so that this shows."""
    noise = {0: 0.0, 1: 0.01, 2: 0.02}
    level = {"dense": 2.0, "scratch": 1.96, "upcycled": 1.98}
    rows = [record(body, at * (1 + noise[s]), s) for body, at in level.items() for s in noise]
    rows += [record("dense", 3.0, s, lr=0.1) for s in noise]  # a worse lr, that nobody should see
    rows += [record("dense", 1.0, 9, flops=1e12)]  # a budget that no mixture has
    found = told(Store(tmp_path), rows)
    assert found is not None
    by = {r["body"]: r for r in found["rows"]}
    assert list(by) == [BODIES[k] for k in ("scratch", "upcycled", "dense")]
    assert [r["% off dense"] for r in by.values()] == [-2.0, -1.0, 0.0]
    first = by[BODIES["scratch"]]
    assert (first["from"], first["to"], first["seeds"], first["N total"]) == (-2.0, -2.0, 3, 3000)
    assert first["busiest expert"] == 1.6
    assert first["low"] < first["loss"] < first["high"]
    assert found["words"] == [
        f"at 1e+10 FLOPs the best mixture, {BODIES['scratch']}, lies 2% below the best dense body, {BODIES['dense']} "
        "(-2 to -2%): a mixture"
    ]


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ([1.9], "5% below the best dense body, 32×2 dense: one seed, no interval"),
        ([1.9, 2.1], "no difference that these seeds show"),
        ([2.2, 2.21], "above the best dense body, 32×2 dense (+"),
    ],
)
def test_an_answer_is_no_surer_than_its_seeds(losses: list[float], says: str, tmp_path: Path) -> None:
    rows = [record("scratch", x, s) for s, x in enumerate(losses)]
    found = told(Store(tmp_path), rows + [record("dense", 2.0, s) for s in range(len(losses))])
    assert found is not None
    assert says in found["words"][0]


def test_without_mixtures_there_is_no_table(tmp_path: Path) -> None:
    asked: Any = None
    keep = Store(tmp_path)
    assert answers.bodies(asked, keep) is answers.law(asked, keep) is None
    assert told(keep, [record("dense", 2.0, s) for s in range(2)]) is None
    assert answers.law(asked, keep) is None
    assert told(keep, [record("scratch", 2.0, 0, flops=5e10)]) is None  # at another budget
    assert {answers.bodies, answers.law} <= set(comparisons.TABLES.values())
