"""Sweeps: whole, killed, interrupted, widened, extended; on a real local Ray cluster, and on the calibration body."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, TRAINED

from tunnel import plan, tuned
from tunnel.answers import recommend
from tunnel.run import Record
from tunnel.sampler import states
from tunnel.sweeps import pipeline, sweep

TUNNEL = [sys.executable, "-m", "tunnel.cli"]
STUDY = (
    'question = "Does a tiny tunnel hold?"'
    + TRAINED
    + """[train]
batch_tokens = 256
decay = 0.25
[resources]
backend = "{backend}"
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
widen = 0
rungs = {{ tokens = ["8k", "16k"] }}
"""
)


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


def short(folder: Path, corpus: Path, **changed: Any) -> Path:
    """The same without Ray, and two shapes at one lr for a ladder."""
    path = written(folder, corpus, backend="inline", **changed)
    old = "shapes = [[16, 1], [24, 1], [32, 2]]\nfan = [0.5, 1, 2]\n"
    assert old in STUDY
    path.write_text(path.read_text().replace(old, "shapes = [[16, 1], [24, 1]]\n"))
    return path


def tunnel(*args: object, cwd: Path, **options: object) -> subprocess.CompletedProcess[str]:
    call = [*TUNNEL, *map(str, args)]
    return subprocess.run(call, cwd=cwd, capture_output=True, text=True, timeout=400, **options)  # type: ignore[call-overload]


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
    again = pipeline.run(study, tmp_path / "runs/tiny")
    assert records(tmp_path / "runs/tiny") == before
    assert again["recommendation"] == found["recommendation"]
    by_file, by_folder = (sweep.located(where, tmp_path / "runs/tiny") for where in (study, tmp_path / "runs/tiny"))
    assert recommend.recommend(*by_file) == recommend.recommend(*by_folder) == found["recommendation"]


def test_an_address_where_nothing_listens_is_one_line(tmp_path: Path, corpus: Path) -> None:
    out = tunnel("sweep", written(tmp_path, corpus), "--address", "127.0.0.1:9", cwd=tmp_path)
    assert out.returncode == 2, out.stderr
    assert "--address" in out.stderr
    assert len(out.stderr.strip().splitlines()) == 1


# one trial that takes seconds, whole and disturbed: bit for bit the same

LONG = (
    ("shapes = [[16, 1], [24, 1], [32, 2]]", "shapes = [[24, 1]]"),
    ('rungs = {{ tokens = ["8k", "16k"] }}', 'rungs = {{ tokens = ["32k", "400k"] }}'),
    ("fan = [0.5, 1, 2]\n", ""),
    ('after = "calibrate"\n', ""),
)


def long(folder: Path, corpus: Path, backend: str) -> Path:
    text = STUDY
    for old, new in LONG:
        assert old in text
        text = text.replace(old, new)
    search, ladder = text.index('[[stage]]\nname = "calibrate"'), text.index('[[stage]]\nname = "ladder"')
    path = folder / "tiny.toml"
    path.write_text((text[:search] + text[ladder:]).format(corpus=corpus, backend=backend))
    return path


def results(folder: Path) -> dict[str, tuple[float | None, dict[str, str]]]:
    """What was measured, to the last bit."""
    read = (Record.model_validate_json(p.read_text()) for p in (folder / "records").glob("*.json"))
    return {r.fingerprint_of: (r.loss, r.final) for r in read}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    sweep.sweep(*sweep.opened(long(folder, corpus, "inline"), folder / "out"))
    return results(folder / "out")


@contextmanager
def started(*args: object, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """A sweep in a process of its own, which does not outlive the test."""
    call = [*TUNNEL, "sweep", *map(str, args)]
    driver = subprocess.Popen(call, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield driver
    finally:
        driver.kill()
        driver.wait()


def assert_within_ten_seconds(began: float) -> None:
    """On a machine of one's own; a crowded one gives us our share of it."""
    assert time.monotonic() - began < 10 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def in_mid_trunk(folder: Path) -> bool:
    """The first reading is there, and the trunk has gone on from it."""
    progress = folder / "progress.json"
    running = json.loads(progress.read_text())["running"].values() if progress.exists() else []
    return len(records(folder)) == 1 and any(r["phase"] == "trunk" and r["tokens"] > 64_000 for r in running)


@pytest.mark.slow
@pytest.mark.fault(1)
def test_a_killed_worker_is_replaced_and_its_trial_ends_as_if_undisturbed(
    tmp_path: Path, corpus: Path, undisturbed: dict[str, Any]
) -> None:
    study, folder = long(tmp_path, corpus, "ray"), tmp_path / "runs/tiny"
    with started(study, "--json", cwd=tmp_path) as driver:
        wait_for(lambda: in_mid_trunk(folder), driver)
        killed = workers_of(driver.pid)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        found, said = driver.communicate(timeout=400)
    assert killed
    assert driver.returncode == 0, said
    assert json.loads(found)["trials"]["complete"] == 1
    assert results(folder) == undisturbed


@pytest.mark.slow
@pytest.mark.fault(14)
@pytest.mark.parametrize(
    ("backend", "signals"),
    [
        ("inline", [signal.SIGTERM]),
        ("inline", [signal.SIGINT, signal.SIGINT]),
        ("ray", [signal.SIGUSR1]),
        ("ray", [signal.SIGTERM, signal.SIGUSR1]),
    ],
)
def test_a_signal_saves_at_the_step_a_second_one_stops_at_once(
    tmp_path: Path, corpus: Path, undisturbed: dict[str, Any], backend: str, signals: list[signal.Signals]
) -> None:
    study, folder = long(tmp_path, corpus, backend), tmp_path / "runs/tiny"
    with started(study, cwd=tmp_path) as driver:
        wait_for(lambda: in_mid_trunk(folder), driver)
        began = time.monotonic()
        for s in signals:
            driver.send_signal(s)
            time.sleep(0.02)
        _, said = driver.communicate(timeout=100)
    assert driver.returncode == 75, said
    assert_within_ten_seconds(began)
    assert said.strip().splitlines()[-1].startswith("stopped:")
    assert "Traceback" not in said
    assert not (folder / "stop").exists()
    assert not (folder / "driver.lock").exists()
    run = next(iter(undisturbed))
    assert len(results(folder)) == 1, run
    forks = [
        r.decay_start for r in plan.sample_trials(sweep.frozen(folder)[0], sweep.frozen(folder)[0].stage[0], {})[0].runs
    ]
    kept = sorted(int(p.name) for p in folder.glob("trunks/*/[0-9]*"))
    if len(signals) == 1:
        assert len(kept) == 2
        assert kept[0] == forks[0]
        assert forks[0] < kept[1] < forks[1], "the step at which it was stopped"
    assert tunnel("sweep", study, cwd=tmp_path).returncode == 0
    assert results(folder) == undisturbed


def workers_of(driver: int) -> list[int]:
    """The training processes of one driver, whoever else runs Ray here."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = stat.read_text().split(" (", 1)
            parents[int(pid)] = int(rest.rsplit(")", 1)[1].split()[1])
            names[int(pid)] = (stat.parent / "cmdline").read_text().split("\0")[0]
        except (FileNotFoundError, ProcessLookupError):
            continue

    def descends(pid: int) -> bool:
        return pid == driver or (pid in parents and descends(parents[pid]))

    return [p for p, name in names.items() if name.startswith("ray::") and "Trainable" in name and descends(p)]


def wait_for(condition: object, driver: subprocess.Popen[str] | subprocess.Popen[bytes], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert driver.poll() is None, "the driver ended before it was stopped"
        assert time.monotonic() < end
        time.sleep(0.05)


# a driver killed at random: tests/test_halving.py; more of it in tests/test_kills.py


def killed(study: Path, out: Path, rng: random.Random) -> bool:
    """Sweeps in a process of its own, killed a moment after 0 to 2 new readings; False where it was done before."""
    enough, moment = len(records(out)) + rng.randint(0, 2), rng.uniform(0.0, 0.1)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sweep.sweep(*sweep.opened(study, out))
            code = 0
        finally:
            os._exit(code)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert os.waitstatus_to_exitcode(status) == 0
            return False
        if len(records(out)) >= enough:
            end = min(end, time.monotonic() + moment)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


SWEPT = (
    ("trials = 4", "trials = 32"),
    ("[stage.budget]", '[stage.sampler]\n  name = "sobol"\n  [stage.budget]'),  # asks the same after a restart
    ("fan = [0.5, 1, 2]", "fan = [0.2, 0.3, 0.45]"),  # too low: it widens
)


# fans, rungs and records that are missing, on the calibration body


def test_a_fan_widens_itself_and_the_counts_follow(study_file: Callable[..., Path], tmp_path: Path) -> None:
    study = study_file(*SWEPT[2:], ("rungs = {", "widen = 1\nbudget = { seeds = [0, 1] }\nrungs = {"))
    asked, keep = sweep.opened(study, tmp_path / "out")
    shown: list[tuple[int, int, float, float]] = []
    found = sweep.sweep(
        asked,
        keep,
        watch=lambda v: shown.append((v.finished, v.planned, v.now(), v.total)) if v.stage == "ladder" else None,
    )
    assert found["trials"]["complete"] == found["trials"]["planned"] == 4 + 2 * (3 + 1) * 2
    assert found["state"] == "complete"
    readings = keep.readings().query("stage == 'ladder'")
    lrs = readings.groupby("width").lr.unique()
    assert all(len(found) == 4 for found in lrs)
    assert all(max(found) == pytest.approx(sorted(found)[-2] * 1.5) for found in lrs)
    assert shown[0][1] == 2 * 3 * 2
    assert shown[-1][:2] == (16, 16)
    assert shown[-1][2] == pytest.approx(shown[-1][3])
    assert sweep.status(asked, keep)["flops_planned"] == pytest.approx(found["flops"], rel=0.05)


def test_a_ladder_over_rules_and_a_closed_edge(study_file: Callable[..., Path], tmp_path: Path) -> None:
    """Categories among the candidates; above 0.3 it diverges, and that closes the fan."""
    study = study_file(
        ("fan = [0.5, 1, 2]", "fan = [15, 20, 1000]\nwiden = 1\n[stage.space]\nrules = ['minicpm', 'completep']"),
        ("rungs = {", "[stage.rungs]\n#"),
    )
    study.write_text(study.read_text() + 'tokens = ["50k", "100k"]\n')
    asked, keep = sweep.opened(study, tmp_path / "out")
    found = sweep.sweep(asked, keep)
    assert found["trials"]["planned"] == 4 + 2 * 2 * (3 + 1)
    assert found["trials"]["diverged"] >= 4
    assert set(keep.readings().query("stage == 'ladder'").rules) == {"minicpm", "completep"}
    again = sweep.sweep(asked, keep)
    assert again["trials"] == found["trials"]


def test_an_added_rung_trains_the_new_part_of_every_trial(study_file: Callable[..., Path], tmp_path: Path) -> None:
    study = study_file(("fan = [0.5, 1, 2]", "widen = 0"))
    asked, keep = sweep.opened(study, tmp_path / "out")
    before = sweep.sweep(asked, keep)
    old = {p.name: p.read_bytes() for p in keep.root.glob("records/*")}
    text = study.read_text().replace('"100k"] }', '"100k", "200k"] }')
    longer = sweep.study.parse(text, study)
    asked_now = sweep.status(longer, keep)
    assert asked_now["trials"]["complete"] == 4
    assert asked_now["state"] == "stopped"
    found = sweep.sweep(longer, keep)
    assert found["trials"] == before["trials"]
    assert {n: (keep.root / "records" / n).read_bytes() for n in old} == old
    new = keep.readings().query("stage == 'ladder' and D == D.max()")
    trunk = new.decay_start - (
        old_rung := keep.readings().query("stage == 'ladder' and D < @new.D.max()").decay_start.max()
    )
    assert len(new) == 2
    assert old_rung > 0
    assert (new.tokens_trained == trunk + new.D - new.decay_start).all(), "the trunk goes on from its last checkpoint"
    retried = [t for t in states(keep.root, "ladder") if t["retry_of"] is not None]
    assert len(retried) == 2
    assert all(t["value"] == pytest.approx(new.loss.to_list()[i], rel=0.5) for i, t in enumerate(retried))
    assert {t["value"] for t in retried} == set(new.loss), "a trial's value is its last rung's"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A swept study whose fan widened itself."""
    text = TINY
    for old, new in SWEPT[1:]:
        assert old in text
        text = text.replace(old, new, 1)
    path = tmp_path_factory.mktemp("whole") / "tiny.toml"
    path.write_text(text)
    sweep.sweep(*sweep.opened(path, path.parent / "out"))
    return path.parent / "out"


@pytest.mark.parametrize("gone", ["one record", "the database"])
def test_what_is_gone_is_made_again_from_what_is_left(whole: Path, tmp_path: Path, gone: str) -> None:
    asked, keep = sweep.frozen(Path(shutil.copytree(whole, tmp_path / "out")))
    before, measured = sweep.status(asked, keep), results(keep.root)
    if gone == "the database":
        keep.path("optuna.db").unlink()
    else:
        last = max(keep.records(), key=lambda r: (r.stage == "ladder", r.D))
        keep.path("records", f"{last.fingerprint_of}.json").unlink()
        assert sweep.status(asked, keep)["trials"]["complete"] < before["trials"]["complete"]
        assert sweep.status(asked, keep)["state"] != "complete"
    found = sweep.sweep(asked, keep)
    assert found["trials"] == before["trials"]
    assert results(keep.root) == measured
    retried = [t for s in asked.stage for t in states(keep.root, s.name) if t["retry_of"] is not None]
    assert len(retried) == (gone == "one record")


EVEN = [str(100_000 * i) for i in range(1, 11)]
DOUBLING = [str(100_000 * i) for i in (5, 10, 20, 40, 80)]


@pytest.mark.parametrize(
    ("rungs", "decay", "low", "high"),
    [(EVEN, 0.1, 0.26, 0.27), (EVEN, 0.2, 0.34, 0.35), (DOUBLING, 0.1, 0.56, 0.57), (DOUBLING, 0.2, 0.608, 0.618)],
)
def test_tokens_trained_against_from_scratch(
    study_file: Callable[..., Path], tmp_path: Path, rungs: list[str], decay: float, low: float, high: float
) -> None:
    """SCIENCE.md, section 1: 0.264 and 0.345 for ten equally spaced lengths, 0.565 and 0.613 for doubling ones."""
    study = study_file(
        ('tokens = ["50k", "100k"]', f"tokens = [{', '.join(rungs)}]"),
        ("[[32, 2], [64, 4]]", "[[32, 2]]"),
        ("fan = [0.5, 1, 2]\n", ""),
        ("[train]", f"[train]\ndecay = {decay}"),
    )
    text = study.read_text()
    search, ladder = text.index('[[stage]]\nname = "calibrate"'), text.index('[[stage]]\nname = "ladder"')
    study.write_text((text[:search] + text[ladder:]).replace('after = "calibrate"\n', "").replace('"1M"', '"16M"'))
    asked, keep = sweep.opened(study, tmp_path / "out")
    stage = plan.plan(asked)["stages"][0]
    assert low <= stage["tokens"] / stage["from_scratch"] <= high
    tokens = sweep.sweep(asked, keep)["tokens"]
    assert tokens["trained"] == stage["tokens"]
    assert tokens["from_scratch"] == stage["from_scratch"]


@pytest.mark.fault(8)
def test_diverged_trials_are_answers(tmp_path: Path, corpus: Path) -> None:
    study = short(tmp_path, corpus, low=1e-2, high=1e5, trials=6)
    asked, keep = sweep.opened(study, tmp_path / "out")
    found = sweep.sweep(asked, keep)
    assert found["trials"]["diverged"] >= 1
    assert found["trials"]["complete"] + found["trials"]["diverged"] == found["trials"]["planned"]
    bad = [r for r in keep.records() if r.status == "diverged"]
    assert all(r.loss is None and r.diverged_at and r.diverged_at % 256 == 0 for r in bad)
    told = states(keep.root, "calibrate")
    assert {t["state"] for t in told if float(t["params"]["lr"]) > 1e3} == {"diverged"}
    dead = {fp for t in told if t["state"] == "diverged" for fp in t["runs"]}
    behind = {fp for s in tuned.best(asked.stage[0], keep.readings()).values() for fp in s.readings}
    assert behind
    assert not behind & dead, "left out of the fits"


Filled = tuple[Path, str, dict[str, float], dict[str, Any]]  # the study; what was said, recorded; the status at the end


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Filled:
    """A sweep that ran out of room, and then had it."""
    folder = tmp_path_factory.mktemp("filled")
    study = short(folder, corpus, trials=2)

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (160_000, 160_000))  # below a trunk's state at 24×1, above the rest

    full = tunnel("sweep", study, cwd=folder, preexec_fn=small_files)
    assert full.returncode == 75, full.stderr
    before = records(folder / "runs/tiny")
    return study, full.stderr, before, sweep.sweep(*sweep.opened(study, folder / "runs/tiny"))


@pytest.mark.fault(5)
def test_full_disk_stops_with_a_message_and_loses_nothing(filled: Filled) -> None:
    study, said, before, found = filled
    assert "no space" in said
    assert "Traceback" not in said
    assert found["trials"]["complete"] == 2 + 2
    assert before
    assert {n: t for n, t in records(study.parent / "runs/tiny").items() if n in before} == before


def test_a_changed_question_is_refused_and_an_added_one_is_not(filled: Filled, tmp_path: Path) -> None:
    before = filled[0].read_text()
    shutil.copytree(filled[0].parent / "runs/tiny", tmp_path / "out")
    study = tmp_path / "tiny.toml"
    study.write_text(before.replace("trials = 2", "trials = 3"))
    more = sweep.sweep(*sweep.opened(study, tmp_path / "out"))
    assert more["trials"]["complete"] == 3 + 2
    assert (tmp_path / "out/study.1.toml").read_text() == before
    study.write_text(before.replace("decay = 0.25", "decay = 0.3"))
    other = tunnel("sweep", study, "--out", tmp_path / "out", cwd=tmp_path)
    assert other.returncode == 2
    assert "train.decay" in other.stderr
    assert len(other.stderr.strip().splitlines()) == 1
