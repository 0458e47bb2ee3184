"""What is freed is what nobody needs: the study goes on, and extends, as if nothing had been freed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_extend import STUDY, contents
from test_store import HOLD

from tunnel import cli
from tunnel.errors import UserError
from tunnel.families.synthetic import Synthetic
from tunnel.folder.store import Store
from tunnel.run import Record, Trial
from tunnel.study import Study
from tunnel.sweeps import extend, prune, sweep
from tunnel.training import forks

RUNGS = 'rungs = { tokens = ["50k", "100k"] }'


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run: three trunks, one with one fork point and two with two."""
    folder = tmp_path_factory.mktemp("prune")
    (folder / "study.toml").write_text(STUDY)
    asked, keep = sweep.opened(folder / "study.toml", folder / "out")
    sweep.sweep(asked, keep)
    return keep.root


@pytest.fixture
def swept(whole: Path, tmp_path: Path) -> tuple[Study, Store]:
    shutil.copytree(whole, tmp_path / "out")
    return sweep.located(tmp_path / "out")


def yes(told: dict[str, Any]) -> bool:
    return True


def no(told: dict[str, Any]) -> bool:
    return False


def listing(keep: Store) -> dict[str, list[int]]:
    """Checkpoints in steps, by trunk."""
    trunks = sorted(p.name for p in keep.path("trunks").glob("*"))
    return {t: [int(p.name) // 1024 for p in keep.checkpoints(t)] for t in trunks}


def on_disk(folder: Path) -> int:
    """Bytes, but for the audit's, which grows with what is done."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.name != "audit.jsonl")


def ladder(keep: Store) -> list[Record]:
    return sorted((r for r in keep.records() if r.stage == "ladder"), key=lambda r: (r.D, r.fingerprint_of))


def test_the_last_checkpoint_of_every_trunk_stays(swept: tuple[Study, Store]) -> None:
    asked, keep = swept
    before, size = contents(keep.root), on_disk(keep.root)
    assert sorted(listing(keep).values()) == [[44], [44, 88], [44, 88]]
    told = prune.prune(asked, keep, no)
    assert not told["freed"]
    assert on_disk(keep.root) == size
    found = prune.prune(asked, keep, yes)
    assert found == {**told, "freed": True}
    assert {k: v["count"] for k, v in found["kinds"].items()} == {
        "checkpoints": 2,
        "decays": 0,
        "damaged": 0,
        "unfinished": 0,
    }
    assert sorted(listing(keep).values()) == [[44], [88], [88]]
    assert found["bytes"] == size - on_disk(keep.root) > 0
    assert found["kept"]["bytes"] == on_disk(keep.path("trunks"))
    assert contents(keep.root) == before
    assert prune.prune(asked, keep, yes)["bytes"] == 0
    assert sweep.sweep(asked, keep)["state"] == "complete"
    assert contents(keep.root) == before


def test_a_pruned_study_extends_as_any_other(swept: tuple[Study, Store], whole: Path, tmp_path: Path) -> None:
    asked, keep = swept
    prune.prune(asked, keep, yes)
    shutil.copytree(whole, tmp_path / "untouched")
    for folder in (keep.root, tmp_path / "untouched"):
        extend.extend(folder, "2x")
    pruned, untouched = (
        {r.fingerprint_of: (r.loss, r.tokens_trained) for r in Store(f).records()}
        for f in (keep.root, tmp_path / "untouched")
    )
    assert pruned == untouched


def test_what_a_planned_run_needs_stays(swept: tuple[Study, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that is gone is planned again: its decay alone is trained, off the fork point that was kept."""
    asked, keep = swept
    short, other = ladder(keep)[:2]
    keep.path("records", f"{short.fingerprint_of}.json").unlink()
    prune.prune(asked, keep, yes)
    kept = listing(keep)
    assert kept[short.run.trunk.fingerprint] == [44, 88]
    assert kept[other.run.trunk.fingerprint] == [88]
    steps, step = [], Synthetic.step
    monkeypatch.setattr(Synthetic, "step", lambda self, m: steps.append(self.tokens) or step(self, m))
    sweep.sweep(asked, keep)
    again = keep.record(short.fingerprint_of)
    assert again is not None
    assert (again.loss, again.tokens_trained) == (short.loss, short.tokens_trained)
    assert steps == list(range(short.run.decay_start, short.D, 1024))


def test_a_planned_rung_between_two_needs_the_one_before(swept: tuple[Study, Store], tmp_path: Path) -> None:
    _, keep = swept
    (tmp_path / "study.toml").write_text(STUDY.replace(RUNGS, 'rungs = { tokens = ["50k", "100k", "75k"] }'))
    asked, keep = sweep.opened(tmp_path / "study.toml", keep.root)
    prune.prune(asked, keep, yes)
    assert sorted(listing(keep).values()) == [[44], [44, 88], [44, 88]]


def test_a_good_checkpoint_before_a_damaged_one_stays(swept: tuple[Study, Store]) -> None:
    asked, keep = swept
    trunk = ladder(keep)[0].run.trunk.fingerprint
    path = keep.checkpoint(trunk, 88 * 1024) / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    found = prune.prune(asked, keep, yes)
    assert found["kinds"]["damaged"]["count"] == 1
    assert listing(keep)[trunk] == [44]


def test_what_killed_processes_left_goes(swept: tuple[Study, Store]) -> None:
    asked, keep = swept
    done = ladder(keep)[0].fingerprint_of
    keep.save_state(done, 46 * 1024, {"w": np.ones(100)}, {"tokens": 46 * 1024})  # killed after its record was written
    keep.save_state("e" * 16, 46 * 1024, {"w": np.ones(100)}, {"tokens": 46 * 1024})  # whose, nobody knows: it stays
    keep.path("records", ".saving-4194305-abc").write_text("{")
    keep.path("trunks", done, ".saving-4194305-def").mkdir()
    keep.path("trunks", done, ".saving-4194305-def", "state.safetensors").write_bytes(bytes(5000))
    told = prune.prune(asked, keep, no)["kinds"]
    assert {k: v["count"] for k, v in told.items()} == {"checkpoints": 2, "decays": 1, "damaged": 0, "unfinished": 2}
    assert told["unfinished"]["bytes"] == 5001
    prune.prune(asked, keep, yes)
    assert not list(keep.root.rglob(".saving-*"))
    assert not keep.path("trunks", done).exists()
    assert listing(keep)["e" * 16] == [46]


def test_a_finished_full_size_model_stays(swept: tuple[Study, Store]) -> None:
    asked, keep = swept
    like, steps = ladder(keep)[0].run, ladder(keep)[0].D // 1024
    for seed, stage, kept in ((7, "target:big", True), (8, "target:big:counterfactual", False)):
        run = like.replaced(trunk=like.trunk.replaced(seed=seed))
        trial = Trial(stage=stage, number=0, runs=(run,), keeps=kept)
        list(forks.grow(trial, keep, None))
        assert [int(p.name) // 1024 for p in keep.checkpoints(run.fingerprint)] == [steps] * kept
        keep.save_state(run.fingerprint, (steps - 1) * 1024, {"w": np.ones(100)}, {"tokens": (steps - 1) * 1024})
        prune.prune(asked, keep, yes)
        assert [int(p.name) // 1024 for p in keep.checkpoints(run.fingerprint)] == [steps] * kept


def test_a_running_study_is_left_alone(swept: tuple[Study, Store]) -> None:
    asked, keep = swept
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(keep.root)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        before = listing(keep)
        with pytest.raises(UserError, match=f"another sweep holds this study: pid {other.pid}"):
            prune.prune(asked, keep, yes)
        assert listing(keep) == before
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize(("options", "freed"), [([], False), (["--yes"], True)])
def test_the_command_frees_nothing_unasked(
    swept: tuple[Study, Store], options: list[str], freed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.app(["prune", str(swept[1].root), "--json", *options])
    assert not end.value.code
    found = json.loads(capsys.readouterr().out)
    assert found["freed"] == freed
    assert found["bytes"] > 0
    assert sorted(listing(swept[1]).values()) == ([[44], [88], [88]] if freed else [[44], [44, 88], [44, 88]])
