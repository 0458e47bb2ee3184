"""A run is a value: identity, lengths, and the way to JSON and back."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from conftest import BATCH, run_spec, trunk_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.run import Joined, RunSpec, Trial, TrunkSpec, fingerprint

TRUNK = trunk_spec()
RUN = run_spec(TRUNK, 8, 2)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def reversed_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: reversed_keys(v) for k, v in reversed(value.items())}
    return [reversed_keys(v) for v in value] if isinstance(value, list) else value


@settings(max_examples=40, deadline=None)
@given(json_values)
def test_a_fingerprint_is_blind_to_the_order_of_keys(value: Any) -> None:
    assert fingerprint(value) == fingerprint(reversed_keys(value))


@pytest.mark.parametrize(
    "other",
    [
        trunk_spec(seed=1),
        trunk_spec(lr=0.011),
        trunk_spec(shape=(48, 2)),
        trunk_spec(rules="completep"),
        trunk_spec(kv_heads=1),
        trunk_spec(eval_tokens=1024),
        trunk_spec(micro_batch_tokens=BATCH // 2),
        TRUNK.model_copy(update={"source": TRUNK.source.model_copy(update={"corpus_hash": "changed"})}),
    ],
)
def test_whatever_shapes_a_trunk_is_in_its_identity(other: TrunkSpec) -> None:
    assert other.fingerprint != TRUNK.fingerprint


def test_what_a_later_version_added_is_no_part_of_an_older_identity() -> None:
    """Golden: fingerprints of 0.1, so that its folders go on."""
    assert (TRUNK.fingerprint, RUN.fingerprint) == ("a01014b974988607", "b2b6a59ea9698b77")
    assert trunk_spec(dropout=0.1).fingerprint != TRUNK.fingerprint
    assert RUN.replaced(half_life=0.3).fingerprint != RUN.fingerprint
    assert RUN.replaced(half_life=1 / 5.5).fingerprint == RUN.fingerprint


def test_data_that_joins_later_has_not_shaped_what_came_before() -> None:
    joined = Joined(at=500, share=0.5, source=TRUNK.source.replaced(corpus_hash="new"))
    trunk = TRUNK.replaced(source=TRUNK.source.replaced(then=(joined,)))
    assert trunk.until(500).fingerprint == TRUNK.fingerprint
    assert trunk.until(501) == trunk
    assert trunk.fingerprint != TRUNK.fingerprint


def test_a_trunk_has_no_length_and_its_forks_have_their_own() -> None:
    runs = [
        RUN,
        run_spec(TRUNK, 8, 3),
        run_spec(TRUNK, 9, 2),
        run_spec(TRUNK, 8, 2, "linear"),
        run_spec(TRUNK, 8, 2, min_ratio=0.1),
    ]
    assert len({r.fingerprint for r in runs}) == len(runs)
    assert len({r.trunk.fingerprint for r in runs}) == 1


def test_specs_come_back_from_json_as_they_were() -> None:
    assert RunSpec.model_validate_json(RUN.model_dump_json()) == RUN
    trial = Trial(stage="s", number=3, runs=(RUN,))
    again = Trial.model_validate_json(trial.model_dump_json())
    assert (again, again.runs[0].fingerprint) == (trial, RUN.fingerprint)


def test_a_fingerprint_is_the_same_in_another_process() -> None:
    code = "import sys; from tunnel.run import RunSpec; print(RunSpec.model_validate_json(sys.argv[1]).fingerprint)"
    out = subprocess.run(
        [sys.executable, "-c", code, RUN.model_dump_json()], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == RUN.fingerprint


def test_a_spec_is_frozen_and_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RUN.decay_tokens = 1  # type: ignore[misc]
    with pytest.raises(ValueError, match="Extra inputs"):
        RunSpec.model_validate({**RUN.model_dump(), "epochs": 1})


@pytest.mark.parametrize(
    ("rungs", "decay", "share"),  # shares of the tokens from scratch: SCIENCE §1, forks
    [
        (range(100, 1100, 100), 0.1, 0.264),
        (range(100, 1100, 100), 0.2, 0.345),
        (range(100, 700, 100), 0.2, 0.43),
        ([100, 200, 400, 800, 1600], 0.1, 0.565),
        ([100, 200, 400, 800, 1600], 0.2, 0.613),
    ],
)
def test_what_a_shared_trunk_saves(rungs: Any, decay: float, share: float) -> None:
    runs = tuple(run_spec(TRUNK, d - round(decay * d), round(decay * d)) for d in rungs)
    trial = Trial(stage="s", number=0, runs=runs)
    assert trial.trained / trial.from_scratch == pytest.approx(share, abs=0.0015)
    assert trial.from_scratch == sum(rungs) * BATCH
