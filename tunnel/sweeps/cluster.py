"""The Ray cluster that a sweep runs on: joined, refused where it stands open, and its head watched.

A driver whose head is gone hangs in its next call to it, until after a minute Ray ends the process with exit code 1.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from tunnel.errors import RESUMABLE, Stopped, UserError
from tunnel.sweeps import tokens
from tunnel.sweeps.backends import SIGNALS

ANSWER_SECONDS = 5.0  # for a word from a cluster
LOOK_SECONDS = 2.0  # between looks at its head
GONE_SECONDS = 20.0  # without an answer, and the head is gone: well before Ray's 60  *assumed*
OBJECT_STORE = 100 * 2**20  # bytes; trials pass nothing through it
SHOW_CURSOR = b"\x1b[?25h\n"  # a live display had hidden it
TOKEN = "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=<its file>"
WANTED = f"the cluster wants its token: {TOKEN}"
REFUSED = 3  # the exit code of `KNOCK` where the cluster wants a token
KNOCK = f"""
import sys
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import GcsClient  # the head's own interface: a driver would try for 20 seconds
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=canonicalize_bootstrap_address(sys.argv[1]))
except AuthenticationError:
    sys.exit({REFUSED})
"""


def joined(address: str | None) -> dict[str, float]:
    """Joins a cluster, or starts a local one that lives as long as this process; returns its resources.

    Raises UserError where nothing answers, where it wants another token, or where it wants none, and Stopped where
    Ray does not start here: a machine that is too crowded may do it later.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # of a trial that fails we tell ourselves
    if not ray.is_initialized():
        if address is not None:
            require_answer(address)
            tokens.of_cluster(os.environ)  # refused where others can read it
            if knocked(address, os.environ).returncode == REFUSED:
                raise UserError(WANTED, key="--address", value=address)
        options: dict[str, Any] = {} if address else {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
        handlers = {s: signal.getsignal(s) for s in SIGNALS}
        try:
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
        except AuthenticationError:
            raise UserError(WANTED, key="--address", value=address) from None
        except Exception as e:  # Ray's have no type in common: that a raylet did not start is a bare one
            ray.shutdown()  # what did start
            why = f"{type(e).__name__}: {(str(e).strip().splitlines() or [''])[0][:200]}"
            if address is None:
                raise Stopped(f"Ray did not start here ({why}); the same command tries it again") from None
            raise UserError(f"no Ray cluster answers ({why})", key="--address", value=address) from None
        finally:
            install(handlers)  # Ray's own handler of SIGTERM would abort the driver
        if address is not None:
            require_token(address)
    return ray.cluster_resources()


def install(handlers: dict[signal.Signals, Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for s, handler in handlers.items():
            signal.signal(s, handler)


def require_answer(address: str) -> None:
    """Raises UserError where nothing listens at host:port: Ray itself would try for a minute."""
    if address.startswith("ray://"):
        rule = "is a Ray client's, and a sweep's driver must run on the cluster: there by host:port, or tunnel submit"
        raise UserError(rule, key="--address", value=address)
    if address.rpartition(":")[2].isdigit() and (wrong := silent(address)):  # else "auto", or a name that Ray resolves
        raise UserError(f"no Ray cluster answers ({wrong})", key="--address", value=address)


def silent(address: str) -> str | None:
    """What is wrong with host:port; None where something listens."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as e:
        return str(e)
    return None


def require_token(address: str) -> None:
    """Raises UserError, and leaves, where a cluster takes whoever reaches it: any host may run its code there.

    One whose nodes all have loopback addresses only this machine's users reach.
    """
    if all(ip_address(node["NodeManagerAddress"]).is_loopback for node in ray.nodes()):
        return
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH_")} | {"RAY_AUTH_MODE": "disabled"}
    answer = knocked(ray.get_runtime_context().gcs_address, environment)
    if answer.returncode == REFUSED:
        return
    ray.shutdown()
    rule = "takes drivers without a token, and who reaches it may run code on it"
    if answer.returncode:
        rule = f"did not say whether it wants a token ({answer.stderr.strip().splitlines()[-1:]})"
    raise UserError(f"{rule}; start its nodes with {TOKEN}", key="--address", value=address)


def knocked(address: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """What a cluster says to another process, which has a token or none: Ray reads that once in a process."""
    return subprocess.run([sys.executable, "-c", KNOCK, address], env=environment, capture_output=True, text=True)


@contextmanager
def watched() -> Iterator[None]:
    """Ends the process, resumable, with one line, where the cluster's head is gone before the block ends.

    As a kill would: what is on disk stays as it is, and the next sweep goes on with it.
    """
    over = threading.Event()
    head = ray.get_runtime_context().gcs_address
    threading.Thread(target=watch, args=(head, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()


def watch(head: str, over: threading.Event) -> None:
    heard = time.monotonic()
    while time.monotonic() - heard < GONE_SECONDS:
        if over.wait(LOOK_SECONDS):
            return
        if silent(head) is None:
            heard = time.monotonic()
    line = f"stopped: the cluster's head at {head} is gone; with a new cluster the same command goes on\n"
    os.write(2, (SHOW_CURSOR if os.isatty(2) else b"") + line.encode())
    os._exit(RESUMABLE)
