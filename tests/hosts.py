"""Hosts on this machine, each with a network, processes, mounts and a name of its own, on one bridge.

The bridge lies in a namespace too, so nothing of it touches the machine's own network, and all of it is gone with the
process that made it. Needs no root where users may make namespaces.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NETWORK = "198.51.100."  # for documentation: no real host has it (RFC 5737)
SWITCH = ("-U", "-n", "-m")  # the namespaces that the switch has, and those of a host
HOST = (*SWITCH, "-p", "-u")


class Hosts:
    """`folder`: every host finds its own part of it at /tmp/ray."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.begun = folder, list[subprocess.Popen[str]]()
        self.pids: dict[str, int] = {}
        self.switch = self.space(["-r", "-n", "-m"], "ip link add name bridge0 type bridge; ip link set bridge0 up")

    def space(self, kinds: list[str], setup: str, within: list[str] | None = None) -> int:
        """Makes namespaces that last as long as this process; the pid of their first one."""
        first = f"set -e; {setup}; echo ready; read -r _ || true"
        call = [*(within or []), "unshare", *kinds, "--fork", "--kill-child", "bash", "-c", first]
        process = subprocess.Popen(
            call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.begun.append(process)
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            pytest.skip(f"no namespaces here: {process.communicate()[1].strip()}")
        return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())

    def add(self, name: str, address: int) -> None:
        """A host at 198.51.100.`address`."""
        (self.folder / name).mkdir()
        mounts = f"mkdir -p /tmp/ray; mount --bind {self.folder / name} /tmp/ray; mount -t tmpfs none /dev/shm"
        setup = f"hostname {name}; ip link set lo up; {mounts}"
        kinds = ["-n", "-m", "-p", "-u", "--mount-proc"]
        pid = self.space(kinds, setup, entering(self.switch, SWITCH))
        self.cable(
            f"ip link add to-{name} type veth peer name eth0 netns {pid}; ip link set to-{name} master bridge0 up"
        )
        self.pids[name] = pid
        up = "ip link set eth0 up && ip route add default dev eth0"  # Ray asks the route for its own address
        self.run(name, f"ip addr add {NETWORK}{address}/24 dev eth0 && {up}")

    def cable(self, commands: str) -> None:
        """Something at the switch, such as `ip link set to-worker-1 down`."""
        subprocess.run([*entering(self.switch, SWITCH), "bash", "-ec", commands], check=True)

    def call(self, name: str, command: str) -> list[str]:
        """A shell command on a host, as subprocess takes it."""
        return [*entering(self.pids[name], HOST), "bash", "-c", command]

    def run(self, name: str, command: str, env: dict[str, str] | None = None) -> str:
        """What it printed; it must succeed."""
        ran = subprocess.run(self.call(name, command), env=env, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout


def entering(pid: int, kinds: tuple[str, ...]) -> list[str]:
    return ["nsenter", "-t", str(pid), *kinds, "--preserve-credentials"]


@contextmanager
def hosts(folder: Path) -> Iterator[Hosts]:
    """Skips the test, with the reason, where there can be none."""
    missing = [tool for tool in ("unshare", "nsenter", "ip") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"no namespaces here: {', '.join(missing)} is not installed")
    made: Hosts | None = None
    try:
        made = Hosts(folder)
        yield made
    finally:
        for process in reversed(made.begun if made else []):
            process.communicate()  # its first process reads to the end, and takes the others along
