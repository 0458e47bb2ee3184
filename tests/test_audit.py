"""Who did what is written down and cannot be changed unseen; secrets are nowhere; a run knows its environment."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY

from tunnel import cli, doctor, study
from tunnel.errors import UserError
from tunnel.folder import audit, chain, environment
from tunnel.folder.store import Store
from tunnel.run import Record
from tunnel.study import Study, secret
from tunnel.sweeps import extend, prune, rerun, sweep, tokens

STAGES = [TINY.index(f'[[stage]]\nname = "{name}"') for name in ("calibrate", "ladder")]
TEXT = TINY.replace(TINY[slice(*STAGES)], "").replace('after = "calibrate"\n', "")
TEXT = TEXT.replace("[32, 2], [64, 4]", "[32, 2]").replace("fan = [0.5, 1, 2]", "")  # two readings


def swept(folder: Path) -> tuple[Study, Store]:
    path = folder / "tiny.toml"
    path.write_text(TEXT)
    asked, keep = sweep.opened(path, folder / "out")
    sweep.sweep(asked, keep)
    return asked, keep


def did(keep: Store) -> list[str]:
    return [e["what"] for e in chain.entries(keep.path(chain.AUDIT))]


# the chain


def three(path: Path) -> list[dict[str, Any]]:
    return chain.append_all(path, [{"n": n} for n in range(3)])


def test_every_changed_byte_is_found_in_its_line(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    three(path)
    good = path.read_bytes()
    for at in range(0, len(good) - 1, 3):  # without the last line's end that line was never written
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        found, misfit = chain.checked(path)
        assert misfit == 1 + good[:at].count(b"\n") == 1 + len(found), at


@pytest.mark.fault(7)
def test_a_line_cut_anywhere_was_never_told_and_the_next_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    told = three(path)
    good = path.read_bytes()
    start = good.rindex(b"\n", 0, -1) + 1
    for cut in range(start, len(good), 7):
        path.write_bytes(good[:cut])
        assert chain.entries(path) == told[:2]
        assert chain.tip(path) == told[1]["hash"]
        chain.append(path, {"n": 2})
        assert path.read_bytes() == good, cut


def test_a_line_longer_than_a_block_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    told = [chain.append(path, {"text": "x" * n}) for n in (1, 3 * chain.BLOCK, chain.BLOCK, 1)]
    assert chain.entries(path) == told


def forked(do: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            do()
            code = 0
        finally:
            os._exit(code)
    return pid


def test_processes_that_append_at_once_make_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"

    def lines(who: int) -> Callable[[], None]:
        return lambda: [chain.append(path, {"who": who, "n": n}) for n in range(20)] and None

    pids = [forked(lines(who)) for who in range(4)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
    found = chain.entries(path)
    assert sorted((e["who"], e["n"]) for e in found) == [(w, n) for w in range(4) for n in range(20)]


@pytest.mark.fault(5)
def test_a_full_disk_takes_back_what_it_could_not_hold(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    three(path)
    good = path.read_bytes()

    def filled() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(good) + 100, len(good) + 100))
        with pytest.raises(OSError, match="File too large"):
            chain.append(path, {"text": "x" * 1000})

    assert os.waitpid(forked(filled), 0)[1] == 0
    assert path.read_bytes() == good
    assert len([*chain.entries(path), chain.append(path, {"n": 3})]) == 4


# the audit


def test_a_study_tells_who_did_what(tmp_path: Path) -> None:
    asked, keep = swept(tmp_path)
    sweep.sweep(asked, keep)
    extend.extend(keep.root, "2x")
    prune.prune(sweep.frozen(keep.root)[0], keep, lambda found: True)
    dead = {"host": os.uname().nodename, "pid": 999_999_999, "since": "?"}
    keep.path("driver.lock").write_text(json.dumps(dead))
    keep.take_over()
    keep.take_over()  # from nobody
    assert did(keep) == ["launched", "resumed", "extended", "resumed", "pruned", "took over"]
    first, *_, extended, _, _, taken = chain.entries(keep.path(chain.AUDIT))
    assert {"when", "user", "host", "pid", "tunnel", "git", "study", "forecast", "about"} <= set(first)
    assert first["pid"] == os.getpid()
    assert extended["about"] == {"tokens": "2x", "rungs": {"ladder": 200_000}}
    assert extended["study"] != first["study"]  # the question was revised
    assert taken["about"] == {"driver": dead}
    assert audit.verified(keep.root) | {"folder": ""} == {
        "folder": "",
        "fits": True,
        "misfit": None,
        "lines": {"audit": 6, "forecasts": len(chain.entries(keep.path(chain.FORECASTS)))},
        "tip": taken["hash"],
    }


@pytest.fixture
def noted(tmp_path: Path) -> Path:
    """A folder with three lines of audit that name two forecasts."""
    (tmp_path / "study.toml").write_text(TEXT)
    for number in range(3):
        audit.note(tmp_path, "exported", to=f"hf{number}")
        chain.append(tmp_path / chain.FORECASTS, {"forecast": number})
    return tmp_path


def lines_of(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


DAMAGE: dict[str, tuple[str, Callable[[list[str]], list[str]], str, int]] = {
    "changed": (chain.AUDIT, lambda x: [x[0], x[1].replace("hf1", "hf9"), x[2]], chain.AUDIT, 2),
    "a space more": (chain.AUDIT, lambda x: [x[0], x[1].replace(": ", ":  ", 1), x[2]], chain.AUDIT, 2),
    "taken out": (chain.AUDIT, lambda x: [x[0], x[2]], chain.AUDIT, 2),
    "first gone": (chain.AUDIT, lambda x: x[1:], chain.AUDIT, 1),
    "swapped": (chain.AUDIT, lambda x: [x[1], x[0], x[2]], chain.AUDIT, 1),
    "no JSON": (chain.AUDIT, lambda x: [*x, "[" * 5000 + "\n"], chain.AUDIT, 4),
    "a forecast changed": (chain.FORECASTS, lambda x: [x[0].replace(": 0", ": 5"), *x[1:]], chain.FORECASTS, 1),
    "forecasts cut": (chain.FORECASTS, lambda x: x[:1], chain.AUDIT, 3),
    "forecasts anew": (chain.FORECASTS, lambda x: [], chain.AUDIT, 2),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_verify_names_the_first_line_that_does_not_fit(
    noted: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for fits in (True, False):
        with pytest.raises(SystemExit) as end:
            cli.app(["audit", "verify", str(noted), "--json"])
        found = json.loads(capsys.readouterr().out)
        assert (end.value.code, found["fits"]) == (0 if fits else 1, fits)
        if fits:
            file, change, at, line = DAMAGE[how]
            lines_of(noted / file, change)
    assert (found["misfit"]["file"], found["misfit"]["line"]) == (at, line)


def test_a_cut_end_is_found_by_a_hash_that_was_noted(noted: Path) -> None:
    tip = audit.verified(noted)["tip"]
    assert audit.verified(noted, tip)["fits"]
    lines_of(noted / chain.AUDIT, lambda x: x[:2])
    assert audit.verified(noted)["fits"]  # by itself it cannot know
    assert audit.verified(noted, tip)["misfit"]["line"] == 3


def test_an_audit_that_is_gone_is_missed_once_something_was_measured(noted: Path) -> None:
    (noted / chain.AUDIT).unlink()
    assert audit.verified(noted)["fits"]  # a folder of 0.3
    environment.keep(noted)
    assert "is missing" in audit.verified(noted)["misfit"]["why"]


def test_an_audit_that_cannot_be_written_stops_no_work(noted: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines_of(noted / chain.AUDIT, lambda x: [*x[:2], x[2].replace("hf2", "hf9")])
    before = (noted / chain.AUDIT).read_bytes()
    audit.note(noted, "pruned")
    assert "not noted in the audit (pruned)" in caplog.text
    assert (noted / chain.AUDIT).read_bytes() == before


def test_show_is_a_table_and_needs_a_study(noted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.app(["audit", "show", str(noted)], standalone_mode=False)
    shown = capsys.readouterr().out
    assert all(f"to hf{n}" in shown for n in range(3))
    with pytest.raises(UserError, match="is no study's folder"):
        cli.app(["audit", "verify", str(noted.parent)], standalone_mode=False)


# secrets

SECRETS = {  # key, value, and what the line says; None: allowed
    ("data.hub_token", "x"): "looks like a secret: keep it in the environment, as HF_TOKEN",
    ("stage.0.space.password", 12): "as TUNNEL_PASSWORD",
    ("apiKey", "x"): "looks like a secret",
    ("storage", "postgresql://me:hunter2@host/db"): "holds a secret: keep it in the environment, as TUNNEL_DB_PASSWORD",
    ("data.paths.0", "s3://key:secret@bucket/x"): "holds a secret",
    ("question", "hf_" + "a" * 34): "holds a secret",
    ("notify.url", "https://hooks.slack.com/services/T0/B0/x"): "holds a secret",
    ("notify.secret_env", "not a name!"): "is the name of a variable",
    ("notify.secret_env", "hf_" + "a" * 34): "is the name of a variable",
    ("notify.secret_env", "WEBHOOK_SECRET"): None,
    ("storage", "postgresql://me@host/db"): None,
    ("data.tokenizer", "bytes"): None,
    ("stage.0.budget.tokens", "1M"): None,
    ("data.eval_tokens", 512): None,
    ("stage.0.rungs.tokens_per_param.0", 5): None,
    ("question", "Is a password: a secret@home, or a token?"): None,
}


@pytest.mark.parametrize(("key", "value"), SECRETS)
def test_what_looks_like_a_secret(key: str, value: object) -> None:
    rule, said = SECRETS[key, value], secret.refused(key, value)
    assert (said == "") if rule is None else rule in said
    if isinstance(value, str) and rule is not None:
        assert value not in said


def test_a_study_file_with_a_secret_is_refused_and_does_not_show_it() -> None:
    text = TEXT.replace("question", 'storage = "postgresql://u:hunter2@h/d"\nquestion', 1)
    with pytest.raises(UserError, match="storage: holds a secret") as said:
        study.parse(text, "s.toml")
    assert "hunter2" not in str(said.value)


def test_a_log_is_without_secrets() -> None:
    found = [{"apiKey": "y"}, "see hf_" + "a" * 34]
    about = {"address": "ray://me:hunter2@host:1", "token": "x", "list": found, "n": 1}
    assert secret.without(about) == {
        "address": "ray://me:***@host:1",
        "token": "***",
        "list": [{"apiKey": "***"}, "see ***"],
        "n": 1,
    }


# tokens


def test_a_token_of_our_own_is_the_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNNEL_CACHE", str(tmp_path / "cache"))
    assert tokens.known() is None
    old = os.umask(0)
    try:
        path = tokens.own()
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text()
    assert len(text) == 64
    tokens.make(path)  # another process that came second
    assert tokens.own().read_text() == text
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert doctor.guarded()[0]["ok"]
    path.chmod(0o640)
    with pytest.raises(UserError, match=r"open to others: .*chmod 600.*mode 0640"):
        tokens.own()
    said = doctor.guarded()[0]
    assert (said["ok"], said["needed"]) == (False, True)
    assert "open to others" in said["found"]


OPEN = {
    "by group": (lambda p: p.chmod(0o640), "open to others"),
    "by all": (lambda p: p.chmod(0o604), "open to others"),
    "empty": (lambda p: p.write_text(""), "is empty"),
    "gone": (lambda p: p.unlink(), "cannot be read"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "is no file"),
    "another user's": (lambda p: os.chown(p, 12345, 12345), "another user's"),
    "fine": (lambda p: None, ""),
}


@pytest.mark.parametrize("how", OPEN)
def test_a_token_file_that_others_may_know_is_refused(tmp_path: Path, how: str) -> None:
    path = tmp_path / "token"
    path.write_text("0" * 64)
    path.chmod(0o600)
    do, rule = OPEN[how]
    if how == "another user's" and os.getuid() != 0:
        pytest.skip("only root can give a file away")
    do(path)
    named = {"RAY_AUTH_TOKEN_PATH": str(path)}
    if not rule:
        assert tokens.of_cluster(named) == path
        return
    with pytest.raises(UserError, match=rule):
        tokens.of_cluster(named)
    assert tokens.of_cluster({**named, "RAY_AUTH_MODE": "disabled"}) is None
    assert tokens.of_cluster({**named, "RAY_AUTH_TOKEN": "0"}) is None


# the environment of a record


def test_a_record_knows_its_environment_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-7")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    asked, keep = swept(tmp_path)
    [name] = {r.environment for r in keep.records()}
    [path] = keep.path("environments").iterdir()
    found = environment.kept(keep.root, name)
    assert path.stem == name
    assert found == environment.here()
    assert {"python", "numpy", "tunnel", "platform", "cpu", "device", "ATEN_CPU_CAPABILITY"} <= set(found)
    assert not any(b"canary-7" in p.read_bytes() for p in keep.root.rglob("*") if p.is_file())
    record = keep.records()[0]
    old = {k: v for k, v in record.model_dump().items() if k != "environment"}
    assert Record.model_validate(old).environment is None  # of 0.3 and before
    path.write_text(path.read_text().replace('"device": "cpu"', '"device": "H100"'))
    assert environment.kept(keep.root, name) == {}
    path.unlink()
    other = rerun.rerun(asked, keep, record.fingerprint_of)["other"]
    assert other == {"environment": [f"{name}, of which the file is gone", None]}


def elsewhere(keep: Store, **other: str) -> None:
    """Makes a folder one that was measured in another environment."""
    [path] = keep.path("environments").iterdir()
    environment.write_json(path, {**json.loads(path.read_text()), **other})
    name = environment.fingerprint(json.loads(path.read_text()))
    path.rename(path.with_name(f"{name}.json"))
    for record in keep.path("records").iterdir():
        known = json.loads(record.read_text())
        record.write_text(json.dumps({**known, "environment": name, "versions": {**known["versions"], **other}}))


@pytest.mark.fault(22)
def test_what_is_resumed_under_other_versions_is_warned_of_once_and_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked, keep = swept(tmp_path)
    elsewhere(keep, numpy="1.0")
    record = keep.records()[0]
    other = rerun.rerun(asked, keep, record.fingerprint_of)["other"]
    assert other == {"numpy": ["1.0", sys.modules["numpy"].__version__]}
    keep.path("records", f"{record.fingerprint_of}.json").unlink()  # something is left to do
    caplog.set_level(logging.WARNING)
    for times in (1, 1):  # then something was measured under these versions too
        sweep.sweep(asked, keep)
        assert caplog.text.count("goes on under other versions") == times
    assert f"numpy 1.0 → {other['numpy'][1]}" in caplog.text
    notes = [e["about"].get("versions") for e in chain.entries(keep.path(chain.AUDIT))]
    assert notes == [None, other, None]
    assert len({r.environment for r in keep.records()}) == 2
