"""Longer trunks: only the new part is trained, the old readings stay byte for byte, and so do the file's comments."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import SYNTHETIC, write_corpus

from tunnel import cli, study
from tunnel.errors import UserError
from tunnel.folder.store import Store
from tunnel.run import Record, Trial
from tunnel.sweeps import extend, rerun, sweep
from tunnel.training import forks

STUDY = (
    f'question = "Longer?"{SYNTHETIC}'
    + """[[stage]]
name = "look"
kind = "search"
  [stage.space]
  width = 32
  depth = 2
  lr = { low = 1e-3, high = 1e-1 }
  [stage.budget]
  trials = 1
  tokens = "50k"
[[stage]]
name = "ladder"
kind = "ladder"
shapes = [[32, 2]]
fan = [0.5, 1]  # no minimum to be found
rungs = { tokens = ["50k", "100k"] }  # two
# the end
"""
)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (folder / "records").glob("*.json")}


def written(folder: Path, *replaced: tuple[str, str]) -> Path:
    text = STUDY
    for old, new in replaced:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    folder.mkdir(exist_ok=True)
    (folder / "study.toml").write_text(text)
    return folder / "study.toml"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic study, run: trunks to 90k tokens, decays to 50k and 100k."""
    folder = tmp_path_factory.mktemp("extend")
    asked, keep = sweep.opened(written(folder), folder / "out")
    sweep.sweep(asked, keep)
    return keep.root


@pytest.fixture
def swept(whole: Path, tmp_path: Path) -> tuple[Path, Store]:
    shutil.copytree(whole, tmp_path / "out")
    return tmp_path / "out", Store(tmp_path / "out")


def test_only_the_new_part_is_trained(swept: tuple[Path, Store]) -> None:
    folder, keep = swept
    before, text = contents(folder), (folder / "study.toml").read_text()
    at_100k = {r.run.trunk.fingerprint: r for r in keep.records() if r.stage == "ladder" and r.D > 60_000}
    found = extend.extend(folder, "2x")
    after = contents(folder)
    assert {n: t for n, t in after.items() if n in before} == before
    new = [r for r in keep.records() if f"{r.fingerprint_of}.json" not in before]
    assert {r.run.trunk.fingerprint for r in new} == set(at_100k)
    assert len(new) == 2
    for r in new:
        assert r.D == 195 * 1024  # 200k in whole batches
        assert r.tokens_trained == r.D - at_100k[r.run.trunk.fingerprint].run.decay_start  # from the last fork point on
    assert found["extended"] == {"ladder": 200_000}
    assert found["state"] == "complete"
    assert (folder / "study.1.toml").read_text() == text
    assert (folder / "study.toml").read_text() == text.replace('"100k"] }', '"100k", "200k"] }')
    extend.extend(folder, "400k")  # and again, by its length
    assert (folder / "study.toml").read_text() == text.replace('"100k"] }', '"100k", "200k", "400k"] }')
    assert (folder / "study.2.toml").exists()
    assert {n: t for n, t in contents(folder).items() if n in after} == after
    straight = [
        e for r in new for e in forks.grow(Trial(stage="s", number=0, runs=(r.run,)), Store(folder / "s"), None)
    ]
    assert {e.fingerprint_of: e.loss for e in straight if isinstance(e, Record)} == {
        r.fingerprint_of: r.loss for r in new
    }


RUNGS = 'rungs = { tokens = ["50k", "100k"] }'


@pytest.mark.parametrize(
    ("rungs", "tokens", "found"),
    [
        ("rungs = { tokens = [50_000, 100_000] }", "2x", "rungs = { tokens = [50_000, 100_000, 200000] }"),
        ("rungs = { tokens = [50_000, 100_000] }", "1.5x", "rungs = { tokens = [50_000, 100_000, 150000] }"),
        ("rungs = { tokens_per_param = [5, 10] }", "2x", "rungs = { tokens_per_param = [5, 10, 20] }"),
        ("rungs = { tokens_per_param = [5, 10] }", "1.25x", "rungs = { tokens_per_param = [5, 10, 12.5] }"),
        ("  [stage.rungs]\n  tokens = [\n    50_000,  # short\n  ]", "2x", "50_000,  # short\n    100000,\n  ]"),
        (RUNGS, "0.3M", '["50k", "100k", "300k"]'),
    ],
)
def test_a_rung_is_written_as_its_neighbours_are(tmp_path: Path, rungs: str, tokens: str, found: str) -> None:
    path = written(tmp_path, (RUNGS, rungs))
    [stage] = extend.chosen(study.load(path), None)
    assert stage.rungs is not None
    added = {stage.name: (stage.rungs.unit, extend.longer(stage, tokens))}
    text = extend.with_rungs(path.read_text(), added, small=False)
    assert found in text
    both = [re.sub(r"(tokens\w* = )\[.*?\]", r"\1", t, flags=re.S) for t in (text, path.read_text())]
    assert both[0] == both[1]  # but for the list, as it was


def test_the_small_study_gets_its_rung_in_its_own_table(tmp_path: Path) -> None:
    small = '[small]\n"stage.ladder.rungs" = { tokens = ["20k", "40k"] }  # small\n[[target]]'
    asked, keep = sweep.opened(written(tmp_path, ("[[target]]", small)), tmp_path / "out", small=True)
    sweep.sweep(asked, keep)
    found = extend.extend(keep.root, "2x")
    assert found["extended"] == {"ladder": 80_000}
    text = (keep.root / "study.toml").read_text()
    assert '{ tokens = ["20k", "40k", "80k"] }  # small' in text
    assert RUNGS in text
    assert max(r.D for r in keep.records() if r.stage == "ladder") == pytest.approx(80_000, abs=1024)


@pytest.mark.parametrize(
    ("tokens", "stage", "rule"),
    [
        ("1x", None, r"--tokens: must be longer than stage ladder's 100000; got '1x'"),
        ("50k", None, "must be longer"),
        ("two", None, r"--tokens: must be a number.*or a factor such as 2x; got 'two'"),
        ("0.5", None, "is no whole number of tokens"),
        ("2x", "look", "--stage: is no listed stage with rungs; got 'look'; choices: ladder"),
        ("2x", "none", "--stage: is no listed stage"),
    ],
)
def test_what_cannot_be_extended_changes_nothing(
    swept: tuple[Path, Store], tokens: str, stage: str | None, rule: str
) -> None:
    folder, _ = swept
    before = (folder / "study.toml").read_bytes()
    with pytest.raises(UserError, match=rule):
        extend.extend(folder, tokens, stage)
    assert (folder / "study.toml").read_bytes() == before
    assert not (folder / "study.1.toml").exists()


# data that joins, on a real model

REAL = """
question = "What is forgotten?"
[data]
corpus = "files"
paths = ["{corpus}/*.txt"]
held_out = 0.2
eval_tokens = 1024
[model]
head_dim = 8
base_width = 16
base_depth = 1
seq_len = 32
[train]
batch_tokens = 256
decay = 0.25
lr = 0.02
[resources]
backend = "inline"
[[target]]
name = "big"
width = 48
depth = 3
tokens = "64k"
[[stage]]
name = "ladder"
kind = "ladder"
shapes = [[16, 1]]
rungs = {{ tokens = [8192] }}
"""


def test_data_joins_from_a_token_on_and_the_old_slice_is_watched(tmp_path: Path) -> None:
    for name, seed in (("old", 0), ("new", 1)):
        (tmp_path / name).mkdir()
        write_corpus(tmp_path / name, 30, seed)
    for path in (tmp_path / "new").iterdir():  # another alphabet
        path.write_text(path.read_text().upper())
    path, text = tmp_path / "study.toml", REAL.format(corpus=tmp_path / "old")
    path.write_text(text)
    asked, keep = sweep.opened(path, tmp_path / "out")
    sweep.sweep(asked, keep)
    before = contents(tmp_path / "out")
    [first] = keep.records()
    assert first.slices == {}
    then = f'[[data.then]]\nfrom = {{}}\ncorpus = "files"\npaths = ["{tmp_path}/new/*.txt"]\n[model]'
    longer = text.replace("[8192]", "[8192, 16384]")
    path.write_text(longer.replace("[model]", then.format(8000)))
    with pytest.raises(UserError, match=r"data.then.from: joins before the longest reading.*from 8192 on.*got 8000"):
        sweep.opened(path, tmp_path / "out")
    path.write_text(longer.replace("[model]", then.format(8192)))
    asked, keep = sweep.opened(path, tmp_path / "out")
    sweep.sweep(asked, keep)
    assert {n: t for n, t in contents(tmp_path / "out").items() if n in before} == before
    [_, second] = keep.records()
    assert second.tokens_trained == 16384 - first.run.decay_start
    assert second.slices.keys() == {"files", "files#2"}
    assert second.loss == second.slices["files"]
    assert first.loss is not None
    assert second.loss > first.loss + 0.5  # it has read nothing but the new for as long: what it knew is going
    assert second.slices["files#2"] < second.loss
    again = rerun.rerun(asked, keep, second.fingerprint_of)
    assert again["equal"], again["first_difference"]
    assert rerun.rerun(asked, keep, first.fingerprint_of)["equal"]  # without what joined later
    [row] = sweep.status(asked, keep)["forgetting"]
    assert row | {"stage": "ladder"} == {
        "stage": "ladder",
        "run": second.fingerprint_of,
        "shape": "16×1",
        "lr": 0.02,
        "D": 16384,
        "before": first.loss,
        "slices": second.slices,
        "forgotten": pytest.approx(second.loss - first.loss),
    }


def test_the_command_line_extends(swept: tuple[Path, Store], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.app(["extend", str(swept[0]), "--tokens", "2x", "--stage", "ladder", "--json"])
    assert not end.value.code
    assert json.loads(capsys.readouterr().out)["extended"] == {"ladder": 200_000}
