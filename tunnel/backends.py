"""Where trials run: on a Ray Tune cluster, or one after the other in this process. Ray's one home.

A backend takes trials from a `Queue` until there are none, and tells it every event and every end. What is trained,
and what survives a kill, is `tunnel.forks`' affair: a trial that is started again goes on from its trunk's last
checkpoint on disk, so Tune has no state to keep.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from tunnel import data, forks
from tunnel.errors import Stopped, UserError
from tunnel.forks import Event, Progress
from tunnel.run import Record, Trial
from tunnel.store import Store
from tunnel.study import Data, Resources

RETRIES = 2  # of a trial whose worker died or raised, before it has FAILED
OBJECT_STORE = 100 * 2**20  # bytes; trials pass nothing through it


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

    def corpus(self) -> data.Corpus | None:
        return data.opened(self.data, self.seq_len) if self.reads else None


def run(
    queue: Queue, work: Work, resources: Resources, *, address: str | None = None, max_concurrent: int | None = None
) -> None:
    """Runs the queue empty. Raises Stopped on Ctrl-C, SIGTERM or a full disk; what is finished is kept."""
    try:
        if resources.backend == "inline" and address is None:
            inline(queue, work)
        else:
            on_ray(queue, work, resources, address, max_concurrent)
    except KeyboardInterrupt:
        raise Stopped("interrupted; the same command goes on") from None
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
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


# Ray


def on_ray(queue: Queue, work: Work, resources: Resources, address: str | None, max_concurrent: int | None) -> None:
    with cluster(address) as cpus, tempfile.TemporaryDirectory(prefix="tunnel-tune-") as scratch:
        from ray import tune

        live = max_concurrent or max(int(cpus // resources.cpus), 1)
        search = searcher(queue, work, live)
        tuner = tune.Tuner(
            tune.with_resources(proxy(), {"CPU": resources.cpus, "GPU": resources.gpus}),
            tune_config=tune.TuneConfig(
                search_alg=search, num_samples=-1, reuse_actors=True, metric="rung", mode="max"
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            ),
        )
        tuner.fit()
    if search.stopped:
        raise Stopped(search.stopped)


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[float]:
    """Joins a cluster, or starts a local one with a token of its own; yields its CPUs."""
    os.environ.update(
        RAY_USAGE_STATS_ENABLED="0",
        TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
        TUNE_DISABLE_SIGINT_HANDLER="1",
        RAY_AIR_NEW_OUTPUT="0",
        RAY_DEDUP_LOGS="0",
    )
    if address is None:
        token = data.cache() / "ray-token"
        token.parent.mkdir(parents=True, exist_ok=True)
        if not token.exists():
            with open(os.open(token, os.O_CREAT | os.O_WRONLY, 0o600), "w") as f:
                f.write(secrets.token_hex(32))
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))
    import ray  # only now: it reads the environment once, when it is imported

    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    mine = not ray.is_initialized()
    if mine:
        local = {} if address else {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
        try:
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
        except (ConnectionError, TimeoutError, ValueError) as e:
            raise UserError(f"no Ray cluster answers ({type(e).__name__})", key="--address", value=address) from None
    try:
        yield ray.cluster_resources().get("CPU", 1)
    finally:
        if mine:
            ray.shutdown()


def searcher(queue: Queue, work: Work, live: int) -> Any:
    """Tune's side of the queue: it hands out trials and passes on what comes back; it keeps no state of its own."""
    from ray.tune.search import Searcher

    class FromQueue(Searcher):
        def __init__(self) -> None:
            super().__init__(metric="rung", mode="max")
            self.running: dict[str, Trial] = {}
            self.empty = False
            self.stopped: str | None = None

        def suggest(self, trial_id: str) -> Any:
            if len(self.running) >= live:
                return None
            trial = None if self.empty or self.stopped else queue.next()
            if trial is None:
                self.empty = True
                return Searcher.FINISHED
            self.running[trial_id] = trial
            return {"trial": trial.model_dump_json(), "work": work}

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            self.stopped = result.get("stopped") or self.stopped
            if trial_id in self.running and "event" in result:
                queue.event(self.running[trial_id].number, result["event"])

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            trial = self.running.pop(trial_id, None)
            if trial is not None and not self.stopped:
                queue.ended(trial.number, "its worker failed" if error else None)

        def save(self, checkpoint_path: str) -> None:
            """The queue's own database is the truth."""

        def restore(self, checkpoint_path: str) -> None:
            """Never called: a sweep that goes on makes a new Tuner."""

        def __getstate__(self) -> dict[str, Any]:
            return {}

    return FromQueue()


def proxy() -> Any:
    """The class that trains on a worker, a slice a step; its process is used again for the next trial."""
    from ray import tune

    class Proxy(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            if config["work"].reads:
                import torch

                torch.set_num_threads(1)
            self.begin(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.begin(new_config)
            return True

        def begin(self, config: dict[str, Any]) -> None:
            work: Work = config["work"]
            self.events = forks.grow(Trial.model_validate_json(config["trial"]), Store(work.folder), work.corpus())
            self.rung = 0

        def step(self) -> dict[str, Any]:
            try:
                event = next(self.events, None)
            except OSError as e:
                if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
                return {"rung": self.rung, "stopped": no_space(e), "done": True}
            if event is None:
                return {"rung": self.rung, "done": True}
            self.rung = event.tokens if isinstance(event, Progress) else event.D
            return {"rung": self.rung, "event": event}

        def cleanup(self) -> None:
            self.events = iter(())

    return Proxy


__all__ = ["Queue", "Record", "Work", "run"]
