"""Where trials run: on a Ray Tune cluster (`tunnel.on_ray`), or one after the other in this process.

A backend takes trials from a `Queue` until there are none, and tells it every event and every end. What is trained,
and what survives a kill, is `tunnel.forks`' affair.
"""

from __future__ import annotations

import errno
import os
import secrets
from dataclasses import dataclass
from typing import Protocol

from tunnel import data as corpora
from tunnel import forks
from tunnel.errors import Stopped
from tunnel.forks import Event
from tunnel.run import Trial
from tunnel.store import Store
from tunnel.study import Data, Resources

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a disk without room says


class Queue(Protocol):
    """What a backend works on."""

    def next(self) -> Trial | None:
        """The next trial to start, or None where all are started."""

    def event(self, number: int, event: Event) -> None:
        """A slice of a trial, or a reading, has ended."""

    def ended(self, number: int, error: str | None) -> None:
        """A trial has ended; `error` where the machine failed it."""


@dataclass(frozen=True)
class Work:
    """What every trial needs beside itself; travels to the workers."""

    folder: str
    data: Data
    seq_len: int
    reads: bool

    def corpus(self) -> corpora.Corpus | None:
        return corpora.opened(self.data, self.seq_len) if self.reads else None


def run(
    queue: Queue, work: Work, resources: Resources, *, address: str | None = None, max_concurrent: int | None = None
) -> None:
    """Runs the queue empty. Raises Stopped on Ctrl-C, SIGTERM or a full disk; what is finished is kept."""
    try:
        if resources.backend == "inline" and address is None:
            inline(queue, work)
        else:
            environment(address)
            from tunnel import on_ray  # only now: Ray reads the environment once, when it is imported

            on_ray.run(queue, work, resources, address, max_concurrent)
    except KeyboardInterrupt:
        raise Stopped("interrupted; the same command goes on") from None
    except OSError as e:
        if e.errno not in FULL:
            raise
        raise Stopped(no_space(e)) from None


def no_space(e: OSError) -> str:
    return f"no space left on the disk ({e.filename or 'while writing'}); make room, and the same command goes on"


def inline(queue: Queue, work: Work) -> None:
    corpus, keep = work.corpus(), Store(work.folder)
    while (trial := queue.next()) is not None:
        for event in forks.grow(trial, keep, corpus):
            queue.event(trial.number, event)
        queue.ended(trial.number, None)


def environment(address: str | None) -> None:
    """What Ray and its workers read: no usage statistics, no loggers, and for a local cluster a token of its own."""
    os.environ.update(
        RAY_USAGE_STATS_ENABLED="0",
        TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
        TUNE_DISABLE_SIGINT_HANDLER="1",
        RAY_AIR_NEW_OUTPUT="0",
    )
    if address is None:
        token = corpora.cache() / "ray-token"
        token.parent.mkdir(parents=True, exist_ok=True)
        if not token.exists():
            with open(os.open(token, os.O_CREAT | os.O_WRONLY, 0o600), "w") as f:
                f.write(secrets.token_hex(32))
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))
