"""Token streams with a stateless order: which sequence of which source is a run's i-th, for any i, at any time.

Sources join a stream from a token on, for good (a trunk's data) or for one decay; each is read in an order of its own,
without a gap and without repeating what it gave before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

import numpy as np

from tunnel.errors import UserError
from tunnel.run import Mixed, RunSpec, Source

FINEST = 10**6  # a share is a fraction of whole numbers up to this, the same on every machine


@dataclass(frozen=True, eq=False)
class Corpus:
    """Sequences are `seq_len` inputs with their next tokens.

    `held_out`, and what is measured on it, are the first source's own, whatever joined it.
    """

    train: np.ndarray
    held_out: np.ndarray
    bytes_per_token: float
    hash: str  # of all parts: "first+joined;name=source"
    name: str = ""
    then: tuple[Joins, ...] = ()  # earliest first
    sources: tuple[Corpus, ...] = ()  # the named ones, whether anything reads them or not
    blend: tuple[Joins, ...] = ()  # what a decay reads beside

    @property
    def own(self) -> str:
        """What names the first source's content."""
        return self.hash.split(";")[0].split("+")[0]

    @property
    def slices(self) -> dict[str, Corpus]:
        """The sources whose held-out loss is watched, by name: all that are named, and what joined; none if one."""
        found: dict[str, Corpus] = {}
        for c in (self, *self.sources, *(j.corpus for j in self.then if j.corpus not in self.sources)):
            same = sum(name.split("#")[0] == c.name for name in found)
            found[f"{c.name}#{same + 1}" if same else c.name] = c
        return found if len(found) > 1 else {}

    def of(self, source: Source) -> Corpus:
        """The corpus as a trunk read it; raises UserError where it changed, or data that joined no longer joins.

        A source without a hash takes any corpus.
        """
        wanted = {(j.at, j.share, j.source.corpus_hash) for j in source.then}
        then = tuple(j for j in self.then if (j.at, j.share, j.corpus.own) in wanted)
        if len(then) < len(source.then):
            raise UserError("no longer holds the data that joined an earlier run", key="data.then")
        if source.corpus_hash not in ("", self.own):
            raise UserError(CHANGED, key="data.corpus", value=self.name)
        return replace(self, then=then, hash="+".join([self.own, *(j.corpus.own for j in then)]))

    def during(self, mix: tuple[Mixed, ...], at: int) -> Corpus:
        """The corpus as a decay reads it that starts after `at` tokens; without a mix as the trunk does.

        Raises UserError where a source changed since.
        """
        blend, left = list[Joins](), Fraction(1)
        for m in reversed(mix):
            there = [s for s in self.sources if s.name == m.name and m.source.corpus_hash in ("", s.own)]
            if not there:
                raise UserError(CHANGED, key="data.source", value=m.name)
            share = exact(m.share)
            blend.insert(0, Joins(at, float(share / left) if share < left else 1.0, there[0]))
            left -= share
        return replace(self, blend=tuple(blend))

    def hold(self, runs: Iterable[RunSpec]) -> None:
        """Raises UserError where this is not the corpus that was read by these runs."""
        for source, mix in {(r.trunk.source, r.mix) for r in runs}:
            self.of(source).during(mix, 0)

    def bytes_per(self, source: Source) -> float:
        """Bytes per token of what the loss of runs with this source weighs."""
        slices = self.slices
        return sum(w * slices[k].bytes_per_token for k, w in source.loss) if source.loss else self.bytes_per_token

    def counts(self, i: np.ndarray, seq_len: int) -> dict[str, tuple[Corpus, np.ndarray]]:
        """By source, how many of the run's first i sequences are its own; i is an array, and so are they.

        What joined last gets its share of all, evenly spread, what joined before it of the rest, and so on.
        """
        each: list[tuple[Corpus, np.ndarray]] = []
        for j in sorted((*self.then, *self.blend), key=lambda j: j.at)[::-1]:
            share = exact(j.share)
            taken = np.maximum(i - j.at // seq_len, 0) * share.numerator // share.denominator
            each.append((j.corpus, taken))
            i = i - taken
        found: dict[str, tuple[Corpus, np.ndarray]] = {}
        for corpus, count in (*each, (self, i)):  # who joins twice goes on where it was
            found[corpus.own] = (corpus, count + found[corpus.own][1] if corpus.own in found else count)
        return found

    def sequences(self, seed: int, first: int, n: int, seq_len: int) -> np.ndarray:
        """Sequences first … first + n − 1 of the run's order, each seq_len + 1 tokens (int64)."""
        if not self.then and not self.blend:
            return self.alone(seed, first, n, seq_len)
        found = np.empty((n, seq_len + 1), dtype=np.int64)
        for corpus, count in self.counts(np.arange(first, first + n + 1), seq_len).values():
            its = np.diff(count) > 0
            if its.any():
                found[its] = corpus.alone(seed, int(count[0]), int(its.sum()), seq_len)
        return found

    def alone(self, seed: int, first: int, n: int, seq_len: int) -> np.ndarray:
        """`sequences` of this source's own order: a function of the seed and of what was consumed, not of the batch.

        Without replacement within an epoch; another epoch is another permutation.
        """
        windows = (len(self.train) - 1) // seq_len
        index = np.arange(first, first + n)
        starts = np.empty(n, dtype=np.int64)
        for epoch in range(index[0] // windows, index[-1] // windows + 1):
            here = index // windows == epoch
            starts[here] = order(seed, epoch, windows)[index[here] % windows]
        return gather(self.train, starts * seq_len, seq_len)

    def evaluation(self, tokens: int, seq_len: int) -> np.ndarray:
        """Evenly spread held-out sequences, the same for every run (int64)."""
        windows = (len(self.held_out) - 1) // seq_len
        n = min(max(tokens // seq_len, 1), windows)
        return gather(self.held_out, np.arange(n) * windows // n * seq_len, seq_len)


CHANGED = "the corpus changed since the run read it: put it back as it was, or try --out"


@dataclass(frozen=True)
class Joins:
    """A corpus that joins from `at` tokens on, as `share` of the sequences from there."""

    at: int
    share: float
    corpus: Corpus


def exact(share: float) -> Fraction:
    return Fraction(share).limit_denominator(FINEST)


@lru_cache(maxsize=8)
def order(seed: int, epoch: int, windows: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(windows)


def gather(tokens: np.ndarray, starts: np.ndarray, seq_len: int) -> np.ndarray:
    return tokens[starts[:, None] + np.arange(seq_len + 1)].astype(np.int64)
