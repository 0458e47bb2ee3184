"""Training by role: groups, initialisation, gradient accumulation, and divergence as an answer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BATCH, SEQ_LEN, run_spec, trunk_spec
from transformers import GraniteConfig, GraniteForCausalLM
from transformers.models.granite.modeling_granite import apply_rotary_pos_emb

from tunnel import transfer
from tunnel.families import gpt
from tunnel.folder.store import Store
from tunnel.run import Record, Trial, TrunkSpec
from tunnel.training import data, forks, train


def grown(trunk: TrunkSpec, corpus: data.Corpus) -> Any:
    return gpt.grown(trunk, corpus)


def plain(model: Any) -> list[dict[str, Any]]:
    """The groups' numbers, and what is in them."""
    names = {id(p): n for n, p in model.model.named_parameters()}
    return [{**g, "params": [names[id(p)] for p in g["params"]]} for g in model.groups]


# roles


def test_at_the_base_shape_all_rules_build_the_same_model(corpus: data.Corpus) -> None:
    first, *others = [grown(trunk_spec(rules=r), corpus) for r in transfer.RULES]
    arrays, groups = first.state()[0], plain(first)
    for other in others:
        theirs = other.state()[0]
        assert all(np.array_equal(arrays[k], theirs[k]) for k in arrays)
        assert plain(other) == groups
        assert other.model.config.to_dict() == first.model.config.to_dict()


@pytest.mark.parametrize(
    ("rules", "hidden"),  # twice as wide, three times as deep: lr, weight decay, eps, init std
    [
        ("minicpm", (0.005, 0.02, 1e-8, 0.1 / math.sqrt(2))),
        ("completep", (0.005, 0.02, 1e-8 / 6, 0.1 / math.sqrt(2))),
        ("standard", (0.01, 0.01, 1e-8, 0.1)),
    ],
)
def test_groups_as_the_optimizer_has_them(corpus: data.Corpus, rules: str, hidden: tuple[float, ...]) -> None:
    model = grown(trunk_spec(rules=rules, shape=(64, 6)), corpus)
    roles = [g["role"] for g in model.groups]
    expected = {"embedding": (0.01, 0.01, 1e-8, 0.1), "hidden": hidden, "vector": (0.01, 0.0, 1e-8, 0.0)}
    assert sorted(roles) == sorted(expected)
    for role, own, group in zip(roles, model.groups, model.optimizer.param_groups, strict=True):
        got = (group["lr"], group["weight_decay"], group["eps"], own["init_std"])
        assert got == pytest.approx(expected[role])
        for p in group["params"]:
            if role == "vector":
                assert bool((p == 1).all())
            else:
                assert p.std().item() == pytest.approx(own["init_std"], rel=0.1)


def test_every_parameter_is_in_one_group(corpus: data.Corpus) -> None:
    model = grown(trunk_spec(), corpus)
    names = [n for g in plain(model) for n in g["params"]]
    assert sorted(names) == sorted(n for n, _ in model.model.named_parameters())


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("model.layers.0.self_attn.q_proj.weight", "hidden"),
        ("model.layers.1.mlp.down_proj.weight", "hidden"),
        ("model.layers.0.input_layernorm.weight", "vector"),
        ("model.norm.weight", "vector"),
    ],
)
def test_roles_by_name(corpus: data.Corpus, name: str, role: str) -> None:
    model = grown(trunk_spec(shape=(32, 2)), corpus)
    parameter = dict(model.model.named_parameters())[name]
    assert [g["role"] for g in model.groups if any(p is parameter for p in g["params"])] == [role]


def test_a_parameter_without_a_role_is_an_error(corpus: data.Corpus) -> None:
    trunk = trunk_spec()
    config = GraniteConfig(**{**gpt.config_dict(trunk.shape, trunk.body, trunk.rules), "attention_bias": True})
    with pytest.raises(AssertionError, match=r"q_proj\.bias has no role"):
        train.Trained(lambda: GraniteForCausalLM(config), gpt.ROLES, trunk, corpus)


# steps


def test_the_first_step_is_adamw_at_the_multiplied_rate(corpus: data.Corpus) -> None:
    """Adam's first step moves each weight by lr · sign(gradient), less its decay."""
    trunk = trunk_spec(clip=1e9, weight_decay=0.0, eps=1e-12)
    model = grown(trunk, corpus)
    before = {n: p.detach().clone() for n, p in model.model.named_parameters()}
    model.step(0.25)
    for group in model.groups:
        for p in group["params"]:
            name = next(n for n, q in model.model.named_parameters() if q is p)
            moved = (p.detach() - before[name]).abs()
            seen = moved[moved > 0]  # an embedding's unread rows do not move
            assert seen.median().item() == pytest.approx(0.25 * group["lr"], rel=1e-2)


def test_accumulated_gradients_are_the_batch_s(corpus: data.Corpus) -> None:
    whole, parts = (grown(trunk_spec(micro_batch_tokens=m), corpus) for m in (BATCH, SEQ_LEN))
    for model in (whole, parts):
        for _ in range(3):
            model.step(1.0)
    for k, v in whole.state()[0].items():
        if k.startswith("model."):
            assert np.allclose(v, parts.state()[0][k], atol=2e-4), k
    assert whole.smoothed.item() == pytest.approx(parts.smoothed.item(), rel=1e-4)


def test_the_loss_is_nats_per_token(corpus: data.Corpus) -> None:
    """An untrained model with silenced weights guesses uniformly: log of the vocabulary."""
    model = grown(trunk_spec(), corpus)
    with torch.no_grad():
        for p in model.parameters:
            p.zero_()
    assert model.evaluate() == pytest.approx(math.log(256), rel=1e-6)


def test_the_held_out_loss_is_the_model_s_own(corpus: data.Corpus) -> None:
    """Evaluated in pieces of the logits: what transformers says of all sequences at once."""
    model = grown(trunk_spec(shape=(64, 2), eval_tokens=70 * SEQ_LEN), corpus)  # logits ÷ 2, and a last short piece
    for _ in range(5):
        model.step(1.0)
    sequences = torch.from_numpy(corpus.evaluation(70 * SEQ_LEN, SEQ_LEN))
    assert len(sequences) * SEQ_LEN % train.EVAL_ROWS
    assert model.evaluate() == pytest.approx(model.loss(sequences).item(), rel=1e-6)


def test_training_learns_and_evaluating_changes_nothing(corpus: data.Corpus) -> None:
    one, two = grown(trunk_spec(), corpus), grown(trunk_spec(), corpus)
    before = one.evaluate()
    for _ in range(12):
        one.step(1.0)
        two.step(1.0)
        one.evaluate()
    assert one.evaluate() < before - 1
    assert all(np.array_equal(v, two.state()[0][k]) for k, v in one.state()[0].items())


@pytest.mark.parametrize(
    ("changed", "same"), [({"seed": 1}, False), ({"lr": 0.02}, True), ({"micro_batch_tokens": SEQ_LEN}, True)]
)
def test_seeds_vary_the_start_and_settings_do_not(corpus: data.Corpus, changed: dict[str, Any], same: bool) -> None:
    a, b = (
        grown(t, corpus).state()[0]["model.model.embed_tokens.weight"] for t in (trunk_spec(), trunk_spec(**changed))
    )
    assert np.array_equal(a, b) == same


# stability


def test_stability_against_what_is_known(corpus: data.Corpus) -> None:
    """After one step of Adam every weight moved by lr; a silenced model guesses uniformly and attends to nothing."""
    trunk = trunk_spec(clip=1e-3, eps=1e-12, weight_decay=0.0)
    model = grown(trunk, corpus)
    for _ in range(3):
        model.step(1.0)
    assert model.stability().clip_rate == 1.0
    calm = grown(trunk_spec(clip=1e9, eps=1e-12), corpus)
    calm.step(1.0)
    found = calm.stability()
    assert (found.clip_rate, found.spikes) == (0.0, 0)
    for group in calm.groups:
        weights = torch.cat([p.detach().flatten() for p in group["params"]])
        moved = [calm.optimizer.state[p]["exp_avg"] != 0 for p in group["params"]]  # unread rows of an embedding stay
        share = torch.cat([m.flatten() for m in moved]).float().mean().sqrt()
        expected = group["lr"] * share / weights.square().mean().sqrt()
        assert found.update_to_weight[group["role"]] == pytest.approx(expected.item(), rel=1e-3)
    with torch.no_grad():
        for p in calm.parameters:
            p.zero_()
    silent = calm.stability()
    assert silent.attention_logit == 0.0
    assert silent.log_partition == pytest.approx(math.log(256), rel=1e-6)


@pytest.mark.parametrize("kv_heads", [None, 1])
def test_the_largest_attention_logit_is_the_one_before_the_softmax(corpus: data.Corpus, kv_heads: int | None) -> None:
    """Against transformers' own eager attention: softmax of these logits is its weights."""
    model = grown(trunk_spec(kv_heads=kv_heads), corpus)
    for _ in range(5):
        model.step(1.0)
    sequences = torch.from_numpy(corpus.evaluation(train.WATCHED * SEQ_LEN, SEQ_LEN))[:, :-1]
    seen: list[float] = []

    def hook(module: Any, args: Any, kwargs: Any) -> None:
        hidden, (cos, sin) = kwargs["hidden_states"], kwargs["position_embeddings"]
        n, t, _ = hidden.shape
        q, k = (p(hidden).view(n, t, -1, 16).transpose(1, 2) for p in (module.q_proj, module.k_proj))
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        seen.append((q @ k.transpose(-1, -2) / 4).tril().abs().max().item())

    for layer in model.model.model.layers:
        layer.self_attn.register_forward_pre_hook(hook, with_kwargs=True)
    with torch.no_grad():
        model.model.eval()(input_ids=sequences, use_cache=False)
    assert model.stability().attention_logit == pytest.approx(max(seen), rel=1e-5)


def test_a_spike_is_a_step_that_stands_out(corpus: data.Corpus) -> None:
    model = grown(trunk_spec(), corpus)
    calm, high = torch.tensor(2.0), torch.tensor(9.0)
    for step in range(60):
        model.tokens += BATCH
        model.note(high if step in (10, 40) else calm + 0.1 * (-1) ** step, torch.tensor(0.5))
    assert model.tally[1:].tolist() == [0, 1]  # the first fall is no spike


# divergence


@pytest.mark.parametrize("lr", [3.0, 1e3])
@pytest.mark.parametrize("steps", [(30, 6), (6, 2)], ids=["long", "shorter than a look"])
def test_a_hopeless_rate_is_recorded_and_raises_nothing(
    tmp_path: Any, corpus: data.Corpus, lr: float, steps: tuple[int, int]
) -> None:
    trunk = trunk_spec(lr=lr, warmup=0)
    runs = (run_spec(trunk, steps[0] - 2, 2), run_spec(trunk, *steps))
    records = [
        e for e in forks.grow(Trial(stage="s", number=0, runs=runs), Store(tmp_path), corpus) if isinstance(e, Record)
    ]
    assert [r.status for r in records] == ["diverged", "diverged"]
    for r in records:
        assert (r.loss, r.bpb) == (None, None)
        assert r.diverged_at is not None
        assert 0 < r.diverged_at <= r.D
    assert Store(tmp_path).records() == records
    assert list(Store(tmp_path).readings().status) == ["diverged", "diverged"]
