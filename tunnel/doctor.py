"""Whether a machine has what the tunnel needs: versions, cores, memory, disk, corpus, devices."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tunnel.errors import UserError
from tunnel.study import Data
from tunnel.sweeps import tokens
from tunnel.training import data

NEEDED = ("torch", "transformers", "optuna", "ray", "scipy", "pandas", "pyarrow", "safetensors")
OPTIONAL = ("streamlit", "plotly", "datasets", "tokenizers")
LEAST_DISK, LEAST_MEMORY = 2e9, 4e9  # bytes; the demo's limit is 4 GB of memory (measured: see README)


def examine() -> dict[str, Any]:
    """Each check with what was found and whether it suffices; `ok` where every needed one does."""
    checks = [line("python", platform.python_version(), platform.python_version_tuple() >= ("3", "11"))]
    for name in (*NEEDED, *OPTIONAL):
        found = installed(name)
        checks.append(line(name, found or "missing", bool(found), name in NEEDED))
    checks.append(line("cores", str(os.cpu_count()), (os.cpu_count() or 1) >= 2))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    checks.append(line("memory", f"{memory / 1e9:.1f} GB", memory >= LEAST_MEMORY))
    free = shutil.disk_usage(Path.cwd()).free
    checks.append(line("free disk here", f"{free / 1e9:.1f} GB", free >= LEAST_DISK))
    checks += [corpus(), *guarded()]
    return {"checks": checks, "ok": all(c["ok"] or not c["needed"] for c in checks)}


def line(check: str, found: str, ok: bool, needed: bool = True) -> dict[str, Any]:
    return {"check": check, "found": found, "ok": ok, "needed": needed}


def guarded() -> list[dict[str, Any]]:
    """Whether the tokens of Ray clusters, this machine's own and the one to be joined, are kept from others."""
    found = []
    asked = {
        "token of local clusters": tokens.known,
        "token of other clusters": lambda: tokens.of_cluster(os.environ),  # needed for --address alone
    }
    for name, token in asked.items():
        needed = token is tokens.known
        try:
            path = token()
            found.append(line(name, f"{path}, its owner's alone" if path else "none", True, needed))
        except UserError as e:
            found.append(line(name, str(e), False, needed))
    return found


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def corpus() -> dict[str, Any]:
    try:
        return line("corpus stdlib", f"{len(data.files(Data()))} files", len(data.files(Data())) > 100)
    except (UserError, OSError) as e:
        return line("corpus stdlib", str(e), False)
