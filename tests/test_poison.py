"""Data that would run, numbers that overflow, places that are taken; a corpus and versions that change."""

from __future__ import annotations

import json
import os
import pickle
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import test_hostile
from conftest import write_corpus
from test_hostile import SEARCH, Tunnel, refused, tree
from test_store import record

from tunnel import export, plan, study, table
from tunnel.errors import UserError
from tunnel.export import _write
from tunnel.folder import environment
from tunnel.folder.files import file_hash
from tunnel.folder.store import Store
from tunnel.sweeps import sweep
from tunnel.training import data

tunnel, old = test_hostile.tunnel, test_hostile.old  # fixtures

# 17: data that would run


class Bomb:
    """A pickle that leaves a canary where it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.canary), "w")


@pytest.fixture
def bomb(tmp_path: Path) -> bytes:
    raw = pickle.dumps(Bomb(tmp_path / "canary"))
    pickle.loads(raw).close()
    assert (tmp_path / "canary").exists()  # it is one
    (tmp_path / "canary").unlink()
    return raw


@pytest.mark.fault(17)
def test_a_pickle_as_a_checkpoint_is_passed_over(tmp_path: Path, bomb: bytes) -> None:
    """With hashes that are right: its maker wrote the manifest too."""
    keep = Store(tmp_path / "s")
    for tokens in (128, 256):
        keep.save_state("t", tokens, {"w": np.full(3, tokens)}, {"tokens": tokens})
    folder = keep.checkpoint("t", 256)
    (folder / "state.safetensors").write_bytes(bomb)
    names = ("state.safetensors", "meta.json")
    (folder / "manifest.json").write_text(json.dumps({n: file_hash(folder / n) for n in names}))
    state = keep.load_state("t", 999)
    assert state is not None
    assert state[1] == {"tokens": 128}
    assert not (tmp_path / "canary").exists()


@pytest.mark.fault(17)
@pytest.mark.parametrize("name", ["curves/t.parquet", "readings.parquet", "optuna.db", "records/0.json", "study.toml"])
def test_a_pickle_in_any_file_of_a_folder_runs_nowhere(
    old: Path, tmp_path: Path, tunnel: Tunnel, bomb: bytes, name: str
) -> None:
    (old / name).parent.mkdir(exist_ok=True)
    (old / name).write_bytes(bomb)
    assert tunnel("status", old)[0] in (0, 2, 75)
    assert Store(old).curve("t") is None
    assert not (tmp_path / "canary").exists()


@pytest.mark.slow
@pytest.mark.fault(17)
def test_a_samplers_pickle_in_the_database_is_not_loaded(tmp_path: Path, tunnel: Tunnel, bomb: bytes) -> None:
    """CMA-ES keeps its state as a pickle in its trials' attributes; ours is never read from a file."""
    text = SEARCH.replace("[stage.budget]", '[stage.sampler]\n  name = "cmaes"\n  [stage.budget]')
    (tmp_path / "x.toml").write_text(text)
    assert tunnel("sweep", "x.toml", "--out", "s")[0] == 0
    stored = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/s/optuna.db")
    asked = optuna.load_study(study_name="calibrate", storage=stored).trials
    with sqlite3.connect(tmp_path / "s" / "optuna.db") as db:
        for t in asked:
            row = (t._trial_id, "cma:optimizer:0", json.dumps(bomb.hex()))
            db.execute("INSERT INTO trial_system_attributes (trial_id, key, value_json) VALUES (?, ?, ?)", row)
    db.close()
    (tmp_path / "x.toml").write_text(text.replace("trials = 4", "trials = 9"))
    assert tunnel("sweep", "x.toml", "--out", "s")[0] == 0
    assert not (tmp_path / "canary").exists()
    theirs = optuna.load_study(study_name="calibrate", storage=stored, sampler=optuna.samplers.CmaEsSampler())
    with pytest.raises(AttributeError):
        theirs.ask(asked[0].distributions)
    assert (tmp_path / "canary").exists()  # Optuna's own sampler would have


# 17: sizes, nests, numbers


@pytest.mark.fault(17)
@pytest.mark.parametrize("name", ["x.toml", "s/study.toml", "s/recommendation.json", "s/records/0.json", "runs.csv"])
def test_a_gigabyte_is_not_read(tmp_path: Path, tunnel: Tunnel, name: str) -> None:
    (tmp_path / "s" / "records").mkdir(parents=True)
    (tmp_path / "s" / "study.toml").write_text(SEARCH)
    with open(tmp_path / name, "wb") as file:
        file.truncate(2**30 + 1)  # sparse: takes no disk
    command = {"x.toml": ["plan", name], "runs.csv": ["fit", name], "s/recommendation.json": ["recommend", "s"]}
    refused(tunnel(*command.get(name, ["status", "s"])), name, "1073741825")


DEEP = {
    "dotted": "x" + ".a" * 30_000 + " = 1",
    "quoted": 'x."a b"' * 1 + '."a b"' * 9_000 + " = 1",
    "header": "[x" + ".a" * 30_000 + "]",
    "arrays": "x = " + "[" * 30_000,
    "closed arrays": "[small]\nx = " + "[" * 300 + "]" * 300,
    "inline": "x = " + "{a=" * 20_000,
    "in small": "[small]\nx" + ".a" * 40 + " = 1",
    "number": "seed = " + "9" * 5_000,
    "whole number": "seed = 9223372036854775808",
}


@pytest.mark.fault(17)
@pytest.mark.parametrize("name", DEEP)
def test_what_nests_or_overflows_is_one_line_at_once(tmp_path: Path, tunnel: Tunnel, name: str) -> None:
    (tmp_path / "x.toml").write_text(DEEP[name] + "\n" + SEARCH if "number" in name else SEARCH + DEEP[name])
    refused(tunnel("plan", "x.toml"), "x.toml")


@pytest.mark.fault(17)
@pytest.mark.parametrize(
    "tokens", ['"1e300"', '"1e999"', '"9e18"', '"' + "9" * 5000 + '"', "1e300", "-5", "true", "inf"]
)
def test_a_length_that_overflows_is_one_line(tmp_path: Path, tunnel: Tunnel, tokens: str) -> None:
    (tmp_path / "x.toml").write_text(SEARCH.replace('tokens = "1M"', f"tokens = {tokens}"))
    said = tunnel("plan", "x.toml")
    if tokens == '"9e18"':  # long, and a number: in floats
        assert said[0] == 0
        return
    refused(said, "target.big.tokens")


@pytest.mark.fault(17)
def test_six_n_d_is_reckoned_in_floats(tmp_path: Path, tunnel: Tunnel) -> None:
    wide = SEARCH.replace("width = 128\ndepth = 8", f"width = {16 * 10**9}\ndepth = {10**9}")
    (tmp_path / "x.toml").write_text(wide.replace('tokens = "1M"', 'tokens = "9e18"'))
    code, out, _ = tunnel("plan", "x.toml", "--json")
    told = json.loads(out)["targets"][0]["shapes"][0]
    assert code == 0
    assert told["C"] == pytest.approx(6.0 * float(told["N"]) * 9e18)
    assert told["N"] > 2**63


TABLES: dict[str, tuple[bytes | dict[str, Any], str]] = {
    "more fields than names": (b"N,D,loss\n1e6,1e8,3,7\n1e7,1e8,2,7\n", "rows have more fields"),
    "a header of 200 kB": (b"N,D,loss," + b"x" * 200_000 + b"\n1,2,3,4\n", "cannot be read as a table"),
    "2,000 columns": (b",".join(b"c%d" % i for i in range(2_000)) + b"\n1\n", "and 1940 more"),
    "below doubles": (b"N,D,loss\n1e-200,1e-200,3\n", "C: N\u00b7D is too large, or too small"),
    "latin-1": (b"N,D,loss\n1,2,3\n1,2,\xe9\n", "line 3: is not UTF-8"),
    "NUL": (b"N,D,loss\n1,2,3\0\n", "loss, row 1: must be a number; got '3\\x00'"),
    "dates": ({"N": pd.to_datetime(["2020-01-01"]), "D": [1.0], "loss": [1.0]}, "N, row 1: must be a number"),
    "bytes": ({"N": [b"\xff"], "D": [1.0], "loss": [1.0]}, "N, row 1: must be a number"),
    "lists": ({"N": [[1.0]], "D": [1.0], "loss": [1.0]}, "N, row 1: must be a number; got [1.0]"),
    "records": ({"N": [{"a": 1}], "D": [1.0], "loss": [1.0]}, "N, row 1: must be a number"),
}


@pytest.mark.fault(17)
@pytest.mark.parametrize("name", TABLES)
def test_a_hostile_table_is_one_line(tmp_path: Path, tunnel: Tunnel, name: str) -> None:
    what, rule = TABLES[name]
    path = tmp_path / ("t.csv" if isinstance(what, bytes) else "t.parquet")
    if isinstance(what, bytes):
        path.write_bytes(what)
    else:
        pd.DataFrame(what).to_parquet(path)
    refused(tunnel("fit", path), path, rule)


@pytest.mark.fault(17)
def test_what_pandas_noted_in_a_parquet_file_is_not_believed(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    noted = {b"pandas": b'{"index_columns": ["N"], "columns": 5}'}
    whole = pa.table({"N": [1e6], "D": [1e8], "loss": [2.0]}).replace_schema_metadata(noted)
    parquet.write_table(whole, tmp_path / "t.parquet")
    assert table.read(tmp_path / "t.parquet")["N"].tolist() == [1e6]


@pytest.mark.slow
@pytest.mark.fault(17)
def test_a_tokenizers_own_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_corpus(tmp_path, 4)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\nclass T: pass\n")
    wanted = {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}, "tokenizer_class": "T"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(wanted))
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {"AutoConfig": "evil.T"}, "model_type": "evil"}))
    asked = study.Data(corpus="files", paths=(f"{tmp_path}/*.txt",), tokenizer=str(tmp_path), held_out=0.2)
    with pytest.raises(UserError, match=r"data\.tokenizer: is not a tokenizer here"):
        data.opened(asked, 32)
    assert not (tmp_path / "canary").exists()


# 19: places that are taken


@pytest.mark.fault(19)
def test_a_studys_own_bundle_does_not_follow_a_link_out(tmp_path: Path) -> None:
    root, away = tmp_path / "s", tmp_path / "away"
    root.mkdir()
    away.mkdir()
    assert export.place(root, "json") == root / "export" / "json"
    (root / "export").symlink_to(away)
    with pytest.raises(UserError, match="is a symbolic link out of the study's folder"):
        export.place(root, "json")
    assert not list(away.iterdir())


@pytest.mark.fault(19)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user; test_export asks for the others")
def test_a_folder_that_one_may_only_read_is_left_as_it_is() -> None:
    """As a user who is not root: root may write anywhere."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        read, write = os.pipe()
        if (pid := os.fork()) == 0:
            os.setuid(65_534)
            try:
                _write.write({"a": "b"}, Path(folder) / "bundle", {}, force=True)
            except UserError as e:
                os.write(write, str(e).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        assert os.read(read, 999).decode() == f"{folder}/bundle: cannot be written: Permission denied"
        assert not os.listdir(folder)


@pytest.mark.fault(19)
@pytest.mark.parametrize("kind", ["link", "link to a device", "pipe", "folder", "the table itself"])
def test_predictions_take_the_place_of_no_link_and_no_device(tmp_path: Path, tunnel: Tunnel, kind: str) -> None:
    rows = pd.DataFrame(
        [(n, d, 1.8 + 400 / n**0.34 + 900 / d**0.29) for n in (1e6, 1e7, 1e8) for d in (1e8, 1e9, 1e10)]
    )
    rows.set_axis(["N", "D", "loss"], axis=1).to_csv(tmp_path / "runs.csv", index=False)
    (tmp_path / "t.csv").write_text("N,D\n1e9,1e11\n")
    (tmp_path / "mine.csv").write_text("mine")
    out = tmp_path / ("t.csv" if kind == "the table itself" else "p.csv")
    if kind.startswith("link"):
        out.symlink_to(tmp_path / "mine.csv" if kind == "link" else "/dev/null")
    elif kind == "pipe":
        os.mkfifo(out)
    elif kind == "folder":
        out.mkdir()
    before, there = tree(tmp_path), sorted(tmp_path.iterdir())
    law = ["--law", "chinchilla"] if kind == "the table itself" else []
    refused(tunnel("fit", "runs.csv", "--predict", "t.csv", "--out", out, *law), out.name, "--out")
    assert (tree(tmp_path), sorted(tmp_path.iterdir())) == (before, there)


# 21: the corpus changes


@pytest.mark.fault(21)
def test_a_corpus_that_changed_between_two_trials_is_refused(tmp_path: Path, tunnel: Tunnel) -> None:
    """One byte; a touch alone is nothing. Nothing is asked, and nothing trained."""
    (tmp_path / "c").mkdir()
    write_corpus(tmp_path / "c", 40)
    text = SEARCH.replace("synthetic", "gpt").replace(
        "[model]", '[data]\ncorpus = "files"\npaths = ["c/*.txt"]\n[model]'
    )
    (tmp_path / "x.toml").write_text(text)
    asked, keep = sweep.opened("x.toml", "s")
    stage = asked.stage[0]
    corpus = data.opened(asked.data, asked.model.seq_len)
    first = plan.trial(asked, stage, plan.values_of(asked, stage, {}) | {"lr": 0.01}, seed=0, corpus_hash=corpus.hash)
    keep.write_record(record(first.runs[0], stage=stage.name))
    before = tree(tmp_path / "s")
    (tmp_path / "c" / "007.txt").touch()
    assert corpus.of(first.trunk.source).hash == data.opened(asked.data, 32).hash
    (tmp_path / "c" / "007.txt").write_text((tmp_path / "c" / "007.txt").read_text() + "!")
    refused(tunnel("sweep", "s"), "data.corpus: the corpus changed since the run read it")
    assert tree(tmp_path / "s") == before
    with pytest.raises(UserError, match="the corpus changed"):  # what a worker that opens it meanwhile says
        data.opened(asked.data, 32).of(first.trunk.source)


# 22: other versions


@pytest.mark.slow
@pytest.mark.fault(22)
def test_a_study_that_goes_on_under_other_versions_says_so(tmp_path: Path, tunnel: Tunnel) -> None:
    """numpy says that it is another one, as it does after an upgrade: by its installed metadata."""
    (tmp_path / "x.toml").write_text(SEARCH)
    assert tunnel("sweep", "x.toml", "--out", "s")[0] == 0
    fake = tmp_path / "site" / "numpy-99.0.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 99.0\n")
    (tmp_path / "x.toml").write_text(SEARCH.replace("trials = 4", "trials = 5"))
    call = [sys.executable, "-m", "tunnel.cli", "sweep", "x.toml", "--out", "s"]
    path = os.pathsep.join([str(tmp_path / "site"), str(Path(__file__).parent.parent)])
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    assert f"goes on under other versions than it was measured with: numpy {np.__version__} \u2192 99.0" in done.stderr
    keep = Store(tmp_path / "s")
    found = {r.versions["numpy"]: environment.kept(keep.root, r.environment)["numpy"] for r in keep.records()}
    assert found == {np.__version__: np.__version__, "99.0": "99.0"}
    lines = [json.loads(line) for line in (keep.root / "audit.jsonl").read_text().splitlines()]
    assert [e["what"] for e in lines] == ["launched", "resumed"]
    assert lines[1]["about"]["versions"] == {"numpy": [np.__version__, "99.0"]}
