"""Several sources: a decay with data of its own leaves the trunk as it was, and every slice is watched."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import BATCH, SEQ_LEN, SYNTHETIC, run_spec, trunk_spec, write_corpus
from test_parallel import group, joined

from tunnel import plan, study, tuned
from tunnel.answers import mixes as told
from tunnel.answers import recommend
from tunnel.errors import Stopped, UserError
from tunnel.families import gpt, synthetic
from tunnel.folder import checkpoint
from tunnel.folder.store import Store
from tunnel.run import Mixed, Record, RunSpec, Source, Trial
from tunnel.space import Choice, Range, mix_of, parse_space
from tunnel.study import Data
from tunnel.sweeps import early, extend, rerun, sweep
from tunnel.training import data, forks
from tunnel.valleys import mixes

# the question

SOURCES = """
[data]
corpus = "files"
paths = ["{0}/base/*.txt"]
name = "base"
held_out = 0.2
eval_tokens = 512
[[data.source]]
name = "more"
paths = ["{0}/more/*.txt"]
weight = {1}
[[data.source]]
name = "good"
paths = ["{0}/good/*.txt"]
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three corpora of 30 documents, in alphabets of their own."""
    root = tmp_path_factory.mktemp("sources")
    for seed, (name, changed) in enumerate({"base": str, "more": str.upper, "good": str.title}.items()):
        (root / name).mkdir()
        write_corpus(root / name, 30, seed)
        for path in (root / name).iterdir():
            path.write_text(changed(path.read_text()).replace(" ", {"base": " ", "more": "-", "good": "."}[name]))
    return root


def asked(folders: Path, weight: float = 0.0) -> Data:
    import tomllib

    return Data(**tomllib.loads(SOURCES.format(folders, weight))["data"])


@pytest.fixture(scope="module")
def three(folders: Path) -> data.Corpus:
    return data.opened(asked(folders), SEQ_LEN)


@pytest.mark.parametrize(
    ("space", "parsed"),
    [
        ({"decay_mix": {"a": 0.3}}, {"decay_mix.a": 0.3}),
        ({"decay_mix": {"a": {"low": 0.0, "high": 0.5}}}, {"decay_mix.a": Range(0.0, 0.5)}),
        ({"decay_mix": {"a": 0.0, "b": [0, 0.5]}}, {"decay_mix.a": 0.0, "decay_mix.b": Choice((0, 0.5))}),
        ({"decay_mix": {"a.b": 1}}, {"decay_mix.a.b": 1}),
    ],
)
def test_a_share_is_a_setting_of_its_own(space: dict[str, Any], parsed: dict[str, Any]) -> None:
    assert parse_space(space) == parsed


@pytest.mark.parametrize(
    ("space", "rule"),
    [
        ({"decay_mix": 0.3}, "decay_mix needs a share for each source"),
        ({"decay_mix": {"a": 1.2}}, "decay_mix.a must be at least 0 and at most 1; got 1.2"),
        ({"decay_mix": {"a": -0.1}}, "must be at least 0"),
        ({"decay_mix": {"a": 0.6, "b": {"low": 0.1, "high": 0.5}}}, "the largest shares sum to 1.1; at most 1"),
        ({"decay_mix.a": 0.3}, ""),  # as its own key it is the same setting
        ({"lr.a": 0.3}, "space.lr.a is not a setting"),
    ],
)
def test_shares_that_cannot_be(space: dict[str, Any], rule: str) -> None:
    if not rule:
        assert parse_space(space) == {"decay_mix.a": 0.3}
        return
    with pytest.raises(ValueError, match=rule):
        parse_space(space)


STAGE = '[[stage]]\nname = "ladder"'
NAMED = '[[data.source]]\nname = "good"\npaths = ["x"]\n'


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        (
            "[train]",
            "[train]\ndecay_mix = { bad = 0.3 }",
            "train: decay_mix.bad is not the name of a source; choices: good",
        ),
        ("[train]", "[train]\ndecay_mix = { good = 1.3 }", "train.decay_mix.good"),
        ("fan = ", "decays = [{ decay_mix = { bad = 0.3 } }]\nfan = ", "stage ladder: decay_mix.bad is not the name"),
        ("fan = ", "space = { decay_mix = { good = [0, 1] } }\nfan = ", "decay_mix.good: a ladder searches nothing"),
        ("[train]", '[train]\nschedule = "cosine"\ndecay_mix = { good = 0.3 }', "a cosine has none"),
        ('name = "good"', 'name = "stdlib"', "source stdlib: the name is taken"),
        (NAMED, NAMED + '[[data.then]]\nfrom = 5\nsource = "stdlib"\n', "then: 'stdlib' is not the name of a source"),
        (NAMED, '[data]\nloss = "all"\n' + NAMED, "loss: 'all' is not the name of a source; choices: stdlib, good"),
        ('paths = ["x"]', "", "paths belong to corpus"),
        ('paths = ["x"]', 'paths = ["x"]\nweight = -1', "data.source.good.weight"),
    ],
)
def test_a_study_names_its_sources(study_file: Callable[..., Path], old: str, new: str, rule: str) -> None:
    text = study_file(("[model]", NAMED + "[model]")).read_text()
    path = study_file(name="named.toml")
    path.write_text(text)
    assert study.load(path).data.weighs == {"stdlib": 1}
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=rule.replace("[", r"\[")):
        study.load(path)


def test_a_revision_may_name_a_source_but_not_weigh_it(study_file: Callable[..., Path]) -> None:
    before = study.load(study_file())
    named, weighed = (
        study.load(study_file(("[model]", NAMED + more + "[model]"), name=f"n{i}.toml"))
        for i, more in enumerate(("", "weight = 0.5\n"))
    )
    assert study.changes(before, named) == ""
    assert study.changes(before, weighed) == "data.source"
    assert study.changes(named, before) == "data.source"


# the stream


def origin(corpus: data.Corpus, three: data.Corpus) -> dict[bytes, str]:
    found = {}
    for part in (three, *three.sources):
        windows = np.arange((len(part.train) - 1) // SEQ_LEN)
        found |= {row.tobytes(): part.name for row in part.alone(0, 0, len(windows), SEQ_LEN)}
    return found


def mixture(**shares: float) -> tuple[Mixed, ...]:
    source = Source(corpus="files", corpus_hash="", tokenizer="bytes", held_out=0.2, eval_tokens=512)
    return tuple(Mixed(name=k, share=v, source=source) for k, v in sorted(shares.items()))


@pytest.mark.parametrize("weight", [0.0, 0.25])
@pytest.mark.parametrize(
    "shares", [{"good": 0.3}, {"good": 1.0}, {"good": 0.25, "more": 0.5}, {"good": 0.5, "more": 0.5}, {"good": 0.013}]
)
def test_a_decay_reads_the_shares_that_were_asked(folders: Path, shares: dict[str, float], weight: float) -> None:
    """The rest goes on as the trunk would, and nobody reads a sequence twice before its epoch is over."""
    corpus = data.opened(asked(folders, weight), SEQ_LEN)
    start, n = 60, 80
    own = origin(corpus, corpus)
    both = corpus.during(mixture(**shares), start * SEQ_LEN)
    read = both.sequences(0, 0, start + n, SEQ_LEN)
    assert np.array_equal(read[:start], corpus.sequences(0, 0, start, SEQ_LEN))
    whole = [own[row.tobytes()] for row in read]
    tail = whole[start:]
    weights = {"base": 1 / (1 + weight), "more": weight / (1 + weight), "good": 0.0}
    left = 1 - sum(shares.values())
    for name in weights:
        expected = n * (shares.get(name, 0.0) + left * weights[name])
        assert abs(tail.count(name) - expected) <= 2, (name, expected)  # one of each of two thinnings
    for part in (corpus, *corpus.sources):
        mine = [row.tobytes() for row, name in zip(read, whole, strict=True) if name == part.name]
        assert mine == [row.tobytes() for row in part.alone(0, 0, len(mine), SEQ_LEN)] if mine else True
    parts = [both.sequences(0, i, 7, SEQ_LEN) for i in reversed(range(0, start + n, 7))]  # from any position
    assert np.array_equal(np.concatenate(parts[::-1]), both.sequences(0, 0, 140, SEQ_LEN))
    assert np.array_equal(both.during((), 0).sequences(0, 0, 140, SEQ_LEN), corpus.sequences(0, 0, 140, SEQ_LEN))


def test_a_source_that_changed_is_refused(three: data.Corpus) -> None:
    [mixed] = mixture(good=0.3)
    same, other = (mixed.replaced(source=mixed.source.replaced(corpus_hash=h)) for h in (three.sources[1].own, "other"))
    three.during((same,), 0)
    with pytest.raises(UserError, match=r"data\.source: the corpus changed since the run read it.*got 'good'"):
        three.hold([run_spec(trunk_spec(), 8, 2).replaced(mix=(other,))])


def test_the_identity_of_what_was_read(folders: Path, three: data.Corpus) -> None:
    hashes = dict(part.split("=") for part in three.hash.split(";")[1:])
    assert hashes == {c.name: c.own for c in three.sources}
    run = run_spec(trunk_spec(), 8, 2)
    [mixed] = mixture(good=0.3)
    assert run.replaced(mix=(mixed,)).trunk.fingerprint == run.trunk.fingerprint
    assert run.replaced(mix=(mixed,)).fingerprint != run.fingerprint
    assert run.replaced(mix=()).fingerprint == run.fingerprint
    assert data.identity(run.replaced(mix=(mixed,))) == ";good="
    assert data.newest([three.own, f"{three.own}+b", f"{three.own};good=1"]) == f"{three.own}+b;good=1"


# from the study to its runs

LADDER = """
question = "Which data in the decay?"
{sources}
{loss}
[model]
head_dim = 8
base_width = 16
base_depth = 1
seq_len = 32
[train]
batch_tokens = 256
lr = 0.02
decay = 0.25
[resources]
backend = "inline"
[[target]]
name = "big"
width = 48
depth = 3
tokens = "64k"
[[stage]]
name = "ladder"
kind = "ladder"
shapes = [[16, 1]]
decays = [{{}}, {{ decay_mix = {{ good = 0.5 }} }}]
rungs = {{ tokens = [4096] }}
"""


def ladder(folders: Path, where: Path, *replaced: tuple[str, str], weight: float = 0.0, loss: str = "") -> Path:
    sources = SOURCES.format(folders, weight)
    text = LADDER.format(sources=sources.replace("eval_tokens = 512", f"eval_tokens = 512\n{loss}"), loss="")
    for old, new in replaced:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = where / "study.toml"
    path.write_text(text)
    return path


def test_forks_of_one_trunk(folders: Path, tmp_path: Path) -> None:
    one = study.load(ladder(folders, tmp_path))
    stage = one.stage[0]
    [candidate] = plan.candidates(one, stage, {}) or []
    values = {**plan.values_of(one, stage, {}), **candidate}
    corpus = data.opened(one.data, SEQ_LEN)
    trial = plan.trial(one, stage, values, corpus_hash=corpus.hash)
    assert len({r.trunk.fingerprint for r in trial.runs}) == 1
    plain, mixed = sorted(trial.runs, key=lambda r: len(r.mix))
    assert plain.mix == ()
    assert [(m.name, m.share, m.source.corpus_hash) for m in mixed.mix] == [("good", 0.5, corpus.sources[1].own)]
    assert mixed.replaced(mix=()) == plain
    none = plan.trial(one, stage, {**values, "decay_mix.good": 0.0, "decay_mix.more": 0.0}, corpus_hash=corpus.hash)
    assert none.runs == trial.runs
    always = study.load(ladder(folders, tmp_path, ("decay = 0.25", "decay = 0.25\ndecay_mix = { more = 0.6 }")))
    with pytest.raises(UserError, match=r"the largest shares sum to 1\.1"):
        plan.trial(always, always.stage[0], {**plan.values_of(always, stage, {}), **candidate})
    weighed = study.load(ladder(folders, tmp_path, weight=0.25, loss="loss = { base = 1, good = 3 }"))
    source = plan.trial(weighed, stage, values, corpus_hash="a+b;good=c").trunk.source
    assert [(j.at, j.share, j.source.corpus_hash) for j in source.then] == [(0, 0.2, "b")]
    assert source.loss == (("base", 0.25), ("good", 0.75))


def test_a_decay_with_its_own_data_leaves_the_trunk_alone(folders: Path, tmp_path: Path) -> None:
    """Real models: every number as from scratch, slices of all sources, and `rerun` finds them equal."""
    corpus = data.opened(asked(folders), SEQ_LEN)
    trunk = trunk_spec(shape=(16, 1))
    trunk = trunk.replaced(source=trunk.source.replaced(loss=(("base", 0.5), ("good", 0.5))))
    plain, longer = run_spec(trunk, 12, 6), run_spec(trunk, 24, 6)
    runs = (plain, *(plain.replaced(mix=mixture(good=s)) for s in (0.5, 1.0)), longer)
    keeps = Store(tmp_path / "mixed"), Store(tmp_path / "plain")
    found = dict(zip(runs, measured(Trial(stage="s", number=0, runs=runs), keeps[0], corpus), strict=True))
    alone = measured(Trial(stage="s", number=0, runs=(plain, longer)), keeps[1], corpus)
    assert [(r.loss, r.final, r.slices) for r in alone] == [
        (found[r].loss, found[r].final, found[r].slices) for r in (plain, longer)
    ]
    for tokens in (12 * BATCH, 24 * BATCH):
        states = [k.peek(trunk.fingerprint, tokens) for k in keeps]
        assert states[0] is not None
        assert states[1] is not None
        assert all(np.array_equal(states[0][0][k], states[1][0][k]) for k in states[0][0])
    for run, record in found.items():
        model: Any = gpt.grown(run.trunk, corpus)
        while model.tokens < run.tokens:
            if model.tokens == run.decay_start:
                model.mix_in(run.mix, run.decay_start)
            model.step(run.multiplier(model.tokens))
        assert model.evaluate() == record.loss
        assert checkpoint.digests(*model.state()) == record.final
        assert record.slices.keys() == {"base", "more", "good"}
        assert record.loss == pytest.approx((record.slices["base"] + record.slices["good"]) / 2)
    losses = [found[r].slices["good"] for r in runs[:3]]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] - losses[2] > 0.1
    assert found[runs[2]].slices["base"] > found[plain].slices["base"]


def measured(trial: Trial, keep: Store, corpus: data.Corpus) -> list[Record]:
    return [e for e in forks.grow(trial, keep, corpus) if isinstance(e, Record)]


def test_a_mixed_decay_goes_on_where_it_was_stopped(
    folders: Path, tmp_path: Path, three: data.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(forks.Work, "due_to_report", lambda self: True)  # each step, so that it can be stopped anywhere
    run = run_spec(trunk_spec(shape=(16, 1)), 10, 10).replaced(mix=mixture(good=0.4))
    trial, keep = Trial(stage="s", number=0, runs=(run,)), Store(tmp_path / "stopped")
    events = forks.grow(trial, keep, three)
    while (e := next(events)) and isinstance(e, forks.Progress) and (e.phase, e.tokens) != ("decay", 15 * BATCH):
        pass
    (tmp_path / "stopped" / "stop").touch()
    with pytest.raises(Stopped):
        next(events)
    (tmp_path / "stopped" / "stop").unlink()
    [again] = measured(trial, keep, three)
    [whole] = measured(trial, Store(tmp_path / "whole"), three)
    assert (again.loss, again.final, again.slices) == (whole.loss, whole.final, whole.slices)


MIXED = run_spec(trunk_spec(shape=(16, 1)), 10, 6).replaced(mix=mixture(good=0.5))
TO_SHARE = Trial(stage="s", number=0, runs=(MIXED, run_spec(MIXED.trunk, 20, 6)))


def many(rank: int, world: int, port: int, folder: Path, corpus: data.Corpus) -> None:
    from tunnel.training import parallel

    joined(rank, world, port)
    if rank:
        parallel.follow(corpus)
        return
    list(forks.grow(TO_SHARE, Store(folder), corpus, parallel.lead))
    parallel.end()


@pytest.mark.slow
def test_two_processes_read_the_mix_and_then_the_trunk_again(tmp_path: Path, three: data.Corpus) -> None:
    group(2, many, tmp_path / "two", three)
    alone = {r.fingerprint_of: r.slices for r in measured(TO_SHARE, Store(tmp_path / "one"), three)}
    for record in Store(tmp_path / "two").records():
        assert record.slices == pytest.approx(alone[record.fingerprint_of], rel=1e-4)


def test_a_study_with_a_mix_from_file_to_effects(folders: Path, tmp_path: Path) -> None:
    """The whole way on a real model; a source may join by `extend`, and the old slice is watched."""
    path = ladder(folders, tmp_path, loss="loss = { base = 1, good = 1 }")
    one, keep = sweep.opened(path, tmp_path / "out")
    sweep.sweep(one, keep)
    records = keep.records()
    assert len(records) == 2
    assert sum(r.tokens_trained for r in records) == 3072 + 2 * 1024  # one trunk
    frame = keep.readings()
    assert sorted(frame["decay_mix.good"]) == [0.0, 0.5]
    effects = {r["slice"]: r for r in told.told(frame)}
    assert effects.keys() == {"the loss", "base", "more", "good"}
    own = {r.run.mix != (): r for r in records}
    assert effects["good"]["change"] == pytest.approx(own[True].slices["good"] - own[False].slices["good"])
    assert effects["good"]["low"] is None  # one pair
    assert effects["good"]["change"] < 0
    assert "good falls by" in effects["good"]["words"]
    assert rerun.rerun(one, keep, own[True].fingerprint_of)["equal"]
    [row] = sweep.status(one, keep)["slices"]
    assert row["slices"] == min(records, key=lambda r: r.loss or 9).slices
    found = extend.extend(tmp_path / "out", "2x", join="more", share=0.5)
    assert found["extended"] == {"ladder": 8192}
    text = (tmp_path / "out" / "study.toml").read_text()
    assert 'from = 4096\nsource = "more"\nshare = 0.5' in text
    new = [r for r in keep.records() if r.D == 8192]
    assert [[(j.at, j.share) for j in r.run.trunk.source.then] for r in new] == [[(4096, 0.5)]] * 2
    assert {r.run.trunk.until(4096).fingerprint for r in new} == {records[0].run.trunk.fingerprint}
    assert {(row["D"], row["before"]) for row in found["forgetting"]} == {(8192, r.slices["base"]) for r in records}
    assert rerun.rerun(one, keep, own[True].fingerprint_of)["equal"]


# what forks of one trunk tell


def forks_of(trunks: int, shares: list[float], seed: int, noise: float = 0.01, own: float = 0.2) -> dict[str, Any]:
    """y = trunk's own level − 0.4·s + 0.5·s², least at 0.4."""
    rng = np.random.default_rng(seed)
    s = np.tile(shares, trunks)
    trunk = np.repeat(np.arange(trunks), len(shares)).astype(str)
    level = np.repeat(rng.normal(0, own, trunks), len(shares))
    return {
        "share": s,
        "y": level - 0.4 * s + 0.5 * s**2 + rng.normal(0, noise, len(s)),
        "group": trunk,
        "trunk": trunk,
    }


@pytest.mark.parametrize(
    ("trunks", "shares"),
    [(4, [0.0, 0.5]), (3, [0.0, 0.25, 0.5, 1.0]), (1, [0.0, 0.2, 0.4, 0.6, 0.8]), (1, list(np.linspace(0, 1, 12)))],
)
def test_ninety_percent_intervals_hold_the_truth(trunks: int, shares: list[float]) -> None:
    """Over 300 draws: between 85% and 95%, whatever the trunks' own levels."""
    inside = []
    for seed in range(300):
        for c in mixes.changes(forks_of(trunks, shares, seed)):
            true = -0.4 * (c.share - c.base) + 0.5 * (c.share**2 - c.base**2)
            assert c.low is not None
            assert c.high is not None
            inside.append(c.low <= true <= c.high)
    assert 0.85 <= np.mean(inside) <= 0.95


FEW, SOME, SPREAD = [0, 0.25, 0.5, 0.75], [0, 0.2, 0.4, 0.6, 0.8], list(np.linspace(0, 0.95, 10))


@pytest.mark.parametrize(("trunks", "shares"), [(3, FEW), (3, SOME), (1, SPREAD)])
@pytest.mark.parametrize("skewed", [0.0, 1.0])
def test_the_best_share_with_its_interval(trunks: int, shares: list[float], skewed: float) -> None:
    """At least 83% of 90% intervals hold it, also where the curve is no parabola (least at 0.4 all the same)."""
    held, curved, wide = [], [], []
    for seed in range(100):
        t = forks_of(trunks, shares, seed, noise=0.004)
        t["y"] = t["y"] + skewed * (0.7 * (t["share"] - 0.4) ** 3 + 0.1 * (t["share"] == 1))
        dip = mixes.best(t)
        assert dip is not None
        held.append(dip.low <= 0.4 <= dip.high)
        curved.append(dip.curved)
        wide.append(dip.high - dip.low)
    assert np.mean(curved) > 0.95
    assert np.mean(held) >= 0.83
    assert np.median(wide) < 0.5


@pytest.mark.parametrize("table", [forks_of(3, [0.2], 0), {k: v[:0] for k, v in forks_of(1, [0.2], 0).items()}])
def test_nothing_to_compare(table: dict[str, Any]) -> None:
    assert mixes.changes(table) == []
    assert mixes.curve(table) is None


def test_one_pair_has_no_interval() -> None:
    [change] = mixes.changes(forks_of(1, [0.0, 0.5], 0, noise=0.0))
    assert change.change == pytest.approx(-0.4 * 0.5 + 0.5 * 0.25)
    assert (change.low, change.high, change.pairs, change.trunks) == (None, None, 1, 1)


# the calibration body: a share that was put in comes out

TRUE = synthetic.TRUTH.share


def calibrated(tmp_path: Path, stage: str) -> tuple[study.Study, Store]:
    text = SHARES + stage
    path = tmp_path / "mix.toml"
    path.write_text(text)
    one, keep = sweep.opened(path, tmp_path / "out")
    sweep.sweep(one, keep)
    return one, keep


SHARES = (
    'question = "Which share?"'
    + SYNTHETIC.replace('"1M"', '"400k"').replace("batch_tokens = 1024", "batch_tokens = 1024\ndecay = 0.15")
    + '[[data.source]]\nname = "good"\npaths = ["x"]\n'
)
SEARCHED = """
[[stage]]
name = "mix"
kind = "search"
  [stage.space]
  width = 32
  depth = 2
  decay_mix = { good = { low = 0.0, high = 1.0 } }
  [stage.budget]
  trials = 16
  tokens = "200k"
  [stage.sampler]
  name = "sobol"
"""
LISTED = """
[[stage]]
name = "ladder"
kind = "ladder"
shapes = [[32, 2], [48, 3]]
fan = [0.5, 1, 2]
decays = [{}, { decay_mix = { good = 0.3 } }, { decay_mix = { good = 0.6 } }, { decay_mix = { good = 0.9 } }]
rungs = { tokens = ["200k", "400k"] }
"""


def true(share: float) -> float:
    return synthetic.TRUTH.m * (share**2 - 2 * share * TRUE)


def test_a_search_of_the_share_decays_off_one_trunk(tmp_path: Path) -> None:
    one, keep = calibrated(tmp_path, SEARCHED)
    readings = keep.readings()
    assert (len(readings), readings.run.nunique()) == (16, 1)
    decay = readings.D.max() - readings.decay_start.max()
    assert readings.tokens_trained.sum() == readings.decay_start.max() + 16 * decay
    found = tuned.best(one.stage[0], readings)["decay_mix.good"]
    assert found.value == pytest.approx(TRUE, abs=0.05)
    assert found.low <= TRUE <= found.high < found.low + 0.3  # type: ignore[operator]
    rows = [r for r in told.told(readings) if r["slice"] == "the loss"]
    assert len(rows) == mixes.PLACES
    for r in rows:
        assert r["low"] - 2e-3 <= true(r["share"]) - true(r["base"]) <= r["high"] + 2e-3


def test_the_share_is_recommended(tmp_path: Path) -> None:
    one, keep = calibrated(tmp_path, LISTED)
    found = recommend.recommend(one, keep)
    setting = found["settings"]["decay_mix.good"]
    assert setting["value"] == pytest.approx(TRUE, abs=0.05)
    assert setting["low"] <= TRUE <= setting["high"] < setting["low"] + 0.3
    assert setting["readings"]
    assert not [c for c in found["cautions"] if "decay_mix" in c]
    run = RunSpec.model_validate(found["run"])
    assert mix_of({f"decay_mix.{m.name}": m.share for m in run.mix}) == {"good": setting["value"]}
    assert early.decayed(run, run.decay_start // 2).mix == run.mix
    whole = [r for r in found["mixes"] if r["slice"] == "the loss"]
    assert [r["share"] for r in whole] == [0.3, 0.6, 0.9]
    for r in whole:
        assert r["low"] - 1e-3 <= true(r["share"]) <= r["high"] + 1e-3
    own = next(r for r in found["mixes"] if r["slice"] == "good")  # against 0.3: without it there is no such slice
    assert own["change"] == pytest.approx(
        whole[1]["change"] - whole[0]["change"] - 0.3 * synthetic.TRUTH.gain, abs=2e-3
    )


@pytest.mark.parametrize(("best", "value"), [(0.1, 0.1), (0.35, 0.2)])
def test_a_best_share_at_the_edge_is_said(best: float, value: float) -> None:
    """Nine forks of three trunks, up to a share of 0.2."""
    share, run = np.tile([0.0, 0.1, 0.2], 3), np.repeat(["a", "b", "c"], 3)
    rng = np.random.default_rng(0)
    loss = 2 + (share - best) ** 2 + rng.normal(0, 1e-4, 9) + np.repeat([0.0, 0.1, 0.2], 3)
    rows = pd.DataFrame({"decay_mix.good": share, "run": run, "loss": loss, "lr": np.repeat([1, 2, 4], 3)})
    same = {k: 0.1 for k in tuned.WAYS} | {"width": 32, "depth": 2, "D": 1e5, "batch_tokens": 512}
    stage = study.Stage(**SHORT, decays=[study.Decay(decay_mix={"good": s}) for s in (0.0, 0.1, 0.2)])
    found = tuned.settled(rows.assign(**same, fingerprint=run), stage)["decay_mix.good"]
    assert found.value == pytest.approx(value, abs=2e-3)
    assert ("at the edge" in found.caution) == (best > 0.2)
    assert found.low is not None
    assert found.high is not None
    assert (found.low, found.high) == (0.0, 0.2) if best > 0.2 else 0.09 < found.low < 0.1 < found.high < 0.11


SHORT: dict[str, Any] = {"name": "s", "kind": "ladder", "shapes": ((32, 2),), "rungs": {"tokens": [100_000]}}


def test_ways_with_other_data_are_other_ways() -> None:
    """Of a cell, the rows of the best mix: no law is fitted to a blend of mixes."""
    rows = [
        {"width": 32, "depth": 2, "D": 1e5, "batch_tokens": 512, "lr": lr, "decay_mix.good": s, "loss": 2 - 0.1 * s}
        for lr in (0.01, 0.02)
        for s in (0.0, 0.5)
    ]
    same = {k: 0.1 for k in tuned.WAYS}
    kept = tuned.best_ways(pd.DataFrame(rows).assign(**same))
    assert set(kept["decay_mix.good"]) == {0.5}
    assert math.isclose(kept.loss.max(), 1.95)
