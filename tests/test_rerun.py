"""A reading trained again from scratch is the recorded one, bit for bit; where it is not, the command says where."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BATCH, SEQ_LEN, run_spec, trunk_spec
from safetensors.numpy import load_file, save_file

from tunnel import cli, study
from tunnel.errors import UserError
from tunnel.folder.files import file_hash
from tunnel.folder.store import Store
from tunnel.run import Record, RunSpec, Trial, TrunkSpec
from tunnel.schedule import SHAPES
from tunnel.study import Data, Study
from tunnel.sweeps import rerun
from tunnel.training import data, forks, train

STUDY = """
question = "Is it the same again?"
[data]
corpus = "files"
paths = ["{paths}"]
held_out = 0.2
eval_tokens = 512
[model]
head_dim = 16
base_width = 32
base_depth = 2
seq_len = 32
[train]
batch_tokens = 128
[[target]]
name = "big"
width = 64
depth = 2
tokens = "16k"
[[stage]]
name = "s"
kind = "ladder"
shapes = [[32, 2]]
rungs = {{ tokens = ["4k"] }}
"""


@pytest.fixture
def asked(documents: Data) -> Study:
    return study.parse(STUDY.format(paths=documents.paths[0]), "study.toml")


def known(trunk: TrunkSpec, corpus: data.Corpus) -> TrunkSpec:
    """A test's trunk with the corpus that it really reads."""
    return trunk.replaced(source=trunk.source.replaced(corpus_hash=corpus.hash))


def trial(trunk: TrunkSpec, *runs: RunSpec) -> Trial:
    return Trial(stage="s", number=0, runs=tuple(sorted(runs, key=lambda r: (r.decay_start, r.tokens))))


def grown(asked_for: Trial, keep: Store, corpus: data.Corpus) -> list[Record]:
    return [e for e in forks.grow(asked_for, keep, corpus) if isinstance(e, Record)]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("micro", [BATCH, 2 * SEQ_LEN], ids=["whole", "accumulated"])
def test_every_decay_is_the_same_again(
    tmp_path: Path, asked: Study, corpus: data.Corpus, dropout: float, micro: int
) -> None:
    trunk, keep = known(trunk_spec(micro_batch_tokens=micro, dropout=dropout), corpus), Store(tmp_path)
    runs = [run_spec(trunk, 6, 3, shape, min_ratio=0.1 * (shape == "linear")) for shape in SHAPES]
    records = grown(trial(trunk, *runs, run_spec(trunk, 9, 4)), keep, corpus)
    assert len({r.final["weights"] for r in records}) == len(records)
    for record in records:
        found = rerun.rerun(asked, keep, record.fingerprint_of[:9])
        assert found["equal"], found["first_difference"]
        assert set(found["compared"]) == {"loss", "counters", "weights", "rng", "moments", "cursor", "trunk"}
        assert found["loss"] == record.loss
        assert found["other"] == {}


def killed(asked_for: Trial, keep: Store, corpus: data.Corpus, at: int) -> None:
    """Trains in a forked process that SIGKILLs itself after step `at`, with a checkpoint at every step."""
    pid = os.fork()
    if pid == 0:
        trained = train.Trained.step

        def step(self: train.Trained, multiplier: float) -> bool:
            if self.steps == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return trained(self, multiplier)

        train.Trained.step = step  # type: ignore[method-assign]
        forks.SAVE_SECONDS = -1.0
        grown(asked_for, keep, corpus)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_after_kills_in_trunk_and_decay_it_is_the_same_again(tmp_path: Path, asked: Study, corpus: data.Corpus) -> None:
    trunk, keep = known(trunk_spec(micro_batch_tokens=2 * SEQ_LEN, dropout=0.1), corpus), Store(tmp_path)
    both = trial(trunk, run_spec(trunk, 8, 4), run_spec(trunk, 16, 10, "linear"))
    for step, name in ((14, trunk.fingerprint), (21, both.runs[1].fingerprint)):  # in the trunk, in the second decay
        killed(both, keep, corpus, step)
        assert [int(p.name) // BATCH for p in keep.checkpoints(name)][-1] == step
    records = grown(both, keep, corpus)
    assert records[1].tokens_trained == (16 - 8 + 10) * BATCH
    for record in records:
        found = rerun.rerun(asked, keep, record.fingerprint_of)
        assert found["equal"], found["first_difference"]
        assert "trunk" in found["compared"]


# it can fail


@pytest.fixture
def measured(tmp_path: Path, corpus: data.Corpus) -> tuple[Store, Record]:
    trunk, keep = known(trunk_spec(shape=(16, 1)), corpus), Store(tmp_path)
    [record] = grown(trial(trunk, run_spec(trunk, 8, 2)), keep, corpus)
    return keep, record


def rewritten(keep: Store, record: Record, **changed: Any) -> None:
    path = keep.path("records", f"{record.fingerprint_of}.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


TAMPERED: dict[str, Callable[[Record], dict[str, Any]]] = {
    "loss": lambda r: {"loss": np.nextafter(r.loss, 9.0)},
    "weights": lambda r: {"final": {**r.final, "weights": "0" * 16}},
    "moments": lambda r: {"final": {**r.final, "moments": "0" * 16}},
    "rng": lambda r: {"final": {**r.final, "rng": "0" * 16}},
    "cursor": lambda r: {"final": {**r.final, "cursor": "0" * 16}},
    "spec": lambda r: {
        "run": json.loads(r.run.replaced(min_ratio=0.5).model_dump_json()),
    },
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_tampered_record_is_found(measured: tuple[Store, Record], asked: Study, what: str) -> None:
    keep, record = measured
    rewritten(keep, record, **TAMPERED[what](record))
    found = rerun.rerun(asked, keep, record.fingerprint_of)
    assert not found["equal"]
    assert found["first_difference"]["what"] == what
    assert found["first_difference"]["tokens"] == (0 if what == "spec" else 10 * BATCH)


def test_a_bit_of_the_trunk_is_found_by_tensor(measured: tuple[Store, Record], asked: Study) -> None:
    """In a checkpoint whose manifest was made to agree: the hashes cannot tell, training again can."""
    keep, record = measured
    folder = keep.checkpoint(record.run.trunk.fingerprint, 8 * BATCH)
    arrays = load_file(folder / "state.safetensors")
    name = "adam.exp_avg.model.layers.0.mlp.down_proj.weight"
    arrays[name].view(np.uint32)[0, 3] ^= 1
    save_file(arrays, folder / "state.safetensors")
    manifest = {n: file_hash(folder / n) for n in ("state.safetensors", "meta.json")}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    found = rerun.rerun(asked, keep, record.fingerprint_of)
    assert found["first_difference"] | {"recorded": 0, "again": 0} == {
        "what": "trunk",
        "tokens": 8 * BATCH,
        "tensor": name,
        "recorded": 0,
        "again": 0,
    }
    assert found["differences"] == 1


def test_without_its_checkpoint_the_record_alone_is_compared(measured: tuple[Store, Record], asked: Study) -> None:
    keep, record = measured
    path = keep.checkpoint(record.run.trunk.fingerprint, 8 * BATCH) / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    found = rerun.rerun(asked, keep, record.fingerprint_of)
    assert found["equal"]
    assert "trunk" not in found["compared"]
    assert found["skipped"]
    assert path.exists()  # it only looks


def test_other_versions_and_hosts_are_said(measured: tuple[Store, Record], asked: Study) -> None:
    keep, record = measured
    rewritten(keep, record, host="elsewhere", versions={**record.versions, "torch": "1.0"})
    found = rerun.rerun(asked, keep, record.fingerprint_of)
    assert found["equal"]
    assert {k: v[0] for k, v in found["other"].items()} == {"host": "elsewhere", "torch": "1.0"}


def test_a_diverged_run_diverges_again(tmp_path: Path, asked: Study, corpus: data.Corpus) -> None:
    trunk, keep = known(trunk_spec(shape=(16, 1), lr=1e3), corpus), Store(tmp_path)
    [record] = grown(trial(trunk, run_spec(trunk, 12, 4)), keep, corpus)
    assert record.diverged_at == 10 * BATCH
    found = rerun.rerun(asked, keep, record.fingerprint_of)
    assert (found["equal"], found["loss"]) == (True, None)
    rewritten(keep, record, diverged_at=16 * BATCH)
    found = rerun.rerun(asked, keep, record.fingerprint_of)
    assert found["first_difference"]["what"] == "diverged_at"


def test_what_names_no_run_or_several(measured: tuple[Store, Record], asked: Study, tmp_path: Path) -> None:
    keep, record = measured
    keep.write_record(record.replaced(fingerprint_of="f" * 16))
    for name, rule in (("none", "is the beginning of no run; got 'none'"), ("", "several runs; got ''; choices: ")):
        with pytest.raises(UserError, match=rule):
            rerun.rerun(asked, keep, name)


@pytest.mark.fault(21)
def test_a_changed_corpus_is_refused(
    measured: tuple[Store, Record], asked: Study, tmp_path_factory: pytest.TempPathFactory
) -> None:
    keep, record = measured
    folder = tmp_path_factory.mktemp("changed")
    for i in range(20):
        (folder / f"{i}.txt").write_text(f"another text {i} " * 30)
    other = asked.model_copy(update={"data": asked.data.model_copy(update={"paths": (f"{folder}/*.txt",)})})
    with pytest.raises(UserError, match="the corpus changed since the run read it"):
        rerun.rerun(other, keep, record.fingerprint_of)


def test_the_command_exits_1_where_it_differs(
    measured: tuple[Store, Record], documents: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    keep, record = measured
    (keep.root / "study.toml").write_text(STUDY.format(paths=documents.paths[0]))
    for loss, code in ((record.loss, 0), (1.0, 1)):
        rewritten(keep, record, loss=loss)
        with pytest.raises(SystemExit) as end:
            cli.app(["rerun", str(keep.root), record.fingerprint_of[:6], "--json"])
        assert end.value.code == code
        found = json.loads(capsys.readouterr().out)
        assert found["equal"] == (code == 0)
    assert found["first_difference"]["recorded"] == 1.0
