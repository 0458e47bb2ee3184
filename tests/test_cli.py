"""The command line from outside: help, one-line errors, exit codes, JSON."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tunnel import __version__, cli

STUDIES = Path(__file__).parent.parent / "studies"
COMMANDS = [
    "plan",
    "sweep",
    "status",
    "extend",
    "rerun",
    "prune",
    "fit",
    "verdict",
    "recommend",
    "export",
    "train",
    "check",
    "promote",
    "rollback",
    "run",
    "schema",
    "dashboard",
    "report",
    "doctor",
]


def tunnel(*args: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "tunnel.cli", *map(str, args)]
    return subprocess.run(call, cwd=cwd, capture_output=True, text=True, timeout=120)


Call = Callable[..., tuple[int | str | None, str, str]]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Call]:
    """The same in this process: what stays light to import need not be imported again for every line."""
    monkeypatch.chdir(tmp_path)
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1)}

    def call(*args: object) -> tuple[int | str | None, str, str]:
        monkeypatch.setattr(sys, "argv", ["tunnel", *map(str, args)])
        with pytest.raises(SystemExit) as e:
            cli.main()
        return e.value.code, *capsys.readouterr()

    yield call
    for s, handler in before.items():
        signal.signal(s, handler)


def test_every_command_has_help_with_an_example(here: Call) -> None:
    shown = tunnel("--help").stdout
    assert all(name in shown for name in COMMANDS)
    for name in COMMANDS:
        code, out, _ = here(name, "--help")
        assert code == 0
        assert f"Example: tunnel {name}" in out


def test_version_schema_doctor() -> None:
    assert tunnel("--version").stdout.strip() == f"tunnel {__version__}"
    assert json.loads(tunnel("schema").stdout)["properties"]["stage"]
    assert json.loads(tunnel("doctor", "--json").stdout)["ok"] is True


def test_plan_prices_the_big_study_without_starting_it(tmp_path: Path) -> None:
    out = tunnel("plan", STUDIES / "minicpm.toml", "--json", cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    found = json.loads(out.stdout)
    assert {"runs", "flops", "seconds", "cost"} <= set(found)
    assert [t["shapes"][0]["N"] for t in found["targets"]] == [1_247_442_432, 2_442_057_984]
    assert not list(tmp_path.iterdir())


BAD = {
    "no such file": (["plan", "absent.toml"], "absent.toml"),
    "a folder that is no study": (["status", "."], "study.toml"),
    "unknown scale": (["plan", STUDIES / "calibration.toml", "--scale", "tiny"], "--scale"),
    "no small table": (["plan", STUDIES / "calibration.toml", "--scale", "small"], "small"),
    "next before the sweep": (["plan", STUDIES / "calibration.toml", "--next", "2"], "sweep it first"),
    "unknown target": (["recommend", STUDIES / "calibration.toml", "--target", "huge"], "big"),
    "verdict before the sweep": (["verdict", STUDIES / "calibration.toml"], "sweep it first"),
    "recommend before the sweep": (["recommend", STUDIES / "calibration.toml"], "sweep it first"),
    "train before recommend": (["train", STUDIES / "calibration.toml"], "recommend"),
    "check before train": (["check", STUDIES / "calibration.toml"], "train"),
    "renames that are none": (["fit", "x.csv", "--columns", "N"], "--columns"),
    "no such table": (["fit", "x.csv"], "x.csv"),
    "export of nothing": (["export"], "DIR"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_line_and_exit_2(name: str, tmp_path: Path, here: Call) -> None:
    args, mentions = BAD[name]
    code, _, said = here(*args)
    assert code == 2, said
    assert len(said.strip().splitlines()) == 1
    assert mentions in said
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_a_mistake_is_one_line_from_outside_too(tmp_path: Path) -> None:
    out = tunnel("plan", "absent.toml", cwd=tmp_path)
    assert out.returncode == 2
    assert out.stderr.strip().splitlines() == [line for line in out.stderr.splitlines() if "absent.toml" in line]
