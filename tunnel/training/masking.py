"""Masked language modelling: what a sequence hides, and a model that trains to tell it.

What is hidden is a function of the seed and of the sequence's place in the run alone: forks, kills and micro-batches
change nothing of it. Hidden are 15% of the words, each as a whole: of these 80% become [MASK], 10% random tokens, 10%
stay (BERT, arXiv 1810.04805); with `masking = "tokens"` every token is a word of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch.nn import functional as F

from tunnel.families.encoder import RATE
from tunnel.training.stream import Corpus
from tunnel.training.train import EVAL_TOKENS, WATCHED, Trained
from tunnel.training.words import Marks, marks, parted

SHOWN = 0.8, 0.9  # below the first [MASK], below the second a random token, else itself: BERT  *from paper*
IGNORED = -100  # the label of what is not hidden: torch's
HELD_OUT = 20_190_619  # the seed of held-out masks, the same for every run  *assumed*
OTHER = "token masks"  # the slice on which single tokens are hidden, whatever training hides


def uniform(seed: int, first: int, n: int, width: int, draw: int) -> np.ndarray:
    """Numbers in [0, 1) by (seed, place of the sequence, place in it, draw): SplitMix64's mixing.  *from paper*"""

    def mixed(x: np.ndarray) -> np.ndarray:
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        key = mixed(np.array([4 * seed + draw], dtype=np.uint64) + golden)
        row = mixed((key ^ np.arange(first, first + n, dtype=np.uint64)) * golden + golden)[:, None]
        found = mixed((row ^ np.arange(width, dtype=np.uint64)) * golden + golden)
    return (found >> np.uint64(11)) / float(1 << 53)


def hidden(
    tokens: np.ndarray, starts: np.ndarray, seed: int, first: int, kind: Marks, vocab: int
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels (n, T) of sequences first …; `starts`: which tokens begin a word. Labels are -100 but there.

    A sequence begins with [CLS] in place of its first token, and hides 15% of its words, one at least.
    """
    n, t = tokens.shape
    inputs, starts = tokens.copy(), starts.copy()
    inputs[:, 0], starts[:, :2] = kind.begin, True
    whose = np.maximum.accumulate(np.where(starts, np.arange(t), 0), axis=1)  # each token's word, by where it begins
    may = ~np.isin(inputs, kind.never)
    scores = uniform(seed, first, n, t, 0)
    ranked = np.sort(np.where(starts & may, scores, 2.0), axis=1)
    words = (starts & may).sum(axis=1)
    most = np.maximum(np.rint(RATE * words), 1).astype(int)
    chosen = may & (np.take_along_axis(scores, whose, 1) <= np.take_along_axis(ranked, most[:, None] - 1, 1))
    chosen &= (words > 0)[:, None]
    shown = np.take_along_axis(uniform(seed, first, n, t, 1), whose, 1)
    drawn = kind.text + (uniform(seed, first, n, t, 2) * (vocab - kind.text)).astype(tokens.dtype)
    labels = np.where(chosen, inputs, IGNORED)
    inputs = np.where(chosen & (shown < SHOWN[0]), kind.mask, inputs)
    return np.where(chosen & (shown >= SHOWN[0]) & (shown < SHOWN[1]), drawn, inputs), labels


class Masked(Trained):
    """An encoder with its optimizer; a batch is (sequences, inputs and labels, T)."""

    def masks(self, raw: np.ndarray, masking: str, seed: int, first: int) -> torch.Tensor:
        """(n, 2, T), inputs and labels, of sequences as the stream has them."""
        source, vocab = self.trunk.source, self.trunk.body.vocab
        tokens, starts = parted(raw[:, :-1], source.tokenizer, vocab)
        starts = starts if masking == "words" else np.ones_like(starts)
        pair = hidden(tokens, starts, seed, first, marks(source.tokenizer), vocab)
        return torch.from_numpy(np.stack(pair, axis=1)).to(self.device)

    def batch(self) -> torch.Tensor:
        t, s = self.trunk.body.seq_len, self.trunk.settings
        first, n = self.tokens // t, s.batch_tokens // t
        return self.masks(self.corpus.sequences(self.trunk.seed, first, n, t), s.masking, self.trunk.seed, first)

    def weighed(self, part: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        return self.loss(part) * self.share(part, batch)

    @staticmethod
    def share(part: torch.Tensor, batch: torch.Tensor) -> float:
        """Of a batch's hidden tokens."""
        return float((part[:, 1] != IGNORED).sum() / (batch[:, 1] != IGNORED).sum())

    def told(self, part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and labels (hidden tokens) of a part of a batch: the head works where something is hidden alone."""
        model, where = cast(Any, self.model), part[:, 1] != IGNORED
        seen = model.bert(input_ids=part[:, 0]).last_hidden_state
        return model.cls(seen[where]).float(), part[:, 1][where]

    def loss(self, sequences: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the hidden tokens, in nats."""
        return F.cross_entropy(*self.told(sequences))

    def evaluate(self, pause: Callable[[], None] = lambda: None) -> float:
        """Held-out loss in nats per hidden token, of whole words whatever training hides; single tokens are a slice."""
        loss = super().evaluate(pause)
        self.known[OTHER] = self.hidden_loss(self.corpus, "tokens", pause)
        return loss

    def held_out(self, corpus: Corpus, pause: Callable[[], None]) -> float:
        return self.hidden_loss(corpus, "words", pause)

    @torch.no_grad()
    def hidden_loss(self, corpus: Corpus, masking: str, pause: Callable[[], None]) -> float:
        """Mean cross-entropy of what is hidden of a corpus' held-out side, under fixed masks."""
        t = self.trunk.body.seq_len
        sequences = self.masks(corpus.evaluation(self.trunk.source.eval_tokens, t), masking, HELD_OUT, 0)
        self.model.eval()
        total, count = torch.zeros((), dtype=torch.float64, device=self.device), 0
        for part in sequences.split(max(EVAL_TOKENS // t, 1)):
            pause()
            logits, labels = self.told(part)
            total += F.cross_entropy(logits, labels, reduction="sum")
            count += len(labels)
        self.model.train()
        return total.item() / max(count, 1)

    def watched(self) -> Any:
        t = self.trunk.body.seq_len
        raw = self.corpus.evaluation(WATCHED * t, t)
        return self.model(input_ids=self.masks(raw, "words", HELD_OUT, 0)[:, 0])
