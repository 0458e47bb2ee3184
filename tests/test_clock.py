"""Clocks that jump."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from killing import TUNNEL

from tunnel.folder.store import Store
from tunnel.sweeps import sweep

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
