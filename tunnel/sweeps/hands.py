"""What a worker is handed: one trial, or several of one shape that share their steps (`tunnel.training.pack`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

from tunnel.folder.store import Store
from tunnel.run import Trial
from tunnel.training import forks, memory
from tunnel.training.data import Corpus


class Source(Protocol):
    """The part of a queue that hands out."""

    def next(self) -> Trial | None:
        """The next trial to start, or None where all are started."""

    def left(self) -> int:
        """How many are not handed out yet, as far as is known."""

    def handed(self, numbers: Sequence[int]) -> None:
        """A worker starts with these trials."""


class Hands:
    """Takes a queue's trials as many at a time as fit into one pack, evenly over the workers.

    `pack`: at most so many; a trial that does not fit waits for the next hand.
    """

    def __init__(self, queue: Source, pack: int, workers: int = 1) -> None:
        self.queue, self.pack, self.workers = queue, pack, workers
        self.waiting: Trial | None = None
        self.again: list[Trial] = []  # their worker died or had no room: each by itself now, whichever was the cause

    def next(self) -> list[Trial]:
        """The next hand; empty where there is nothing left."""
        hand = self.drawn()
        if hand:
            self.queue.handed([t.number for t in hand])
        return hand

    def drawn(self) -> list[Trial]:
        if self.again:
            return [self.again.pop()]
        first, self.waiting = self.waiting or self.queue.next(), None
        if first is None:
            return []
        hand, most = [first], min(self.pack, math.ceil((1 + self.queue.left()) / self.workers))
        while len(hand) < most and self.waiting is None and forks.packable(first.trunk, first.trunk):
            trial = self.queue.next()
            if trial is None:
                break
            if forks.packable(first.trunk, trial.trunk):
                hand.append(trial)
            else:
                self.waiting = trial
        return hand


def events(hand: Sequence[Trial], keep: Store, corpus: Corpus | None) -> Iterator[tuple[int, forks.Event | None]]:
    """What the trials of a hand say, with their numbers; None where one has ended.

    Raises Stopped as `forks.grow` does, OutOfMemory where they do not fit this machine.
    """
    try:
        yield from trained(hand, keep, corpus)
    except (RuntimeError, MemoryError) as e:
        if not memory.is_out_of_memory(e):
            raise
        raise memory.OutOfMemory(memory.line(hand[0].trunk, len(hand))) from None


def trained(hand: Sequence[Trial], keep: Store, corpus: Corpus | None) -> Iterator[tuple[int, forks.Event | None]]:
    """One that could share its steps takes them as a pack does, also alone: its bits do not depend on its hand."""
    if all(forks.packable(hand[0].trunk, t.trunk) for t in hand):
        from tunnel.training.pack import Together  # only now: it imports torch

        yield from Together(hand, keep, corpus).events()
        return
    for trial in hand:
        for event in forks.grow(trial, keep, corpus):
            yield trial.number, event
        yield trial.number, None
