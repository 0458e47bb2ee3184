"""Encoders with a masked-LM loss: `BertForMaskedLM`, post-LayerNorm BERT (SCIENCE §7).

BERT has no multipliers in its forward pass and a LayerNorm after every sum: of a rule only lr, initialisation, weight
decay and epsilon by role apply, so at other depths `minicpm` and `completep` are less here than on a Granite.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tunnel import transfer
from tunnel.errors import UserError
from tunnel.run import Body, Shape, TrunkSpec

if TYPE_CHECKING:
    from tunnel.families import Grown
    from tunnel.training.data import Corpus
    from tunnel.training.masking import Masked

reads = True
masked = True  # the loss is of hidden tokens: no bits per byte follow from it
RATE = 0.15  # of the words, or of the tokens, that a step hides: BERT, arXiv 1810.04805  *from paper*

ROLES: dict[str, transfer.Role] = {
    r"projection\.\d+\.weight$": "hidden",  # of a lesson (`training.distill`), which is no part of N
    r"classifier\.weight$": "readout",  # of a task (`training.finetune`)
    r"(word|position|token_type)_embeddings\.weight$": "embedding",  # the first is tied: the readout too
    r"(query|key|value|dense)\.weight$": "hidden",
    r"bias$": "vector",
    r"LayerNorm\.weight$": "vector",
}


def heads(shape: Shape, body: Body) -> int:
    return shape.width // body.head_dim


def ffn(shape: Shape, body: Body) -> int:
    return round(body.ffn_ratio * shape.width)


def layers(width: int, depth: int, inner: int) -> int:
    """Parameters of the blocks: four square maps, the feed-forward network, biases, two LayerNorms.  *derived*"""
    return depth * (4 * width**2 + 2 * width * inner + inner + 9 * width)


def count(shape: Shape, body: Body) -> int:
    """Non-embedding parameters: blocks, the embedding's LayerNorm and the head's transform.  *derived*

    What has a row per token, position or type is left out, the readout's bias too.
    """
    d = shape.width
    return layers(d, shape.depth, ffn(shape, body)) + d**2 + 5 * d


def published(width: int, depth: int, inner: int, vocab: int = 21_128) -> int:
    """Parameters as papers count them: `BertModel` with 512 positions, two types and its pooler, without a head."""
    return (vocab + 512 + 2) * width + 2 * width + layers(width, depth, inner) + width**2 + width


def parameters(shape: Shape, body: Body) -> int:
    """All of `BertForMaskedLM`: N, a row for each token, position and type, and the readout's bias.  *derived*"""
    return count(shape, body) + (body.vocab + body.seq_len + 2) * shape.width + body.vocab


def architecture(shape: Shape) -> tuple[str, str]:
    """transformers' class, and its name for the type."""
    return "BertForMaskedLM", "bert"


def flops_per_token(shape: Shape, body: Body) -> float:
    """FLOPs per trained token: the blocks, attention over the whole square, and the head where tokens are hidden.

    *derived*; hidden are `RATE` of the tokens, as words' lengths go.
    """
    d = shape.width
    blocks = 6.0 * (layers(d, shape.depth, ffn(shape, body)) + 2 * d)
    attention = 12 * shape.depth * heads(shape, body) * body.head_dim * body.seq_len
    return blocks + attention + RATE * 6.0 * (d**2 + 3 * d + body.vocab * d)


def config_dict(shape: Shape, body: Body, rules: str, dropout: float = 0.0) -> dict[str, Any]:
    """The BertConfig of a shape, as keyword arguments."""
    return {
        "vocab_size": body.vocab,
        "hidden_size": shape.width,
        "intermediate_size": ffn(shape, body),
        "num_hidden_layers": shape.depth,
        "num_attention_heads": heads(shape, body),
        "max_position_embeddings": body.seq_len,
        "tie_word_embeddings": True,
        "attention_probs_dropout_prob": dropout,
        "hidden_dropout_prob": 0.0,
        "initializer_range": body.init_std,
        "pad_token_id": None,  # its row is one like any other: nothing is padded in pre-training
    }


def layer_map(kind: str, student: int, teacher: int) -> tuple[int, ...]:
    """The teacher's hidden state for each of a student's, by depths; 0 is the embedding's.

    >>> layer_map("uniform", 3, 12), layer_map("last", 3, 12)
    ((0, 4, 8, 12), (0, 10, 11, 12))
    """
    if kind == "uniform":
        return tuple(round(i * teacher / student) for i in range(student + 1))
    return (0, *(max(teacher - student + i, 0) for i in range(1, student + 1)))


BLOCK = re.compile(r"(?<=encoder\.layer\.)\d+(?=\.)")


def inherited(trunk: TrunkSpec, name: str, weights: Callable[[str], np.ndarray]) -> np.ndarray:
    """A parameter's first values: of a student those of the teacher's layer that its layer is matched with."""
    assert trunk.start is not None
    kind = trunk.lesson.layer_map if trunk.lesson is not None else "uniform"
    layers = layer_map(kind, trunk.shape.depth, trunk.start.trunk.shape.depth)
    return weights(BLOCK.sub(lambda m: str(max(layers[int(m[0]) + 1] - 1, 0)), name))


def grown(trunk: TrunkSpec, corpus: Corpus | None, kind: Callable[..., Masked] | None = None) -> Grown:
    """The model of a trunk at 0 tokens, with its optimizer; raises UserError where several workers should share it."""
    from transformers import BertConfig, BertForMaskedLM

    from tunnel.training import distill, finetune, masking

    assert corpus is not None
    if kind is not None:
        raise UserError("is trained by one worker", key="family", value="encoder")
    config = BertConfig(**config_dict(trunk.shape, trunk.body, trunk.rules, trunk.settings.dropout))
    config._attn_implementation = "sdpa"
    if trunk.task is not None:
        return finetune.Tuned(finetune.classifier(trunk), ROLES, trunk, corpus.of(trunk.source))
    if trunk.lesson is not None:
        build = distill.with_projection(lambda: BertForMaskedLM(config), trunk, trunk.lesson)
        return distill.Student(build, ROLES, trunk, corpus.of(trunk.source))
    return masking.Masked(lambda: BertForMaskedLM(config), ROLES, trunk, corpus.of(trunk.source))
