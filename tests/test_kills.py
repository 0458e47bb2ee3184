"""Drivers that are killed, disks without room, too little memory, databases locked or corrupt, clocks that jump."""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BATCH, TINY, trunk_spec, write_corpus

from tunnel import plan
from tunnel.cli import main
from tunnel.errors import Stopped, UserError
from tunnel.export._write import write
from tunnel.folder import database
from tunnel.folder.store import Store
from tunnel.run import Record
from tunnel.sampler import states
from tunnel.sweeps import rerun, sweep
from tunnel.training import data

TUNNEL = [sys.executable, "-m", "tunnel.cli"]
FREE: dict[str, Any] = dict.fromkeys(("pruned", "diverged", "failed", "running"), 0)


# the command line in a process of its own, forked so that it need not import everything again


@dataclass(frozen=True)
class Ended:
    code: int
    said: str

    @property
    def line(self) -> str:
        """What it said last; a stop is one line, and never a traceback."""
        assert "Traceback" not in self.said, self.said
        return self.said.strip().splitlines()[-1]


def forked(*args: object, log: Path, before: Callable[[], object] = lambda: None) -> int:
    """Begins `tunnel` with these arguments; `before` is called in its process first. Returns its pid."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        sys.stdout = sys.stderr = open(log, "w", buffering=1)  # noqa: SIM115
        logging.getLogger().handlers.clear()  # pytest's
        sys.argv = ["tunnel", *map(str, args)]
        before()
        main()
        code = 0
    except SystemExit as e:
        code = int(e.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int, log: Path, seconds: float = 300) -> Ended:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return Ended(os.waitstatus_to_exitcode(status), log.read_text())
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"still running: {log.read_text()}")


def tunnel(*args: object, log: Path, before: Callable[[], object] = lambda: None) -> Ended:
    return ended(forked(*args, log=log, before=before), log)


def records(folder: Path) -> int:
    return len(list(folder.glob("records/*.json")))


def results(folder: Path) -> dict[str, tuple[float | None, dict[str, str]]]:
    """What was measured, to the last bit."""
    read = (Record.model_validate_json(p.read_text()) for p in (folder / "records").glob("*.json"))
    return {r.fingerprint_of: (r.loss, r.final) for r in read}


def best(folder: Path, stage: str) -> dict[str, Any]:
    found = [t for t in states(folder, stage) if t["value"] is not None]
    return min(found, key=lambda t: t["value"])["params"]


def assert_once(folder: Path) -> None:
    """No two finished trials stem from one ask, and each is in one final state."""
    for stage in ("calibrate", "ladder"):
        trials = states(folder, stage)
        assert not [t for t in trials if t["state"] == "running"]
        done = [(*sorted(t["params"].items()), t["seed"]) for t in trials if t["state"] != "failed"]
        assert len(done) == len(set(done))


def assert_tidy(folder: Path) -> None:
    assert not [p for p in folder.rglob("*") if p.name.startswith(".saving-") or p.name in ("driver.lock", "stop")]


SEARCH = (
    ("trials = 4", "trials = 24"),
    ("lr = { low = 1e-3, high = 1e-1 }", "lr = { low = 1e-3, high = 1e-1 }\n  decay = { low = 0.05, high = 0.4 }"),
)


def sampled(name: str) -> tuple[str, str]:
    return "[stage.budget]", f'[stage.sampler]\n  name = "{name}"\n  [stage.budget]'


LEARNED = (
    *SEARCH,
    sampled("cmaes"),
    ("trials = 24", "trials = 6\n  seeds = [0, 1]"),
    ("lr = {", "warmup = { low = 0.01, high = 0.2 }\n  weight_decay = { low = 0.01, high = 0.5 }\n  lr = {"),
    ("lr = {", "batch_tokens = { low = 256, high = 2048, log = false, step = 256 }\n  lr = {"),
)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Swept by two drivers, so that its sampler, asked anew, would ask otherwise; old.db is what the first one left."""
    text = TINY
    for old, new in LEARNED:
        assert old in text
        text = text.replace(old, new, 1)
    path = tmp_path_factory.mktemp("learned") / "tiny.toml"
    path.write_text(text.replace("trials = 6", "trials = 3"))
    sweep.sweep(*sweep.opened(path, path.parent / "out"))
    shutil.copy(path.parent / "out/optuna.db", path.parent / "out/old.db")
    path.write_text(text)
    sweep.sweep(*sweep.opened(path, path.parent / "out"))
    return path.parent / "out"


# 2: the driver is killed, twenty times


@pytest.mark.slow
@pytest.mark.fault(2)
@pytest.mark.parametrize("sampler", ["tpe", "sobol"])
def test_a_driver_killed_twenty_times_ends_as_an_undisturbed_one(
    study_file: Callable[..., Path], tmp_path: Path, sampler: str
) -> None:
    """At random moments, before its first ask too; also where the sampler learns from what it was told."""
    fan = ("fan = [0.5, 1, 2]", "fan = [0.2, 0.3, 0.45]")  # too low: it widens
    study, out, log = study_file(*SEARCH, fan, sampled(sampler)), tmp_path / "killed", tmp_path / "log"
    whole = sweep.sweep(*sweep.opened(study, tmp_path / "whole"))
    rng, kills, late = random.Random(0), 0, 0
    while kills < 20:
        enough, moment = records(out) + rng.randint(0, 2), rng.uniform(0.0, 0.1)
        driver = forked("sweep", study, "--out", out, log=log)
        while records(out) < enough and os.waitpid(driver, os.WNOHANG) == (0, 0):
            time.sleep(0.002)
        time.sleep(moment)
        os.kill(driver, signal.SIGKILL)
        assert os.waitpid(driver, 0)[1] == signal.SIGKILL, "done before it was killed twenty times"
        kills += 1
        late += sum(t["state"] == "complete" for t in states(out, "calibrate")) >= 10
    assert late >= 5
    found = json.loads(tunnel("sweep", study, "--out", out, "--json", log=log).said)
    assert found["trials"] == whole["trials"]
    assert found["trials"] == FREE | {"planned": (n := found["trials"]["planned"]), "complete": n}
    assert found["readings"] == whole["readings"]
    assert results(out) == results(tmp_path / "whole")
    assert [best(out, s) for s in found["stages"]] == [best(tmp_path / "whole", s) for s in found["stages"]]
    assert_once(out)
    assert_tidy(out)


def process(pid: int) -> tuple[int, str] | None:
    """A process's parent, and the moment at which it began; None where it is dead."""
    try:
        state, parent, *rest = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else (int(parent), rest[17])  # Z: dead, and init's to bury


def begun_by(driver: int) -> dict[int, tuple[int, str]]:
    """A process and all that descend from it."""
    pids = (int(p.name) for p in Path("/proc").glob("[0-9]*"))
    there = {pid: found for pid in pids if (found := process(pid))}
    mine, before = {driver}, set[int]()
    while mine != before:
        mine, before = mine | {pid for pid, (parent, _) in there.items() if parent in mine}, mine
    return {pid: there[pid] for pid in mine if pid in there}


@pytest.mark.slow
@pytest.mark.fault(2)
def test_a_driver_killed_on_ray_takes_all_its_processes_along(study_file: Callable[..., Path], tmp_path: Path) -> None:
    """Nobody but the driver is killed, and the next one begins at once: what is left of the first one goes by itself.

    Its workers within seconds; Ray's agents look for their raylet once a minute  *measured here*.
    """
    study = study_file(*SEARCH, sampled("sobol"))
    whole = sweep.sweep(*sweep.opened(study, tmp_path / "whole"))
    study.write_text(study.read_text().replace('backend = "inline"', 'backend = "ray"'))
    out, started = tmp_path / "killed", dict[int, tuple[int, str]]()
    call = [*TUNNEL, "sweep", str(study), "--out", str(out), "--json"]
    for enough in (1, 12, 26):
        driver = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while records(out) < enough and driver.poll() is None:
            time.sleep(0.02)
        assert driver.poll() is None, driver.communicate()
        mine = begun_by(driver.pid)
        assert len(mine) > 3, "gcs, raylet, workers"
        started |= mine
        driver.kill()
        driver.communicate()
    last = subprocess.run(call, capture_output=True, text=True, timeout=400, check=False)
    assert last.returncode == 0, last.stderr
    assert json.loads(last.stdout)["trials"] == whole["trials"]
    assert results(out) == results(tmp_path / "whole")
    assert_once(out)
    assert_tidy(out)
    end = time.monotonic() + 240
    while left := [pid for pid, (_, since) in started.items() if (now := process(pid)) and now[1] == since]:
        assert time.monotonic() < end, left
        time.sleep(1)


# 5: full disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(disk: Path, left: int) -> None:
    """Leaves so many bytes of room."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    at = os.statvfs(disk)
    with open(ballast, "wb") as f:
        os.posix_fallocate(f.fileno(), 0, at.f_bavail * at.f_frsize - left)


def assert_intact(folder: Path) -> None:
    if (folder / "optuna.db").exists():
        assert sqlite3.connect(folder / "optuna.db").execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.slow
@pytest.mark.fault(5)
def test_a_disk_that_is_full_wherever_it_is(study_file: Callable[..., Path], tmp_path: Path, disk: Path) -> None:
    """Ever a little more room: another write finds none, each time, and nothing is lost."""
    study, out, log, lines = study_file(), disk / "out", tmp_path / "log", []
    whole = sweep.sweep(*sweep.opened(study, tmp_path / "whole"))
    fill(disk, 256 * 1024)  # the database's tables, and a little more
    for room in (0, 4, 8, 12, 16, 24, 32, 48):
        stopped = tunnel("sweep", study, "--out", out, log=log)
        assert stopped.code == 75, stopped
        assert "no space" in stopped.line, stopped
        lines.append(stopped.line)
        assert_intact(out)
        results(out)  # all whole
        fill(disk, room * 1024)
    assert any("optuna.db" in line for line in lines), lines
    assert any("optuna.db" not in line for line in lines), lines
    (disk / "ballast").unlink()
    again = tunnel("sweep", study, "--out", out, "--json", log=log)
    assert again.code == 0, again
    assert json.loads(again.said)["trials"] == whole["trials"]
    assert results(out) == results(tmp_path / "whole")
    assert_tidy(out)


@pytest.mark.fault(5)
def test_a_full_disk_at_a_checkpoint_and_an_export(disk: Path) -> None:
    keep, arrays = Store(disk), {"w": np.zeros(100_000)}
    keep.save_state("t", 128, {"w": np.ones(9)}, {"tokens": 128})
    bundle = {"config.yaml": "a: 1\n" * 50_000, "model.txt": "b" * 400_000}
    write({"config.yaml": "a: 0\n"}, disk / "bundle", {}, force=False)
    fill(disk, 300 * 1024)
    with pytest.raises(OSError, match="space"):
        keep.save_state("t", 256, arrays, {"tokens": 256})
    with pytest.raises(UserError, match="space"):
        write(bundle, disk / "bundle", {}, force=True)
    assert (disk / "bundle/config.yaml").read_text() == "a: 0\n"
    assert sorted(p.name for p in disk.iterdir()) == ["ballast", "bundle", "trunks"]
    state = keep.load_state("t", 999)
    assert state is not None
    assert state[1]["tokens"] == 128
    (disk / "ballast").unlink()
    keep.save_state("t", 256, arrays, {"tokens": 256})
    write(bundle, disk / "bundle", {}, force=True)
    assert keep.peek("t", 256) is not None
    assert (disk / "bundle/model.txt").stat().st_size == 400_000


@pytest.mark.slow
@pytest.mark.fault(5)
def test_a_database_that_may_not_grow(study_file: Callable[..., Path], tmp_path: Path) -> None:
    study, out, log = study_file(("trials = 4", "trials = 40")), tmp_path / "out", tmp_path / "log"

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, 120_000))  # its tables fit, and some trials

    stopped = tunnel("sweep", study, "--out", out, log=log, before=small_files)
    assert (stopped.code, "no space" in stopped.line, "optuna.db" in stopped.line) == (75, True, True), stopped
    assert_intact(out)
    assert json.loads(tunnel("sweep", study, "--out", out, "--json", log=log).said)["state"] == "complete"


# 9: out of memory


@pytest.mark.fault(9)
@pytest.mark.parametrize(("said", "packed"), [("python", False), ("torch", True), ("allocator", True)])
def test_a_step_that_does_not_fit_is_taken_in_halves(
    monkeypatch: pytest.MonkeyPatch, corpus: data.Corpus, packed: bool, said: str
) -> None:
    """From there on with the bits of half the micro-batch: nothing of the pass that failed is left in the gradients."""
    import torch

    from tunnel.families import gpt
    from tunnel.training.pack import Pack
    from tunnel.training.train import Trained

    errors = {"python": MemoryError(), "torch": torch.OutOfMemoryError("CUDA out of memory.")}
    allocator = RuntimeError("[enforce fail at alloc_cpu.cpp:132] DefaultCPUAllocator: can't allocate memory")
    trunk, passes, fails = trunk_spec(shape=(16, 1), micro_batch_tokens=BATCH // 2), [0], [-1]

    def grown() -> tuple[Trained, Callable[[float], bool]]:
        model = gpt.grown(trunk, corpus)
        if not packed:
            return model, model.step
        pack = Pack([model])
        return model, lambda multiplier: pack.step([multiplier])[0]

    owner, name = (Pack, "losses") if packed else (Trained, "loss")
    real = getattr(owner, name)

    def small(self: Any, sequences: torch.Tensor) -> torch.Tensor:
        passes[0] += 1
        if passes[0] in fails:
            raise errors.get(said, allocator)
        return real(self, sequences)

    monkeypatch.setattr(owner, name, small)
    model, step = grown()
    fails[:] = [2 * 3 + 2]  # of the fourth step the second pass, when the first one's gradients are there
    for _ in range(6):
        step(1.0)
    assert model.halved_at == 3 * BATCH
    assert passes[0] == 2 * 3 + 2 + 4 * 3
    fails.clear()
    other, step = grown()
    for i in range(6):
        if i == 3:
            other.halve()
        step(1.0)
    arrays, meta = other.state()
    assert meta == model.state()[1] == {"tokens": 6 * BATCH, "halved_at": 3 * BATCH}
    assert all(np.array_equal(v, arrays[k]) for k, v in model.state()[0].items())
    passes[0], fails[:] = 0, [1]  # and a second time
    with pytest.raises((RuntimeError, MemoryError)):
        step(1.0)


WIDE = TINY.replace('family = "synthetic"', 'family = "gpt"\n[data]\n{data}').replace("head_dim = 16", "head_dim = 8")
STAGES = """
[[stage]]
name = "ladder"
kind = "ladder"
shapes = [[16, 1]]
widen = 0
fan = [{fan}]
rungs = {{ tokens = [{rungs}] }}
"""


def gpt(
    folder: Path, *, batch: int, rungs: str, fan: str = "1", eval_tokens: int = 512, pack: int = 1, documents: int = 40
) -> Path:
    """A study of one tiny shape, on a corpus of its own."""
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    write_corpus(folder / "corpus", documents)
    about = f'corpus = "files"\npaths = ["{folder}/corpus/*.txt"]\nheld_out = 0.2\neval_tokens = {eval_tokens}'
    text = WIDE.split("[[stage]]")[0].replace("{data}", about) + STAGES.format(fan=fan, rungs=rungs)
    text = text.replace("batch_tokens = 1024", f"batch_tokens = {batch}\nlr = 0.01\ndecay = 0.25")
    text = text.replace('backend = "inline"', f'backend = "inline"\npack = {pack}')
    path = folder / "tiny.toml"
    path.write_text(text)
    return path


def address_space(what: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(what))
    return int(line.split()[1]) * 1024


def one_arena() -> None:
    """Threads share one heap: where each may have its own, a process takes as much as it gets."""
    import ctypes

    ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX: malloc.h


def peak(study: Path, out: Path, log: Path) -> int:
    """How far beyond its beginning a sweep's address space grows, in bytes."""
    before = [0]

    def begin() -> None:
        one_arena()
        before[0] = address_space("VmSize")
        exit_ = os._exit

        def leave(code: int) -> None:
            log.with_suffix(".peak").write_text(str(address_space("VmPeak") - before[0]))
            exit_(code)

        os._exit = leave  # type: ignore[assignment]

    assert tunnel("sweep", study, "--out", out, log=log, before=begin).code == 0
    return int(log.with_suffix(".peak").read_text())


@pytest.mark.slow
@pytest.mark.fault(9)
def test_a_machine_with_too_little_memory(tmp_path: Path) -> None:
    """Under a real limit, ever lower: all of the micro-batch fits, then its half, then not even that."""
    log, batch = tmp_path / "log", 64 * 1024
    sweep.sweep(*sweep.opened(gpt(tmp_path, batch=256, rungs="512"), tmp_path / "warm"))  # all is imported here
    study = gpt(tmp_path, batch=batch, rungs='"128k"')
    whole = peak(study, tmp_path / "whole", log)

    def limited(room: float) -> Callable[[], None]:
        def begin() -> None:
            one_arena()
            most = address_space("VmSize") + int(room)
            resource.setrlimit(resource.RLIMIT_AS, (most, most))

        return begin

    halved, stopped, room = list[Path](), Ended(0, ""), float(whole)
    while stopped.code == 0 and room > 0:  # ever less
        room -= whole / 10
        out = tmp_path / f"{room:.0f}"
        stopped = tunnel("sweep", study, "--out", out, log=log, before=limited(room))
        if stopped.code == 0 and Store(out).records()[0].halved_at == 0:
            halved.append(out)
    assert halved
    (before,), (after,) = (Store(folder).records() for folder in (tmp_path / "whole", halved[0]))
    assert (before.halved_at, before.fingerprint_of) == (None, after.fingerprint_of)
    assert after.loss == pytest.approx(before.loss, 1e-3)
    assert rerun.rerun(*sweep.frozen(halved[0]), after.fingerprint_of)["equal"]
    assert stopped.code == 75, stopped
    assert f"out of memory: 16×1 with a batch of {batch:,} tokens, {batch // 2:,} at a time" in stopped.line
    assert [t["state"] for t in states(out, "ladder")] == ["failed"]
    assert tunnel("sweep", study, "--out", out, log=log).code == 0
    (again,) = Store(out).records()
    assert (again.fingerprint_of, again.loss) == (before.fingerprint_of, pytest.approx(before.loss, 1e-3))
    if again.halved_at is None:  # else it went on from a checkpoint that was halved, and is equal but for rounding
        assert results(out) == results(tmp_path / "whole")


@pytest.mark.fault(9)
def test_a_gpu_with_too_little_memory(corpus: data.Corpus) -> None:
    """The driver's own limit on a process; a captured step is captured again."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    from tunnel.families import gpt
    from tunnel.training.pack import stepper

    batch = 2**17
    trunk = trunk_spec(shape=(64, 4), batch_tokens=batch, micro_batch_tokens=batch)
    peaks = []
    for part in (batch, batch // 2):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        step = stepper(gpt.grown(trunk_spec(shape=(64, 4), batch_tokens=batch, micro_batch_tokens=part), corpus))
        step(1.0)
        peaks.append(torch.cuda.max_memory_reserved())
        del step
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(sum(peaks) / 2 / total)
    try:
        grown = gpt.grown(trunk, corpus)
        step = stepper(grown)
        assert all(step(1.0) for _ in range(3))
        assert grown.halved_at == 0
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


# 10: a database that somebody else holds

HOLD = """
import sqlite3, sys, time
held = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
held.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
held.execute("ROLLBACK")
"""


def added(learned: Path, folder: Path) -> Path:
    """A copy of a swept study, and its file that asks for one more candidate, at two seeds."""
    shutil.copytree(learned, folder / "out")
    path = folder / "tiny.toml"
    path.write_text((folder / "out/study.toml").read_text().replace("trials = 6", "trials = 7"))
    return path


@contextmanager
def holding(path: Path, seconds: float) -> Iterator[None]:
    call = [sys.executable, "-c", HOLD, str(path), str(seconds)]
    other = subprocess.Popen(call, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield
    finally:
        other.kill()
        other.wait()


@pytest.mark.fault(10)
@pytest.mark.parametrize("seconds", [1.5, pytest.param(30.0, marks=pytest.mark.slow)])
def test_a_locked_database_is_waited_for(learned: Path, tmp_path: Path, seconds: float) -> None:
    study, out, log = added(learned, tmp_path), tmp_path / "out", tmp_path / "log"
    began = time.monotonic()
    with holding(out / "optuna.db", seconds):
        found = tunnel("sweep", study, "--out", out, "--json", log=log)
    assert time.monotonic() - began > seconds
    assert found.code == 0, found
    assert json.loads(found.said)["trials"]["complete"] == (n := json.loads(found.said)["trials"]["planned"])
    assert n > 7 * 2
    assert_once(out)


@pytest.mark.fault(10)
def test_past_the_limit_it_is_said(learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "WAIT_SECONDS", 1)
    study, out, log = added(learned, tmp_path), tmp_path / "out", tmp_path / "log"
    began = time.monotonic()
    with locked_after(out, 1):
        stopped = tunnel("sweep", study, "--out", out, log=log)
    assert time.monotonic() - began < 50
    assert (stopped.code, "locked" in stopped.line) == (75, True), stopped
    assert_intact(out)
    assert tunnel("sweep", study, "--out", out, log=log).code == 0
    assert sum(t["state"] == "complete" for t in states(out, "calibrate")) == 7 * 2


@contextmanager
def locked_after(out: Path, more: int) -> Iterator[None]:
    """Somebody takes the database in the middle of a sweep, when there are so many new records."""
    enough, other = records(out) + more, os.fork()
    if other == 0:
        try:
            while records(out) < enough:
                time.sleep(0.005)
            held = sqlite3.connect(out / "optuna.db", isolation_level=None, timeout=30)
            held.execute("BEGIN EXCLUSIVE")
            time.sleep(60)
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)


# 11: clocks that jump

JUMPS = """
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static time_t off(void) {  /* a day back, none, a day ahead, for 70 ms each */
  struct timespec t;
  syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &t);
  return ((t.tv_sec * 1000 + t.tv_nsec / 1000000) / 70 % 3 - 1) * 86400;
}
int clock_gettime(clockid_t clock, struct timespec *t) {
  int r = syscall(SYS_clock_gettime, clock, t);
  if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) t->tv_sec += off();
  return r;
}
int gettimeofday(struct timeval *restrict t, void *restrict zone) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  t->tv_sec = now.tv_sec; t->tv_usec = now.tv_nsec / 1000;
  return 0;
}
time_t time(time_t *t) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (t) *t = now.tv_sec;
  return now.tv_sec;
}
"""


@pytest.fixture
def jumping(tmp_path: Path) -> dict[str, str]:
    """The environment of a process whose clock jumps by a day, back and forth."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here")
    (tmp_path / "jumps.c").write_text(JUMPS)
    call = ["cc", "-shared", "-fPIC", "-O1", "-o", tmp_path / "jumps.so", tmp_path / "jumps.c"]
    subprocess.run(call, check=True, capture_output=True)
    environment = {**os.environ, "LD_PRELOAD": str(tmp_path / "jumps.so")}
    look = "import time; a = {time.time() // 43200 for _ in range(60) if not time.sleep(0.01)}; print(len(a))"
    seen = subprocess.run([sys.executable, "-c", look], env=environment, capture_output=True, text=True, check=True)
    assert int(seen.stdout) >= 3, "the clock does jump"
    return environment


@pytest.mark.slow
@pytest.mark.fault(11)
def test_a_clock_that_jumps_by_a_day(study_file: Callable[..., Path], tmp_path: Path, jumping: dict[str, str]) -> None:
    """Leases, durations and ETAs do not mind; a forecast still precedes its target."""
    shapes = ("[[32, 2], [64, 4]]", "[[32, 2], [48, 3], [64, 4]]")
    study = study_file(shapes, ('tokens = ["50k", "100k"]', 'tokens = ["50k", "100k", "200k", "400k"]'))
    out, call = tmp_path / "out", [*TUNNEL, "run", str(study), "--json", "--out"]
    began = time.monotonic()
    found = subprocess.run([*call, str(out)], env=jumping, capture_output=True, text=True, timeout=300, check=False)
    took = time.monotonic() - began
    assert found.returncode == 0, found.stderr
    calm = sweep.sweep(*sweep.opened(study, tmp_path / "calm"))
    said = json.loads(found.stdout)
    assert said["status"]["trials"] == calm["trials"]
    assert 0 <= said["status"]["seconds"] < took
    kept = Store(out).records()
    assert all(0 <= r.seconds < took for r in kept)
    # a later stage's lr goes by a fit of these, whose last bits go by the order of its readings
    first, same = (
        {r.fingerprint_of: r.loss for r in found if r.stage == "calibrate"}
        for found in (kept, Store(tmp_path / "calm").records())
    )
    assert first == same
    assert said["check"]["forecast"] == said["recommendation"]["forecast"]
    waits = "\n".join(
        [
            "import sys, time; from pathlib import Path; from tunnel.folder import lock",
            "lock.BEAT_SECONDS, lock.WATCH_SECONDS = 0.2, 1.0",
            "began = time.monotonic()",
            "with lock.held(Path(sys.argv[1])): time.sleep(1)",  # it beats, and does not think that it lost the study
            "print(time.monotonic() - began)",
        ]
    )
    call = [sys.executable, "-c", waits, str(tmp_path / "lock")]
    held = subprocess.run(call, env=jumping, capture_output=True, text=True, timeout=60, check=True)
    assert 1 <= float(held.stdout) < 30


# 14: a signal, whatever is going on


def signalled(log: Path) -> None:
    log.with_suffix(".sent").write_text(str(time.monotonic()))
    os.kill(os.getpid(), signal.SIGTERM)


def in_evaluation(log: Path) -> None:
    from tunnel.training import forks
    from tunnel.training.train import Trained

    forks.LOOK_SECONDS = 0.0  # this evaluation takes no half second
    real = Trained.held_out

    def held_out(self: Any, *args: Any) -> float:
        if not log.with_suffix(".sent").exists():
            signalled(log)
        return real(self, *args)

    Trained.held_out = held_out  # type: ignore[method-assign]


def in_save(log: Path) -> None:
    from tunnel.training import forks

    forks.LOOK_SECONDS = 0.0  # nor does what is left to train

    def look(event: str, args: Any) -> None:
        if event == "os.mkdir" and ".saving-" in str(args[0]) and not log.with_suffix(".sent").exists():
            signalled(log)

    sys.addaudithook(look)


@pytest.mark.slow
@pytest.mark.fault(14)
@pytest.mark.parametrize("where", [in_evaluation, in_save])
def test_sigterm_in_the_middle_of_an_evaluation_and_of_a_save(tmp_path: Path, where: Callable[[Path], None]) -> None:
    """Within ten seconds, exit 75, with a checkpoint at its step; and then as if nothing had been."""
    log = tmp_path / "log"
    study = gpt(tmp_path, batch=256, rungs='"16k", "100k"', eval_tokens=100_000, documents=400)
    stopped = tunnel("sweep", study, "--out", tmp_path / "out", log=log, before=lambda: where(log))
    took = time.monotonic() - float(log.with_suffix(".sent").read_text())
    assert took < 10 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert (stopped.code, stopped.line.startswith("stopped:")) == (75, True), stopped
    assert records(tmp_path / "out") == 0
    kept = sorted(int(p.name) for p in (tmp_path / "out").glob("trunks/*/[0-9]*"))
    asked, _ = sweep.frozen(tmp_path / "out")
    run = plan.sample_trials(asked, asked.stage[0], {})[0].runs[0]
    assert kept[0] == run.decay_start
    assert kept[-1] == run.tokens if where is in_evaluation else kept[-1] <= run.tokens
    assert_tidy(tmp_path / "out")
    assert tunnel("sweep", study, "--out", tmp_path / "out", log=log).code == 0
    sweep.sweep(*sweep.opened(study, tmp_path / "whole"))
    assert results(tmp_path / "out") == results(tmp_path / "whole")
    for name in results(tmp_path / "whole"):
        one, other = (Store(tmp_path / folder).curve(name) for folder in ("out", "whole"))
        assert one is not None
        assert other is not None
        assert one.equals(other)


def catches(pid: int, s: signal.Signals) -> bool:
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("SigCgt"))
    return bool(int(line.split()[1], 16) >> (s - 1) & 1)


@pytest.mark.slow
@pytest.mark.fault(14)
def test_sigterm_at_any_moment(study_file: Callable[..., Path], tmp_path: Path) -> None:
    """Between stages, while it asks and tells, before it began: always 75 within ten seconds, always resumable."""
    study, out, log, rng = study_file(*SEARCH), tmp_path / "out", tmp_path / "log", random.Random(1)
    whole = sweep.sweep(*sweep.opened(study, tmp_path / "whole"))
    for _ in range(15):
        driver = forked("sweep", study, "--out", out, log=log)
        while not catches(driver, signal.SIGTERM):
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.6))
        began = time.monotonic()
        os.kill(driver, signal.SIGTERM)
        stopped = ended(driver, log)
        assert time.monotonic() - began < 10 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        if stopped.code == 0:  # it was done before the signal came, however many stops that took
            assert len(results(out)) == len(results(tmp_path / "whole"))
            break
        assert (stopped.code, stopped.line[:8]) == (75, "stopped:"), stopped
        assert_tidy(out)
    again = tunnel("sweep", study, "--out", out, "--json", log=log)
    assert json.loads(again.said)["trials"] == whole["trials"]
    assert results(out) == results(tmp_path / "whole")


# a database that is corrupt, gone or old, and records that are missing


def damage(db: Path, how: str) -> None:
    raw = db.read_bytes()
    if how == "text":
        db.write_bytes(b"no database\n" * 999)
    elif how == "cut":
        db.write_bytes(raw[: len(raw) // 2 + 77])
    elif how == "zeros":
        db.write_bytes(raw[:8192] + bytes(8192) + raw[16384:])
    elif how == "values":  # a structure that is whole, around what is not
        with sqlite3.connect(db) as broken:
            broken.execute("UPDATE trial_user_attributes SET value_json = substr(value_json, 1, 3) WHERE key = 'runs'")
    elif how == "empty":
        db.write_bytes(b"")
    elif how == "old":
        shutil.copy(db.parent / "old.db", db)
    else:
        db.unlink()


SLOW = [pytest.param(how, marks=pytest.mark.slow) for how in ("cut", "zeros", "values", "empty", "old", "gone")]


@pytest.mark.parametrize("how", ["text", *SLOW])
def test_a_database_is_rebuilt_from_the_records(
    learned: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """Exactly what was planned, and nothing is trained again."""
    asked, keep = sweep.frozen(Path(shutil.copytree(learned, tmp_path / "out")))
    before, measured, written = sweep.status(asked, keep), results(keep.root), stamps(keep.root)
    damage(keep.path("optuna.db"), how)
    found = sweep.sweep(asked, keep)
    assert found["trials"] == before["trials"]
    assert results(keep.root) == measured
    assert stamps(keep.root) == written
    assert best(keep.root, "ladder") == best(learned, "ladder")
    assert_once(keep.root)
    corrupt = how in ("text", "cut", "zeros", "values")
    assert [p.name for p in keep.root.glob("optuna.db.*")] == ["optuna.db.corrupt-1"] * corrupt
    assert sum("is corrupt" in r.getMessage() for r in caplog.records) == corrupt


def stamps(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.glob("records/*")}


def test_a_corrupt_database_is_one_line_for_who_only_looks(learned: Path, tmp_path: Path) -> None:
    shutil.copytree(learned, tmp_path / "out")
    damage(tmp_path / "out/optuna.db", "text")
    looked = tunnel("status", tmp_path / "out", log=tmp_path / "log")
    assert (looked.code, "`tunnel sweep` rebuilds it" in looked.line) == (75, True), looked
    assert not list((tmp_path / "out").glob("optuna.db.*")), "it is the driver's to move"


def test_records_that_are_gone_with_the_database_are_trained_again(learned: Path, tmp_path: Path) -> None:
    """Of a search that learned: three of its candidates' records, and the database."""
    asked, keep = sweep.frozen(Path(shutil.copytree(learned, tmp_path / "out")))
    measured = results(keep.root)
    gone = [r.fingerprint_of for r in keep.records() if r.stage == "ladder"][:3]
    for name in gone:
        keep.path("records", f"{name}.json").unlink()
    keep.path("optuna.db").unlink()
    found = sweep.sweep(asked, keep)
    assert found["trials"]["complete"] == found["trials"]["planned"]
    assert results(keep.root) == measured


@pytest.mark.slow
def test_a_rebuilding_driver_that_is_killed(learned: Path, tmp_path: Path) -> None:
    out, rng, log = Path(shutil.copytree(learned, tmp_path / "out")), random.Random(2), tmp_path / "log"
    asked, keep = sweep.frozen(out)
    before, measured = sweep.status(asked, keep), results(out)
    damage(out / "optuna.db", "cut")
    for _ in range(6):
        driver = forked("sweep", out, log=log)
        time.sleep(rng.uniform(0.1, 1.0))
        os.kill(driver, signal.SIGKILL)
        os.waitpid(driver, 0)
    assert sweep.sweep(asked, keep)["trials"] == before["trials"]
    assert results(out) == measured
    assert_once(out)


def test_a_stop_in_the_library_is_an_exception_that_says_the_same(
    learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "WAIT_SECONDS", 0.2)
    asked, keep = sweep.frozen(Path(shutil.copytree(learned, tmp_path / "out")))
    with holding(keep.path("optuna.db"), 30), pytest.raises(Stopped, match="locked"):
        sweep.sweep(asked, keep)
