"""Studies whose workers write at a URL: another folder (file://), and a real S3 server, moto's, as a process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_spec, trunk_spec
from test_hands import bits, workers_of, written
from test_hands import texts as texts
from test_store import record

from tunnel.errors import Stopped, UserError
from tunnel.folder import fence, remote, shared, trouble
from tunnel.folder.remote import Place, Remote
from tunnel.folder.store import Store
from tunnel.sweeps import sweep

HAS_S3 = all(find_spec(name) for name in ("s3fs", "moto", "flask", "flask_cors"))
NEEDS_S3 = pytest.mark.skipif(not HAS_S3, reason="needs s3fs and moto's S3 server: pip install '.[s3-tests]'")
BOTH = ["file", pytest.param("s3", marks=NEEDS_S3)]
KINDS = ["file", pytest.param("s3", marks=[NEEDS_S3, pytest.mark.slow])]
TUNNEL = [sys.executable, "-m", "tunnel.cli"]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket of an S3 server of our own; its address and credentials are in the environment, as users have them."""
    log = tmp_path_factory.mktemp("s3") / "log"
    call = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with open(log, "w") as f:
        server = subprocess.Popen(call, stdout=f, stderr=f)
    try:
        end = time.monotonic() + 60
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())):
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", found[0])
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                patch.setenv(name, "testing")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            import s3fs

            s3fs.S3FileSystem(skip_instance_cache=True).mkdir("studies")
            yield "s3://studies"
    finally:
        server.kill()
        server.wait()


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place that nothing was written to yet."""
    if request.param == "file":
        return f"file://{tmp_path}/shared/{request.node.originalname}"
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def everything(there: Remote, name: str = "") -> dict[str, bytes]:
    """All files at a place, by their names in it."""
    found: dict[str, bytes] = {}
    for last, info in there.listed(name).items():
        path = f"{name}/{last}".lstrip("/")
        found |= everything(there, path) if info["type"] == "directory" else {path: there.read(path) or b""}
    return found


# one file


@pytest.mark.parametrize("url", BOTH, indirect=True)
def test_a_file_is_put_pulled_and_removed(url: str, tmp_path: Path) -> None:
    assert remote.checked(f"{url}/") == url
    there, local = Remote(url), tmp_path / "local"
    assert (there.read("a/b"), there.exists("a/b"), there.get("a/b", local), there.listed("a")) == (
        None,
        False,
        False,
        {},
    )
    there.remove("a")
    local.write_bytes(b"first")
    assert there.put(local, "a/b", once=True)
    assert not there.put(b"second", "a/b", once=True)
    assert (there.read("a/b"), list(there.listed("a"))) == (b"first", ["b"])
    assert there.put(b"third", "a/b")
    assert there.get("a/b", local)
    assert local.read_bytes() == b"third"
    there.put(b"", "a/empty")
    assert everything(there) == {"a/b": b"third", "a/empty": b""}, "nothing unfinished is left"
    there.remove("a")
    assert not everything(there)


@NEEDS_S3
def test_of_many_who_put_a_file_once_one_does(bucket: str) -> None:
    found: list[tuple[bool, bytes]] = []
    start = threading.Barrier(8)

    def put(content: bytes) -> None:
        there = Remote(f"{bucket}/race")
        there.exists("a")  # connected
        start.wait()
        found.append((there.put(content, "a", once=True), content))

    threads = [threading.Thread(target=put, args=(bytes([i]),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [content for done, content in found if done] == [Remote(f"{bucket}/race").read("a")]


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("/nfs/studies", "--out"),
        ("no-url", "is no URL"),
        ("simplecache::s3://bucket/x", "is no URL"),
        ("s3://key:secret@bucket/x", "the environment"),
        ("nothing://bucket/x", "Protocol not known"),
        ("memory://x", "neither put a file whole nor rename"),
        ("file:///", "is no URL"),
        ("", "is no URL"),
    ],
)
def test_a_url_that_will_not_do(url: str, rule: str) -> None:
    with pytest.raises(UserError, match=rule) as said:
        remote.checked(url)
    assert "secret@" not in str(said.value)


def test_what_the_storage_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forbidden, full, gone: a kernel's file system that takes no files, a full device, a server that is not there."""
    monkeypatch.setattr(remote, "WAITS", (0.01, 0.02))
    with pytest.raises(Stopped, match=r"file:///sys/x does not allow it .*the same command goes on"):
        Remote("file:///sys/x").put(b"1", "records/a.json")
    (tmp_path / remote.UNFINISHED).mkdir()
    monkeypatch.setattr(remote.secrets, "token_hex", lambda n: "full")
    (tmp_path / remote.UNFINISHED / "full").symlink_to("/dev/full")
    with pytest.raises(Stopped, match=r"has no space left .*make room"):
        Remote(f"file://{tmp_path}").put(b"1" * 100_000, "records/a.json")
    with pytest.raises(trouble.Unreachable, match=r"does not answer .*refused") as said:
        Remote("ftp://127.0.0.1:1/x").put(b"1", "records/a.json")
    assert trouble.said(said.value) == f"{said.value}; the same command goes on"


@NEEDS_S3
def test_a_bucket_that_is_not_there(bucket: str, study_file: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--shared: does not exist"):
        sweep.sweep(*sweep.opened(study_file(), tmp_path / "out", url="s3://no-such-bucket/x"))
    sweep.opened(study_file(), tmp_path / "out", url=f"{bucket}/another")  # nothing began: it may be said again


# the store


@pytest.fixture
def place(url: str) -> Place:
    return Place(url, "me")


@pytest.fixture
def worker(place: Place) -> Iterator[Callable[..., shared.Worker]]:
    made: list[shared.Worker] = []

    def make(attempt: str | None = None) -> shared.Worker:
        made.append(shared.Worker(place, attempt))
        return made[-1]

    yield make
    for keep in made:
        keep.close()


STATE = {"w": np.arange(4.0)}


def test_a_checkpoint_goes_from_node_to_node(worker: Callable[..., shared.Worker]) -> None:
    first, second = worker(), worker()
    for tokens in (128, 256):
        first.save_state("t", tokens, {"w": STATE["w"] + tokens}, {"tokens": tokens})
    first.close()
    assert second.kept("t") == [128, 256]
    for up_to, tokens in ((127, None), (128, 128), (200, 128), (999, 256)):
        state = second.load_state("t", up_to)
        assert (None if state is None else (state[1]["tokens"], state[0]["w"][0])) == (tokens and (tokens, tokens))
    second.forget_state("t", 256)
    assert worker().load_state("t", 999)[1]["tokens"] == 128  # type: ignore[index]
    assert not Path(first.root).exists()


@pytest.mark.fault(6)
@pytest.mark.parametrize("file", ["state.safetensors", "meta.json", "manifest.json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "missing"])
def test_a_damaged_checkpoint_there_is_passed_over(worker: Callable[..., shared.Worker], file: str, how: str) -> None:
    """And its place is free again, unless it has no manifest: it may be on its way."""
    first, name = worker(), f"{shared.Shared.name('t', 256)}/{file}"
    for tokens in (128, 256):
        first.save_state("t", tokens, STATE, {"tokens": tokens})
    content = first.remote.read(name)
    assert content
    if how == "missing":
        first.remote.remove(name)
    else:
        first.remote.put(content[:-3] if how == "cut" else content[:-9] + b"\x07" + content[-8:], name)
    second = worker()
    assert second.load_state("t", 999)[1]["tokens"] == 128  # type: ignore[index]
    assert second.kept("t") == ([128, 256] if (file, how) == ("manifest.json", "missing") else [128])
    second.save_state("t", 256, STATE, {"tokens": 256, "again": True})
    assert worker().load_state("t", 999)[1] == {"tokens": 256, "again": True}  # type: ignore[index]


LATE: dict[str, Callable[[Store], object]] = {
    "a checkpoint": lambda keep: keep.save_state("t", 256, {"w": np.zeros(4)}, {}),
    "another's checkpoint": lambda keep: keep.forget_state("t", 128),
    "a record": lambda keep: keep.write_record(record(run_spec(trunk_spec(), 8, 2))),
    "a curve": lambda keep: (keep.write_curve("c", [(128, 7.0, 1.0, 0.5)]), keep.push_curves()),  # type: ignore[attr-defined]
}


@pytest.mark.fault(23)
@pytest.mark.parametrize("what", LATE)
def test_an_attempt_that_was_given_up_changes_nothing_there(
    worker: Callable[..., shared.Worker], place: Place, tmp_path: Path, what: str
) -> None:
    (tmp_path / "driver").mkdir()
    driver = shared.Shared(tmp_path / "driver", place)
    worker().save_state("t", 128, STATE, {})
    attempt = driver.open_attempt()
    late = worker(attempt.name)
    driver.close_attempt(attempt)
    before = everything(driver.remote)
    with pytest.raises(fence.Overtaken):
        LATE[what](late)
    assert everything(driver.remote) == before
    LATE[what](worker(driver.open_attempt().name))
    assert {k: v for k, v in everything(driver.remote).items() if "attempts" not in k} != before


def test_a_record_is_written_once_wherever_from(worker: Callable[..., shared.Worker]) -> None:
    run = run_spec(trunk_spec(), 8, 2)
    first, second = record(run, stage="first"), record(run, stage="second")
    one, two = worker(), worker()
    assert two.record(run.fingerprint) is None
    assert one.write_record(first) == first
    assert two.write_record(second) == two.record(run.fingerprint) == worker().record(run.fingerprint) == first
    name = f"records/{run.fingerprint}.json"
    one.remote.put(b'{"cut', name)
    assert worker().record(run.fingerprint) is None
    assert worker().write_record(second) == second
    assert worker().record(run.fingerprint) == second


def test_a_curve_goes_on_on_another_node(worker: Callable[..., shared.Worker]) -> None:
    rows = [(128 * i, float(i), 1.0, 0.5) for i in range(1, 9)]
    first, second = worker(), worker()
    first.write_curve("c", rows[:4])
    first.save_state("t", 256, STATE, {})  # from there another one goes on
    second.write_curve("c", rows[2:], after=256)
    second.push_curves()
    curve = worker().curve("c")
    assert curve is not None
    assert [tuple(row) for row in curve.itertuples(index=False)] == rows


def test_a_worker_hears_that_it_shall_stop(
    worker: Callable[..., shared.Worker], place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the driver's file, through its second thread; what an earlier driver said is forgotten."""
    monkeypatch.setattr(shared, "STOP_SECONDS", 0.0)
    driver = shared.Shared(tmp_path / "driver", place)
    driver.root.mkdir()
    driver.remote.put(b"", "stop")
    with driver.followed():
        keep = worker()
        assert not keep.stopping()
        driver.path("stop").touch()
        end = time.monotonic() + 30
        while not keep.stopping():
            assert time.monotonic() < end
            time.sleep(0.05)


# sweeps


def swept(study: Path, out: Path, url: str | None = None) -> dict[str, Any]:
    return sweep.sweep(*sweep.opened(study, out, url=url))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What a sweep without a URL ends with."""
    from conftest import TINY

    folder = tmp_path_factory.mktemp("alone")
    (folder / "tiny.toml").write_text(TINY)
    return folder / "out", swept(folder / "tiny.toml", folder / "out")


def test_a_sweep_and_its_folder_lost(
    study_file: Callable[..., Path], tmp_path: Path, url: str, alone: tuple[Path, dict[str, Any]]
) -> None:
    """The same trials as without a URL; a new folder takes them all over, and only from this study."""
    study, out = study_file(), tmp_path / "out"
    found = swept(study, out, url)
    assert found["trials"] == alone[1]["trials"]
    assert bits(out) == bits(alone[0])
    there = everything(Remote(url))
    for folder in ("records", "curves", "environments"):
        assert {n: v for n, v in there.items() if n.startswith(folder)} == {
            f"{folder}/{p.name}": p.read_bytes() for p in (out / folder).glob("*")
        }
    assert json.loads((out / "audit.jsonl").read_text().splitlines()[0])["about"]["shared"] == url
    again = swept(study, out)  # its folder knows where
    assert again["trials"] == found["trials"]
    assert (everything(Remote(url)) | {"owner.json": b""}) == (there | {"owner.json": b""})

    fresh = tmp_path / "fresh"
    with pytest.raises(UserError, match=rf"holds what {out} on .* sweeps.*--takeover"):
        swept(study, fresh, url)
    other = study_file(("trials = 4", "trials = 3"), name="other.toml")
    with pytest.raises(UserError, match="another study's runs"):
        sweep.opened(other, tmp_path / "other", url=url)[1].take_over()
    asked, keep = sweep.opened(study, fresh, url=url)
    keep.take_over()
    with keep.driver():
        assert content(fresh / "records") == content(out / "records")
        assert content(fresh / "curves") == content(out / "curves")
    assert sweep.sweep(asked, keep)["trials"] == found["trials"]
    assert content(fresh / "records") == content(out / "records")
    with pytest.raises(UserError, match=rf"holds what {fresh}"):
        swept(study, out)


def test_where_a_study_lies_stays(study_file: Callable[..., Path], tmp_path: Path) -> None:
    study, out, a, b = study_file(), tmp_path / "out", f"file://{tmp_path}/a", f"file://{tmp_path}/b"
    sweep.opened(study, out, url=b)
    asked, keep = sweep.opened(study, out, url=a)  # nothing had begun
    assert keep.place is not None
    sweep.began(keep)
    sweep.hand_on(asked, asked.stage[0], keep)
    assert sweep.frozen(out)[1].place == sweep.opened(study, out, url=f"{a}/")[1].place == keep.place
    assert keep.place.url == a
    with pytest.raises(UserError, match=f"--shared: differs: the study began with {a}, and stays"):
        sweep.opened(study, out, url=b)
    other = sweep.opened(study, tmp_path / "local")[1]
    sweep.hand_on(asked, asked.stage[0], other)
    with pytest.raises(UserError, match=f"began with {other.root}"):
        sweep.opened(study, tmp_path / "local", url=b)
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
@pytest.mark.fault(1)
@pytest.mark.parametrize("url", KINDS, indirect=True)
def test_workers_killed_in_the_middle_on_ray(tmp_path: Path, texts: Path, url: str) -> None:
    """Records, curves and states go through the URL alone; the end is an undisturbed sweep's, bit for bit."""
    rungs = '["16k", "100k"]'
    undisturbed = written(tmp_path / "inline", texts, 3, rungs=rungs)
    swept(undisturbed, tmp_path / "undisturbed")
    study, out = written(tmp_path / "ray", texts, 1, "ray", rungs), tmp_path / "out"
    call = [*TUNNEL, "sweep", str(study), "--out", str(out), "--shared", url]
    driver = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        end, killed = time.monotonic() + 300, 0
        for enough in (2, 5):
            while len(bits(out)) < enough:
                assert driver.poll() is None, driver.communicate()
                assert time.monotonic() < end
                time.sleep(0.02)
            for pid in workers_of(driver.pid):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        _, said = driver.communicate(timeout=400)
    finally:
        driver.kill()
    assert killed
    assert driver.returncode == 0, said
    assert bits(out) == bits(tmp_path / "undisturbed")
    assert not (out / "trunks").exists(), "workers never touch it"
    names = {p.name for p in (tmp_path / "undisturbed/curves").glob("*")}
    assert {p.name for p in (out / "curves").glob("*")} == names
    assert {n for n in everything(Remote(url)) if n.startswith(("attempts", remote.UNFINISHED, "stop"))} == set()
