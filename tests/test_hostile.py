"""What others hand over, on purpose or not: old folders, strange files, names that climb, data that would run."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from conftest import TINY, run_spec, trunk_spec
from test_store import record

from tunnel import cli, study
from tunnel.errors import UserError
from tunnel.folder import schema
from tunnel.folder.files import file_hash
from tunnel.folder.store import Store
from tunnel.sampler import states
from tunnel.training import data

OLD = Path(__file__).with_name("golden") / "folder-0.1"  # two trials, swept by 0.1.0
SEARCH = TINY[: TINY.index('[[stage]]\nname = "ladder"')]  # the tiny study without its ladder
Tunnel = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tunnel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Tunnel]:
    """The command line in this process; what hangs is a failure."""
    monkeypatch.chdir(tmp_path)
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM)}

    def hangs(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError("it hangs")

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tunnel", *map(str, args)])
        signal.signal(signal.SIGALRM, hangs)
        signal.alarm(60)
        with pytest.raises(SystemExit) as e:
            cli.main()
        signal.alarm(0)
        return int(e.value.code or 0), *capsys.readouterr()

    yield call
    for s, handler in before.items():
        signal.signal(s, handler)


def tree(folder: Path) -> dict[str, str]:
    """What a folder holds, to the byte."""
    return {str(p.relative_to(folder)): file_hash(p) for p in folder.rglob("*") if p.is_file()}


def refused(said: tuple[int, str, str], *words: object) -> None:
    """One line, that can be shown, with exit 2."""
    code, out, err = said
    assert code == 2, said
    assert out == ""
    assert err.endswith("\n")
    assert err.startswith("error: ")
    assert err[:-1].isprintable(), err
    for word in words:
        assert str(word) in err


# 13: folders of other schemas


@pytest.fixture
def old(tmp_path: Path) -> Path:
    folder = tmp_path / "old"
    shutil.copytree(OLD, folder, ignore=shutil.ignore_patterns("*.sql"))
    with sqlite3.connect(folder / "optuna.db") as db:
        db.executescript((OLD / "optuna.sql").read_text())
    db.close()
    return folder


@pytest.mark.fault(13)
def test_a_folder_of_0_1_is_read_as_it_is_and_goes_on_after_a_backup(
    old: Path, tmp_path: Path, tunnel: Tunnel, caplog: pytest.LogCaptureFixture
) -> None:
    before = tree(old)
    code, out, _ = tunnel("status", old, "--json")
    assert (code, json.loads(out)["trials"]["complete"]) == (0, 2)
    assert tree(old) == before
    (tmp_path / "more.toml").write_text((old / "study.toml").read_text().replace("trials = 2", "trials = 3"))
    with caplog.at_level(logging.WARNING, schema.__name__):
        assert tunnel("sweep", tmp_path / "more.toml", "--out", old)[0] == 0
    assert "kept as it was in backup.schema-1" in caplog.text
    backup, resolved = tree(old / "backup.schema-1"), json.loads((old / "study.resolved.json").read_text())
    records = {n: h for n, h in before.items() if n.startswith("records/")}
    assert backup.items() >= {**records, "optuna.db": before["optuna.db"]}.items()
    assert tree(old).items() >= records.items()
    assert resolved["schema"] == schema.SCHEMA
    told = states(old, "calibrate")
    assert [(t["number"], t["state"]) for t in told] == [(0, "complete"), (1, "complete"), (2, "complete")]
    assert len({tuple(t["runs"]) for t in told}) == len(list((old / "records").iterdir())) == 3
    after = tree(old)
    assert tunnel("sweep", old)[0] == 0
    assert {n: h for n, h in tree(old).items() if n.startswith(("records/", "backup"))}.items() <= after.items()


@pytest.mark.fault(13)
def test_a_killed_migration_begins_again_and_keeps_the_first_backup(old: Path) -> None:
    """Killed after every sixth line of it, in a process of its own."""
    before, seen = tree(old), set()
    for line in range(1, 200, 6):
        folder = old.with_name(f"at-{line}")
        shutil.copytree(old, folder)
        if (pid := os.fork()) == 0:
            left = line

            def count(frame: FrameType, event: str, arg: Any) -> Any:
                nonlocal left
                left -= event == "line" and frame.f_code.co_filename == schema.__file__
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return count

            sys.settrace(count)
            schema.migrate(folder)
            os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        with Store(folder).driver():
            assert schema.of(folder) == schema.SCHEMA
        assert tree(folder / "backup.schema-1") == before
        assert not list(folder.glob(".saving-*"))
        seen.add(killed)
        if not killed:
            break
    assert seen == {True, False}
    assert line > 8


COMMANDS = [["sweep"], ["status"], ["fit"], ["verdict"], ["recommend"], ["export"], ["train"], ["check"], ["prune"]]
COMMANDS += [["extend", "--tokens", "2x"], ["rerun", "3a"], ["plan"]]


@pytest.mark.fault(13)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
def test_a_folder_of_a_newer_tunnel_is_left_as_it_is(old: Path, tunnel: Tunnel, command: list[str]) -> None:
    resolved = json.loads((old / "study.resolved.json").read_text())
    for value in (schema.SCHEMA + 1, 0, -1, "2", True, [1]) if command == ["sweep"] else (99,):
        (old / "study.resolved.json").write_text(json.dumps({**resolved, "schema": value}))
        before = tree(old)
        refused(tunnel(command[0], old, *command[1:]), "study.resolved.json: schema: ", f"got {value!r}; choices: 1, 2")
        assert tree(old) == before


@pytest.mark.fault(13)
def test_one_file_of_a_newer_version_is_named_and_left(old: Path, tunnel: Tunnel) -> None:
    path = next((old / "records").iterdir())
    text = path.read_text()
    path.write_text(json.dumps({**json.loads(text), "since_9": 1}))
    refused(tunnel("status", old), path, "since_9: is not a record of this version")
    path.write_text(text)
    with sqlite3.connect(old / "optuna.db") as db:
        db.execute("UPDATE alembic_version SET version_num = 'v99.0.0.a'")
        db.execute("UPDATE version_info SET schema_version = 99")
    db.close()
    before = file_hash(old / "optuna.db")
    for command in ("status", "sweep"):
        refused(tunnel(command, old), old / "optuna.db", "is of another Optuna")
    assert file_hash(old / "optuna.db") == before


# 15: files that are none


@pytest.mark.fault(15)
@pytest.mark.parametrize("kind", ["pipe", "zero", "loop", "dangling", "folder", "socket"])
@pytest.mark.parametrize("name", ["x.toml", "old/study.toml", "old/study.resolved.json", "old/records/3ad4.json"])
def test_what_is_no_file_is_not_waited_for(old: Path, tunnel: Tunnel, kind: str, name: str) -> None:
    path = old.parent / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        import socket

        socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))  # a socket's path may not be long
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"zero": "/dev/zero", "loop": path, "dangling": old / "nothing"}[kind])
    if kind in ("loop", "dangling") and name == "old/study.resolved.json":
        return  # as if it were not there
    asked = ("plan", name) if name == "x.toml" else ("status", "old")
    refused(tunnel(*asked), "old" if name == "old/study.toml" and kind in ("loop", "dangling") else path.name)


@pytest.mark.fault(15)
@pytest.mark.parametrize(
    ("raw", "at"),
    [
        (SEARCH.encode() + b'x = "\xff"', f"is not UTF-8 at byte {len(SEARCH) + 5}"),
        (SEARCH.encode("utf-16"), "is not UTF-8 at byte 0"),
        (SEARCH.encode() + b'x = "a\0b"', f"(at line {SEARCH.count(chr(10)) + 1}, column 7)"),
        (b"\xef\xbb\xbf" + SEARCH.replace("\n", "\r\n").encode() + b"x =\r\n", "(at line "),
        (SEARCH.replace("\n", "\r").encode(), "(at line 1, column "),
        (b"\xef\xbb\xbf", "question: is missing"),
        (SEARCH.replace("Which", "Wh\ufeffich").encode(), "question: holds a hidden character"),
    ],
    ids=["latin-1", "utf-16", "NUL", "mark and CRLF", "CR", "mark alone", "mark inside"],
)
def test_a_broken_study_file_is_one_line_with_the_place(tmp_path: Path, tunnel: Tunnel, raw: bytes, at: str) -> None:
    (tmp_path / "x.toml").write_bytes(raw)
    refused(tunnel("plan", "x.toml"), "x.toml", at)


@pytest.mark.fault(15)
@pytest.mark.parametrize("name", ["study.resolved.json", "shared.json", "progress.json", "records/3ad4.json"])
@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"\xff", b"\0", b"1" * 5000, b'{"a":' * 99_999, b'{"a": NaN'], ids=lambda r: str(r[:6])
)
def test_a_broken_file_of_a_folder_is_one_line(old: Path, tunnel: Tunnel, name: str, raw: bytes) -> None:
    (old / name).write_bytes(raw)
    refused(tunnel("status", old), f"{old / name}: ")


# 16: names

NAMES = ["../x", "/tmp/x", "a/b", "a" * 300, "-x", ".x", "..", "a\0b", "a\nb", "a b", "\u202egnp", "a\u200b", "é", ""]


@pytest.mark.fault(16)
@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("stage", 'name = "calibrate"'),
        ("target", 'name = "big"'),
        ("family", 'family = "synthetic"'),
    ],
)
def test_a_hostile_name_is_refused_before_a_path_is_made(
    tmp_path: Path, tunnel: Tunnel, name: str, key: str, text: str
) -> None:
    (tmp_path / "x.toml").write_text(SEARCH.replace(text, f"{text.split()[0]} = {json.dumps(name)}"))
    before = tree(tmp_path)
    refused(tunnel("sweep", "x.toml", "--out", "out"), "x.toml", key)
    assert tree(tmp_path) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.fault(16)
@pytest.mark.parametrize("name", [n for n in NAMES if n and "\0" not in n], ids=ascii)
def test_a_hostile_argument_is_one_line_and_writes_nothing(old: Path, tunnel: Tunnel, name: str) -> None:
    schema.migrate(old)
    before = tree(old.parent)
    refused(tunnel("plan", "--", f"{name}.toml"))
    for args in (["rerun", old, "--", name], ["export", old, f"--to={name}"], ["recommend", old, f"--target={name}"]):
        refused(tunnel(*args))
    assert tree(old.parent) == before


@pytest.mark.fault(16)
@pytest.mark.parametrize("out", ["a" * 300, "file", "file/x", "pipe", "/proc/x"])
def test_an_out_that_cannot_be_is_one_line(tmp_path: Path, tunnel: Tunnel, out: str) -> None:
    (tmp_path / "file").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "x.toml").write_text(SEARCH)
    refused(tunnel("sweep", "x.toml", "--out", out), Path(out).name[:200])
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.fault(16)
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_hostile_name_in_data_finds_nothing(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data\.paths: no file of the corpus exists"):
        data.opened(study.Data(corpus="files", paths=(name,)), 32)


@pytest.mark.fault(16)
@pytest.mark.parametrize("changed", [{"stage": "<b>"}, {"stage": "../x"}, {"stage": "\x1b[2J"}])
def test_a_record_with_a_hostile_name_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="should match pattern"):
        record(run_spec(trunk_spec(), 8, 2), **changed)
    with pytest.raises(ValueError, match="should match pattern"):
        trunk_spec(rules="![x](http://evil)")
