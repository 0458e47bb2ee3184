"""The full-size run over real workers of Ray Train: killed, stopped, a node lost, and the same bits in the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_cluster import three_nodes, token
from test_sweep import corpus, written

from tunnel.export import _model
from tunnel.folder import store
from tunnel.folder.store import Store
from tunnel.plan import trials
from tunnel.run import Record, Trial
from tunnel.sweeps import sweep
from tunnel.sweeps.backends import Work
from tunnel.training import forks

pytestmark = pytest.mark.slow
__all__ = ["corpus"]
TUNNEL = [sys.executable, "-m", "tunnel.cli"]
LONG = {"none": 400_000, "full": 150_000}  # tokens, by `shard`: half a minute either way

STARTED: list[Training] = []
SLOW = {"RAY_raylet_start_wait_time_s": "300", "RAY_worker_niceness": "0"}  # the machine may be crowded
Opened = tuple[Store, Trial]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    while STARTED:
        process = STARTED.pop().process
        if process.poll() is None:
            process.kill()
            process.wait()


def opened(folder: Path, corpus: Path, shard: str = "full", url: str | None = None) -> Opened:
    """A study's folder whose target is as good as recommended."""
    folder.mkdir(exist_ok=True)
    path = written(folder, corpus)
    text = path.read_text()
    for old, new in (
        ('tokens = "16k"', f"tokens = {LONG[shard]}"),
        ("[resources]", f'[resources]\nshard = "{shard}"'),
    ):
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text)
    asked, keep = sweep.opened(path, folder / "out", url=url)
    settings = {**trials.values_of(asked, asked.stage[0], {}), "lr": 0.01}
    trial = trials.target_trial(asked, asked.target[0], settings, work(keep).corpus().hash)
    store.write_json(keep.path("recommendation.json"), {"run": trial.runs[0].model_dump(mode="json")})
    return keep, trial


def work(keep: Store) -> Work:
    return Work.of(sweep.frozen(keep.root)[0], keep)


class Training:
    """`tunnel train` over two workers, in a process of its own."""

    def __init__(self, keep: Store, *more: str, env: dict[str, str] | None = None) -> None:
        self.keep, self.least = keep, float("inf")
        keep.path("progress.json").unlink(missing_ok=True)
        call = [*TUNNEL, "train", str(keep.root), "--workers", "2", "--json", *more]
        self.others = set(workers())
        STARTED.append(self)
        env = {**(env or os.environ), **SLOW}
        self.process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)

    def past(self, tokens: int) -> Training:
        """Waits until the target has trained so many; `least` is the first that was heard of."""
        end = time.monotonic() + 600
        while True:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end, "it never began"
            shown = store.read_json(self.keep.path("progress.json"), {}).get("running", {})
            found = max((r.get("tokens") or 0 for r in shown.values()), default=0)
            self.least = min(self.least, found or self.least)
            if found > tokens:
                return self
            time.sleep(0.1)

    def workers(self) -> list[int]:
        return sorted(set(workers()) - self.others)

    def ended(self, code: int) -> str:
        out, err = self.process.communicate(timeout=400)
        assert self.process.returncode == code, err
        return out if code == 0 else err


def workers() -> list[int]:
    found = subprocess.run(["pgrep", "-f", "ray::RayTrainWorker"], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def record(opened: Opened) -> Record:
    found = opened[0].record(opened[1].runs[0].fingerprint)
    assert found is not None
    return found


def checkpointed(opened: Opened) -> int:
    """The tokens at which its last checkpoint lies, wherever."""
    keep, trial = opened
    run = trial.runs[0]
    names = {run.fingerprint, run.trunk.fingerprint}
    return max(t for name in names for t in work(keep).opened().kept(name))


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Record]:
    """What two workers train whom nobody disturbs."""
    known: dict[str, Record] = {}

    def found(shard: str) -> Record:
        if shard not in known:
            whole = opened(tmp_path_factory.mktemp("whole"), corpus, shard)
            Training(whole[0]).ended(0)
            known[shard] = record(whole)
        return known[shard]

    return found


def same(found: Record, other: Record) -> bool:
    return (found.loss, found.final) == (other.loss, other.final)


@pytest.mark.fault(1)
@pytest.mark.fault(2)
@pytest.mark.parametrize("shard", ["none", "full"])
def test_killed_and_stopped_it_ends_with_the_same_bits(
    tmp_path: Path, corpus: Path, shard: str, undisturbed: Callable[[str], Record]
) -> None:
    """A worker, then the driver; it goes on at the step where its checkpoint is."""
    study = opened(tmp_path, corpus, shard)
    keep, trial = study
    first = Training(keep).past(LONG[shard] // 20)
    os.kill(first.workers()[-1], signal.SIGKILL)
    keep.path("progress.json").unlink()  # written when the next ones report
    first.past(LONG[shard] // 7).process.send_signal(signal.SIGINT)
    first.ended(75)
    kept = checkpointed(study)
    assert kept > LONG[shard] // 7
    second = Training(keep).past(kept + LONG[shard] // 40)
    second.process.kill()
    second.process.wait()
    third = Training(keep)
    told = json.loads(third.past(0).ended(0))
    assert min(second.least, third.least) >= kept
    assert same(record(study), undisturbed(shard))
    assert told["loss"] == record(study).loss
    assert not list(keep.root.rglob(".saving-*"))
    (alone,) = (e for e in forks.grow(trial, Store(tmp_path / "alone"), work(keep).corpus()) if isinstance(e, Record))
    # rounding in another order, after 1,500 steps at a high rate: 0.8% here, as much as a seed
    assert record(study).loss == pytest.approx(alone.loss, rel=0.02)


@pytest.mark.fault(3)
def test_a_node_that_is_lost(tmp_path: Path, corpus: Path, undisturbed: Callable[[str], Record]) -> None:
    study, env = opened(tmp_path, corpus), token(tmp_path)
    with three_nodes(env) as (address, _):
        training = Training(study[0], "--address", address, env=env).past(LONG["full"] // 8)
        node = {int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]) for pid in training.workers()}
        assert len(node) == 1, "both workers are a raylet's"
        os.kill(node.pop(), signal.SIGKILL)
        training.ended(0)
    assert same(record(study), undisturbed("full"))


@pytest.mark.parametrize("shard", ["none", "full"])
def test_workers_that_share_no_file_system(
    tmp_path: Path, corpus: Path, shard: str, undisturbed: Callable[[str], Record]
) -> None:
    """Each puts its shard at the URL; the driver's folder gets record and curves, and no checkpoint."""
    study = opened(tmp_path, corpus, shard, url=f"file://{tmp_path}/there")
    first = Training(study[0]).past(LONG[shard] // 5)
    first.process.send_signal(signal.SIGTERM)
    first.ended(75)
    kept = checkpointed(study)
    (folder,) = (tmp_path / "there/trunks").glob(f"*/{kept:015d}")
    assert len(list(folder.glob("state*.safetensors"))) == (2 if shard == "full" else 1)
    second = Training(study[0])
    second.past(0).ended(0)
    assert second.least >= kept > LONG[shard] // 5
    assert same(record(study), undisturbed(shard))
    curve = study[0].curve(study[1].trunk.fingerprint)
    assert curve is not None
    assert curve.tokens.is_monotonic_increasing
    assert not list((study[0].root / "trunks").glob("*/*"))
    model = _model.kept(study[0], study[1].runs[0], record(study))
    assert model is not None, "it is there, and the one that was measured"
