"""Where trials run: on a Ray Tune cluster (`tunnel.sweeps.on_ray`), or one after the other in this process.

A backend takes trials from a `Queue` until there are none, and tells it every event and every end. What is trained,
and what survives a kill, is `tunnel.training.forks`' affair.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tunnel import families
from tunnel.errors import Stopped
from tunnel.folder import fence, shared, trouble
from tunnel.folder.remote import Place
from tunnel.folder.store import Store
from tunnel.run import Record, Trial
from tunnel.study import Data, Resources, Study
from tunnel.sweeps import hands, tokens
from tunnel.training import data as corpora
from tunnel.training.forks import Event
from tunnel.training.memory import OutOfMemory

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # that ask for an end; SIGUSR1 is Slurm's warning
AGAIN = 1.0  # seconds until the interrupt after that is repeated: Python drops one that falls into a callback
PATIENCE = 7.0  # seconds for the workers to save at their step, of the 10 that a sweep may take to stop


class Queue(Protocol):
    """What a backend works on."""

    def next(self) -> Trial | None:
        """The next trial to start, or None where all are started."""

    def left(self) -> int:
        """How many are not handed out yet, as far as is known."""

    def handed(self, numbers: Sequence[int]) -> None:
        """A worker starts with these trials."""

    def event(self, number: int, event: Event) -> bool:
        """A slice of a trial, or a reading, has ended; answers whether the trial goes on."""

    def ended(self, number: int, error: str | None) -> None:
        """A trial has ended; `error` where the machine failed it."""


@dataclass(frozen=True)
class Work:
    """What every trial needs beside itself; travels to the workers."""

    folder: str
    data: Data
    seq_len: int
    reads: bool
    pack: int = 1  # trials of one shape that share their steps (`tunnel.training.pack`), at most
    gpu_memory: float = 1.0  # the fraction of a GPU's memory that a worker may take
    place: Place | None = None  # where workers write, if not in the folder

    @classmethod
    def of(cls, asked: Study, keep: Store) -> Work:
        reads = families.load(asked.family).reads
        return cls(str(keep.root.resolve()), asked.data, asked.model.seq_len, reads, place=keep.place)

    def corpus(self) -> corpora.Corpus | None:
        return corpora.opened(self.data, self.seq_len) if self.reads else None

    def opened(self) -> Store:
        """The folder, in the driver's process."""
        return shared.opened(self.folder, self.place)

    def store(self, attempt: Path | None = None) -> Store:
        """Where a worker reads and writes."""
        if self.place is None:
            return Store(self.folder, attempt)
        return shared.Worker(self.place, attempt.name if attempt is not None else None)

    def leading(self) -> Store:
        """Where a worker does so that closes all attempts but its own: one before it may live on, cut off."""
        if self.place is not None:
            return shared.Worker.leading(self.place)
        fence.close_all(Path(self.folder))
        return Store(self.folder, fence.open_attempt(Path(self.folder)))

    @property
    def stop(self) -> Path:
        """The driver's file that asks every worker to save and stop."""
        return Path(self.folder) / "stop"


def run(
    queue: Queue,
    work: Work,
    resources: Resources,
    *,
    address: str | None = None,
    max_concurrent: int | None = None,
    workers: int | None = None,
) -> None:
    """Runs the queue empty; with `workers`, each trial over so many of Ray Train's.

    Raises Stopped on a signal that asks for it, or a full disk; what is done is kept.
    """
    here = workers is None and resources.backend == "inline" and address is None
    try:
        with trouble.stops(), stoppable(work.stop), work.opened().followed(here=here):
            if not here and work.place is not None:
                queue = Hearing(queue, Store(work.folder))
            if workers is not None:
                environment(address)
                from tunnel.sweeps import on_train

                on_train.run(queue, work, resources, address, workers)
            elif here:
                inline(queue, work)
            else:
                environment(address)
                from tunnel.sweeps import on_ray  # only now: Ray reads the environment once, when it is imported

                on_ray.run(queue, work, resources, address, max_concurrent)
    except KeyboardInterrupt:
        raise Stopped(INTERRUPTED) from None


class Hearing:
    """A queue whose workers' records lie elsewhere: they are kept in the folder before they count."""

    def __init__(self, queue: Queue, keep: Store) -> None:
        self.queue, self.keep = queue, keep
        self.next, self.left, self.handed, self.ended = queue.next, queue.left, queue.handed, queue.ended

    def event(self, number: int, event: Event) -> bool:
        if isinstance(event, Record):
            self.keep.write_record(event)
        return self.queue.event(number, event)


INTERRUPTED = "interrupted; the same command goes on"


@contextmanager
def stoppable(stop: Path) -> Iterator[None]:
    """A signal makes the workers save at their step and stop; a second one, or their delay, interrupts at once."""
    stop.unlink(missing_ok=True)  # of a driver that was killed

    def ask(signum: int, frame: object) -> None:
        if stop.exists():
            raise KeyboardInterrupt
        stop.touch()
        signal.setitimer(signal.ITIMER_REAL, PATIENCE, AGAIN)

    main = threading.current_thread() is threading.main_thread()
    before: dict[signal.Signals, Any] = {s: signal.signal(s, ask) for s in (*SIGNALS, signal.SIGALRM)} if main else {}
    try:
        yield
    finally:
        if main:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for s, handler in before.items():
            signal.signal(s, handler)
        asked = stop.exists()
        stop.unlink(missing_ok=True)
    if asked:  # when all was done already: what comes next is not begun
        raise Stopped(INTERRUPTED)


def inline(queue: Queue, work: Work) -> None:
    if work.reads:
        from tunnel.training.train import one_thread  # only now: it imports torch

        one_thread()  # as on a worker
    corpus, keep = work.corpus(), work.opened()
    handed = hands.Hands(queue, work.pack)
    while hand := handed.next():
        left = {t.number: t for t in hand}
        try:
            for number, event in hands.events(hand, keep, corpus):
                goes_on = event is None or queue.event(number, event)
                if event is not None and work.stop.exists():
                    raise Stopped(INTERRUPTED)
                if event is None or not goes_on:
                    left.pop(number)
                    queue.ended(number, None)
                if not goes_on:  # one by itself: what is judged is not packed
                    break
        except OutOfMemory as e:
            if len(hand) > 1:
                handed.again += left.values()
            else:
                queue.ended(hand[0].number, str(e))


def environment(address: str | None) -> None:
    """What Ray and its workers read: no usage statistics, no loggers, and for a local cluster a token of its own."""
    os.environ.update(
        RAY_USAGE_STATS_ENABLED="0",
        TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
        TUNE_DISABLE_SIGINT_HANDLER="1",
        RAY_AIR_NEW_OUTPUT="0",
        RAY_CHDIR_TO_TRIAL_DIR="0",  # a study's relative paths are the driver's
        TUNE_GLOBAL_CHECKPOINT_S="inf",  # of the controller: a snapshot of all trials, which nobody reads
        TUNE_MAX_PENDING_TRIALS_PG="1000000",  # all workers start at once: our searcher knows how many there are
    )
    if address is None:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(tokens.own()))
