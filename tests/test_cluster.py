"""Clusters: the files that start them, nodes and heads that die, one that is cut off and comes back."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import TRAINED, run_spec, trunk_spec, write_corpus
from hosts import NETWORK, Hosts, hosts
from test_store import record

import tunnel
from tunnel.folder import fence
from tunnel.folder.store import Store
from tunnel.run import Record
from tunnel.sampler import states
from tunnel.sweeps import sweep, tokens

ROOT = Path(tunnel.__file__).parent.parent
LAUNCHED = ["cluster.yaml", "deploy/aws.yaml", "deploy/gcp.yaml"]
RAY = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)[1]  # type: ignore[index]


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def started_by(name: str, key: str) -> str:
    """The command with which a cluster file starts Ray on a node."""
    return next(c for c in read(name)[key] if "ray start" in c)


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_takes_the_cluster_file(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(read(name))
    validate_config(config)
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = started_by(name, key)
        assert start == started_by("cluster.yaml", key), "what the tests start"
        assert "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=~/.tunnel-token" in start
        assert "--disable-usage-stats" in start
    assert any("-c ~/wind-tunnel/constraints.txt" in c for c in config["head_setup_commands"])
    assert any("chmod 600 ~/.tunnel-token" in c for c in config["worker_setup_commands"])
    assert not any("0.0.0.0" in str(v) for v in config.values()), "the dashboard stays on loopback"


def test_the_job_for_kubernetes() -> None:
    """No validator of KubeRay's runs here: the fields that its reference names, and what the pods share."""
    job = read("deploy/kuberay.yaml")
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert set(spec) <= {"entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"} | {
        "rayClusterSpec"
    }
    assert set(cluster) == {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == RAY
    assert re.search(rf"^FROM rayproject/ray:{re.escape(RAY)}-py311$", (ROOT / "deploy/Dockerfile").read_text(), re.M)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert group["rayStartParams"]["disable-usage-stats"] == "true"
        assert all(isinstance(v, str) for v in group["rayStartParams"].values())
        (pod,) = group["template"]["spec"]["containers"]
        assert pod["image"].endswith(f":{tunnel.__version__}")
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in pod["env"]
        assert [m["mountPath"] for m in pod["volumeMounts"]] == ["/shared"]
        assert group["template"]["spec"]["volumes"] == groups[0]["template"]["spec"]["volumes"]
    assert groups[0]["rayStartParams"]["num-cpus"] == "0"
    assert all({"groupName", "replicas", "minReplicas", "maxReplicas"} <= set(g) for g in groups[1:])
    words = spec["entrypoint"].split()
    assert words[:2] == ["tunnel", "sweep"]
    assert words[words.index("--out") + 1].startswith("/shared/")
    assert "--takeover" in words, "the pod before it may have died with the lock"


# 23: the fence

STATE = {"w": np.arange(4.0)}
ROWS = [(128, 1.0, 1.0, 0.5)]
LATE: dict[str, Callable[[Store], object]] = {
    "a checkpoint": lambda keep: keep.save_state("t", 256, {"w": np.zeros(4)}, {}),
    "another's checkpoint": lambda keep: keep.forget_state("t", 128),
    "a record": lambda keep: keep.write_record(record(run_spec(trunk_spec(), 8, 2))),
    "a curve": lambda keep: keep.write_curve("c", [(128, 7.0, 1.0, 0.5)]),
}


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.fault(23)
@pytest.mark.parametrize("what", LATE)
@pytest.mark.parametrize("closing", ["given up", "another driver"])
def test_an_attempt_that_was_given_up_changes_nothing(tmp_path: Path, what: str, closing: str) -> None:
    driver = Store(tmp_path)
    driver.save_state("t", 128, STATE, {})
    driver.write_curve("c", ROWS)
    attempt = fence.open_attempt(tmp_path)
    before = content(tmp_path / "trunks"), content(tmp_path / "curves")
    fence.close_attempt(attempt) if closing == "given up" else fence.close_all(tmp_path)
    with pytest.raises(fence.Overtaken):
        LATE[what](Store(tmp_path, attempt))
    assert (content(tmp_path / "trunks"), content(tmp_path / "curves")) == before
    assert not driver.records()
    other = Store(tmp_path, fence.open_attempt(tmp_path))
    LATE[what](other)
    assert (content(tmp_path / "trunks"), content(tmp_path / "curves")) != before or driver.records()


@pytest.mark.fault(23)
@pytest.mark.parametrize("links", [True, False], ids=["", "a file system without links"])
def test_a_record_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """Whoever was first, also between the other's look and its rename."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *a: (_ for _ in ()).throw(PermissionError(1, "not permitted")))
    run, keep = run_spec(trunk_spec(), 8, 2), Store(tmp_path)
    first, second = record(run, stage="first"), record(run, stage="second")
    assert keep.write_record(first) == first
    assert keep.write_record(second) == first
    assert keep.records() == [first]
    assert len(content(tmp_path)) == 1


# a sweep of two trials that take seconds, undisturbed and disturbed

STUDY = (
    'question = "Does a cluster hold?"'
    + TRAINED
    + """[train]
lr = 0.01
batch_tokens = 256
decay = 0.25
[resources]
cpus = 2
[[stage]]
name = "ladder"
kind = "ladder"
shapes = [[24, 1]]
fan = [0.5, 1]
widen = 0
rungs = {{ tokens = ["32k", "600k"] }}
"""
)
PATIENCE = 400.0  # seconds for anything to come about: the machine may be crowded
SOON = {  # Ray gives a node up after three missed beats instead of five of 13 seconds
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_raylet_start_wait_time_s": "200",  # and takes its time to begin with
}
TUNNEL = [sys.executable, "-m", "tunnel.cli"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    (folder / "corpus").mkdir()
    write_corpus(folder / "corpus", 20)
    (folder / "cluster.toml").write_text(STUDY.format(corpus=folder / "corpus"))
    return folder / "cluster.toml"


@pytest.fixture(scope="module")
def undisturbed(study: Path) -> dict[str, Any]:
    inline = study.with_name("inline.toml")
    inline.write_text(study.read_text().replace("cpus = 2", 'backend = "inline"'))
    sweep.sweep(*sweep.opened(inline, study.with_name("undisturbed")))
    return measured(study.with_name("undisturbed"))


def records(folder: Path) -> list[Record]:
    return [Record.model_validate_json(p.read_text()) for p in (folder / "records").glob("*.json")]


def measured(folder: Path) -> dict[str, Any]:
    """To the last bit; a trial that began anew would have trained more tokens."""
    return {r.fingerprint_of: (r.loss, r.final, r.tokens_trained) for r in records(folder)}


def token(folder: Path) -> dict[str, str]:
    """The environment with a token of its own, which whoever starts a cluster has too."""
    path = folder / "token"
    if not path.exists():
        tokens.make(path)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return clean | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path), "RAY_USAGE_STATS_ENABLED": "0"}


def wait(condition: Callable[[], object], alive: Driver | None = None) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert alive is None or alive.process.poll() is None, alive.said()
        assert time.monotonic() < end, alive and alive.said()
        time.sleep(0.1)


class Driver:
    """A sweep in a process of its own; what it says lies beside the folder."""

    def __init__(self, call: list[str], folder: Path, env: dict[str, str]) -> None:
        self.folder, self.errors = folder, folder.with_suffix(".errors")
        with open(self.errors, "w") as errors:
            self.process = subprocess.Popen(
                call, env=env, cwd=folder.parent, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
            )

    def said(self) -> str:
        return self.errors.read_text()

    def in_mid_sweep(self) -> bool:
        """Both trials have their first reading, and their trunks have gone on from it."""
        shown = self.folder / "progress.json"
        running = json.loads(shown.read_text())["running"].values() if shown.exists() else []
        on = [r for r in running if r["phase"] == "trunk" and r["tokens"] > 32_000]
        return len(on) == len(records(self.folder)) == 2

    def ended(self) -> int:
        return self.process.wait(timeout=PATIENCE)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def assert_promises(folder: Path, undisturbed: dict[str, Any]) -> None:
    """Each trial in one final state, none twice, every result as undisturbed, nothing half-written or left open."""
    asked = states(folder, "ladder")
    final = [t for t in asked if t["state"] == "complete"]
    assert len(final) == len({tuple(sorted(t["params"].items())) for t in final}) == 2
    assert {t["state"] for t in asked} <= {"complete", "failed"}
    assert measured(folder) == undisturbed
    assert not list(folder.rglob(".saving-*"))
    assert not list(folder.glob("attempts/*"))
    assert not (folder / "driver.lock").exists()


# 3, 4: a node dies, the head dies

CLUSTER = """
import os, sys
from ray.cluster_utils import Cluster

small = {"object_store_memory": 100 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
nodes = [cluster.add_node(num_cpus=2, **small) for _ in range(2)]
print(cluster.address, flush=True)
for line in sys.stdin:
    if line == "node\\n":
        cluster.remove_node(nodes.pop(), allow_graceful=False)
    else:
        cluster.head_node.kill_gcs_server(check_alive=False)
    print("killed", flush=True)
cluster.shutdown()
"""


@contextmanager
def three_nodes(env: dict[str, str]) -> Iterator[tuple[str, Callable[[str], None]]]:
    """A head and two nodes of one trial each; yields the address, and what kills a "node" or the "head"."""
    call = [sys.executable, "-c", CLUSTER]
    process = subprocess.Popen(call, env=env | SOON, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None

    def line() -> str:
        """Ray prints there too."""
        assert process.stdout is not None
        return next(line for line in process.stdout if re.fullmatch(r"killed\n|[\d.]+:\d+\n", line)).strip()

    def kill(what: str) -> None:
        assert process.stdin is not None
        process.stdin.write(f"{what}\n")
        process.stdin.flush()
        assert line() == "killed"

    try:
        yield line(), kill
    finally:
        try:
            process.communicate(timeout=60)
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.fault(3)
def test_the_trials_of_a_node_that_dies_go_on_elsewhere(
    tmp_path: Path, study: Path, undisturbed: dict[str, Any]
) -> None:
    env, folder = token(tmp_path), tmp_path / "out"
    with three_nodes(env) as (address, kill):
        call = [*TUNNEL, "sweep", str(study), "--address", address, "--out", str(folder)]
        driver = Driver(call, folder, env)
        try:
            wait(driver.in_mid_sweep, driver)
            kill("node")
            assert driver.ended() == 0, driver.said()
        finally:
            driver.kill()
    (why,) = re.findall("its worker failed, and another one goes on: (.+)", driver.said())
    assert re.search("node|unavailable", why)  # whichever Ray notices first: the node, or its worker's socket
    assert "Traceback" not in driver.said()
    assert_promises(folder, undisturbed)


@pytest.mark.slow
@pytest.mark.fault(4)
def test_a_sweep_whose_head_dies_stops_and_goes_on_with_a_new_cluster(
    tmp_path: Path, study: Path, undisturbed: dict[str, Any]
) -> None:
    env, folder = token(tmp_path), tmp_path / "out"
    before: dict[Path, float] = {}
    for dies in (True, False):
        with three_nodes(env) as (address, kill):
            call = [*TUNNEL, "sweep", str(study), "--address", address, "--out", str(folder)]
            driver = Driver(call, folder, env)
            try:
                if dies:
                    wait(driver.in_mid_sweep, driver)
                    kill("head")
                    began = time.monotonic()
                assert driver.ended() == (75 if dies else 0), driver.said()
            finally:
                driver.kill()
        if dies:
            assert time.monotonic() - began < 60, "Ray's own end, with exit code 1, comes after a minute"
            last = driver.said().strip().splitlines()[-1]
            assert last == (
                f"stopped: the cluster's head at {address} is gone; with a new cluster the same command goes on"
            )
            before = {p: p.stat().st_mtime for p in folder.glob("records/*")}
    assert len(before) >= 2
    assert {p: p.stat().st_mtime for p in before} == before
    assert_promises(folder, undisturbed)


# 23: hosts in networks of their own, started as cluster.yaml starts them


@pytest.fixture
def home(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """What `ray up` had put on every host: the checkout, its environment, the token."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "wind-tunnel").symlink_to(ROOT)
    (home / "wind-tunnel-venv").symlink_to(sys.prefix)
    tokens.make(home / ".tunnel-token")
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return home, env | SOON | {"HOME": str(home), "RAY_HEAD_IP": f"{NETWORK}10"}


def start(made: Hosts, name: str, env: dict[str, str]) -> None:
    """As `ray up` does, but for its own configuration; the hosts are new, so there is nothing to stop."""
    key = "head_start_ray_commands" if name == "head" else "worker_start_ray_commands"
    made.run(name, started_by("cluster.yaml", key).replace("--autoscaling-config=~/ray_bootstrap_config.yaml", ""), env)


SWEEP = "~/wind-tunnel-venv/bin/tunnel sweep {study} --address auto --out {out}"
PROXY = "pgrep -f '^ray::.*(Proxy|Trainable)'"  # the process that trains, as Ray names it
TOKEN = "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=~/.tunnel-token"


@pytest.mark.slow
@pytest.mark.fault(23)
def test_a_host_that_is_cut_off_and_comes_back_writes_nothing_more(
    tmp_path: Path, study: Path, home: tuple[Path, dict[str, str]], undisturbed: dict[str, Any]
) -> None:
    """Its worker is paused too, in mid-slice, so that it writes late: while the link is down, the storage is there."""
    folder, env = tmp_path / "out", home[1]
    with hosts(tmp_path) as made, ExitStack() as ends:
        for number, name in enumerate(("head", "worker-1", "worker-2"), 10):
            made.add(name, number)
            start(made, name, env)
        call = made.call("head", f"{TOKEN} {SWEEP.format(study=study, out=folder)}")
        driver = Driver(call, folder, env)
        ends.callback(driver.kill)
        wait(driver.in_mid_sweep, driver)
        (cut,) = (r for r in records(folder) if r.host == "worker-1")
        curve = folder / "curves" / f"{cut.run.trunk.fingerprint}.parquet"
        drawn = curve.stat().st_mtime
        wait(lambda: curve.stat().st_mtime != drawn, driver)  # a slice has just ended,
        time.sleep(0.7)  # and the next one is on its way
        made.run("worker-1", f"kill -STOP $({PROXY})")
        made.cable("ip link set to-worker-1 down")
        wait(lambda: "its worker failed, and another one goes on" in driver.said(), driver)
        made.run("worker-1", f"kill -CONT $({PROXY})")
        wait(lambda: any("was given up" in p.read_text() for p in tmp_path.glob("worker-1/*/logs/worker-*.err")))
        made.cable("ip link set to-worker-1 up")
        wait(lambda: not made.run("worker-1", "pgrep -x raylet || true"))  # it hears that it was given up
        assert driver.ended() == 0, driver.said()
    assert_promises(folder, undisturbed)
    ran = [r.host for r in records(folder) if r.run.trunk == cut.run.trunk]
    assert sorted(ran) == ["worker-1", "worker-2"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["disabled", "token"])
def test_a_cluster_without_a_token_is_refused_and_one_with_it_refuses(
    tmp_path: Path, study: Path, home: tuple[Path, dict[str, str]], mode: str
) -> None:
    """By the network's address; one that only loopback reaches needs none."""
    env = home[1]
    with hosts(tmp_path) as made:
        made.add("head", 10)
        if mode == "token":
            start(made, "head", env)
        else:
            made.run("head", "RAY_AUTH_MODE=disabled ~/wind-tunnel-venv/bin/ray start --head --num-cpus=2", env)
        out = tmp_path / "out"
        call = made.call("head", f"RAY_AUTH_MODE=disabled {SWEEP.format(study=study, out=out)}")
        ran = subprocess.run(call, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert ran.returncode == 2, ran.stderr
    (line,) = ran.stderr.strip().splitlines()
    assert "takes drivers without a token" in line if mode == "disabled" else "wants its token" in line
    assert not list(out.glob("records/*"))
