"""The Ray Tune backend: a searcher that hands out a queue's trials, and a Trainable that trains them. Ray's one home.

Tune has no state to keep: a trial that is started again, after its worker died, goes on from its trunk's last
checkpoint on disk. Imported by `tunnel.sweeps.backends` only, once the environment is set.
"""

from __future__ import annotations

import logging
import signal
import socket
import tempfile
import threading
from collections import Counter
from contextlib import suppress
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from tunnel.errors import Stopped, UserError
from tunnel.folder.store import Store
from tunnel.run import Trial
from tunnel.study import Resources
from tunnel.sweeps import hands
from tunnel.sweeps.backends import FULL, INTERRUPTED, SIGNALS, Queue, Work, no_space
from tunnel.training.forks import Progress

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
                search_alg=search,
                scheduler=Judge(search),
                num_samples=-1,
                reuse_actors=True,
                metric="rung",
                mode="max",
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
        handlers = {s: signal.getsignal(s) for s in SIGNALS}
        try:
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, TimeoutError, ValueError) as e:
            raise UserError(f"no Ray cluster answers ({type(e).__name__})", key="--address", value=address) from None
        install(handlers)  # Ray's own handler of SIGTERM would abort the driver
    return ray.cluster_resources().get("CPU", 1)


def install(handlers: dict[signal.Signals, Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for s, handler in handlers.items():
            signal.signal(s, handler)


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
        self.hands = hands.Hands(queue, work.pack, live)
        self.running: dict[str, dict[int, Trial]] = {}  # the hands, by Tune's name
        self.deaths: Counter[int] = Counter()
        self.stopped: str | None = None
        self.handlers = {s: signal.getsignal(s) for s in SIGNALS}

    def suggest(self, trial_id: str) -> Any:
        install(self.handlers)  # Tune takes SIGUSR1 for itself when it begins
        if self.work.stop.exists():
            self.stopped = self.stopped or INTERRUPTED
        if self.stopped:
            return Searcher.FINISHED
        if len(self.running) >= self.live:
            return None
        hand = self.hands.next()
        if not hand:
            return None if self.running else Searcher.FINISHED
        self.running[trial_id] = {t.number: t for t in hand}
        return {"trials": [t.model_dump_json() for t in hand], "work": self.work}

    def goes_on(self, trial_id: str, result: dict[str, Any]) -> bool:
        """What the queue says of a result; Tune asks its scheduler first, and then may not tell its searcher."""
        hand = self.running.get(trial_id, {})
        if result.get("ended") in hand:
            hand.pop(result["ended"])
            self.queue.ended(result["ended"], None)
        if result.get("number") in hand:
            return self.queue.event(result["number"], result["event"])
        return True

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        hand = self.running.pop(trial_id, {})
        if "stopped" in (result or {}):
            self.stopped = self.stopped or (result or {})["stopped"]
            with suppress(OSError):  # of a full disk
                self.work.stop.touch()  # the other workers too
            return  # left as it is: the next sweep goes on with it
        if error and self.stopped:
            return
        for number, trial in hand.items():
            self.deaths[number] += error
            if error and self.deaths[number] <= RETRIES:
                self.hands.again.append(trial)  # Tune gives one up at once whose worker died before it was seen to run
            else:
                self.queue.ended(number, "its worker failed" if error else None)

    def save(self, checkpoint_path: str) -> None:
        """The queue's own database is the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called: a sweep that goes on makes a new Tuner."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searcher, and nobody reads that


class Judge(FIFOScheduler):
    """Ends a trial where the queue says so; what it is judged by is rebuilt from the records, it remembers nothing."""

    def __init__(self, search: FromQueue) -> None:
        super().__init__()
        self.search = search

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return TrialScheduler.CONTINUE if self.search.goes_on(trial.trial_id, result) else TrialScheduler.STOP

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Proxy(tune.Trainable):
    """Trains a hand on a worker, a slice a step; its process is used again for the next one."""

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
        hand = [Trial.model_validate_json(t) for t in config["trials"]]
        self.events = hands.events(hand, Store(work.folder), work.corpus())
        self.rung, self.left = 0, len(hand)

    def step(self) -> dict[str, Any]:
        try:
            number, event = next(self.events)
        except Stopped as e:
            return {"rung": self.rung, "stopped": str(e), "done": True}
        except OSError as e:
            if e.errno not in FULL:
                raise
            return {"rung": self.rung, "stopped": no_space(e), "done": True}
        if event is None:
            self.left -= 1
            return {"rung": self.rung, "ended": number, "done": self.left == 0}
        self.rung = event.tokens if isinstance(event, Progress) else event.D
        return {"rung": self.rung, "number": number, "event": event}

    def cleanup(self) -> None:
        self.events = iter(())
