"""Encoders: published counts, words hidden as a whole, a vocabulary that is the same everywhere, exact forks."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BATCH, SEQ_LEN, run_spec, trunk_spec, write_corpus
from test_forks import assert_same, measured
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM, BertModel

from tunnel import families, plan, study
from tunnel.errors import UserError
from tunnel.families import encoder
from tunnel.folder.store import Store
from tunnel.run import Shape, Trial
from tunnel.study import Data
from tunnel.training import data, forks, masking, words

PUBLISHED = {  # depth, width, FFN, millions: MiniRBT, arXiv 2304.00717, Table 1  *from paper*
    "RoBERTa-wwm-ext": (12, 768, 3072, "102.27"),
    "RBT6": (6, 768, 3072, "59.74"),
    "RBT3": (3, 768, 3072, "38.48"),
    "RBT4-H312": (4, 312, 1200, "11.42"),
    "MiniRBT-H256": (6, 256, 1024, "10.35"),
    "MiniRBT-H288": (6, 288, 1152, "12.31"),
}
VOCAB = 100  # so few that words have several pieces
TRUNK = trunk_spec(family="encoder", lr=0.002)


def built(shape: Shape, body: Any, device: str = "meta") -> BertForMaskedLM:
    config = BertConfig(**encoder.config_dict(shape, body, "minicpm"))
    config._attn_implementation = "eager"
    with torch.device(device):
        return BertForMaskedLM(config)


# counts


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_counts_exactly(name: str) -> None:
    depth, width, inner, millions = PUBLISHED[name]
    n = encoder.published(width, depth, inner)
    assert f"{n / 1e6:.2f}" == millions
    if width < 768:
        heads = 12 if width == 312 else 8
        shape = {"hidden_size": width, "num_hidden_layers": depth, "intermediate_size": inner}
        with torch.device("meta"):
            model = BertModel(BertConfig(vocab_size=21_128, num_attention_heads=heads, **shape))
        assert n == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("width", "depth", "ffn_ratio"), [(32, 2, 4), (64, 3, 2.5), (48, 1, 8 / 3)])
def test_arithmetic_counts_what_is_built(width: int, depth: int, ffn_ratio: float) -> None:
    shape = Shape(width=width, depth=depth)
    body = TRUNK.body.replaced(ffn_ratio=ffn_ratio)
    rows = (body.vocab + body.seq_len + 2) * width + body.vocab
    assert encoder.count(shape, body) == sum(p.numel() for p in built(shape, body).parameters()) - rows


def test_flops_are_what_torch_counts() -> None:
    """Of a real step, the head at the hidden tokens alone; 6N holds vectors too, which are in no matrix product."""
    shape, body, n = Shape(width=64, depth=3), TRUNK.body, 8
    model, some = built(shape, body, "cpu"), round(encoder.RATE * n * TRUNK.body.seq_len)
    with FlopCounterMode(display=False) as counter:
        seen = model.bert(input_ids=torch.zeros(n, body.seq_len, dtype=torch.long)).last_hidden_state
        model.cls(seen.flatten(0, 1)[:some]).sum().backward()
    vectors = 6 * (shape.depth * (13 * 64 - 3 * 64 + 64 * 2.5) + 2 * 64) + 0.15 * 6 * 3 * 64
    expected = encoder.flops_per_token(shape, body) - vectors
    assert counter.get_total_flops() / (n * body.seq_len) == pytest.approx(expected, rel=0.01)


# what is hidden


def sequences(n: int = 200, t: int = 64, vocab: int = 500) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(5, vocab, (n, t)), rng.random((n, t)) < 0.5


MARKS = words.marks("wordpiece")


def test_words_are_hidden_as_a_whole_and_shown_as_bert_does() -> None:
    tokens, starts = sequences()
    tokens[:, 20] = MARKS.end
    inputs, labels = masking.hidden(tokens, starts, 3, 0, MARKS, 500)
    hidden = labels != masking.IGNORED
    assert np.array_equal(labels[hidden], tokens[hidden])
    assert (inputs[:, 0] == MARKS.begin).all()
    assert not hidden[:, 0].any()
    assert not hidden[:, 20].any()
    assert np.array_equal(inputs[:, 1:][~hidden[:, 1:]], tokens[:, 1:][~hidden[:, 1:]])
    starts[:, :2] = True
    kinds = Counter[str]()
    for row in range(len(tokens)):
        word = np.cumsum(starts[row])
        may = np.isin(tokens[row], MARKS.never, invert=True) & (np.arange(64) > 0)
        by_word = {w: hidden[row][(word == w) & may] for w in set(word[may])}
        assert all(h.all() or not h.any() for h in by_word.values())
        whole = {w for w in by_word if tokens[row][np.argmax(word == w)] != MARKS.end}
        assert sum(by_word[w].any() for w in whole) == max(round(0.15 * len(whole)), 1)
        for w in (w for w in whole if by_word[w].any()):
            here = (word == w) & may
            said = inputs[row][here]
            same = (said == tokens[row][here]).all()
            kinds["mask" if (said == MARKS.mask).all() else "same" if same else "drawn"] += 1
    total = sum(kinds.values())
    assert [kinds[k] / total for k in ("mask", "drawn", "same")] == pytest.approx([0.8, 0.1, 0.1], abs=0.03)


def test_masks_are_a_function_of_seed_and_place() -> None:
    tokens, starts = sequences()
    whole = masking.hidden(tokens, starts, 3, 40, MARKS, 500)
    part = masking.hidden(tokens[7:19], starts[7:19], 3, 47, MARKS, 500)
    assert all(np.array_equal(a[7:19], b) for a, b in zip(whole, part, strict=True))
    other = masking.hidden(tokens, starts, 4, 40, MARKS, 500)
    again = masking.hidden(tokens, starts, 3, 40 + len(tokens), MARKS, 500)
    assert not np.array_equal(whole[1], other[1])
    assert not np.array_equal(whole[1], again[1])


def test_uniform_is_uniform() -> None:
    u = masking.uniform(0, 0, 300, 300, 0)
    assert (u.min() >= 0, u.max() < 1) == (True, True)
    assert np.histogram(u, 10, (0, 1))[0] == pytest.approx([9000] * 10, rel=0.05)
    assert abs(np.corrcoef(u[:-1].ravel(), u[1:].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(u.ravel(), masking.uniform(0, 0, 300, 300, 1).ravel())[0, 1]) < 0.01


def test_bytes_know_their_words() -> None:
    raw = np.frombuffer("a_b1 Été 文件x".encode(), dtype=np.uint8).astype(np.int64)
    _, starts = words.parted(raw, "bytes", 256)
    found = np.split(raw, np.flatnonzero(starts))[1:]
    assert [bytes(w.tolist()).decode() for w in found] == ["a", "_", "b1", " ", "É", "t", "é", " ", "文", "件", "x"]
    assert not set(bytes(words.BYTES.never)) - {0} & {b for c in map(chr, range(0xD800)) for b in c.encode()}


# the vocabulary


CHINESE = "这个命令用来显示文件系统的使用情况, unmounted filesystems are files. "


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zh")
    write_corpus(folder, 30)
    for path in folder.glob("*.txt"):
        path.with_suffix(".txt.gz").write_bytes(gzip.compress((CHINESE + path.read_text()).encode()))
        path.unlink()
    return folder


def asked(texts: Path, **changed: Any) -> Data:
    told = {"corpus": "files", "paths": (f"{texts}/*.gz",), "held_out": 0.2, "eval_tokens": 512, "vocab": VOCAB}
    return Data(**{**told, "tokenizer": "wordpiece", **changed})


def test_a_vocabulary_is_the_same_in_every_process(texts: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tunnel.training import words\n"
        "print('|'.join(words.pieces(words.counted(sys.argv[1:]), 90)))"
    )
    told = [gzip.decompress(p.read_bytes()).decode() for p in sorted(texts.glob("*.gz"))[:6]]
    outs = {
        subprocess.run([sys.executable, "-c", code, *told], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(outs) == 1
    found = outs.pop().strip().split("|")
    assert found[:5] == list(words.NAMES)
    assert len(found) == len(set(found)) == 90
    assert {"loss", "tokens", "model", "这"} <= set(found)


@pytest.mark.parametrize("who", ["tokenizer", "jieba"])
def test_a_stream_says_where_words_begin(texts: Path, who: str) -> None:
    if who == "jieba":
        pytest.importorskip("jieba")
    corpus = data.opened(asked(texts, words=who), SEQ_LEN)
    tokens, starts = words.parted(np.array(corpus.train), "wordpiece", VOCAB)
    shards = data.cache() / corpus.hash
    rows = (shards / "vocab.txt").read_text().split("\n")
    assert json.loads((shards / "meta.json").read_text())["tokenizer"] == "wordpiece"
    until = int(np.argmax(tokens == MARKS.end))
    said = [[rows[t] for t in w] for w in np.split(tokens[:until], np.flatnonzero(starts[:until])[1:])]
    pieces = [["文", "件", "系", "统"]] if who == "jieba" else [["文"], ["件"], ["系"], ["统"]]
    at = next(i for i, w in enumerate(said) if w[0] == "文")
    assert said[at : at + len(pieces)] == pieces
    spelt = ["".join(p.removeprefix("##") for p in w) for w in said]
    assert {"filesystems", "unmounted", "are"} <= set(spelt)


def test_corpora_differ_by_words_and_vocabulary_and_by_nothing_else(texts: Path) -> None:
    hashes = {data.opened(asked(texts, **k), SEQ_LEN).hash for k in ({}, {"vocab": 150}, {"get": "apt-get"})}
    assert len(hashes) == 2
    pytest.importorskip("jieba")
    assert data.opened(asked(texts, words="jieba"), SEQ_LEN).hash not in hashes


# training


@pytest.fixture(scope="module")
def chinese(texts: Path) -> data.Corpus:
    return data.opened(asked(texts), SEQ_LEN)


def wordy(**changed: Any) -> Any:
    trunk = trunk_spec(family="encoder", **{"lr": 0.002, "micro_batch_tokens": 2 * SEQ_LEN, **changed})
    return trunk.replaced(body=trunk.body.replaced(vocab=VOCAB), source=trunk.source.replaced(tokenizer="wordpiece"))


@pytest.mark.parametrize("masks", ["words", "tokens"])
def test_forks_equal_runs_from_scratch(tmp_path: Path, chinese: data.Corpus, masks: str) -> None:
    trunk, keep = wordy(masking=masks), Store(tmp_path)
    trial = Trial(stage="s", number=0, runs=(run_spec(trunk, 3, 2), run_spec(trunk, 6, 3)))
    work = forks.Work(trial, keep, chinese)
    for run in trial.runs:
        for step in (work.trunk(run.decay_start), work.decay(run)):
            for _ in forks.alone(step):
                pass
        assert work.grown is not None
        state = {k: v.copy() for k, v in work.grown.state()[0].items()}
        model: Any = encoder.grown(trunk, chinese)
        while model.tokens < run.tokens:
            model.step(run.multiplier(model.tokens))
        assert_same(state, model.state()[0])


def test_both_maskings_read_one_loss_and_learn(tmp_path: Path, chinese: data.Corpus) -> None:
    [short] = measured(Trial(stage="s", number=0, runs=(run_spec(wordy(), 1, 1),)), Store(tmp_path), chinese)
    for masks in ("words", "tokens"):
        run = run_spec(wordy(masking=masks), 80, 20)
        [r] = measured(Trial(stage="s", number=0, runs=(run,)), Store(tmp_path), chinese)
        assert r.loss is not None
        assert short.loss is not None
        assert r.loss < short.loss - 0.3
        assert r.bpb is None
        assert list(r.slices) == [masking.OTHER]
        assert r.slices[masking.OTHER] != r.loss
        assert r.stability is not None
        assert r.stability.update_to_weight.keys() == {"embedding", "hidden", "vector"}


def test_micro_batches_are_the_batch(chinese: data.Corpus) -> None:
    whole, parts = (encoder.grown(wordy(micro_batch_tokens=m), chinese) for m in (BATCH, SEQ_LEN))
    for _ in range(3):
        whole.step(1.0)
        parts.step(1.0)
    (a, _), (b, _) = whole.state(), parts.state()
    name = "model.bert.encoder.layer.0.attention.self.query.weight"
    assert np.allclose(a[name], b[name], atol=1e-6)


def test_round_trip_through_from_pretrained(tmp_path: Path, chinese: data.Corpus) -> None:
    grown: Any = encoder.grown(wordy(), chinese)
    grown.step(1.0)
    grown.model.save_pretrained(tmp_path)
    other = AutoModelForMaskedLM.from_pretrained(tmp_path)
    x = torch.arange(SEQ_LEN)[None]
    grown.model.eval()
    with torch.no_grad():
        assert torch.equal(grown.model(x).logits, other(x).logits)


def test_vectors_start_at_one_and_zero(chinese: data.Corpus) -> None:
    model = encoder.grown(wordy(), chinese).model  # type: ignore[attr-defined]
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert not p.any(), name
        elif "LayerNorm" in name:
            assert (p == 1).all(), name
        else:
            assert p.std() > 0, name


# the study


STUDY = """
question = "Which masking?"
family = "encoder"
[data]
corpus = "files"
paths = ["{corpus}/*.gz"]
tokenizer = "wordpiece"
vocab = 100
held_out = 0.2
eval_tokens = 512
[model]
head_dim = 8
base_width = 16
base_depth = 1
seq_len = 32
ffn_ratio = 4
init_std = 0.02
[train]
batch_tokens = 128
[[stage]]
name = "masks"
kind = "ladder"
shapes = [[16, 1]]
rungs = {{ tokens = ["2k"] }}
space = {{ masking = ["words", "tokens"] }}
"""


def test_a_study_compares_maskings(texts: Path) -> None:
    made = study.parse(STUDY.format(corpus=texts), "s.toml")
    listed = plan.candidates(made, made.stage[0], {}) or []
    trials = [plan.trial(made, made.stage[0], {**plan.values_of(made, made.stage[0], {}), **c}) for c in listed]
    assert [t.trunk.settings.masking for t in trials] == ["words", "tokens"]
    assert plan.plan(made)["runs"] == 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('family = "encoder"', 'family = "gpt"', "family: knows no words: .*; got 'gpt'"),
        ('tokenizer = "wordpiece"', 'tokenizer = "some"', "data.words: is missing: .*; choices: tokenizer, jieba"),
        ('["{corpus}/*.gz"]', '["/nowhere/*.gz"]\nget = "apt-get it"', "data.paths: no file .* exists; apt-get it"),
        ('"words", "tokens"', '"words", "letters"', "masking 'letters' is unknown; choices: words, tokens"),
    ],
)
def test_what_a_study_gets_wrong_is_one_line(texts: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan.plan(study.parse(STUDY.replace(old, new).format(corpus=texts), "s.toml"))


def test_several_workers_are_refused(chinese: data.Corpus) -> None:
    with pytest.raises(UserError, match="one worker"):
        encoder.grown(wordy(), chinese, kind=masking.Masked)
    assert families.hides("encoder")
    assert not families.hides("gpt")
