"""Drivers that are killed, or told to stop, whatever is going on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killing import (
    FREE,
    SEARCH,
    TUNNEL,
    assert_once,
    assert_tidy,
    best,
    ended,
    forked,
    gpt_study,
    records,
    results,
    sampled,
    tunnel,
)

from tunnel import plan
from tunnel.folder.store import Store
from tunnel.sampler import states
from tunnel.sweeps import sweep

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
    study = gpt_study(tmp_path, batch=256, rungs='"16k", "100k"', eval_tokens=100_000, documents=400)
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
