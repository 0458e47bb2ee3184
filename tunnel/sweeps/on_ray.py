"""The Ray Tune backend: a searcher that hands out a queue's trials, and a Trainable that trains them.

Tune has no state to keep: a trial that is started again, after its worker died, goes on from its trunk's last
checkpoint on disk. Imported by `tunnel.sweeps.backends` only, once the environment is set.
"""

from __future__ import annotations

import logging
import signal
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from tunnel.errors import Stopped
from tunnel.folder import fence
from tunnel.folder.trouble import FULL, no_space
from tunnel.run import Record, Trial
from tunnel.study import Resources
from tunnel.sweeps import cluster, hands
from tunnel.sweeps.backends import INTERRUPTED, SIGNALS, Queue, Work
from tunnel.training.forks import Progress
from tunnel.training.memory import OutOfMemory

log = logging.getLogger(__name__)
RETRIES = 2  # of a trial whose worker died or raised, before it has FAILED


def run(queue: Queue, work: Work, resources: Resources, address: str | None, max_concurrent: int | None) -> None:
    """Runs the queue empty on a cluster, as many trials at a time as fit. Raises Stopped where a disk was full."""
    there = cluster.joined(address)
    work = replace(work, gpu_memory=resources.memory)
    search = FromQueue(queue, work, max_concurrent or resources.places(there))
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
                failure_config=tune.FailureConfig(max_failures=0),  # another attempt is ours to open
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            ),
        )
        with cluster.watched():
            tuner.fit()
    if search.stopped:
        raise Stopped(search.stopped)


@dataclass(frozen=True)
class Held:
    """What a worker has: trials that have not ended, and the attempt that it may write under."""

    trials: dict[int, Trial]
    attempt: Path


class FromQueue(Searcher):
    """Tune's side of the queue: it hands out trials and passes on what comes back; it keeps no state of its own."""

    def __init__(self, queue: Queue, work: Work, live: int) -> None:
        super().__init__(metric="rung", mode="max")
        self.queue, self.work, self.live, self.keep = queue, work, live, work.opened()
        self.hands = hands.Hands(queue, work.pack, live)
        self.running: dict[str, Held] = {}  # by Tune's name
        self.again: list[list[Trial]] = []  # hands whose worker died
        self.errors: dict[str, str] = {}  # of the attempts that failed
        self.deaths: Counter[int] = Counter()
        self.stopped: str | None = None
        self.handlers = {s: signal.getsignal(s) for s in SIGNALS}

    def suggest(self, trial_id: str) -> Any:
        cluster.install(self.handlers)  # Tune takes SIGUSR1 for itself when it begins
        if self.work.stop.exists():
            self.stopped = self.stopped or INTERRUPTED
        if self.stopped:
            return Searcher.FINISHED
        if len(self.running) >= self.live:
            return None
        hand = self.again.pop() if self.again else self.hands.next()
        if not hand:
            return None if self.running else Searcher.FINISHED
        attempt = self.keep.open_attempt()
        self.running[trial_id] = Held({t.number: t for t in hand}, attempt)
        return {"trials": [t.model_dump_json() for t in hand], "work": self.work, "attempt": attempt}

    def goes_on(self, trial_id: str, result: dict[str, Any]) -> bool:
        """What the queue says of a result; Tune asks its scheduler first, and then may not tell its searcher."""
        hand = self.running[trial_id].trials if trial_id in self.running else {}
        if result.get("number") not in hand:
            return True
        number, event = result["number"], result["event"]
        if not self.queue.event(number, event):
            return False
        if isinstance(event, Record) and event.fingerprint_of == hand[number].runs[-1].fingerprint:
            hand.pop(number)
            self.queue.ended(number, None)
        return bool(hand)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        held, said = self.running.pop(trial_id, None), result or {}
        if held is None:
            return
        self.keep.close_attempt(held.attempt)  # before its trials are anybody else's
        if "stopped" in said:
            self.stopped = self.stopped or said["stopped"]
            with suppress(OSError):  # of a full disk
                self.work.stop.touch()  # the other workers too
        elif (error or "overtaken" in said) and not self.stopped:  # overtaken and heard: somebody cleared `attempts/`
            self.failed(list(held.trials.values()), self.errors.pop(trial_id, said.get("overtaken", "")))
        elif not error:
            self.done(list(held.trials.values()), said.get("too large"))
        # what is left as it is the next sweep goes on with

    def done(self, trials: list[Trial], too_large: str | None) -> None:
        if too_large and len(trials) > 1:
            self.hands.again += trials
            return
        for trial in trials:
            self.queue.ended(trial.number, too_large)

    def failed(self, trials: list[Trial], error: str) -> None:
        """Their worker died or raised: they are tried again `RETRIES` times, together and then each by itself."""
        if not trials:
            return
        self.deaths.update(t.number for t in trials)
        deaths, numbers = self.deaths[trials[0].number], ", ".join(str(t.number) for t in trials)
        why = (error.strip().splitlines() or ["it did not say why"])[-1].strip()
        if deaths > RETRIES:
            log.warning("trial %s: its worker failed, for good: %s", numbers, error)
            for trial in trials:
                self.queue.ended(trial.number, f"its worker failed: {why}")
            return
        log.warning("trial %s: its worker failed, and another one goes on: %s", numbers, why)
        if deaths == 1:
            self.again.append(trials)
        else:
            self.hands.again += trials

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

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        path = trial.error_file  # on this host; where results go, and `get_error` looks, Tune copies it later
        self.search.errors[trial.trial_id] = Path(path).read_text() if path and Path(path).exists() else ""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Proxy(tune.Trainable):
    """Trains a hand on a worker, a slice a step; its process is used again for the next one."""

    def setup(self, config: dict[str, Any]) -> None:
        if config["work"].reads:
            import torch

            torch.set_num_threads(1)
            if torch.cuda.is_available():  # a fraction of a GPU is bookkeeping to Ray: its memory is shared here
                torch.cuda.set_per_process_memory_fraction(config["work"].gpu_memory)
        self.begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self.begin(new_config)
        return True

    def begin(self, config: dict[str, Any]) -> None:
        work: Work = config["work"]
        hand = [Trial.model_validate_json(t) for t in config["trials"]]
        self.keep = work.store(config["attempt"])
        self.events = hands.events(hand, self.keep, work.corpus())
        self.rung = 0

    def step(self) -> dict[str, Any]:
        try:
            number, event = next((n, e) for n, e in self.events if e is not None)  # the last record is an end, too
        except Stopped as e:
            return {"rung": self.rung, "stopped": str(e), "done": True}
        except fence.Overtaken as e:
            log.warning("%s", e)  # for who reads a worker's log: its driver listens no more
            return {"rung": self.rung, "overtaken": str(e), "done": True}
        except OutOfMemory as e:
            return {"rung": self.rung, "too large": str(e), "done": True}
        except OSError as e:
            if e.errno not in FULL:
                raise
            return {"rung": self.rung, "stopped": no_space(e), "done": True}
        self.rung = event.tokens if isinstance(event, Progress) else event.D
        return {"rung": self.rung, "number": number, "event": event}

    def cleanup(self) -> None:
        self.events = iter(())
        self.keep.close()
