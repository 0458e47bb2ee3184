"""The Ray Tune backend: a searcher that hands out a queue's trials, and a Trainable that trains them. Ray's one home.

Tune has no state to keep: a trial that is started again, after its worker died, goes on from its trunk's last
checkpoint on disk. Imported by `tunnel.backends` only, once the environment is set.
"""

from __future__ import annotations

import logging
import signal
import socket
import tempfile
import threading
from collections import Counter
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from tunnel import forks
from tunnel.backends import FULL, Queue, Work, no_space
from tunnel.errors import Stopped, UserError
from tunnel.forks import Progress
from tunnel.run import Trial
from tunnel.store import Store
from tunnel.study import Resources

RETRIES = 2  # of a trial whose worker died or raised, before it has FAILED
ANSWER_SECONDS = 5.0  # for the first word from a cluster
OBJECT_STORE = 100 * 2**20  # bytes; trials pass nothing through it


def run(queue: Queue, work: Work, resources: Resources, address: str | None, max_concurrent: int | None) -> None:
    """Runs the queue empty on a cluster, as many trials at a time as fit. Raises Stopped where a disk was full."""
    search = FromQueue(queue, work, max_concurrent or max(int(cpus_of(address) // resources.cpus), 1))
    with tempfile.TemporaryDirectory(prefix="tunnel-tune-") as scratch:
        tuner = tune.Tuner(
            tune.with_resources(Proxy, {"CPU": resources.cpus, "GPU": resources.gpus}),
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


def cpus_of(address: str | None) -> float:
    """Joins a cluster, or starts a local one that lives as long as this process; returns its CPUs."""
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not ray.is_initialized():
        if address is not None:
            require_answer(address)
        options: dict[str, Any] = {} if address else {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
        handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, TimeoutError, ValueError) as e:
            raise UserError(f"no Ray cluster answers ({type(e).__name__})", key="--address", value=address) from None
        if threading.current_thread() is threading.main_thread():
            for s, handler in handlers.items():  # Ray's own handler of SIGTERM would abort the driver
                signal.signal(s, handler)
    return ray.cluster_resources().get("CPU", 1)


def require_answer(address: str) -> None:
    """Raises UserError where nothing listens at host:port: Ray itself would try for a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto", or a name that Ray resolves
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as e:
        raise UserError(f"no Ray cluster answers ({e})", key="--address", value=address) from None


class FromQueue(Searcher):
    """Tune's side of the queue: it hands out trials and passes on what comes back; it keeps no state of its own."""

    def __init__(self, queue: Queue, work: Work, live: int) -> None:
        super().__init__(metric="rung", mode="max")
        self.queue, self.work, self.live = queue, work, live
        self.running: dict[str, Trial] = {}
        self.again: list[Trial] = []  # whose worker died before Tune saw them run: Tune gives these up at once
        self.deaths: Counter[int] = Counter()
        self.stopped: str | None = None

    def suggest(self, trial_id: str) -> Any:
        if len(self.running) >= self.live:
            return None
        trial = None if self.stopped else self.again.pop() if self.again else self.queue.next()
        if trial is None:
            return None if self.running and not self.stopped else Searcher.FINISHED
        self.running[trial_id] = trial
        return {"trial": trial.model_dump_json(), "work": self.work}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.stopped = result.get("stopped") or self.stopped
        if trial_id in self.running and "event" in result:
            self.queue.event(self.running[trial_id].number, result["event"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self.running.pop(trial_id, None)
        if trial is None or self.stopped:
            return
        self.deaths[trial.number] += error
        if error and self.deaths[trial.number] <= RETRIES:
            self.again.append(trial)
        else:
            self.queue.ended(trial.number, "its worker failed" if error else None)

    def save(self, checkpoint_path: str) -> None:
        """The queue's own database is the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called: a sweep that goes on makes a new Tuner."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searcher, and nobody reads that


class Proxy(tune.Trainable):
    """Trains on a worker, a slice a step; its process is used again for the next trial."""

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
            if e.errno not in FULL:
                raise
            return {"rung": self.rung, "stopped": no_space(e), "done": True}
        if event is None:
            return {"rung": self.rung, "done": True}
        self.rung = event.tokens if isinstance(event, Progress) else event.D
        return {"rung": self.rung, "event": event}

    def cleanup(self) -> None:
        self.events = iter(())
