"""Mixtures of experts: arithmetic held to built models, balance, upcycling, and what a study may ask of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import mixing
import numpy as np
import pytest
import torch
from conftest import BATCH, run_spec, trunk_spec
from exporting import a_run, recommended, shipped
from test_parallel import group, joined
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GraniteMoeConfig, GraniteMoeForCausalLM

from tunnel import families, plan, study
from tunnel.errors import UserError
from tunnel.export import _model, export, names, targets
from tunnel.families import gpt, moe
from tunnel.folder import checkpoint, store
from tunnel.folder.store import Store
from tunnel.run import Mixture, Record, RunSpec, Shape, Trial, TrunkSpec
from tunnel.sweeps import pipeline, rebuild, rerun, sweep
from tunnel.training import data, forks, parallel
from tunnel.training.parallel import Means
from tunnel.training.train import Trained

EIGHT = Mixture(experts=8, top_k=2)
SHAPES = [
    Shape(width=32, depth=2, mixture=EIGHT),
    Shape(width=64, depth=3, kv_heads=2, mixture=Mixture(experts=5, top_k=3, granularity=4)),
    Shape(width=48, depth=1, mixture=Mixture(experts=2, top_k=1, granularity=2)),
]


def trunk_of(mixture: Mixture | None = EIGHT, **changed: Any) -> TrunkSpec:
    trunk = trunk_spec(family="moe", **changed)
    return trunk.replaced(shape=trunk.shape.replaced(mixture=mixture))


def upcycled(at: int = 6, seed: int = 0) -> TrunkSpec:
    """A mixture's trunk that goes on from a dense one after `at` steps."""
    dense = trunk_of(None, seed=seed)
    return trunk_of(seed=seed).replaced(start=run_spec(dense, at, 0))


def built(shape: Shape) -> GraniteMoeForCausalLM:
    config = GraniteMoeConfig(**moe.config_dict(shape, trunk_spec().body, "minicpm"))
    config._attn_implementation = config._experts_implementation = "eager"
    return GraniteMoeForCausalLM(config)


def grown(trunk: TrunkSpec, corpus: data.Corpus) -> Trained:
    return cast(Trained, moe.grown(trunk, corpus))


# arithmetic


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_arithmetic_counts_what_is_built(shape: Shape) -> None:
    body, m = trunk_spec().body, moe.mixture(shape)
    model = built(shape)
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    whole = sum(p.numel() for p in model.parameters()) - body.vocab * shape.width
    assert moe.total(shape, body) == whole
    assert moe.count(shape, body) == whole - experts * (m.experts - m.top_k) // m.experts


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_flops_are_what_torch_counts(shape: Shape) -> None:
    """Forward and backward of what every token goes through; norm gains are in no matrix product."""
    body, n, model = trunk_spec().body, 4, built(shape)
    with FlopCounterMode(display=False) as counter:
        out = model(input_ids=torch.randint(body.vocab, (n, body.seq_len)), use_cache=False)
        (out.logits.sum() + out.aux_loss).backward()
    expected = moe.flops_per_token(shape, body) - 6 * (2 * shape.depth + 1) * shape.width
    assert counter.get_total_flops() / (n * body.seq_len) == pytest.approx(expected, rel=2e-3)


def test_a_granularity_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="granularity: does not divide the feed-forward network's 80; got 3"):
        moe.total(Shape(width=32, depth=2, mixture=Mixture(experts=8, top_k=2, granularity=3)), trunk_spec().body)


def test_without_a_mixture_it_is_gpt_to_the_bit(corpus: data.Corpus) -> None:
    body, shape = trunk_spec().body, Shape(width=32, depth=2)
    for name in ("count", "flops_per_token"):
        assert getattr(moe, name)(shape, body) == getattr(gpt, name)(shape, body)
    assert moe.total(shape, body) == gpt.count(shape, body)
    ends = []
    for family in ("gpt", "moe"):
        model = families.load(family).grown(trunk_spec(family=family), corpus)
        assert model.step(1.0)
        ends.append(checkpoint.digests(*model.state()))
    assert ends[0] == ends[1]


# the balance loss


def test_the_balance_loss_is_in_the_gradient_and_not_in_the_loss(corpus: data.Corpus) -> None:
    gradients = []
    for balance in (0.0, 0.01, 1.0):
        model = grown(trunk_of(balance=balance), corpus)
        batch = model.batch()
        out = model.model(input_ids=batch[:, :-1], use_cache=False)
        assert out.aux_loss.item() > 0
        loss = model.backward(batch)
        assert loss.item() == F.cross_entropy(out.logits.flatten(0, 1), batch[:, 1:].flatten()).item()
        named = dict(model.model.named_parameters())
        gradients.append(
            torch.cat([p.grad.flatten() for k, p in named.items() if "router" in k and p.grad is not None])
        )
    apart = [(g - gradients[0]).norm().item() for g in gradients]
    assert 0 == apart[0] < apart[1]
    assert apart[2] == pytest.approx(100 * apart[1], rel=1e-2)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_at_perfect_balance_what_is_added_is_the_coefficient(top_k: int) -> None:
    """Switch's loss is 1 there, and transformers' k, so its weight is the coefficient over k."""
    model = built(Shape(width=32, depth=1, mixture=Mixture(experts=4, top_k=top_k)))
    for name, p in model.named_parameters():
        if "router" in name:
            torch.nn.init.zeros_(p)
    out = model(input_ids=torch.randint(256, (4, 32)), use_cache=False)
    assert out.aux_loss.item() * model.config.router_aux_loss_coef == pytest.approx(0.01)


def test_a_heavier_balance_loss_evens_the_load(corpus: data.Corpus) -> None:
    busiest = []
    for balance in (0.0, 1.0):
        model = grown(trunk_of(balance=balance), corpus)
        assert all(model.step(1.0) for _ in range(30))
        load = np.array(model.stability().expert_load)
        assert load.shape == (2, 8)
        assert load.sum(axis=1) == pytest.approx(1.0)
        busiest.append(load.max())
    assert busiest[1] < 0.8 * busiest[0]


# upcycling


@pytest.mark.parametrize("top_k", [1, 2, 8])
def test_an_upcycled_body_begins_with_the_dense_ones_outputs(corpus: data.Corpus, top_k: int) -> None:
    trunk = upcycled().replaced(shape=Shape(width=32, depth=2, mixture=Mixture(experts=8, top_k=top_k)))
    assert trunk.start is not None
    dense = grown(trunk.start.trunk, corpus)
    assert all(dense.step(1.0) for _ in range(6))
    sparse = grown(trunk, corpus)
    sparse.begin({"start": dense.state()})
    assert sparse.tokens == dense.tokens == trunk.begun
    ids = sparse.batch()[:, :-1]
    with torch.no_grad():
        logits = [m.model(input_ids=ids, use_cache=False).logits for m in (dense, sparse)]
    assert torch.allclose(logits[0], logits[1], rtol=1e-5, atol=1e-5)
    assert sparse.evaluate() == pytest.approx(dense.evaluate(), rel=1e-6)
    router = torch.cat([p.flatten() for k, p in sparse.model.named_parameters() if "router" in k])
    assert router.std().item() == pytest.approx(moe.ROUTER_STD, rel=0.15)
    experts = next(p for k, p in sparse.model.named_parameters() if k.endswith("experts.down_proj"))
    assert (experts == experts[0]).all()
    assert sparse.step(1.0)
    assert not (experts == experts[0]).all()  # each token's own gradient parts them


def test_an_upcycled_trunk_is_forked_as_any_and_counts_what_it_was(corpus: data.Corpus, tmp_path: Path) -> None:
    """Two readings of one trial; the second again alone, from nothing: the same bits. The dense trunk is kept once."""
    trunk = upcycled()
    runs = (run_spec(trunk, 8, 2), run_spec(trunk, 12, 3))
    found = [r for r in forks.grow(Trial(stage="s", number=0, runs=runs), Store(tmp_path / "a"), corpus) if recorded(r)]
    alone = list(forks.grow(Trial(stage="s", number=0, runs=runs[1:]), Store(tmp_path / "b"), corpus))
    first, last = cast(Any, found)
    assert last.final == cast(Any, alone[-1]).final
    assert Store(tmp_path / "a").kept(cast(RunSpec, trunk.start).trunk.fingerprint) == [6 * BATCH]
    assert (first.tokens_trained, last.tokens_trained) == (4 * BATCH, 7 * BATCH)
    dense, own = (moe.flops_per_token(s, trunk.body) for s in (trunk.shape.replaced(mixture=None), trunk.shape))
    assert last.flops == pytest.approx((6 * dense + 9 * own) * BATCH)
    assert (last.N, last.N_total) == (moe.count(trunk.shape, trunk.body), moe.total(trunk.shape, trunk.body))
    row = Store(tmp_path / "a").readings().iloc[0]
    assert (row.experts, row.top_k, row.granularity, row.upcycle_at) == (8, 2, 1, 6 * BATCH)
    assert row.N_total == last.N_total
    assert 1 <= row.load_max <= 8


def recorded(event: object) -> bool:
    return not isinstance(event, forks.Progress)


# what it is to others


def test_a_trained_mixture_is_exported_as_transformers_loads_it(
    asked_of: study.Study, corpus: data.Corpus, tmp_path: Path
) -> None:
    """By AutoModelForCausalLM, with its balance loss; its logits are the trained model's."""
    run, keep = run_spec(trunk_of(), 8, 3), Store(tmp_path / "study")
    list(forks.grow(Trial(stage="target:big", number=0, runs=(run,), keeps=True), keep, corpus))
    said = _model.export(asked_of, keep, recommended(run), "hf", tmp_path / "m")
    assert said["exact"]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    state = keep.peek(run.fingerprint, run.tokens)
    assert state is not None
    ours = grown(run.trunk, corpus)
    ours.restore(*state)
    ids = ours.batch()[:, :-1]
    ours.model.eval()
    with torch.no_grad():
        logits = [m(input_ids=ids, use_cache=False).logits for m in (cast(Any, ours.model), theirs)]
    assert torch.allclose(logits[0], logits[1], atol=1e-5)
    assert (type(theirs).__name__, theirs.config.router_aux_loss_coef) == ("GraniteMoeForCausalLM", 0.005)
    assert (
        "131,744 parameters without embeddings, 39,584 of them for a token"
        in (tmp_path / "m" / "README.md").read_text()
    )
    with pytest.raises(UserError, match="--model: has no experts: --model hf writes a GraniteMoe; got 'llama'"):
        _model.export(asked_of, keep, recommended(run), "llama", tmp_path / "l")


@pytest.fixture
def asked_of(documents: study.Data) -> study.Study:
    return asked().model_copy(update={"data": documents})


BUNDLED = {
    "GraniteMoeForCausalLM": a_run(64, 2, family="moe", mixture=EIGHT),
    "GraniteForCausalLM": a_run(64, 2, family="moe"),
    "BertForMaskedLM": a_run(64, 2, family="encoder"),
}


@pytest.mark.parametrize("kind", BUNDLED)
def test_an_hf_bundle_is_the_model(kind: str, tmp_path: Path) -> None:
    """Built, initialised and grouped by the bundle's own script, which its selfcheck agrees with."""
    run = BUNDLED[kind]
    run = run.replaced(trunk=run.trunk.replaced(settings=run.trunk.settings.replaced(balance=0.04, dropout=0.1)))
    export(recommended(run), "hf", tmp_path / "b", allow_lossy=True)
    hook, selfcheck = (shipped(tmp_path / "b", name) for name in ("optimizer", "selfcheck"))
    model = hook.built()
    assert type(model).__name__ == kind
    assert selfcheck.differences(model, hook.optimizers(model)[0], 0, own_scheduler=False) == []
    lrs = {g["role"]: g["lr"] for g in hook.adamw(model).param_groups}
    assert lrs["hidden"] == pytest.approx(lrs["embedding"] / 2)
    assert all((p == 0).all() for name, p in model.named_parameters() if name.endswith("bias"))
    told = model.config
    assert (told.attention_probs_dropout_prob if kind.startswith("Bert") else told.attention_dropout) == 0.1
    if kind == "GraniteMoeForCausalLM":
        assert (told.output_router_logits, told.router_aux_loss_coef, lrs["router"]) == (True, 0.02, lrs["hidden"])
    else:
        assert "router" not in lrs


def test_the_list_tells_who_takes_what() -> None:
    cannot = {t["name"]: set(t["cannot carry"]) & {"mixtures of experts", "encoders"} for t in targets()}
    takers = {"hf": set(), "json": set(), "megatron": {"encoders"}}
    assert all(cannot[n] == takers.get(n, {"mixtures of experts", "encoders"}) for n in names())


def test_megatron_s_flags_of_a_mixture(tmp_path: Path) -> None:
    run = a_run(64, 4, family="moe", mixture=Mixture(experts=8, top_k=2, granularity=2))
    said = export(recommended(run), "megatron", tmp_path / "b", allow_lossy=True)
    args = dict(
        line.split(maxsplit=1)
        for line in (tmp_path / "b" / "megatron.args").read_text().splitlines()[1:]
        if " " in line
    )
    names = ("num-experts", "moe-router-topk", "moe-ffn-hidden-size", "ffn-hidden-size", "moe-aux-loss-coeff")
    assert [float(args[f"--{name}"]) for name in names] == [8, 2, 80, 160, 0.01 / 4]
    assert "balance" in said["fidelity"]["approximated"]


@pytest.mark.parametrize("kind", ["GraniteMoeForCausalLM", "BertForMaskedLM"])
@pytest.mark.parametrize("to", [n for n in names() if n not in ("hf", "json")])
def test_other_targets_say_what_they_have_no_form_of(to: str, kind: str, tmp_path: Path) -> None:
    if (to, kind) != ("megatron", "GraniteMoeForCausalLM"):
        with pytest.raises(UserError, match=f"family: is a {kind}, which this target has no form of"):
            export(recommended(BUNDLED[kind]), to, tmp_path / "b", allow_lossy=True)


@pytest.mark.slow
def test_bf16_trains_a_mixture(corpus: data.Corpus) -> None:
    model = grown(trunk_of(precision="bf16"), corpus)
    before = model.backward(model.batch()).item()
    assert all(model.step(1.0) for _ in range(20))
    assert model.loss(model.batch()).item() < before


# what a study may ask

STUDY = """
question = "Dense or a mixture?"
family = "moe"
[model]
head_dim = 16
base_width = 32
base_depth = 2
seq_len = 32
[train]
batch_tokens = 128
warmup = 0.1
decay = 0.2
[[stage]]
name = "dense"
kind = "ladder"
shapes = [[32, 2]]
rungs = {{ flops = [1e9, 2e9] }}
{dense}
[[stage]]
name = "sparse"
kind = "ladder"
shapes = [[32, 2]]
rungs = {{ flops = [1e9, 2e9] }}
{sparse}
[stage.space]
experts = {experts}
{space}
"""
UPCYCLE = 'fork = "upcycle"'


def asked(space: str = "", sparse: str = "", dense: str = "", experts: str = "8", after: str = "") -> study.Study:
    return study.parse(STUDY.format(space=space, sparse=sparse, dense=dense, experts=experts) + after, "moe.toml")


def trials(found: study.Study) -> dict[str, list[Trial]]:
    return {s.name: plan.sample_trials(found, s, {}) for s in found.stage}


@pytest.mark.parametrize("at", ["", "upcycle_at = [0.25, 0.5]", "upcycle_at = 2560"])
def test_rungs_in_flops_cost_the_same_whatever_the_body(at: str) -> None:
    found = trials(asked(at, UPCYCLE if at else ""))
    for trial in found["dense"] + found["sparse"]:
        per_step = 128 * moe.flops_per_token(trial.trunk.shape, trial.trunk.body)
        for run, flops in zip(sorted(trial.runs, key=lambda r: r.tokens), (1e9, 2e9), strict=True):
            assert families.flops(run) == pytest.approx(flops, abs=2 * per_step)


def test_upcycled_candidates_share_the_dense_stages_trunk() -> None:
    """Here a warmup in tokens: a share of the shortest rung is another one, where that is in FLOPs."""
    found = asked("upcycle_at = [1280, 2560]", UPCYCLE, experts="[4, 8]")
    found = found.model_copy(update={"train": found.train.model_copy(update={"warmup": 1280})})
    by_stage = trials(found)
    starts = [t.trunk.start for t in by_stage["sparse"]]
    assert sorted(s.decay_start for s in starts if s) == [1280, 1280, 2560, 2560]
    assert {s.state for s in starts if s} == {by_stage["dense"][0].trunk.fingerprint}


WRONG = [  # of the dense stage, of the sparse one, what is added to its space
    ("", "", "top_k = 9", "top_k: is more than the 8 experts that there are; got 9"),
    ("", "", "granularity = 3", "granularity: does not divide the feed-forward network's 80; got 3"),
    ("", "", "upcycle_at = 0.5", 'stage.sparse: fork = "upcycle" and space.upcycle_at belong together'),
    ("", UPCYCLE, "", "belong together"),
    (f"{UPCYCLE}\nspace = {{ upcycle_at = 0.5 }}", "", "", 'fork = "upcycle" needs space.experts, above 1'),
    ("", UPCYCLE, "upcycle_at = 0.5\ngranularity = 2", "no granularity but 1"),
    ("", UPCYCLE, "upcycle_at = 0.01", "upcycle_at: lies at 128 tokens, in the dense trunk's warmup"),
    ("", UPCYCLE, "upcycle_at = 0.9", "is longer than the decay's start"),
]


@pytest.mark.parametrize(("dense", "sparse", "space", "line"), WRONG)
def test_a_mixture_that_cannot_be_is_said_in_a_line(dense: str, sparse: str, space: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        plan.plan(asked(space, sparse, dense))


def test_a_family_without_mixtures_says_which_has_them() -> None:
    text = STUDY.replace('family = "moe"', 'family = "gpt"').format(dense="", sparse="", space="", experts=8)
    with pytest.raises(UserError, match="experts: above 1 is a mixture, which is family moe's, not gpt's; got 8"):
        plan.plan(study.parse(text, "moe.toml"))


def test_what_was_asked_is_told_from_the_records(corpus: data.Corpus, tmp_path: Path) -> None:
    """Where the database of asks is lost: a share of the shortest rung, of which a record has the tokens."""
    found = asked("upcycle_at = [0.25, 0.5]", UPCYCLE, experts="[4, 8]")
    stage, seen = found.stage_named("sparse"), []
    for trial in trials(found)["sparse"]:
        run = trial.runs[0]
        s = trial.trunk.shape
        n, total = moe.count(s, trial.trunk.body), moe.total(s, trial.trunk.body)
        read = {"fingerprint_of": run.fingerprint, "run": run, "stage": "sparse", "trial": 0, "status": "complete"}
        numbers = {
            "D": run.tokens,
            "C": 1.0,
            "flops": 1.0,
            "loss": 2.0,
            "bpb": 2.0,
            "tokens_trained": 1,
            "seconds": 1.0,
        }
        record = Record(**read, **numbers, N=n, N_total=total, started=store.now(), host="here")
        told = rebuild.candidate(found, stage, [record])
        assert (
            plan.trial(found, stage, {**plan.values_of(found, stage, {}), "width": 32, "depth": 2, **told}).runs[0]
            == run
        )
        seen.append((told["experts"], told["upcycle_at"]))
    assert sorted(seen) == [(4, 0.25), (4, 0.5), (8, 0.25), (8, 0.5)]


NEXT = """
[[stage]]
name = "next"
kind = "ladder"
after = "sparse"
shapes = [[32, 2]]
rungs = { flops = [1e9] }
"""


def test_experts_are_no_setting_that_a_stage_hands_on() -> None:
    found = asked("balance = [0.02, 0.03]", experts="[4, 8]", after=NEXT)
    last = found.stage[-1]
    handed = plan.handed_on(found, last)
    assert handed == {"balance": 0.02}
    (trial,) = plan.sample_trials(found, last, handed)
    assert trial.trunk.shape.mixture is None


@pytest.mark.slow
def test_a_study_of_mixtures_ends_with_its_tables(documents: study.Data, tmp_path: Path) -> None:
    """The whole of `tunnel run`: dense trunks are trained once, and every reading is the same again from scratch."""
    told = pipeline.run(mixing.study_file(tmp_path, documents), tmp_path / "out")
    tables = told["comparison"]["tables"]
    rows = tables["Dense or a mixture, at equal FLOPs"]["rows"]
    assert len(rows) == 3
    assert {r["seeds"] for r in rows} == {2}
    assert (
        "FLOPs the best mixture, 32×2 2 of 4, upcycled at" in tables["Dense or a mixture, at equal FLOPs"]["words"][0]
    )
    keep = Store(tmp_path / "out")
    records = keep.records()
    starts = {r.run.trunk.start for r in records} - {None}
    dense = {r.run.trunk.fingerprint for r in records if r.stage == "dense"}
    assert len(starts) == 4  # two places, two seeds
    assert {s.state for s in starts if s} == dense
    found, _ = sweep.frozen(tmp_path / "out")
    last = next(r for r in records if r.run.trunk.start)
    again = rerun.rerun(found, keep, last.fingerprint_of)
    assert again["equal"], again["first_difference"]


# several processes


def in_step(rank: int, world: int, port: int, corpus: data.Corpus, folder: Path, trial: Trial, means: Means) -> None:
    joined(rank, world, port)
    if rank:
        parallel.follow(corpus)
        return
    made = partial(parallel.lead, means=means)
    list(forks.grow(trial, Store(folder), corpus, made))
    parallel.end()


@pytest.mark.slow
@pytest.mark.parametrize("begins", ["scratch", "upcycled"])
@pytest.mark.parametrize("shard", ["none", "full"])
def test_processes_train_the_mixture_that_one_does(
    shard: Any, begins: str, corpus: data.Corpus, tmp_path: Path
) -> None:
    """Where each has what one process passes at a time: balance is of a pass."""
    trunk = upcycled() if begins == "upcycled" else trunk_of()
    trunk = trunk.replaced(settings=trunk.settings.replaced(micro_batch_tokens=BATCH // 2))
    trial = Trial(stage="s", number=0, runs=(run_spec(trunk, 16, 4),))
    group(2, in_step, corpus, tmp_path / "two", trial, Means(shard))
    [ours] = [e for e in forks.grow(trial, Store(tmp_path / "one"), corpus) if recorded(e)]
    [theirs] = Store(tmp_path / "two").records()
    assert theirs.loss == pytest.approx(cast(Any, ours).loss, rel=1e-5)
