"""Tasks: what a finished encoder keeps of its teacher's score, what a task's files get wrong, exact forks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import SEQ_LEN, run_spec
from test_distill import TWO
from test_encoder import chinese, texts, wordy
from test_forks import measured

from tunnel import plan, study
from tunnel.answers import retention, seeds
from tunnel.errors import UserError
from tunnel.families import encoder
from tunnel.folder.store import Store
from tunnel.run import Record, RunSpec, Trial
from tunnel.study import Stage
from tunnel.study.lessons import Task
from tunnel.sweeps import rerun, sweep
from tunnel.training import data, tasks, words

__all__ = ["chinese", "texts"]  # fixtures


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task that the first token tells; texts of several lengths."""
    folder, rng = tmp_path_factory.mktemp("tasks"), np.random.default_rng(0)
    for name, n in (("easy", 100), ("pairs", 40)):
        with open(folder / f"{name}.jsonl", "w") as file:
            for i in range(n):
                first, label = (("loss", "down"), ("model", "up"))[i % 2]
                text = " ".join([first, *rng.choice(["the", "a", "batch"], rng.integers(1, 30)), str(i)])
                file.write(json.dumps({"text": text, "text2": f"{label} {i}", "label": label}) + "\n")
    return folder


def asked(rows: Path, **changed: Any) -> Task:
    return Task(**{"name": "easy", "paths": (str(rows / "easy.jsonl"),), **changed})


def test_a_task_is_named_by_its_content(rows: Path, tmp_path: Path) -> None:
    one = tasks.spec(asked(rows))
    assert (one.labels, one.examples + len(tasks.examples(asked(rows)).held_out)) == (2, 100)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes((rows / "easy.jsonl").read_bytes())
    assert tasks.spec(asked(rows, paths=(str(copy),))).digest == one.digest
    copy.write_text(copy.read_text().replace("batch", "Batch"))
    assert tasks.spec(asked(rows, paths=(str(copy),))).digest != one.digest
    with pytest.raises(UserError, match="changed since a run read it"):
        tasks.again(one.replaced(digest="0" * 16))


def test_texts_are_cut_and_padded() -> None:
    marks, encode = words.BYTES, tasks.encoder("bytes", "")
    got = tasks.encoded([(("ab",), 1), (("abcdef", "xy"), 0)], encode, marks, 8)
    assert got[0].tolist() == [[marks.begin, 97, 98, 0, *[marks.pad] * 4], [0] * 8, [1] * 8]
    assert got[1].tolist() == [[marks.begin, 97, 98, 99, 0, 120, 121, 0], [0, 0, 0, 0, 0, 1, 1, 1], [0] * 8]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: is not a row with text and label"),
        ('{"text": 3, "label": "a"}', "line 2: is not a row with text and label"),
        ('{"text": "a", "label": "a"}', "easy: needs 2 to 64 labels; got 1"),
        ('{"text": "a", "label": "b"}', "easy: needs examples to train on, and examples to hold out"),
    ],
)
def test_what_a_file_gets_wrong_is_one_line(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "a", "label": "a"}\n' + line + "\n")
    with pytest.raises(UserError, match=said):
        tasks.spec(Task(name="easy", paths=(f"{tmp_path}/t.jsonl",)))


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, chinese: data.Corpus) -> tuple[Store, RunSpec]:
    keep, run = Store(tmp_path_factory.mktemp("body")), run_spec(wordy(), 30, 10)
    measured(Trial(stage="big", number=0, runs=(run,), keeps=True), keep, chinese)
    return keep, run


@pytest.mark.parametrize("kind", [pytest.param("classify", marks=pytest.mark.slow), "pair"])
def test_a_task_is_learned_and_forks_are_exact(
    chinese: data.Corpus, rows: Path, taught: tuple[Store, RunSpec], kind: str
) -> None:
    keep, body = taught
    task = tasks.spec(asked(rows, kind=kind))
    trunk = wordy(lr=0.003, warmup=0).replaced(start=body, task=task)
    runs = (run_spec(trunk, 20, 10), run_spec(trunk, 40, 20))
    records = measured(Trial(stage="tune", number=0, runs=runs), keep, chinese)
    assert records[1].scores["accuracy"] > 0.95
    assert records[1].bpb is None
    held = tasks.examples(asked(rows, kind=kind)).held_out
    right = [tasks.LETTERS[label] == said for (_, label), said in zip(held, records[1].predicted, strict=True)]
    assert np.mean(right) == records[1].scores["accuracy"]
    assert records[1].scores["latency"] > 0
    state = keep.load_state(body.fingerprint, body.tokens)
    assert state is not None
    for run, record in zip(runs, records, strict=True):
        grown: Any = encoder.grown(trunk, chinese)
        grown.begin({"start": state})
        while grown.tokens < run.tokens:
            grown.step(run.multiplier(grown.tokens))
        assert grown.evaluate() == record.loss


def test_an_epoch_is_every_example_once(chinese: data.Corpus, rows: Path, taught: tuple[Store, RunSpec]) -> None:
    trunk = wordy().replaced(start=taught[1], task=tasks.spec(asked(rows)))
    grown: Any = encoder.grown(trunk, chinese)
    n, seen = len(grown.train), []
    for _ in range(-(-2 * n // 4)):
        seen += [row.tobytes() for row in grown.batch().numpy()]
        grown.tokens += 4 * SEQ_LEN
    assert set(seen[:n]) == set(seen[n : 2 * n]) == {row.tobytes() for row in grown.train}
    assert seen[:n] != seen[n : 2 * n]


TUNED = TWO.replace("temperature = 4.0\n", "temperature = 4.0\n  [stage.budget]\n  seeds = [0, 1]\n") + (
    """
[[task]]
name = "easy"
paths = ["{rows}/easy.jsonl"]
[[task]]
name = "pairs"
kind = "pair"
paths = ["{rows}/pairs.jsonl"]
[[stage]]
name = "tuned"
kind = "finetune"
models = ["big", "students"]
rungs = {{ epochs = [0.5, 1] }}
widen = 0
  [stage.space]
  task = ["easy", "pairs"]
"""
)


@pytest.fixture(scope="module")
def tuned(texts: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small study that ran to its end."""
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "t.toml").write_text(TUNED.format(corpus=texts, rows=rows))
    made, keep = sweep.opened(folder / "t.toml", folder / "out")
    assert [s["trials"] for s in plan.plan(made)["stages"]] == [1, 1, 4, 10]
    assert sweep.sweep(made, keep)["trials"]["complete"] == 16
    return folder / "out"


def test_a_study_tunes_what_it_trained(tuned: Path) -> None:
    made, keep = sweep.frozen(tuned)
    found = [r for r in keep.records() if r.stage == "tuned"]
    starts = {r.run.trunk.start.fingerprint for r in found if r.run.trunk.start}
    assert starts == {r.fingerprint_of for r in keep.records() if r.stage in ("big", "students")}
    assert {"task", "score.accuracy"} <= set(keep.readings().columns)
    again = rerun.rerun(made, keep, found[0].fingerprint_of)
    assert again["equal"], again["first_difference"]


def test_a_copied_folder_needs_no_file_of_its_tasks(tuned: Path, rows: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tuned, copy)
    (copy / "study.toml").write_text((copy / "study.toml").read_text().replace(str(rows), str(tmp_path / "nowhere")))
    assert sweep.status(*sweep.frozen(copy))["trials"]["complete"] == 16


def test_retention_is_by_task_and_never_by_the_mean(tuned: Path) -> None:
    made, keep = sweep.frozen(tuned)
    table, tasks_ = (pd.DataFrame((f(made, keep) or {})["rows"]) for f in (retention.kept, retention.by_task))
    table = table.set_index("model")
    assert list(table.index) == ["big-32x2", "students-16x2-big", "students-16x2-assistant"]
    assert table.verdict.iloc[0] == "the teacher"
    assert list(table.seeds) == [1, 2, 2]
    assert (table.loc["big-32x2", ["mean kept %", "faster", "% of teacher"]] == [100, 1, 100]).all()
    own = tasks_.set_index(["model", "task"])
    assert own.loc[("big-32x2", "easy"), "agreement %"] == 100
    kept = own.loc["students-16x2-big"]["kept %"]
    assert table.loc["students-16x2-big", "worst kept %"] == kept.min()
    assert table.loc["students-16x2-big", "mean kept %"] == pytest.approx(kept.mean(), abs=0.1)
    assert 0 < table.loc["students-16x2-big", "% of teacher"] < 100
    best: dict[int, Record] = {}  # by hand: of each seed's model the epochs of least loss
    for r in keep.records():
        start, task = r.run.trunk.start, r.run.trunk.task
        if task is not None and task.name == "easy" and start is not None and start.trunk.lesson is not None:
            seed = start.trunk.seed
            if start.trunk.lesson.name == "big" and (seed not in best or (r.loss or 9) < (best[seed].loss or 9)):
                best[seed] = r
    scores = [r.scores["accuracy"] for r in best.values()]
    assert own.loc[("students-16x2-big", "easy"), "score"] == pytest.approx(np.mean(scores), abs=1e-4)


def test_a_gate_is_each_task_s_own() -> None:
    stage = Stage(name="t", kind="finetune", models=("a",), space={"task": "x"}, rungs={"epochs": [1]})

    def model(x: float, y: float) -> Any:
        scores = {"latency": 1.0, "throughput": 1.0, "memory": 1.0, "parameters": 1.0, "guess": 0.5}
        each = {"x": x, "y": y}
        return retention.Tuned(
            f"m{x}-{y}",
            {t: SimpleNamespace(predicted="0" * 100, scores={"accuracy": v, **scores}) for t, v in each.items()},  # type: ignore[misc]
        )

    def told(ours: Any, theirs: Any) -> dict[str, Any]:
        return retention.kept_row(stage, [ours], theirs, [ours])

    row = told(model(1.0, 0.7), model(0.8, 0.8))
    assert (row["mean kept %"], row["worst kept %"], row["verdict"]) == (106.2, 87.5, "refused: y")
    assert told(model(0.8, 0.73), model(0.8, 0.8))["verdict"] == "accepted"
    mute = told(model(0.8, 0.5), model(0.8, 0.55))
    assert mute["verdict"] == "undecided: y", "a teacher that guesses gates nothing"
    assert told(model(0.6, 0.5), model(0.8, 0.55))["verdict"] == "refused: x"


def test_depth_is_held_against_width_by_seed(tuned: Path) -> None:
    rows = {"width": [64] * 3 + [16] * 3, "depth": [1] * 3 + [8] * 3, "seed": [0, 1, 2] * 2, "lr": 0.1}
    frame = pd.DataFrame({**rows, "loss": [2.0, 2.2, 2.1, 1.9, 2.09, 1.995]})
    wide, deep = frame[:3], frame[3:]
    off, low, high = seeds.apart(deep, wide)
    assert off == pytest.approx(-5, abs=1e-6)
    assert (low, high) == pytest.approx((-5, -5), abs=1e-6)
    stage = Stage(name="s", kind="ladder", shapes=[[64, 1], [16, 8]], rungs={"tokens": [1]})
    assert retention.answer(stage, "", [wide, deep])[0].endswith("narrow and deep wins")
    assert "not to be told apart" in retention.answer(stage, "", [wide, deep.assign(loss=[1.9, 2.3, 2.1])])[0]
    assert retention.depths(*sweep.frozen(tuned)) is None  # one shape a stage


def test_the_page_shows_what_students_keep(tuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("streamlit")
    from test_dashboard import charts, look

    app = look(monkeypatch, tuned.parent, "retention")
    assert not app.exception
    assert charts(app) == 2
    assert list(app.dataframe[0].value.model) == ["big-32x2", "students-16x2-big", "students-16x2-assistant"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('models = ["big", "students"]', "", "a finetune needs models"),
        ('models = ["big", "students"]', 'models = ["huge"]', "models names 'huge'; choices: big, assistant, students"),
        ('task = ["easy", "pairs"]', 'task = "hard"', "task names 'hard'; choices: easy, pairs"),
        ("epochs = [0.5, 1]", 'tokens = ["1k"]', "a finetune needs rungs"),
        ("easy.jsonl", "none.jsonl", "task.easy.paths: no file of the task exists"),
    ],
)
def test_what_a_study_gets_wrong_is_one_line(texts: Path, rows: Path, old: str, new: str, said: str) -> None:
    assert old in TUNED
    with pytest.raises(UserError, match=said):
        plan.plan(study.parse(TUNED.replace(old, new).format(corpus=texts, rows=rows), "s.toml"))
