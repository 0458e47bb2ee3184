"""Sweeps through the command line, on a real local Ray cluster: whole, killed, interrupted; diverged, a full disk."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunnel import sweep
from tunnel.sampler import states

TUNNEL = [sys.executable, "-m", "tunnel.cli"]
STUDY = """
question = "Does a tiny tunnel hold?"
family = "gpt"
[data]
corpus = "files"
paths = ["{corpus}/*.txt"]
held_out = 0.2
eval_tokens = 2048
[model]
head_dim = 8
base_width = 16
base_depth = 1
seq_len = 32
[train]
batch_tokens = 256
decay = 0.25
[resources]
backend = "{backend}"
[[target]]
name = "big"
width = 48
depth = 3
tokens = "16k"
[[stage]]
name = "calibrate"
kind = "search"
  [stage.space]
  width = 16
  depth = 1
  lr = {{ low = {low}, high = {high}, log = true }}
  warmup = {{ low = 0.02, high = 0.1 }}
  [stage.budget]
  trials = {trials}
  tokens = "16k"
  [stage.sampler]
  name = "sobol"
[[stage]]
name = "ladder"
kind = "ladder"
after = "calibrate"
shapes = [[16, 1], [24, 1], [32, 2]]
fan = [0.5, 1, 2]
rungs = {{ tokens = ["8k", "16k"] }}
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(20):
        (folder / f"{i}.txt").write_text("".join(f"line {j} of text {i}: {i * j % 97}\n" for j in range(150)))
    return folder


def written(
    folder: Path, corpus: Path, backend: str = "ray", low: float = 3e-3, high: float = 6e-2, trials: int = 6
) -> Path:
    path = folder / "tiny.toml"
    path.write_text(STUDY.format(corpus=corpus, backend=backend, low=low, high=high, trials=trials))
    return path


def tunnel(*args: object, cwd: Path, **options: object) -> subprocess.CompletedProcess[str]:
    call = [*TUNNEL, *map(str, args)]
    return subprocess.run(call, cwd=cwd, capture_output=True, text=True, timeout=240, **options)  # type: ignore[call-overload]


def records(folder: Path) -> dict[str, float]:
    return {p.name: p.stat().st_mtime for p in (folder / "records").glob("*.json")}


def test_run_on_ray_then_all_is_used_again(tmp_path: Path, corpus: Path) -> None:
    study = written(tmp_path, corpus)
    first = tunnel("run", study, "--json", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout)
    assert found["status"]["trials"]["complete"] == found["status"]["trials"]["planned"] == 15
    assert found["status"]["tokens"]["trained"] < found["status"]["tokens"]["from_scratch"]
    assert found["check"]["registered"] < found["check"]["started"]
    before = records(tmp_path / "runs/tiny")
    assert len(before) == 6 + 9 * 2 + 1
    again = tunnel("run", study, "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert records(tmp_path / "runs/tiny") == before
    assert json.loads(again.stdout)["recommendation"] == found["recommendation"]
    stored = tunnel("recommend", "runs/tiny", "--json", cwd=tmp_path).stdout
    assert stored == tunnel("recommend", study, "--json", cwd=tmp_path).stdout


def test_killed_driver_goes_on_with_exactly_the_planned_trials(tmp_path: Path, corpus: Path) -> None:
    study, folder = written(tmp_path, corpus), tmp_path / "runs/tiny"
    driver = subprocess.Popen(
        [*TUNNEL, "sweep", str(study)], cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True
    )
    wait_for(lambda: len(records(folder)) >= 3, driver)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    before = records(folder)
    again = tunnel("sweep", study, "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    trials = json.loads(again.stdout)["trials"]
    assert trials == {"planned": 15, "complete": 15, "pruned": 0, "diverged": 0, "failed": 0, "running": 0}
    assert {n: t for n, t in records(folder).items() if n in before} == before
    for stage in ("calibrate", "ladder"):
        done = [(t["candidate"], t["seed"]) for t in states(folder, stage) if t["state"] == "complete"]
        assert len(done) == len(set(done))


def test_an_address_where_nothing_listens_is_one_line(tmp_path: Path, corpus: Path) -> None:
    out = tunnel("sweep", written(tmp_path, corpus), "--address", "127.0.0.1:9", cwd=tmp_path)
    assert out.returncode == 2, out.stderr
    assert "--address" in out.stderr
    assert len(out.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_trial_goes_on(tmp_path: Path, corpus: Path) -> None:
    study, folder = written(tmp_path, corpus), tmp_path / "runs/tiny"
    call = [*TUNNEL, "sweep", str(study), "--json"]
    driver = subprocess.Popen(call, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(records(folder)) >= 2, driver)
    alive: list[int] = []
    wait_for(lambda: alive.extend(workers()) or alive, driver)  # type: ignore[func-returns-value]
    os.kill(alive[0], signal.SIGKILL)
    found, said = driver.communicate(timeout=200)
    assert driver.returncode == 0, said
    assert json.loads(found)["trials"]["complete"] == 15


def test_interrupted_sweep_says_so_and_can_be_resumed(tmp_path: Path, corpus: Path) -> None:
    study, folder = written(tmp_path, corpus), tmp_path / "runs/tiny"
    driver = subprocess.Popen(
        [*TUNNEL, "sweep", str(study)], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: len(records(folder)) >= 1, driver)
    driver.send_signal(signal.SIGTERM)
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == 75, said
    assert said.strip().splitlines()[-1].startswith("stopped:")
    assert not (folder / "driver.lock").exists()


def workers() -> list[int]:
    return [
        int(pid) for pid in subprocess.run(["pgrep", "-f", "ray::Proxy"], capture_output=True, text=True).stdout.split()
    ]


def wait_for(condition: object, driver: subprocess.Popen[str] | subprocess.Popen[bytes], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert driver.poll() is None, "the driver ended before it was stopped"
        assert time.monotonic() < end
        time.sleep(0.05)


def test_diverged_trials_are_answers(tmp_path: Path, corpus: Path) -> None:
    study = written(tmp_path, corpus, backend="inline", low=1e-2, high=1e5, trials=6)
    asked, keep = sweep.opened(study, tmp_path / "out")
    found = sweep.sweep(asked, keep)
    assert found["trials"]["diverged"] >= 1
    assert found["trials"]["complete"] + found["trials"]["diverged"] == found["trials"]["planned"]
    bad = [r for r in keep.records() if r.status == "diverged"]
    assert all(r.loss is None and r.diverged_at for r in bad)


def test_full_disk_stops_with_a_message_and_loses_nothing(tmp_path: Path, corpus: Path) -> None:
    study = written(tmp_path, corpus, backend="inline")

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (160_000, 160_000))  # below a trunk's state at 24×1, above the rest

    full = tunnel("sweep", study, cwd=tmp_path, preexec_fn=small_files)
    assert full.returncode == 75, full.stderr
    assert "no space" in full.stderr
    assert "Traceback" not in full.stderr
    before = records(tmp_path / "runs/tiny")
    again = tunnel("sweep", study, "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["trials"]["complete"] == 15
    assert {n: t for n, t in records(tmp_path / "runs/tiny").items() if n in before} == before


def test_a_changed_question_is_refused_and_an_added_one_is_not(tmp_path: Path, corpus: Path) -> None:
    study = written(tmp_path, corpus, backend="inline")
    asked, keep = sweep.opened(study, tmp_path / "out")
    sweep.sweep(asked, keep)
    before = study.read_text()
    study.write_text(before.replace("trials = 6", "trials = 7"))
    more = tunnel("sweep", study, "--out", tmp_path / "out", "--json", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert json.loads(more.stdout)["trials"]["complete"] == 16
    assert (tmp_path / "out/study.1.toml").read_text() == before
    study.write_text(before.replace("decay = 0.25", "decay = 0.3"))
    other = tunnel("sweep", study, "--out", tmp_path / "out", cwd=tmp_path)
    assert other.returncode == 2
    assert "train.decay" in other.stderr
    assert len(other.stderr.strip().splitlines()) == 1
