"""A model written in several ways trains step by step as one; and the trained weights as transformers loads them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, run_spec, trunk_spec
from exporting import SEQ, a_run, recommended
from test_parallel import group, joined

from tunnel import study
from tunnel.errors import UserError
from tunnel.export import _forms, _model, _tokenizer
from tunnel.export._forms import Form, granite
from tunnel.families import gpt
from tunnel.folder import checkpoint
from tunnel.folder.store import Store
from tunnel.run import RunSpec, Trial
from tunnel.training import forks, parallel
from tunnel.training.data import SEPARATOR, Corpus

ROUNDING = 1e-5  # of a logit after ten steps: norms are computed in single precision; a wrong epsilon moves it by 1e-3

FORMS: dict[str, Callable[[Form], Form]] = {
    "without logits": Form.without_logits,
    "without residual": Form.without_residual,
    "both": lambda form: form.without_logits().without_residual(),
    "plain": Form.plain,
}


def network(run: RunSpec, form: Form, plain: bool) -> Any:
    """In double precision, where the forms agree to the last digits."""
    from transformers import GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM

    config = gpt.config_dict(run.trunk.shape, run.trunk.body, run.trunk.rules)
    if plain:
        config = {k: v for k, v in config.items() if k not in form.multipliers}
        return LlamaForCausalLM(LlamaConfig(**config, rms_norm_eps=form.norm_eps)).double()
    return GraniteForCausalLM(GraniteConfig(**{**config, **form.multipliers, "rms_norm_eps": form.norm_eps})).double()


def trained(net: Any, form: Form, steps: int) -> Any:
    """The logits after some steps of AdamW by the form's groups, without clipping."""
    import torch
    from torch.nn import functional as F

    parameters: dict[str, list[Any]] = {g.pattern: [] for g in form.groups}
    for name, p in net.named_parameters():
        parameters[next(g.pattern for g in form.groups if re.search(g.pattern, name))].append(p)
    names = ("lr", "weight_decay", "eps")
    groups = [{"params": parameters[g.pattern], **{k: getattr(g, k) for k in names}} for g in form.groups]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, SEQ + 1)))
    for _ in range(steps):
        logits = net(input_ids=tokens[:, :-1]).logits
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return net(input_ids=tokens[:, :-1]).logits


@pytest.mark.parametrize(("name", "rules"), [*((name, "minicpm") for name in FORMS), ("plain", "completep")])
def test_every_form_trains_as_granite_does(name: str, rules: str) -> None:
    """Ten steps: same logits, so also the same coordinate check; epsilon and weight decay count."""
    import torch

    run = a_run(64, 3, rules=rules, kv_heads=2)
    first = granite(recommended(run))
    first = _forms.replace(first, groups=tuple(_forms.replace(g, eps=1e-4) for g in first.groups))
    form = FORMS[name](first)
    torch.manual_seed(0)
    ours, theirs = network(run, first, False), network(run, form, name == "plain")
    assert first.norm_eps == type(ours.config)().rms_norm_eps == _forms.NORM_EPS
    with torch.no_grad():
        for (n, p), (m, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            assert n == m
            old = next(g for g in first.groups if re.search(g.pattern, n))
            new = next(g for g in form.groups if re.search(g.pattern, n))
            q.copy_(p * (new.init_std / old.init_std) if old.init_std else p)
    torch.testing.assert_close(trained(ours, first, 10), trained(theirs, form, 10), rtol=0, atol=ROUNDING)


def test_a_form_has_the_multipliers_that_it_says() -> None:
    form = granite(recommended(a_run()))
    assert form.plain().multipliers == {**form.multipliers, **dict.fromkeys(ONES, 1.0)}
    assert form.without_logits().of("embedding").lr == pytest.approx(form.of("hidden").lr)  # muP as one learning rate
    with pytest.raises(KeyError):
        form.of("readout")


ONES = ("embedding_multiplier", "residual_multiplier", "logits_scaling")


def test_the_byte_tokenizer_is_the_corpus_own(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for name, text in _tokenizer.files().items():
        (tmp_path / name).write_text(text)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "def f(x):\n\treturn 'é€😀'  \x00\x7f"
    assert tokenizer(text)["input_ids"] == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text
    assert (tokenizer.vocab_size, tokenizer.eos_token_id) == (256, SEPARATOR)


@pytest.fixture(scope="module")
def finished(
    documents: Any, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> tuple[study.Study, Store, RunSpec]:
    """A target that was trained, with its study."""
    root = tmp_path_factory.mktemp("study")
    run = run_spec(trunk_spec(), 12, 6)
    keep = Store(root)
    list(forks.grow(Trial(stage="target:big", number=0, runs=(run,), keeps=True), keep, corpus))
    paths, text = json.dumps(list(documents.paths)), TINY.replace('"synthetic"', '"gpt"')
    data = f'[data]\ncorpus = "files"\npaths = {paths}\nheld_out = 0.2\neval_tokens = 512\n[model]'
    (root / "study.toml").write_text(text.replace("[model]", data, 1))
    return study.load(root / "study.toml"), keep, run


@pytest.mark.parametrize("kind", _model.KINDS)
def test_the_trained_model_loads_and_generates(kind: str, finished: Any, corpus: Corpus, tmp_path: Path) -> None:
    """By AutoModelForCausalLM; its logits are the trained model's, to 1e-5, and the loss the record's."""
    import torch
    from torch.nn import functional as F
    from transformers import AutoModelForCausalLM, AutoTokenizer

    asked, keep, run = finished
    said = _model.export(asked, keep, recommended(run), kind, tmp_path / "m")
    assert said["exact"]
    net, tokenizer = (a.from_pretrained(tmp_path / "m") for a in (AutoModelForCausalLM, AutoTokenizer))
    assert type(net).__name__ == {"hf": "GraniteForCausalLM", "llama": "LlamaForCausalLM"}[kind]
    assert net.lm_head.weight is net.model.embed_tokens.weight
    sequences = torch.from_numpy(corpus.evaluation(run.trunk.source.eval_tokens, run.trunk.body.seq_len))
    with torch.no_grad():
        logits = net(input_ids=sequences[:, :-1]).logits
    arrays, _ = _model.trained(asked, keep, run, keep.record(run.fingerprint))
    ours = network(run, granite(recommended(run)), False).float()
    ours.load_state_dict(
        {
            **{k: torch.from_numpy(v) for k, v in arrays.items()},
            "lm_head.weight": torch.from_numpy(arrays["model.embed_tokens.weight"]),
        }
    )
    with torch.no_grad():
        torch.testing.assert_close(logits, ours(input_ids=sequences[:, :-1]).logits, rtol=0, atol=1e-5)
    loss = F.cross_entropy(logits.flatten(0, 1), sequences[:, 1:].flatten()).item()
    assert loss == pytest.approx(keep.record(run.fingerprint).loss, rel=1e-5)
    start = tokenizer("loss falls", return_tensors="pt")
    made = net.generate(**start, max_new_tokens=8, do_sample=False)
    assert made.shape[1] > start["input_ids"].shape[1]
    assert tokenizer.decode(made[0]).startswith("loss falls")
    card = (tmp_path / "m" / "README.md").read_text()
    assert all(word in card for word in ("license:", "forecast before training: 2.0000", "Limits:", run.fingerprint))


def led(rank: int, world: int, port: int, folder: Path, corpus: Corpus, run: RunSpec, shard: Any) -> None:
    """The target over several processes, as Ray Train's workers train it."""
    joined(rank, world, port)
    if rank:
        parallel.follow(corpus)
        return
    trial = Trial(stage="target:big", number=0, runs=(run,), keeps=True)
    list(forks.grow(trial, Store(folder), corpus, partial(parallel.lead, means=parallel.Means(shard))))
    parallel.end()


@pytest.mark.slow
@pytest.mark.parametrize(("shard", "files"), [("none", 1), ("full", 2)])
def test_the_model_is_the_one_that_several_processes_left(
    finished: Any, corpus: Corpus, tmp_path: Path, shard: str, files: int
) -> None:
    """Not its decay trained again by one, which rounds otherwise: that is what is left where its state is gone."""
    from safetensors.numpy import load_file

    asked, _, run = finished
    group(2, led, tmp_path, corpus, run, shard)
    keep = Store(tmp_path)
    left = keep.checkpoint(run.fingerprint, run.tokens)
    assert len(list(left.glob("state*.safetensors"))) == files
    said = [_model.export(asked, keep, recommended(run), "hf", tmp_path / "one")]
    shutil.rmtree(left)
    said.append(_model.export(asked, keep, recommended(run), "hf", tmp_path / "two"))
    assert [s["exact"] for s in said] == [True, False]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert max(float(np.abs(one[k] - two[k]).max()) for k in one) < 1e-3
    record = keep.record(run.fingerprint)
    assert record is not None
    assert checkpoint.digests({f"model.{k}": v for k, v in one.items()}, {})["weights"] == record.final["weights"]


def test_what_was_not_trained_has_no_model(finished: Any, tmp_path: Path) -> None:
    asked, keep, run = finished
    never = recommended(run.replaced(decay_tokens=2 * run.decay_tokens))
    for recommendation, kind, says in [
        (never, "hf", "no trained model"),
        (recommended(run), "gguf", "choices: hf, llama"),
    ]:
        with pytest.raises(UserError, match=says):
            _model.export(asked, keep, recommendation, kind, tmp_path / "m")
    synthetic = recommended(a_run(family="synthetic"))
    with pytest.raises(UserError, match="not a model that transformers builds"):
        _model.export(asked, keep, synthetic, "hf", tmp_path / "m")
    assert not list(tmp_path.iterdir())
