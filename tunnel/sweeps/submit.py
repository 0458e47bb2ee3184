"""A sweep as a job of a Ray cluster, through its Jobs API: whoever submitted it may go away."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import tunnel
from tunnel.errors import UserError
from tunnel.folder import remote
from tunnel.study import Study
from tunnel.sweeps import sweep, tokens

ANSWER_SECONDS = 5.0  # for a cluster's first word
STOP_SECONDS = 15  # for a job that is stopped: a sweep saves and leaves within ten, and Ray gives three
PORTS = {"http": 80, "https": 443}


def submit(
    where: str | Path,
    address: str,
    out: str | Path | None = None,
    *,
    small: bool = False,
    url: str | None = None,
    max_concurrent: int | None = None,
    takeover: bool = False,
    ship: bool = False,
    python: str = "python",
) -> dict[str, Any]:
    """Hands `tunnel sweep` to the cluster whose dashboard is at `address`; returns the job's id and how to follow it.

    `out`: the study's folder as the cluster sees it. `ship`: this package's source goes along, for a cluster that has
    not installed it; `python`: the head's, by name or path. Raises UserError where nothing answers or may be submitted,
    and while another submission of this study is running.
    """
    asked, keep = sweep.located(where, out, small=small)
    file = keep.path("study.toml") if Path(where).is_dir() else Path(where)
    small = small or (file.parent == keep.root and sweep.is_small(keep))
    require_absolute(asked, file)
    folder = os.path.abspath(keep.root)
    options = ["--out", folder, "--address", "auto"]
    options += ["--scale", "small"] if small else []
    options += ["--shared", remote.plain(url)] if url is not None else []
    options += ["--max-concurrent", str(max_concurrent)] if max_concurrent else []
    options += ["--takeover"] if takeover else []
    call = shlex.join([python, "-m", "tunnel.cli", "sweep", file.name, *options])
    notes = {"study": keep.root.name, "folder": folder}
    with working_dir(file, ship=ship) as files:
        job = submitted(address, label(folder), call, files, notes)
    at = f"--address {address}"
    return {
        "job": job,
        "address": address,
        "folder": folder,
        "command": call,
        "follow": {
            "states": f"tunnel status {folder}",
            "log": f"ray job logs {job} --follow {at}",
            "stop": f"ray job stop {job} {at}",
        },
        "environment": [asked.storage_password_env] if asked.storage else [],
    }


def require_absolute(asked: Study, file: Path) -> None:
    """Raises UserError for data by relative paths: the job runs in a folder of its own."""
    paths = [*asked.data.paths, *(p for more in (*asked.data.source, *asked.data.then) for p in more.paths)]
    for path in paths:
        if not os.path.isabs(path):
            rule = "is relative, and the job runs elsewhere: an absolute path on storage that the cluster sees"
            raise UserError(rule, file=file, key="data.paths", value=path)


def label(folder: str) -> str:
    """Begins the ids of a folder's jobs."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", os.path.basename(folder))[:64]
    return f"tunnel-{name}-{hashlib.sha256(folder.encode()).hexdigest()[:8]}-"


@contextmanager
def working_dir(file: Path, *, ship: bool) -> Iterator[Path]:
    """What the job finds around it: the study file, and the package where it is to go along."""
    with tempfile.TemporaryDirectory(prefix="tunnel-submit-") as made:
        shutil.copyfile(file, Path(made, file.name))
        if ship:
            package = Path(tunnel.__file__).parent
            shutil.copytree(package, Path(made, package.name), ignore=shutil.ignore_patterns("__pycache__"))
        yield Path(made)


def submitted(address: str, mine: str, call: str, files: Path, notes: dict[str, str]) -> str:
    """The new job's id. It counts this folder's jobs, so that of two who submit at once Ray refuses one."""
    require_answer(address)
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # a RAY_ADDRESS of the environment would win over it
    if tokens.of_cluster(os.environ) is not None or "RAY_AUTH_TOKEN" in os.environ:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.exceptions import AuthenticationError  # only now: Ray reads the environment once
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
        refuse_open(address)
        before = [j for j in client.list_jobs() if (j.submission_id or "").startswith(mine)]
        for job in before:
            if not job.status.is_terminal():
                raise UserError(
                    f"job {job.submission_id} sweeps this study already ({job.status.lower()}); "
                    f"`ray job stop {job.submission_id} --address {address}` would stop it",
                    key="--address",
                    value=address,
                )
        return client.submit_job(
            entrypoint=call,
            submission_id=f"{mine}{len(before) + 1}",
            runtime_env={"working_dir": str(files), "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}},
            metadata=notes,
        )
    except AuthenticationError as e:
        rule = f"the cluster takes no job without its token, in RAY_AUTH_TOKEN_PATH ({str(e).splitlines()[0]})"
        raise UserError(rule, key="--address", value=address) from None
    except (RuntimeError, OSError) as e:  # also requests' errors
        rule = f"the cluster took no job ({str(e).strip().splitlines()[-1]})"
        raise UserError(rule, key="--address", value=address) from None


def require_answer(address: str) -> None:
    """Raises UserError where nothing listens: the client would wait for ever."""
    parts = parsed(address)
    try:
        socket.create_connection(
            (str(parts.hostname), parts.port or PORTS[parts.scheme]), timeout=ANSWER_SECONDS
        ).close()
    except (OSError, OverflowError) as e:
        raise UserError(f"no Ray dashboard answers ({e})", key="--address", value=address) from None


def refuse_open(address: str) -> None:
    """Raises UserError for a cluster in a network that takes jobs from anybody: each is a program of its sender's."""
    import requests

    host = str(parsed(address).hostname)
    if host != "localhost" and not is_loopback(host):
        answer = requests.get(f"{address.rstrip('/')}/api/jobs/", timeout=ANSWER_SECONDS)
        if answer.ok:
            rule = "takes jobs from anybody in its network: start it with RAY_AUTH_MODE=token"
            raise UserError(rule, key="--address", value=address)


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def parsed(address: str) -> SplitResult:
    try:
        parts = urlsplit(address)
        if parts.scheme in PORTS and parts.hostname and parts.port != 0 and parts.username is None:
            return parts
    except ValueError:  # of a port
        pass
    raise UserError("must be a dashboard's, such as http://127.0.0.1:8265", key="--address", value=address)
