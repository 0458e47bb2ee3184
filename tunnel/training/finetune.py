"""Fine-tuning: a finished encoder with a classifier over its first token, on a task; scored and timed on held-out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch
from torch.nn import functional as F

from tunnel import transfer
from tunnel.families.encoder import config_dict
from tunnel.run import Mixed, TrunkSpec
from tunnel.training import stream, tasks, words
from tunnel.training.stream import Corpus
from tunnel.training.train import EVAL_TOKENS, WATCHED, Trained

ONE = 15  # passes of one sequence, of which the shortest is the latency: other work only adds to it  *assumed*
BATCH = 32  # sequences of a pass whose throughput is measured  *assumed*


def classifier(trunk: TrunkSpec) -> Callable[[], torch.nn.Module]:
    from transformers import BertConfig, BertForSequenceClassification

    assert trunk.task is not None
    told = config_dict(trunk.shape, trunk.body, trunk.rules, trunk.settings.dropout)
    config = BertConfig(**told)
    config.num_labels = trunk.task.labels
    config._attn_implementation = "sdpa"
    return lambda: BertForSequenceClassification(config)


class Tuned(Trained):
    """A classifier in training; a sequence of a batch is an example, padded to the model's length.

    A batch is (examples, tokens, which text and label, T); an epoch is another order of all examples.
    """

    def __init__(
        self,
        build: Callable[[], torch.nn.Module],
        roles: dict[str, transfer.Role],
        trunk: TrunkSpec,
        corpus: Corpus,
    ):
        super().__init__(build, roles, trunk, corpus)
        assert trunk.task is not None
        found, source = tasks.again(trunk.task), trunk.source
        self.marks = words.marks(source.tokenizer)
        encode = tasks.encoder(source.tokenizer, corpus.own)
        sides = [tasks.encoded(rows, encode, self.marks, trunk.body.seq_len) for rows in (found.train, found.held_out)]
        self.train, self.apart = sides
        self.result: dict[str, Any] = {}

    def heirs(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The body; pooler and classifier are new."""
        named = self.model.named_parameters()
        return ((k, p) for k, p in named if k.startswith("bert.") and "pooler" not in k)

    def mix_in(self, mix: tuple[Mixed, ...], at: int) -> None:
        """A task has no mix."""

    def batch(self) -> torch.Tensor:
        t, n = self.trunk.body.seq_len, len(self.train)
        index = self.tokens // t + np.arange(self.trunk.settings.batch_tokens // t)
        rows = [stream.order(self.trunk.seed, int(i) // n, n)[i % n] for i in index]
        return torch.from_numpy(self.train[rows]).to(self.device)

    def logits(self, part: torch.Tensor) -> torch.Tensor:
        there = (part[:, 0] != self.marks.pad).long()
        return cast(
            torch.Tensor, self.model(input_ids=part[:, 0], token_type_ids=part[:, 1], attention_mask=there).logits
        ).float()

    def loss(self, sequences: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the labels, in nats."""
        return F.cross_entropy(self.logits(sequences), sequences[:, 2, 0])

    @torch.no_grad()
    def evaluate(self, pause: Callable[[], None] = lambda: None) -> float:
        """Held-out cross-entropy of the labels; accuracy, predictions and speed are `scored`."""
        self.model.eval()
        apart, said = torch.from_numpy(self.apart).to(self.device), []
        for part in apart.split(max(EVAL_TOKENS // self.trunk.body.seq_len, 1)):
            pause()
            said.append(self.logits(part))
        logits, labels = torch.cat(said), apart[:, 2, 0]
        chosen = logits.argmax(-1)
        guess = labels.bincount().max().item() / len(labels)  # the commonest label's share
        scores = {"accuracy": (chosen == labels).double().mean().item(), "guess": guess, **self.speed(apart)}
        self.result = {"scores": scores, "predicted": "".join(tasks.LETTERS[i] for i in chosen.tolist())}
        self.model.train()
        return F.cross_entropy(logits.double(), labels).item()

    def speed(self, apart: torch.Tensor) -> dict[str, float]:
        """Seconds of one sequence, sequences a second of a batch, and bytes that the weights take."""
        one = min(self.seconds(apart[:1]) for _ in range(ONE))
        many = apart[torch.arange(BATCH, device=apart.device) % len(apart)]
        batch = min(self.seconds(many) for _ in range(3))
        parameters = sum(p.numel() for p in self.model.parameters())
        size = sum(p.numel() * p.element_size() for p in self.model.parameters())
        told = {"latency": one, "throughput": BATCH / batch, "memory": float(size), "parameters": float(parameters)}
        if self.device.type == "cuda":
            told["memory"] = float(torch.cuda.max_memory_allocated())
        return told

    def seconds(self, part: torch.Tensor) -> float:
        begun = time.perf_counter()
        self.logits(part).sum().item()  # waits for the device
        return time.perf_counter() - begun

    def scored(self) -> dict[str, Any]:
        """Of the last evaluation, what its record keeps of it."""
        return self.result

    def watched(self) -> Any:
        part = torch.from_numpy(self.apart[:WATCHED]).to(self.device)
        return self.model(input_ids=part[:, 0], token_type_ids=part[:, 1])
