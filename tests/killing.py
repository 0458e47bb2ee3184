"""The command line in processes of its own, which tests kill, starve and signal; and what must hold afterwards."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import TINY, write_corpus

from tunnel.cli import main
from tunnel.run import Record
from tunnel.sampler import states

TUNNEL = [sys.executable, "-m", "tunnel.cli"]
FREE: dict[str, Any] = dict.fromkeys(("pruned", "diverged", "failed", "running"), 0)
WIDE = TINY.replace('family = "synthetic"', 'family = "gpt"\n[data]\n{data}').replace("head_dim = 16", "head_dim = 8")
STAGES = """
[[stage]]
name = "ladder"
kind = "ladder"
shapes = [[16, 1]]
widen = 0
fan = [{fan}]
rungs = {{ tokens = [{rungs}] }}
"""


# the command line in a process of its own, forked so that it need not import everything again


@dataclass(frozen=True)
class Ended:
    code: int
    said: str

    @property
    def line(self) -> str:
        """What it said last; a stop is one line, and never a traceback."""
        assert "Traceback" not in self.said, self.said
        return self.said.strip().splitlines()[-1]


def forked(*args: object, log: Path, before: Callable[[], object] = lambda: None) -> int:
    """Begins `tunnel` with these arguments; `before` is called in its process first. Returns its pid."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        sys.stdout = sys.stderr = open(log, "w", buffering=1)  # noqa: SIM115
        logging.getLogger().handlers.clear()  # pytest's
        sys.argv = ["tunnel", *map(str, args)]
        before()
        main()
        code = 0
    except SystemExit as e:
        code = int(e.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int, log: Path, seconds: float = 300) -> Ended:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return Ended(os.waitstatus_to_exitcode(status), log.read_text())
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"still running: {log.read_text()}")


def tunnel(*args: object, log: Path, before: Callable[[], object] = lambda: None) -> Ended:
    return ended(forked(*args, log=log, before=before), log)


def records(folder: Path) -> int:
    return len(list(folder.glob("records/*.json")))


def results(folder: Path) -> dict[str, tuple[float | None, dict[str, str]]]:
    """What was measured, to the last bit."""
    read = (Record.model_validate_json(p.read_text()) for p in (folder / "records").glob("*.json"))
    return {r.fingerprint_of: (r.loss, r.final) for r in read}


def best(folder: Path, stage: str) -> dict[str, Any]:
    found = [t for t in states(folder, stage) if t["value"] is not None]
    return min(found, key=lambda t: t["value"])["params"]


def assert_once(folder: Path) -> None:
    """No two finished trials stem from one ask, and each is in one final state."""
    for stage in ("calibrate", "ladder"):
        trials = states(folder, stage)
        assert not [t for t in trials if t["state"] == "running"]
        done = [(*sorted(t["params"].items()), t["seed"]) for t in trials if t["state"] != "failed"]
        assert len(done) == len(set(done))


def assert_tidy(folder: Path) -> None:
    assert not [p for p in folder.rglob("*") if p.name.startswith(".saving-") or p.name in ("driver.lock", "stop")]


def assert_intact(folder: Path) -> None:
    if (folder / "optuna.db").exists():
        assert sqlite3.connect(folder / "optuna.db").execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def gpt_study(
    folder: Path, *, batch: int, rungs: str, fan: str = "1", eval_tokens: int = 512, pack: int = 1, documents: int = 40
) -> Path:
    """A study of one tiny shape, on a corpus of its own."""
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    write_corpus(folder / "corpus", documents)
    about = f'corpus = "files"\npaths = ["{folder}/corpus/*.txt"]\nheld_out = 0.2\neval_tokens = {eval_tokens}'
    text = WIDE.split("[[stage]]")[0].replace("{data}", about) + STAGES.format(fan=fan, rungs=rungs)
    text = text.replace("batch_tokens = 1024", f"batch_tokens = {batch}\nlr = 0.01\ndecay = 0.25")
    text = text.replace('backend = "inline"', f'backend = "inline"\npack = {pack}')
    path = folder / "tiny.toml"
    path.write_text(text)
    return path


SEARCH = (
    ("trials = 4", "trials = 24"),
    ("lr = { low = 1e-3, high = 1e-1 }", "lr = { low = 1e-3, high = 1e-1 }\n  decay = { low = 0.05, high = 0.4 }"),
)


def sampled(name: str) -> tuple[str, str]:
    return "[stage.budget]", f'[stage.sampler]\n  name = "{name}"\n  [stage.budget]'
