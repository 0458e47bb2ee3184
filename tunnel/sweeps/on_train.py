"""The full-size run over several workers: Ray Train places them, the first one leads (`training.parallel`).

Where a worker or a node dies, Ray Train starts all workers again, and the leader goes on from the trunk's last
checkpoint; so too, with half the micro-batch at a time, where memory was too small. Nothing of the state is Ray's.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from functools import partial
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.queue import Queue as Mailbox
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tunnel.errors import Stopped
from tunnel.folder import fence
from tunnel.folder.trouble import FULL, no_space
from tunnel.run import Trial
from tunnel.study import Resources
from tunnel.sweeps import cluster
from tunnel.sweeps.backends import Queue, Work
from tunnel.sweeps.on_ray import RETRIES
from tunnel.training import memory

LESS = 'less is needed with more --workers, [resources] recompute = true or shard = "full"'
SILENCE = 6 * 3600  # seconds that followers wait for their leader, who evaluates and saves by itself  *assumed*


def run(queue: Queue, work: Work, resources: Resources, address: str | None, workers: int) -> None:
    """Runs the queue's trials one after the other, each over so many workers. Raises Stopped as a sweep does."""
    cluster.joined(address)
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # of workers that die we tell ourselves
    while (trial := queue.next()) is not None:
        queue.handed([trial.number])
        with Ear(queue, trial.number) as ear, cluster.watched():
            error = fitted(trial, work, resources, workers, ear.mailbox)
        if ear.stopped:
            raise Stopped(ear.stopped)
        queue.ended(trial.number, error)


class Ear:
    """Hears what the leader says, and tells the queue; `stopped` is why it stopped, where it was asked to."""

    def __init__(self, queue: Queue, number: int) -> None:
        self.queue, self.number, self.stopped = queue, number, ""
        self.mailbox = mailbox()
        self.thread = threading.Thread(target=self.listen, daemon=True)

    def listen(self) -> None:
        while (said := self.mailbox.get()) is not None:
            if isinstance(said, str):
                self.stopped = said
            else:
                self.queue.event(self.number, said)

    def __enter__(self) -> Ear:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.mailbox.put(None)
        self.thread.join()
        self.mailbox.shutdown()


def mailbox() -> Mailbox:
    """On the driver's node: any other one may die."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Mailbox(actor_options={"num_cpus": 0, "scheduling_strategy": here})


def fitted(trial: Trial, work: Work, resources: Resources, workers: int, said: Mailbox) -> str | None:
    """Trains a trial, in halves where it does not fit; why the machine failed it, or None."""
    for halved in (False, True):
        too_large = mailbox()
        config = {"trial": trial.model_dump_json(), "work": work, "mailbox": said, "too large": too_large}
        config |= {"shard": resources.shard, "recompute": resources.recompute, "halved": halved}
        error = trained(config, resources, workers)
        fits = too_large.empty()
        too_large.shutdown()
        if fits:
            return error
    return f"{memory.line(trial.trunk, workers=workers)}; {LESS}"


def trained(config: dict[str, Any], resources: Resources, workers: int) -> str | None:
    """One try of Ray Train's; why the machine failed it, or None."""
    gpu = resources.gpus > 0
    each = {"CPU": resources.cpus, **({"GPU": resources.gpus} if gpu else {})}
    with tempfile.TemporaryDirectory(prefix="tunnel-train-") as scratch:
        trainer = TorchTrainer(
            each_worker,
            train_loop_config=config,
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=SILENCE),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu, resources_per_worker=each),
            run_config=RunConfig(storage_path=scratch, failure_config=FailureConfig(max_failures=RETRIES)),
        )
        return ended(trainer)


def ended(trainer: TorchTrainer) -> str | None:
    """Runs it in a thread beside this one, where Ray would take SIGINT for itself; why it failed, or None."""
    errors: list[str] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as e:  # whatever it is, the trial did not end
            errors.append(f"{type(e).__name__}: {(str(e).strip().splitlines() or [''])[-1][:200]}")

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    thread.join()
    return errors[0] if errors else None


def each_worker(config: dict[str, Any]) -> None:
    """A worker's whole task; where memory is too small it says so, and ends, also when it is started again."""
    if not config["too large"].empty():
        return
    try:
        led_or_followed(config)
    except (RuntimeError, MemoryError, memory.OutOfMemory) as e:
        if not memory.is_out_of_memory(e):
            raise
        config["too large"].put(True)
        raise


def led_or_followed(config: dict[str, Any]) -> None:
    """The first worker leads, the others follow."""
    from tunnel.training import forks, parallel
    from tunnel.training.train import one_thread

    work: Work = config["work"]
    one_thread()
    parallel.use(get_device())
    corpus = work.corpus()
    if get_context().get_world_rank() > 0:
        parallel.follow(corpus)
        return
    keep = work.leading()
    means = parallel.Means(config["shard"], config["recompute"], config["halved"])
    made = partial(parallel.lead, means=means)
    try:
        for event in forks.grow(Trial.model_validate_json(config["trial"]), keep, corpus, made):
            config["mailbox"].put(event)
    except fence.Overtaken:
        return
    except Stopped as e:
        config["mailbox"].put(str(e))
    except OSError as e:
        if e.errno not in FULL:
            raise
        config["mailbox"].put(no_space(e))
    finally:
        keep.close()
    parallel.end()
