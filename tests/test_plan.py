"""What would run and what it would cost, against the arithmetic of the science; nothing is started or fetched."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import TINY, TRAINED

from tunnel import families, plan, study
from tunnel.errors import UserError
from tunnel.run import Shape

STUDIES = Path(__file__).parent.parent / "studies"
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def minicpm() -> dict[str, Any]:
    """The plan of the paper's study, made without a network."""

    def refused(*_: object) -> None:
        raise AssertionError("plan touched the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refused)
        return plan.plan(study.load(STUDIES / "minicpm.toml"))


def by_name(planned: dict[str, Any], name: str) -> dict[str, Any]:
    return next(s for s in planned["stages"] + planned["targets"] if s["name"] == name)


# the paper's wind tunnel

PROXIES = {  # width, depth: N by L·(4·d² + 7.5·d²) + (2L + 1)·d, worked by hand  *derived*
    (320, 8): 9_426_240,
    (512, 12): 36_188_672,
    (640, 14): 65_964_160,
    (768, 16): 108_552_960,
    (896, 18): 166_216_064,
    (1024, 20): 241_214_464,
    (1344, 24): 498_614_592,
}


def test_every_proxy_of_the_paper_is_planned_with_its_count(minicpm: dict[str, Any]) -> None:
    found = {(s["width"], s["depth"]): s["N"] for stage in minicpm["stages"] for s in stage["shapes"]}
    assert found == PROXIES


@pytest.mark.parametrize(("name", "n"), [("1.2B", 1_247_442_432), ("2.4B", 2_442_057_984)])
def test_targets_have_the_published_counts(minicpm: dict[str, Any], name: str, n: int) -> None:
    [shape] = by_name(minicpm, name)["shapes"]
    assert shape["N"] == n
    assert shape["D"] == pytest.approx(1.1e12, rel=1e-5)  # whole batches
    assert shape["C"] == pytest.approx(6 * n * 1.1e12, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "width", "times"),
    [("calibrate", 320, 7.4), ("2.4B", 2304, 1.42)],  # SCIENCE §2: the full count over 6ND
)
def test_full_flops_against_6nd(minicpm: dict[str, Any], name: str, width: int, times: float) -> None:
    shape = next(s for s in by_name(minicpm, name)["shapes"] if s["width"] == width)
    assert shape["flops"] / shape["C"] == pytest.approx(times, abs=0.01)


@pytest.mark.parametrize(
    ("name", "trials", "runs", "tokens"),  # of the stage; its longest reading's D over N
    [
        ("calibrate", 400, 400, 10),
        ("lr-over-sizes", 4 * 6, 4 * 6 * 2, 20),
        ("batch", 3 * 6 * 3, 3 * 6 * 3 * 3, 80),
        ("ladder", 6 * 3, 6 * 3 * 6, 60),
    ],
)
def test_counts_and_lengths(minicpm: dict[str, Any], name: str, trials: int, runs: int, tokens: int) -> None:
    stage = by_name(minicpm, name)
    assert (stage["trials"], stage["runs"]) == (trials, runs)
    for shape in stage["shapes"]:
        assert shape["D"] / shape["N"] == pytest.approx(tokens, rel=0.01)


def test_the_search_costs_its_trials(minicpm: dict[str, Any]) -> None:
    """400 readings of 9M at 10 N: 400 · 10 N · 7.39 · 6N FLOPs."""
    stage, n = by_name(minicpm, "calibrate"), PROXIES[320, 8]
    assert stage["tokens"] == pytest.approx(400 * 10 * n, rel=2e-3)
    assert stage["flops"] == pytest.approx(400 * 10 * n * 6 * n * 7.39, rel=2e-3)


def test_the_ladder_shares_its_trunks(minicpm: dict[str, Any]) -> None:
    """Six spaced lengths: from the middle of the decay's range, (max start + Σ decay) over Σ lengths."""
    stage = by_name(minicpm, "ladder")
    decay = (0.05 * 0.4) ** 0.5
    assert stage["tokens"] / stage["from_scratch"] == pytest.approx((6 * (1 - decay) + 21 * decay) / 21, abs=0.002)


def test_money_follows_from_the_stated_price(minicpm: dict[str, Any]) -> None:
    price = study.load(STUDIES / "minicpm.toml").price
    assert (price.device, price.flops_per_second) == ("H100", 989e12)
    for key in ("flops", "seconds", "runs"):
        assert minicpm[key] == pytest.approx(sum(s[key] for s in minicpm["stages"]))
    assert minicpm["cost"] == sum(s["cost"] for s in minicpm["stages"])  # to the last digit
    assert minicpm["seconds"] == pytest.approx(minicpm["flops"] / (989e12 * price.mfu))
    assert isinstance(minicpm["cost"], Decimal)
    assert float(minicpm["cost"]) == pytest.approx(minicpm["seconds"] / 3600 * 2.5)


def test_schedules_are_shown(minicpm: dict[str, Any]) -> None:
    for s in minicpm["stages"] + minicpm["targets"]:
        assert len(s["schedule"]) == 40
        assert max(s["schedule"]) == 1
        assert 0 <= s["schedule"][-1] < 0.3


# candidates and lengths


@pytest.fixture
def tiny(study_file: Write) -> study.Study:
    return study.load(study_file())


def ladder_trials(asked: study.Study, handed_on: dict[str, Any]) -> list[Any]:
    stage = asked.stage_named("ladder")
    base = plan.values_of(asked, stage, handed_on)
    return [plan.trial(asked, stage, {**base, **c}) for c in plan.candidates(asked, stage, handed_on) or []]


def test_a_ladder_asks_the_costly_ones_first_around_what_was_handed_on(tiny: study.Study) -> None:
    got = plan.candidates(tiny, tiny.stage_named("ladder"), {"lr": 0.02})
    assert got == [{"width": w, "depth": d, "lr": 0.02 * f} for w, d in ((64, 4), (32, 2)) for f in (0.5, 1, 2)]
    assert plan.candidates(tiny, tiny.stage_named("calibrate"), {}) is None


def test_rungs_are_forks_of_one_trunk(study_file: Write) -> None:
    asked = study.load(study_file(("batch_tokens = 1024", "batch_tokens = 1024\ndecay = 0.2\nwarmup = 0.1")))
    for trial in ladder_trials(asked, {"lr": 0.02}):
        assert len({r.trunk.fingerprint for r in trial.runs}) == 1
        assert [(r.decay_start // 1024, r.tokens // 1024) for r in trial.runs] == [(49 - 10, 49), (98 - 20, 98)]
        assert trial.trunk.settings.warmup == 5 * 1024  # a tenth of the shortest rung, for all
        assert trial.trunk.settings.batch_tokens == 1024


def test_a_shape_has_the_rungs_that_are_cheap_enough(study_file: Write) -> None:
    asked = study.load(study_file(('tokens = ["50k", "100k"]', 'tokens = ["50k", "100k"], max_flops = 1e11')))
    found = {t.trunk.shape.width: {r.tokens // 1024 for r in t.runs} for t in ladder_trials(asked, {"lr": 0.02})}
    assert found == {32: {49, 98}, 64: {49}}  # 6 × 188,992 parameters × 100k tokens are 1.13e11


def test_several_decays_end_at_one_rung_off_one_trunk(study_file: Write) -> None:
    decays = (
        '[{ decay = 0.05 }, { decay = 0.2, decay_shape = "linear" }, { decay_shape = "exponential", half_life = 0.4 }]'
    )
    asked = study.load(study_file(("fan = [0.5, 1, 2]", f"fan = [1]\ndecays = {decays}")))
    for trial in ladder_trials(asked, {}):
        assert len({r.trunk.fingerprint for r in trial.runs}) == 1
        assert sorted({r.tokens // 1024 for r in trial.runs}) == [49, 98]
        at_last = sorted((r.decay_tokens // 1024, r.decay_shape) for r in trial.runs if r.tokens == trial.rung)
        assert at_last == [(5, "1-sqrt"), (10, "exponential"), (20, "linear")]
        assert {r.half_life for r in trial.runs if r.decay_shape == "exponential"} == {0.4}
        assert [r.decay_start for r in trial.runs] == sorted(r.decay_start for r in trial.runs)
        assert trial.trained == 93 * 1024 + sum(r.decay_tokens for r in trial.runs)  # one trunk, to its last fork


def test_a_stage_may_list_rules_and_settings(study_file: Write) -> None:
    space = '\n  [stage.space]\n  rules = ["standard", "minicpm+depth_lr"]\n  weight_decay = [0.0, 0.1]'
    rungs = 'rungs = { tokens = ["50k", "100k"] }'
    asked = study.load(study_file(("fan = [0.5, 1, 2]", "fan = [1, 2]"), (rungs, rungs + space)))
    trials = ladder_trials(asked, {})
    assert len(trials) == plan.trials_planned(asked, asked.stage_named("ladder")) == 2 * 2 * 2 * 2
    found = {(t.trunk.rules, t.trunk.settings.weight_decay, t.trunk.settings.lr) for t in trials}
    assert len(found) == 8
    assert {f[0] for f in found} == {"standard", "minicpm+depth_lr"}


@pytest.mark.parametrize(
    ("handed_on", "warmup"),
    [(3_000, 3), (40_000, 15), (0.04, 2)],  # in batches; the rungs begin at 50k
)
def test_a_handed_on_warmup_is_cut_to_the_shortest_rung(tiny: study.Study, handed_on: float, warmup: int) -> None:
    [first, *_] = ladder_trials(tiny, {"warmup": handed_on})
    assert first.trunk.settings.warmup == warmup * 1024


def test_equal_flops_give_the_bigger_shape_fewer_tokens(study_file: Write) -> None:
    shapes = "  width = { low = 32, high = 64, step = 32 }\n  depth = 2\n"
    asked = study.load(study_file(("  width = 32\n  depth = 2\n", shapes), ('  tokens = "100k"', "  flops = 1e11")))
    stage = asked.stage_named("calibrate")
    runs = [
        plan.trial(asked, stage, {**plan.values_of(asked, stage, {}), "lr": 0.01, "width": w}).runs[0] for w in (32, 64)
    ]
    family = families.load("synthetic")
    spent = [r.tokens * family.flops_per_token(r.trunk.shape, r.trunk.body) for r in runs]
    assert runs[0].tokens > 1.5 * runs[1].tokens
    assert spent == pytest.approx([1e11, 1e11], rel=0.02)


def test_the_target_is_planned_as_a_proxy_is(study_file: Write) -> None:
    extra = 'tokens = "1M"\nkv_heads = 2\nbatch_tokens = 4096\nprecision = "bf16"'
    asked = study.load(study_file(('tokens = "1M"', extra)))
    values = plan.values_of(asked, asked.stage[-1], {"lr": 0.02})
    run = plan.target_trial(asked, asked.target[0], values, "hash").runs[0]
    assert run.trunk.shape == Shape(width=128, depth=8, kv_heads=2)
    assert (run.trunk.settings.lr, run.trunk.settings.precision) == (0.02, "bf16")
    assert (run.tokens, run.trunk.settings.batch_tokens) == (244 * 4096, 4096)
    assert run.trunk.source.corpus_hash == "hash"


def test_a_study_s_seed_is_another_draw_of_all(study_file: Write, tiny: study.Study) -> None:
    other = study.load(study_file(('family = "synthetic"', 'family = "synthetic"\nseed = 7'), name="other.toml"))
    stage, values = tiny.stage[0], {"lr": 0.01}
    seeds = [plan.trial(s, stage, {**plan.values_of(s, stage, {}), **values}, seed=2).trunk.seed for s in (tiny, other)]
    assert seeds == [2, 9]


def test_cosine_is_one_decay_from_the_warmup_on(study_file: Write) -> None:
    asked = study.load(study_file(("batch_tokens = 1024", 'batch_tokens = 1024\nschedule = "cosine"\nwarmup = 0.1')))
    for trial in ladder_trials(asked, {}):
        assert [r.decay_start for r in trial.runs] == [5 * 1024] * 2
        assert {r.decay_shape for r in trial.runs} == {"cosine"}
        assert [r.tokens for r in trial.runs] == [49 * 1024, 98 * 1024]


# bad input that only shows with all lengths on the table


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("batch_tokens = 1024", "batch_tokens = 1000", "batch_tokens: is not a multiple of model.seq_len; got 1000"),
        (
            "batch_tokens = 1024",
            "batch_tokens = 1024\nmicro_batch_tokens = 96",
            "train.micro_batch_tokens: does not divide the batch into whole sequences; got 96",
        ),
        (
            "batch_tokens = 1024",
            "batch_tokens = 1024\nwarmup = 200000",
            "stage calibrate: a warmup of 100352 tokens leaves no",
        ),
        ("  depth = 2", "  depth = 2\n  warmup = 0.2\n  decay = { low = 0.1, high = 0.79 }", ""),
        ("  depth = 2", "  depth = 2\n  decay = { low = 0.1, high = 0.99 }", "leaves no stable phase before the decay"),
        ("  depth = 2", "", "stage.calibrate.space.depth: is missing"),
        (
            "width = 128\ndepth = 8",
            "width = 64\ndepth = 2",
            "target.big: has 94,528 parameters, fewer than the largest proxy of stage ladder (188,992)",
        ),
        (
            'tokens = ["50k", "100k"]',
            'tokens = ["50k", "100k"], max_flops = 1e10',
            "rungs.max_flops: leaves 64×4, of 188,992 parameters, no rung; got 10000000000.0",
        ),
        ("  depth = 2", "  depth = 256", "fewer than the largest proxy of stage calibrate"),
        ('family = "synthetic"', 'family = "gtp"', "family: is not a family; got 'gtp'; choices: encoder, gpt"),
    ],
)
def test_what_cannot_be_planned(study_file: Write, old: str, new: str, rule: str) -> None:
    asked = study.load(study_file((old, new)))
    if not rule:
        plan.plan(asked)
        return
    with pytest.raises(UserError) as e:
        plan.plan(asked)
    assert rule in str(e.value)
    assert "\n" not in str(e.value)


def test_what_has_run_is_told_of_without_its_corpus(tmp_path: Path) -> None:
    """A folder may be copied to where its texts are not."""
    path = tmp_path / "s.toml"
    text = TRAINED.format(corpus=tmp_path / "nowhere").replace("width = 48", "width = 128")
    path.write_text(f'question = "?"{text}' + TINY[TINY.index("[[stage]]") :])
    asked = study.load(path)
    with pytest.raises(UserError, match="no file of the corpus"):
        plan.plan(asked)
    assert plan.plan(asked, plan.Paces.of(asked, pd.DataFrame()))["flops"] > 0


@pytest.mark.parametrize("name", sorted(p.stem for p in STUDIES.glob("*.toml")))
def test_studies_that_ship_can_be_planned(name: str) -> None:
    asked = study.load(STUDIES / f"{name}.toml")
    if asked.data.get and not any(Path().glob(asked.data.paths[0])):
        with pytest.raises(UserError, match=f"no file of the corpus exists; {re.escape(asked.data.get)}"):
            plan.plan(asked)
        return
    planned = plan.plan(asked)
    assert planned["runs"] > 0
    assert all(t["flops"] > 0 for t in planned["targets"])
    if asked.small:
        small = plan.plan(study.load(STUDIES / f"{name}.toml", small=True))
        assert small["flops"] < planned["flops"] / 3
