"""In what a run was measured: versions, code, processor, device, threads. Kept once as environments/<hash>.json.

By allow-list: of the process's environment variables only those that can change a result's bits are read.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tunnel
from tunnel.errors import UserError
from tunnel.folder.files import read_json, write_json
from tunnel.run import fingerprint

FOLDER = "environments"
LIBRARIES = ("torch", "transformers", "numpy", "optuna", "ray")
VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE",
)
Environment = dict[str, str]
Other = dict[str, list[str | None]]  # by name: [then, now]


def here() -> Environment:
    """This process's, as it is now: device and threads are known where torch is used, since only then they matter."""
    found = {**versions(), "tunnel": tunnel.__version__, "git": git_state() or "", "platform": platform.platform()}
    found |= {"cpu": cpu(), "device": "cpu"}
    torch: Any = sys.modules.get("torch")  # never imported for this
    if torch is not None:
        found["threads"] = str(torch.get_num_threads())
        if torch.cuda.is_available():
            found |= {"device": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
    return {k: v for k, v in found.items() if v} | {k: os.environ[k] for k in VARIABLES if k in os.environ}


def keep(root: Path) -> str:
    """Keeps this process's environment in a study's folder, once; returns its hash."""
    found = here()
    name = fingerprint(found)
    path = root / FOLDER / f"{name}.json"
    if not path.exists():
        write_json(path, found)
    return name


def kept(root: Path, name: str | None) -> Environment:
    """A kept environment; empty where there is none of that hash, or another under its name."""
    try:
        found = read_json(root / FOLDER / f"{name}.json", {})
    except UserError:
        return {}
    return found if found and fingerprint(found) == name else {}


def all_kept(root: Path) -> list[Environment]:
    found = (kept(root, p.stem) for p in sorted((root / FOLDER).glob("*.json")))
    return [e for e in found if e]


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> Other:
    return {k: [then.get(k), now.get(k)] for k in sorted(then.keys() | now.keys()) if then.get(k) != now.get(k)}


def changed(then: Iterable[Environment]) -> Other:
    """Versions under which nothing was measured yet, though something was: [the nearest then, now]."""
    own = {**versions(), "tunnel": tunnel.__version__}
    found = [differences({k: e[k] for k in own if k in e}, own) for e in then]
    return min(found, key=len, default={})


@cache
def versions() -> Environment:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a worker need not have them all
            continue
    return found


@cache
def cpu() -> str:
    """The processor's model, in its own words."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


@cache
def git_state() -> str | None:
    """The commit of the tunnel's own code, with + where it was changed; None where that is no checkout."""
    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # a copy that some other repository ignores has no commit
        return git("describe", "--always", "--dirty=+", "--abbrev=12")
    except (OSError, subprocess.SubprocessError):
        return None


def git(*args: str) -> str:
    call = ["git", "-C", str(Path(tunnel.__file__).parent), *args]
    return subprocess.run(call, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
