"""What the tests share: one thread, a cache of their own, a tiny corpus, and the smallest specs that train."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch read it

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunnel.run import Body, RunSpec, Settings, Shape, Source, TrunkSpec
from tunnel.study import Data
from tunnel.training import data

SEQ_LEN = 32
BATCH = 128  # tokens: four sequences
WORDS = [
    "loss",
    "falls",
    "with",
    "more",
    "tokens",
    "a",
    "wider",
    "model",
    "until",
    "the",
    "batch",
    "is",
    "too",
    "small",
]

# How studies begin after their question: of the synthetic family, without a target and with one, and of a tiny model.
CALIBRATION = """
family = "synthetic"
[model]
head_dim = 16
base_width = 32
base_depth = 2
seq_len = 32
[train]
batch_tokens = 1024
[resources]
backend = "inline"
"""
SYNTHETIC = f"""{CALIBRATION}[[target]]
name = "big"
width = 128
depth = 8
tokens = "1M"
"""
TRAINED = """
family = "gpt"
[data]
corpus = "files"
paths = ["{corpus}/*.txt"]
held_out = 0.2
eval_tokens = 2048
[model]
head_dim = 8
base_width = 16
base_depth = 1
seq_len = 32
[[target]]
name = "big"
width = 48
depth = 3
tokens = "16k"
"""

TINY = (
    f'question = "Which lr?"{SYNTHETIC}'
    + """[[stage]]
name = "calibrate"
kind = "search"
  [stage.space]
  width = 32
  depth = 2
  lr = { low = 1e-3, high = 1e-1 }
  [stage.budget]
  trials = 4
  tokens = "100k"
[[stage]]
name = "ladder"
kind = "ladder"
after = "calibrate"
shapes = [[32, 2], [64, 4]]
fan = [0.5, 1, 2]
rungs = { tokens = ["50k", "100k"] }
"""
)


LONGEST = ("test_sweep", "test_dashboard", "test_pack", "test_finetune")  # files: begun last, one core would idle


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test's report says which fault it causes (tests/faults.py counts them); the longest files go first."""
    for item in items:
        item.user_properties += [("fault", mark.args[0]) for mark in item.iter_markers("fault")]
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """TUNNEL_CACHE for everything that the tests start."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNNEL_CACHE", str(folder))
        yield folder


def write_corpus(folder: Path, documents: int, seed: int = 0) -> None:
    """Text files of some hundred words, the same for the same seed."""
    rng = np.random.default_rng(seed)
    for i in range(documents):
        (folder / f"{i:03d}.txt").write_text(" ".join(rng.choice(WORDS, 200)))


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """A corpus of 40 text files."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, 40)
    return Data(corpus="files", paths=(f"{folder}/*.txt",), held_out=0.2, eval_tokens=512)


@pytest.fixture(scope="session")
def corpus(documents: Data) -> data.Corpus:
    return data.opened(documents, SEQ_LEN)


def trunk_spec(
    *,
    family: str = "gpt",
    rules: str = "minicpm",
    shape: tuple[int, int] = (32, 2),
    kv_heads: int | None = None,
    seed: int = 0,
    eval_tokens: int = 512,
    **changed: Any,
) -> TrunkSpec:
    """A trunk that trains in milliseconds a step; `changed` are its settings."""
    settings: dict[str, Any] = {
        "lr": 0.01,
        "warmup": 4 * BATCH,
        "batch_tokens": BATCH,
        "micro_batch_tokens": BATCH,
        "weight_decay": 0.01,
        "beta1": 0.9,
        "beta2": 0.95,
        "eps": 1e-8,
        "clip": 1.0,
        "precision": "fp32",
    }
    return TrunkSpec(
        family=family,
        rules=rules,
        shape=Shape(width=shape[0], depth=shape[1], kv_heads=kv_heads),
        body=Body(
            head_dim=16,
            base_width=32,
            base_depth=2,
            seq_len=SEQ_LEN,
            ffn_ratio=2.5,
            scale_emb=12,
            scale_depth=1.4,
            init_std=0.1,
            vocab=256,
        ),
        settings=Settings(**{**settings, **changed}),
        source=Source(corpus="files", corpus_hash="", tokenizer="bytes", held_out=0.2, eval_tokens=eval_tokens),
        seed=seed,
    )


def run_spec(trunk: TrunkSpec, start: int, length: int, shape: str = "1-sqrt", min_ratio: float = 0.0) -> RunSpec:
    """A run of `trunk` whose decay starts after `start` steps and takes `length` steps."""
    return RunSpec(
        trunk=trunk, decay_start=start * BATCH, decay_tokens=length * BATCH, decay_shape=shape, min_ratio=min_ratio
    )


@pytest.fixture
def study_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes the tiny study with some of its text replaced; a replacement that finds nothing is a broken test."""

    def write(*replaced: tuple[str, str], name: str = "tiny.toml") -> Path:
        text = TINY
        for old, new in replaced:
            assert text.count(old) >= 1, old
            text = text.replace(old, new, 1)
        path = tmp_path / name
        path.write_text(text)
        return path

    return write
