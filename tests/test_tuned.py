"""What a stage hands on: the last rung decides, ways to decay are compared at their own best."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tunnel import tuned
from tunnel.study import Decay, Stage

LRS = [0.003, 0.006, 0.012, 0.024, 0.048]
SEARCH: dict[str, Any] = {"name": "s", "kind": "search", "space": {"lr": {"low": 1e-3, "high": 0.1}}}
LADDER: dict[str, Any] = {"name": "s", "kind": "ladder", "shapes": ((32, 2), (64, 4)), "fan": (0.5, 1, 2)}


def frame(
    decays: tuple[float, ...] = (0.2,),
    kinds: tuple[str, ...] = ("1-sqrt",),
    shapes: tuple[tuple[int, int], ...] = ((32, 2),),
    lrs: list[float] = LRS,
    trade: float = 0.0,
    **more: Any,
) -> pd.DataFrame:
    """Readings whose best is lr 0.012 at 100k and 0.008 at 400k, decay 0.15, `linear` 1% ahead at its own best lr 0.02.

    A larger shape always reads less; lr 0.012 looks best on the short rung only.
    """
    rows = []
    for w, depth in shapes:
        for lr in lrs:
            for d in (100_352, 400_384):
                for share in decays:
                    for kind in kinds:
                        best = (0.02 if kind == "linear" else 0.012) * (2 / 3 if d > 2e5 else 1)
                        log = 0.6 - 0.05 * math.log(d / 1e5) - 0.1 * math.log(w / 32) - 0.01 * (kind == "linear")
                        log += 0.05 * math.log(lr / best) ** 2 + 0.04 * math.log(share / 0.15) ** 2
                        log += trade * math.log(lr / best) * math.log(share / 0.15)
                        rows.append(
                            {
                                "width": w,
                                "depth": depth,
                                "N": w * w * depth,
                                "lr": lr,
                                "D": d,
                                "decay": share,
                                "decay_shape": kind,
                                "loss": math.exp(log),
                                "run": f"{w} {lr}",
                            }
                        )
    same = {"stage": "s", "status": "complete", "half_life": 1 / 5.5, "min_ratio": 0.0, "warmup": 2048, **more}
    other = {"batch_tokens": 512, "weight_decay": 0.0, "beta2": 0.95, "rules": "minicpm", "seed": 0}
    return pd.DataFrame(rows).assign(**{**other, **same}, fingerprint=[f"f{i}" for i in range(len(rows))])


def test_only_the_last_rung_counts() -> None:
    stage = Stage(**SEARCH, rungs={"tokens": [100_000, 400_000]})
    found = tuned.best(stage, frame())
    assert found["lr"].value == pytest.approx(0.008, rel=1e-3)
    assert len(found["lr"].readings) == len(LRS)
    short = frame()
    short = short[~((short.D > 2e5) & (short.lr < 0.005))]  # a trial that was stopped early
    assert tuned.best(stage, short)["lr"].low >= 0.006  # type: ignore[operator]


def test_rounding_to_batches_leaves_no_reading_out() -> None:
    rows = frame()
    rows.loc[rows.lr == LRS[0], ["batch_tokens", "D"]] = [4096, 401_408]
    assert len(tuned.last_rung(rows)) == len(LRS) + 1  # both readings of the trial that was moved, one of each other


def test_decay_and_lr_are_found_jointly_off_the_same_trunks() -> None:
    stage = Stage(**SEARCH, rungs={"tokens": [400_000]}, decays=[Decay(decay=d) for d in (0.05, 0.1, 0.2, 0.4)])
    lrs = np.geomspace(0.006, 0.06, 5).tolist()  # beside the best, where settings that trade pull each other along
    found = tuned.best(stage, frame(decays=(0.05, 0.1, 0.2, 0.4), lrs=lrs, trade=0.04))
    assert found["lr"].value == pytest.approx(0.008, rel=0.01)
    assert found["decay"].value == pytest.approx(0.15, rel=0.01)
    assert found["decay"].low <= 0.15 * 1.01  # type: ignore[operator]
    assert "20 readings" in found["lr"].source


def test_shapes_of_decay_are_compared_at_their_own_best() -> None:
    """At the grid's middle lr the other one would win: `linear` wants 0.0133 at this rung."""
    decays = [Decay(decay=d, decay_shape=k) for d in (0.1, 0.2) for k in ("1-sqrt", "linear")]
    stage = Stage(**SEARCH, rungs={"tokens": [400_000]}, decays=decays)
    found = tuned.best(stage, frame(decays=(0.1, 0.2), kinds=("1-sqrt", "linear")))
    assert found["decay_shape"].value == "linear"
    assert "1-sqrt is 0.98% behind" in found["decay_shape"].source
    assert found["lr"].value == pytest.approx(0.02 * 2 / 3, rel=0.02)


def test_a_second_best_within_the_noise_is_said() -> None:
    rng = np.random.default_rng(0)
    rows = frame(kinds=("1-sqrt", "cosine"), lrs=np.geomspace(0.003, 0.048, 9).tolist())
    rows["loss"] *= np.exp(rng.normal(0, 0.004, len(rows)))
    stage = Stage(**SEARCH, rungs={"tokens": [400_000]}, decays=[Decay(decay_shape=k) for k in ("1-sqrt", "cosine")])
    assert "within the noise" in tuned.best(stage, rows)["decay_shape"].caution


def test_a_list_hands_on_its_largest_shape_s_best() -> None:
    stage = Stage(**LADDER, space={"weight_decay": [0.0, 0.1]}, rungs={"tokens": [400_000]})
    light, heavy = frame(shapes=((32, 2), (64, 4))), frame(shapes=((32, 2), (64, 4)), weight_decay=0.1)
    heavy["loss"] *= np.where(heavy.width == 64, 0.99, 1.02)  # better on the larger one only
    found = tuned.best(stage, pd.concat([light, heavy], ignore_index=True))
    assert found["weight_decay"].value == 0.1
    assert found["lr"].value == pytest.approx(0.008, rel=1e-3)
    assert set(found) == {"lr", "weight_decay"}


def test_a_batch_is_handed_on_as_it_was_listed() -> None:
    stage = Stage(
        name="s", kind="batch", shapes=((32, 2),), fan=(0.5, 1, 2), batches=(512, 1024), rungs={"tokens": [4e5]}
    )
    more = frame(batch_tokens=1024).assign(loss=lambda f: f.loss * 0.98)
    found = tuned.best(stage, pd.concat([frame(), more], ignore_index=True))
    assert found["batch_tokens"].value == 1024
    assert isinstance(found["batch_tokens"].value, int)


def test_steps_are_kept() -> None:
    space = {"lr": {"low": 1e-3, "high": 0.1}, "batch_tokens": {"low": 512, "high": 4096, "step": 512, "log": False}}
    stage = Stage(name="s", kind="search", space=space, budget={"tokens": 400_000})
    rows = pd.concat(
        [
            frame(batch_tokens=b).assign(loss=lambda f, b=b: f.loss * (1 + 0.01 * math.log(b / 1100) ** 2))
            for b in (512, 1024, 2048, 4096)
        ],
        ignore_index=True,
    )
    assert tuned.best(stage, rows)["batch_tokens"].value == 1024


# a ladder's best ways


def test_each_cell_keeps_its_best_way_and_the_target_gets_the_last_rungs() -> None:
    rows = frame(decays=(0.0499, 0.1002), kinds=("1-sqrt", "linear"), shapes=((32, 2), (64, 4)))
    rows.loc[(rows.D < 2e5) & (rows.decay_shape == "linear"), "loss"] *= 1.05  # worse on the short rung
    kept = tuned.best_ways(rows)
    assert len(kept) == 2 * 2 * len(LRS)
    assert set(kept[kept.D < 2e5].decay_shape) == {"1-sqrt"}
    assert set(kept[kept.D > 2e5].decay_shape) == {"linear"}
    assert set(kept.decay) == {0.1002}
    decays = [Decay(decay=d, decay_shape=k) for d in (0.05, 0.1) for k in ("1-sqrt", "linear")]
    stage = Stage(**LADDER, rungs={"tokens": [100_000, 400_000]}, decays=decays)
    found = tuned.settled(rows, stage)
    assert {k: s.value for k, s in found.items()} == {"decay": 0.1, "decay_shape": "linear"}
    assert tuned.settled(frame(), Stage(**LADDER, rungs={"tokens": [400_000]})) == {}
