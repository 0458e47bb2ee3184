"""Teams on a cluster: jobs that outlive who submitted them, two studies at once, stages with their own resources."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY

from tunnel import study
from tunnel.errors import UserError
from tunnel.study import Resources
from tunnel.sweeps import submit, tokens

TUNNEL = [sys.executable, "-m", "tunnel.cli"]
RAY = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]
SHARED = '[resources]\nbackend = "ray"\ncpus = 0.25\ngpus = 0.25\n'
RUNGS = 'rungs = { tokens = ["50k", "100k"] }\n'  # the file's last line
Write = Callable[..., Path]


@dataclass(frozen=True)
class Head:
    """A cluster of one node with a token, two CPUs and a GPU that is none but in Ray's books."""

    address: str
    dashboard: str
    env: dict[str, str]
    pid: int

    def tunnel(self, *args: object, **options: Any) -> subprocess.CompletedProcess[str]:
        call = [*TUNNEL, *map(str, args)]
        return subprocess.run(call, env=self.env, capture_output=True, text=True, timeout=300, check=False, **options)

    def ray(self, *args: str) -> str:
        done = subprocess.run([*RAY, *args], env=self.env, capture_output=True, text=True, timeout=300, check=False)
        return done.stdout + done.stderr


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(closing(socket.socket())) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    if find_spec("aiohttp") is None:
        pytest.skip("Ray has no job server here: pip install '.[cluster]'")
    with tempfile.TemporaryDirectory(prefix="tunnel-ray-") as folder:  # a socket's path is short
        token = Path(folder, "token")
        tokens.make(token)
        env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
        gcs, dashboard, agent, client = free_ports(4)
        started = subprocess.Popen(
            [
                *(*RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}"),
                *(f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
                *(f"--ray-client-server-port={client}", f"--temp-dir={folder}/ray", "--num-cpus=2", "--num-gpus=1"),
                *("--object-store-memory=100000000", "--disable-usage-stats"),
            ],
            env=env | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            end = time.monotonic() + 120
            while not listens(dashboard):
                assert started.poll() is None, started.communicate()
                assert time.monotonic() < end
                time.sleep(0.2)
            yield Head(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", env, started.pid)
        finally:
            started.send_signal(signal.SIGTERM)
            try:
                started.communicate(timeout=60)
            finally:
                started.kill()


def listens(port: int) -> bool:
    with closing(socket.socket()) as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def shared(study_file: Write) -> Write:
    """A study whose workers take a quarter of a GPU and of a CPU, and those of its ladder half a CPU."""

    def write(name: str = "tiny.toml", trials: int = 4) -> Path:
        return study_file(
            ('[resources]\nbackend = "inline"\n', SHARED),
            ("fan = [0.5, 1, 2]", "fan = [0.25, 0.5, 1, 2]\nwiden = 0"),
            (RUNGS, f"{RUNGS}[stage.resources]\ncpus = 0.5\n"),
            ("trials = 4", f"trials = {trials}"),
            name=name,
        )

    return write


def whole(found: dict[str, Any], trials: int = 4) -> bool:
    return found["trials"]["complete"] == found["trials"]["planned"] == trials + 8


@pytest.mark.slow
def test_a_job_goes_on_alone_is_stopped_and_goes_on(head: Head, shared: Write, tmp_path: Path) -> None:
    """The cluster gets the package along, and runs the sweep in the shared folder; of two jobs it refuses one."""
    path, out = shared(trials=40), tmp_path / "shared" / "tiny"
    call = ["submit", path, "--address", head.dashboard, "--out", out, "--ship", "--json"]
    first = head.tunnel(*call, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    job = json.loads(first.stdout)["job"]
    second = head.tunnel(*call, cwd=tmp_path)
    assert second.returncode == 2, second.stdout
    assert job in second.stderr
    assert len(second.stderr.strip().splitlines()) == 1
    wait_for(lambda: len(list(out.glob("records/*.json"))) >= 5, head, job)
    stopped = head.ray("job", "stop", job, "--address", head.dashboard)
    assert "was stopped" in stopped, stopped
    assert not (out / "driver.lock").exists(), "it left by itself"
    assert not (out / "readings.parquet").exists(), "in the middle of its work"
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("records/*.json")}
    again = head.tunnel(*call, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    job = json.loads(again.stdout)["job"]
    wait_for((out / "readings.parquet").exists, head, job)
    assert before.items() <= {p.name: p.stat().st_mtime_ns for p in out.glob("records/*.json")}.items()
    status = subprocess.run([*TUNNEL, "status", str(out), "--json"], capture_output=True, text=True, check=True)
    assert whole(json.loads(status.stdout), 40)


def wait_for(condition: Callable[[], bool], head: Head, job: str, seconds: float = 250) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, head.ray("job", "logs", job, "--address", head.dashboard)
        time.sleep(0.2)


@pytest.mark.slow
def test_who_has_no_token_is_told_so_in_a_line(head: Head, shared: Write, tmp_path: Path) -> None:
    env = {k: v for k, v in head.env.items() if not k.startswith("RAY_AUTH")} | {"HOME": str(tmp_path)}
    call = [*TUNNEL, "submit", str(shared()), "--address", head.dashboard]
    out = subprocess.run(call, env=env, capture_output=True, text=True, timeout=200, check=False, cwd=tmp_path)
    assert out.returncode == 2, out.stderr
    assert "token" in out.stderr
    assert len(out.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_two_studies_share_a_cluster_and_four_trials_a_gpu(head: Head, shared: Write, tmp_path: Path) -> None:
    """Stages with other needs run side by side: more than one trial at a time, and never more than four quarters."""
    paths = [shared(f"{name}.toml", 12) for name in "ab"]
    begun = [
        subprocess.Popen(
            [*TUNNEL, "sweep", str(path), "--address", head.address, "--json"],
            env=head.env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for path in paths
    ]  # fmt: skip
    most, over = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.1):
            most = max(most, len(trainers(head.pid)))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        said = [driver.communicate(timeout=280) for driver in begun]
    finally:
        over.set()
        watching.join()
        for driver in begun:
            driver.kill()
    for driver, (found, error) in zip(begun, said, strict=True):
        assert driver.returncode == 0, error
        assert whole(json.loads(found), 12)
    assert 2 <= most <= 4


def trainers(head: int) -> list[int]:
    """The workers of a cluster that hold trials."""
    from test_sweep import workers_of

    return workers_of(head)


# what is known before anything is sent

REFUSED = [
    ("http://127.0.0.1:9", "no Ray dashboard answers"),
    ("127.0.0.1:8265", "must be a dashboard's"),
    ("ray://127.0.0.1:10001", "must be a dashboard's"),
    ("http://user:pw@127.0.0.1:8265", "must be a dashboard's"),
    ("http://127.0.0.1:99999", "must be a dashboard's"),
]


@pytest.mark.parametrize(("address", "rule"), REFUSED)
def test_an_address_that_is_no_dashboard_is_refused(study_file: Write, tmp_path: Path, address: str, rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        submit.submit(study_file(), address, tmp_path / "out")
    assert not (tmp_path / "out").exists()


OPEN = [(200, "127.1", True), (401, "127.1", False), (200, "127.0.0.1", False)]


@pytest.mark.parametrize(("answer", "host", "refused"), OPEN)
def test_an_open_cluster_is_refused_where_others_reach_it(answer: int, host: str, refused: bool) -> None:
    """127.1 is this machine too, but not by a name that says so."""

    class Jobs(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer)
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Jobs) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match="from anybody") if refused else nullcontext():
            submit.refuse_open(f"http://{host}:{listening.server_port}")
        listening.shutdown()


def test_data_by_a_relative_path_is_refused(study_file: Write, tmp_path: Path) -> None:
    path = study_file(('family = "synthetic"', 'family = "gpt"\n[data]\ncorpus = "files"\npaths = ["texts/*.txt"]'))
    with pytest.raises(UserError, match=r"data\.paths: is relative"):
        submit.submit(path, "http://127.0.0.1:9", tmp_path / "out")


STAGES = [
    ("", "", (1, 0, 1.0, 1)),
    ("gpus = 1\npack = 8", "", (1, 1, 1.0, 8)),
    ("gpus = 1\npack = 8", "gpus = 0.25", (1, 0.25, 0.25, 8)),
    ("gpus = 0.25", "gpu_memory = 0.2\ncpus = 2", (2, 0.25, 0.2, 1)),
    ("gpus = 0.25\ngpu_memory = 0.2", "gpus = 2\ngpu_memory = 1", (1, 2, 1.0, 1)),
    ("", "gpus = 0.5\npack = 3", (1, 0.5, 0.5, 3)),
]


@pytest.mark.parametrize(("of_study", "of_stage", "takes"), STAGES)
def test_a_stage_takes_what_it_says_and_else_what_the_study_does(
    of_study: str, of_stage: str, takes: tuple[float, ...]
) -> None:
    text = TINY.replace("[resources]", f"[resources]\n{of_study}") + f"[stage.resources]\n{of_stage}\n"
    asked, plain = study.parse(text, "tiny.toml"), study.parse(TINY, "tiny.toml")
    found = asked.resources_of(asked.stage_named("ladder"))
    assert (found.cpus, found.gpus, found.memory, found.pack) == takes
    assert asked.resources_of(asked.stage_named("calibrate")) == asked.resources
    assert study.changes(plain, asked) == study.changes(asked, plain) == "", "a revision may change it"


@pytest.mark.parametrize(
    "key", ["gpus = 1.5", "gpus = -1", "cpus = 0", "gpu_memory = 1.5", 'backend = "ray"', "pack = 0"]
)
def test_what_a_worker_cannot_take_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=rf"stage\.ladder\.resources\.{key.split()[0]}"):
        study.parse(f"{TINY}[stage.resources]\n{key}\n", "tiny.toml")


PLACES = [
    ({"CPU": 8.0}, {}, 8),
    ({"CPU": 8.0}, {"cpus": 3}, 2),
    ({"CPU": 8.0, "GPU": 1.0}, {"gpus": 0.25}, 4),
    ({"CPU": 2.0, "GPU": 1.0}, {"gpus": 0.25}, 2),
    ({"CPU": 8.0, "GPU": 0.3}, {"gpus": 0.1}, 3),
    ({"CPU": 64.0, "GPU": 8.0}, {"gpus": 2}, 4),
    ({"CPU": 8.0}, {"gpus": 1}, 1),
]


@pytest.mark.parametrize(("there", "takes", "places"), PLACES)
def test_how_many_workers_a_cluster_has_room_for(there: dict[str, float], takes: dict[str, Any], places: int) -> None:
    assert Resources(**takes).places(there) == places
