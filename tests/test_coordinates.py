"""The coordinate check by real training: a rule that holds passes, one that does not fails, as the control must."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import trunk_spec

from tunnel.folder.store import Store
from tunnel.training import data
from tunnel.verdicts import coordinates

WIDTHS = [(32, 2), (64, 2), (128, 2), (256, 2)]
DEPTHS = [(32, 2), (32, 4), (32, 8)]
LR = 0.003  # below what a few steps of tiny batches bear
Checked = dict[str, dict[str, Any]]


def check(sizes: Any, corpus: data.Corpus, keep: Store, said: list[str]) -> Checked:
    return coordinates.check(trunk_spec(weight_decay=0.0), LR, sizes, corpus, keep, said.append)


@pytest.fixture(scope="module")
def keep(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("checked"))


def test_a_rule_that_holds_passes_over_width_and_the_control_fails(corpus: data.Corpus, keep: Store) -> None:
    said: list[str] = []
    found = check({"completep": {"width": WIDTHS}}, corpus, keep, said)["completep"]
    assert found["verdict"] == "passes", found["reason"]
    assert found["control"] > coordinates.LEAST_CONTROL
    rows = [r for r in found["over"]["width"]["slopes"] if r["what"] in coordinates.JUDGED]
    assert len(rows) == len(coordinates.JUDGED) * len(coordinates.STEPS)
    assert all(r["low"] < r["slope"] < r["high"] for r in rows)
    assert len(said) == 2  # completep, and the control
    again = check({"completep": {"width": WIDTHS}}, corpus, keep, said)["completep"]
    assert again == found
    assert len(said) == 2  # what was measured is measured once


@pytest.mark.slow
def test_a_width_rule_fails_over_depth_where_the_depth_rule_passes(corpus: data.Corpus, keep: Store) -> None:
    """SCIENCE §3 measured +0.46 and +0.02 over depth 2-32 at step 1."""
    found = check({r: {"width": WIDTHS, "depth": DEPTHS} for r in ("completep", "minicpm")}, corpus, keep, [])
    assert found["completep"]["verdict"] == "passes", found["completep"]["reason"]
    assert found["minicpm"]["verdict"] == "fails"
    first = next(r for r in found["minicpm"]["over"]["depth"]["slopes"] if (r["what"], r["step"]) == ("residual", 1))
    assert first["slope"] == pytest.approx(0.46, abs=0.15)


def test_a_control_that_passes_refuses_the_check() -> None:
    """Where `standard` itself looks stable, the check cannot tell anything."""
    flat, steep = (along(slope) for slope in (0.0, 0.9))
    assert (
        coordinates.judged("minicpm", {"minicpm": {"width": flat}, "standard": {"width": steep}})["verdict"] == "passes"
    )
    told = coordinates.judged("minicpm", {"minicpm": {"width": flat}, "standard": {"width": flat}})
    assert told["verdict"] == "refused"
    assert "the control did not fail" in told["reason"]
    assert coordinates.judged("minicpm", {"minicpm": {}, "standard": {}})["verdict"] == "refused"


def along(slope: float, noise: float = 0.0) -> dict[str, Any]:
    """Three widths at two seeds whose changes go as width^slope, a seed's level being its own."""
    rng = np.random.default_rng(0)
    keys = [(what, step) for what in (*coordinates.JUDGED, "logits") for step in coordinates.STEPS]
    models = [(width, seed) for width in (32, 64, 128) for seed in (0, 1)]
    found = [{k: math.exp(seed + noise * rng.normal()) * width**slope for k in keys} for width, seed in models]
    return coordinates.along([float(w) for w, _ in models], [s for _, s in models], found)


def test_a_slope_that_is_not_settled_is_refused() -> None:
    """Within the band, but with an interval that is not: neither passed nor failed."""
    steep = along(0.9)
    told = coordinates.judged("minicpm", {"minicpm": {"width": along(0.0, noise=0.06)}, "standard": {"width": steep}})
    assert told["verdict"] == "refused"
    assert "not settled" in told["reason"]
    told = coordinates.judged("minicpm", {"minicpm": {"width": along(0.4, noise=0.01)}, "standard": {"width": steep}})
    assert told["verdict"] == "fails"


@pytest.mark.parametrize("slope", [-0.4, 0.0, 0.46])
def test_a_slope_is_found_and_its_interval_holds_it(slope: float) -> None:
    x, seeds = np.log(np.repeat([32, 64, 128, 256], 3)), np.tile([0, 1, 2], 4)
    inside = 0
    for seed in range(60):
        y = slope * x + seeds + 0.05 * np.random.default_rng(seed).normal(size=len(x))
        value, low, high = coordinates.slope(x, y, seeds)
        assert value == pytest.approx(slope, abs=0.15)
        inside += low <= slope <= high
    assert 46 <= inside <= 60  # 54 expected of a 90% interval


def test_a_probe_keeps_all_but_what_the_check_needs() -> None:
    trunk = trunk_spec(lr=0.3, batch_tokens=1024, micro_batch_tokens=512)
    (shape,) = coordinates.affordable(trunk, [(64, 2)])
    probe = coordinates.probe(trunk, 0.01, "completep", shape, 7)
    s = probe.settings
    assert (s.lr, s.warmup, s.batch_tokens, s.micro_batch_tokens) == (0.01, 0, 8 * 32, 8 * 32)
    assert (probe.rules, probe.seed, probe.shape.width, probe.body) == ("completep", 7, 64, trunk.body)
    assert s.weight_decay == trunk.settings.weight_decay


def test_what_costs_too_much_is_left_out() -> None:
    widths = [(32 * 2**i, 2) for i in range(10)]
    chosen = [s.width for s in coordinates.affordable(trunk_spec(), widths)]
    assert len(chosen) == coordinates.MOST_SIZES
    assert chosen[0] == 32
    assert max(chosen) < 32 * 2**9
    assert math.log2(max(chosen)).is_integer()


def test_a_family_without_a_corpus_has_no_check(tmp_path: Path) -> None:
    assert coordinates.check(trunk_spec(family="synthetic"), 0.01, {}, None, Store(tmp_path)) == {}
