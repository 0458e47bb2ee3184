"""What is proposed next can be asked for, costs what was said, and narrows the interval as a posterior must."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomlkit

from tunnel import families, plan, study
from tunnel.answers import additions, narrowing, next_runs
from tunnel.answers.narrowing import Reading
from tunnel.errors import UserError
from tunnel.folder.store import Store
from tunnel.study import Study
from tunnel.sweeps import sweep
from tunnel.valleys import valley

TEXT = """
question = "Which run next?"
family = "synthetic"
[model]
head_dim = 16
base_width = 32
base_depth = 2
seq_len = 32
[train]
batch_tokens = 32_768
lr = 0.025
[resources]
backend = "inline"
[[target]]
name = "big"
width = 128
depth = 8
tokens = "2M"
[[stage]]
name = "ladder"
kind = "ladder"
shapes = [[32, 2], [48, 3], [64, 4]]
fan = [0.5, 1, 2]
widen = 0
rungs = { tokens = ["250k", "500k", "1M"] }
[small]
"stage.ladder.fan" = [0.5, 1, 2]
"""


def asked_by(text: str = TEXT, small: bool = False) -> Study:
    return study.parse(text, "next.toml", small=small)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Store]:
    """A swept ladder; read only, copied by who goes on with it."""
    path = tmp_path_factory.mktemp("next") / "next.toml"
    path.write_text(TEXT)
    asked, keep = sweep.opened(path, path.parent / "out")
    sweep.sweep(asked, keep)
    return asked, keep


@pytest.fixture(scope="module")
def search(folder: tuple[Study, Store]) -> next_runs.Search:
    return next_runs.Search(*folder)


# what there is


def proposed(text: str = TEXT) -> dict[str, list[str]]:
    asked = asked_by(text)
    found: dict[str, list[str]] = {}
    for a in additions.neighbours(asked, asked.stage[-1], asked.target[0]):
        found.setdefault(a.key, []).append(a.what)
    return found


PER_PARAM = TEXT.replace('tokens = ["250k", "500k", "1M"]', "tokens_per_param = [5, 10]")


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        (TEXT, "seeds", ["seed 1"]),
        (TEXT, "fan", ["lr factor 0.707", "lr factor 1.41", "lr factor 0.25", "lr factor 4"]),
        (
            TEXT,
            "rungs",
            ["rung 354k tokens", "rung 707k tokens", "rung 2M tokens"],
        ),  # the next one is the target's own length
        (TEXT.replace("2M", "1M"), "rungs", ["rung 354k tokens", "rung 707k tokens"]),  # none beyond it
        (TEXT.replace("fan = [0.5, 1, 2]\nwiden", "widen"), "fan", ["lr factor 0.5", "lr factor 2"]),
        (TEXT, "shapes", ["shape 80×5"]),  # 2.4 times 64×4; the one after is more than half of 128×8
    ],
)
def test_the_neighbours_of_a_ladder(text: str, key: str, expected: list[str]) -> None:
    assert proposed(text)[key] == expected


def test_rungs_per_parameter_end_at_the_target_s_own() -> None:
    asked = asked_by(PER_PARAM)
    n = plan.target_trial(asked, asked.target[0], plan.values_of(asked, asked.stage[-1], {}))
    longest = asked.target[0].tokens / families.load("synthetic").count(n.trunk.shape, n.trunk.body)
    assert longest < 5  # so nothing longer is asked for
    assert proposed(PER_PARAM).get("rungs", []) == []


def test_every_neighbour_is_a_revision_that_only_adds_and_fits() -> None:
    asked = asked_by()
    found = list(additions.neighbours(asked, asked.stage[-1], asked.target[0]))
    for a in found:
        assert study.changes(asked, a.study) == ""
        assert plan.plan(a.study)["runs"] > plan.plan(asked)["runs"]
    assert {a.key for a in found} == set(additions.KEYS)


@pytest.mark.parametrize("small", [False, True])
def test_the_lines_told_make_the_study_that_is_meant(small: bool) -> None:
    asked = meant = asked_by(small=small)
    for key in additions.KEYS:
        meant = next(a for a in additions.neighbours(meant, meant.stage[-1], meant.target[0]) if a.key == key).study
    document = tomlkit.parse(TEXT)
    lines = additions.lines(asked, meant, "ladder", small)
    assert len(lines) == len(additions.KEYS)
    ladder: Any = document["stage"][0]
    ladder["budget"] = {"seeds": [0]}
    tables: Any = {"[stage.ladder]": ladder, "[stage.ladder.budget]": ladder["budget"], "[small]": document["small"]}
    for line in lines:
        where, what = line.split("  ")
        key, value = what.split(" = ", 1)
        tables[where][key.strip('"')] = tomlkit.parse(f"x = {value}")["x"]
    assert sum(line.startswith("[small]") for line in lines) == small
    revised = asked_by(tomlkit.dumps(document), small)
    assert revised.stage == meant.stage


# what it costs


def test_they_cost_what_was_told(folder: tuple[Study, Store], search: Any, tmp_path: Path) -> None:
    """Swept together: trunks go on from their forks, and a rung between is passed on the way."""
    _, keep = folder
    chosen: list[next_runs.Option] = []
    for what in ("rung 2M tokens", "rung 707k tokens", "shape 80×5"):
        chosen.append(next(o for o in search.options(*chosen[-1:]) if o.addition.what == what))
    shutil.copytree(keep.root, tmp_path / "copy")
    copy = Store(tmp_path / "copy")
    sweep.sweep(chosen[-1].addition.study, copy)
    before = {r.fingerprint_of for r in keep.records()}
    new = [r for r in copy.records() if r.fingerprint_of not in before]
    assert {r.fingerprint_of for r in new} == {r.fingerprint for o in chosen for r in o.new}
    assert sum(r.tokens_trained for r in new) == sum(o.trained.tokens for o in chosen)
    assert sum(r.tokens_trained * r.flops / r.D for r in new) == pytest.approx(sum(o.trained.flops for o in chosen))
    assert len({o.trained.tokens for o in chosen}) == len(chosen)


def test_a_seed_costs_the_ladder_again_and_a_rung_only_its_new_part(search: Any) -> None:
    by = {o.addition.what: o.trained.tokens for o in search.options()}
    whole = plan.plan(search.asked)["stages"][0]["tokens"]
    assert by["seed 1"] == whole
    assert by["lr factor 4"] == whole / 3
    assert by["rung 2M tokens"] < 9 * 2_000_000 * 0.6  # 0.9M of it were trained


# what it leaves


def known(search: Any, **changed: Any) -> narrowing.Known:
    return replace(search.known, **changed)


def one_number(spread: float) -> Any:
    """Draws of a law that has one unknown: the same everywhere."""
    draws = np.random.default_rng(0).normal(size=(400, 1))
    draws = spread * (draws - draws.mean()) / draws.std()
    return lambda at: np.repeat(draws, len(at["N"]), axis=1)


def readings(lrs: list[float], shapes: int = 1) -> dict[str, np.ndarray]:
    """Readings of new shapes, a fan each, at one rung."""
    rows = [(1e5 * (i + 1), 1e6, 64 + i, 4, lr, 32768.0) for i in range(shapes) for lr in lrs]
    names = ("N", "D", "width", "depth", "lr", "batch_tokens")
    found = dict(zip(names, np.array(rows, float).reshape(-1, len(names)).T, strict=True))
    return {**found, "run": np.array([f"new {i}" for i in range(len(rows))])}


def left(search: Any, extra: dict[str, np.ndarray], spread: float, noise: float, shared: float = 0.0) -> float:
    """The part of the variance that is left of one unknown."""
    one = known(search, log_loss=one_number(spread), noise=noise, shared=shared)
    cells, of = valley.cells_of(extra)
    new = Reading(one, cells, of, np.log(extra["lr"]), np.ones(len(of), bool))
    return new.remaining(one.log_loss, np.full(len(new.at), 3 / noise**2), np.ones(len(new.at), bool))


@pytest.mark.parametrize(("shapes", "ratio"), [(1, 1.0), (2, 1.0), (4, 0.1), (1, 100.0)])
def test_the_posterior_of_one_unknown_is_the_textbook_s(search: Any, shapes: int, ratio: float) -> None:
    """Precisions add: 1/var' = 1/τ² + n·3/σ²."""
    extra = readings([0.01, 0.02, 0.04], shapes)
    expected = 1 / (1 + 3 * shapes * ratio)
    assert left(search, extra, math.sqrt(ratio) * 0.001, 0.001) == pytest.approx(expected, rel=1e-6)


def test_forks_that_share_their_noise_say_less(search: Any) -> None:
    extra = readings([0.01, 0.02, 0.04])
    later = {**extra, "D": extra["D"] * 2}
    both = {k: np.concatenate([extra[k], later[k]]) for k in extra}
    apart, alike = (left(search, both, 0.001, 0.001, shared) for shared in (0.0, 1 - 1e-9))
    assert apart == pytest.approx(1 / 7)
    assert alike == pytest.approx(1 / 4, rel=1e-3)


def test_more_readings_never_widen_and_their_order_is_nothing(search: Any) -> None:
    widths = [narrowing.narrowed(search.known, readings([0.015, 0.025, 0.05], shapes)) for shapes in (0, 1, 2, 3)]
    assert [w.loss for w in widths] == sorted((w.loss for w in widths), reverse=True)
    assert [w.lr for w in widths] == sorted((w.lr for w in widths), reverse=True)
    assert widths[0].loss == search.width.loss
    extra = readings([0.015, 0.025, 0.05], 3)
    backwards = {k: v[::-1] for k, v in extra.items()}
    assert narrowing.narrowed(search.known, backwards).loss == pytest.approx(widths[-1].loss, rel=1e-9)


def test_what_noise_does_not_explain_shrinks_with_the_distance_only(search: Any) -> None:
    more = next(o for o in search.options() if o.addition.what == "seed 1")
    extra = search.useful(more.planned)
    wrong, noisy = (narrowing.narrowed(known(search, explained=s), extra).loss for s in (0.0, 1.0))
    assert noisy < wrong <= search.width.loss


def test_a_rate_that_diverged_is_no_reading(folder: tuple[Study, Store], search: Any) -> None:
    _, keep = folder
    table = keep.readings()
    rows = table[table.stage == "ladder"]
    fast = table.lr > 0.04
    lost = table.assign(status=np.where(fast, "diverged", "complete"), fingerprint=table.fingerprint + "x")
    found = next_runs.useful_of(lost, rows[~fast], "ladder")(search.planned)
    assert found["lr"].max() < 0.04
    assert len(found["lr"]) == int((~fast).sum())


# all of it


def test_the_proposed_come_in_order_and_their_price_is_the_study_s(folder: tuple[Study, Store]) -> None:
    asked, keep = folder
    before = {p: p.stat().st_mtime for p in keep.root.rglob("*") if p.is_file() and "fits" not in p.parts}
    found = next_runs.proposed(asked, keep, 2)
    assert {p: p.stat().st_mtime for p in keep.root.rglob("*") if p.is_file() and "fits" not in p.parts} == before
    assert 1 <= len(found["runs"]) <= 2
    half = found["before"]["half_percent"]
    for row in found["runs"]:
        assert row["before"]["half_percent"] == pytest.approx(half)
        half = row["after"]["half_percent"]
        assert row["gain_percent"] > 0.9 * next_runs.LEAST * row["before"]["half_percent"]
        assert row["seconds"] == row["flops"] / asked.price.pace(asked.train.precision)
    assert found["lines"]


def test_a_ladder_that_is_not_swept_has_nothing_to_narrow(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sweep it first"):
        next_runs.proposed(asked_by(), Store(tmp_path), 1)
