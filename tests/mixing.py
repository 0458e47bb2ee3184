"""What the tests of mixtures share: a study that trains dense bodies, mixtures and upcycled ones in seconds."""

from __future__ import annotations

from pathlib import Path

from tunnel.study import Data

TINY = """
question = "Dense or a mixture?"
family = "moe"
[data]
corpus = "files"
paths = ["{paths}"]
held_out = 0.2
eval_tokens = 512
[model]
head_dim = 16
base_width = 32
base_depth = 2
seq_len = 32
[train]
batch_tokens = 128
warmup = 640
decay = 0.2
[resources]
backend = "inline"
[[stage]]
name = "dense"
kind = "ladder"
shapes = [[32, 2]]
rungs = {{ flops = [1e9] }}
budget = {{ seeds = [0, 1] }}
[[stage]]
name = "upcycled"
kind = "ladder"
fork = "upcycle"
shapes = [[32, 2]]
rungs = {{ flops = [1e9] }}
budget = {{ seeds = [0, 1] }}
  [stage.space]
  experts = 4
  upcycle_at = [0.25, 0.5]
"""


def study_file(folder: Path, documents: Data) -> Path:
    """The study's file, over a corpus of text files."""
    path = folder / "mixture.toml"
    path.write_text(TINY.format(paths=documents.paths[0]))
    return path
