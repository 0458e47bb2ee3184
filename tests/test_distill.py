"""Students: what they learn from is computed once, forks are exact, layers match, and a study says it in one line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BATCH, SEQ_LEN, run_spec, trunk_spec
from test_encoder import STUDY, chinese, texts, wordy
from test_forks import assert_same, measured

from tunnel import plan, study
from tunnel.errors import UserError
from tunnel.families import State, encoder
from tunnel.folder import checkpoint
from tunnel.folder.store import Store
from tunnel.run import Checkpoint, Lesson, RunSpec, Shape, Trial, TrunkSpec
from tunnel.sweeps import rerun, sweep
from tunnel.training import data, distill, forks, teachers

__all__ = ["chinese", "texts"]  # fixtures
TEACHER = run_spec(wordy().replaced(shape=Shape(width=48, depth=4)), 6, 2)


def lesson(**changed: Any) -> Lesson:
    told = {"temperature": 8.0, "soft_weight": 1 / 64, "hidden_weight": 1.0, "layer_map": "uniform"}
    return Lesson(**{"name": "big", "teacher": TEACHER, **told, **changed})


def student(**changed: Any) -> TrunkSpec:
    return wordy(**changed).replaced(lesson=lesson())


@pytest.fixture(autouse=True)
def lessons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(distill, "folder", lambda: tmp_path / "lessons")
    return tmp_path / "lessons"


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, chinese: data.Corpus) -> State:
    """The teacher's last state."""
    keep = Store(tmp_path_factory.mktemp("teacher"))
    work = forks.Work(Trial(stage="s", number=0, runs=(TEACHER,)), keep, chinese)
    for _ in forks.alone(work.last(TEACHER)):
        pass
    found = keep.load_state(TEACHER.state, TEACHER.tokens)
    assert found is not None
    return found


def begun(trunk: TrunkSpec, corpus: data.Corpus, taught: State) -> Any:
    grown = encoder.grown(trunk, corpus)
    grown.begin({use: taught for use in trunk.needs})
    return grown


def copied(grown: Any) -> dict[str, np.ndarray]:
    return {k: v.copy() for k, v in grown.state()[0].items()}


@pytest.mark.parametrize(
    ("kind", "student", "teacher", "layers"),
    [
        ("uniform", 6, 12, (0, 2, 4, 6, 8, 10, 12)),  # MiniRBT's assistant  *from paper*
        ("uniform", 6, 6, (0, 1, 2, 3, 4, 5, 6)),
        ("uniform", 8, 4, (0, 0, 1, 2, 2, 2, 3, 4, 4)),
        ("last", 2, 6, (0, 5, 6)),
        ("last", 4, 2, (0, 0, 0, 1, 2)),
    ],
)
def test_which_layers_match(kind: str, student: int, teacher: int, layers: tuple[int, ...]) -> None:
    assert encoder.layer_map(kind, student, teacher) == layers


def test_the_loss_is_what_it_says(chinese: data.Corpus, taught: State) -> None:
    """Against the plain formula, with a teacher built from its state and nothing kept."""
    grown = begun(student(), chinese, taught)
    batch = grown.batch()
    model, where = grown.teacher.loaded(), batch[:, 1] != -100
    with torch.no_grad():
        theirs = model(input_ids=batch[:, 0], output_hidden_states=True)
        ours = grown.model(input_ids=batch[:, 0], output_hidden_states=True)
        target = (theirs.logits[where] / 8).softmax(-1)
        soft = -(target * (ours.logits[where] / 8).log_softmax(-1)).sum(-1).mean()
        maps = grown.model.projection
        pairs = zip(maps, ours.hidden_states, (0, 2, 4), strict=True)
        states = sum(((m(h) - theirs.hidden_states[i]) ** 2).mean() for m, h, i in pairs) / 3
    loss = grown.backward(batch)
    assert loss.item() == pytest.approx((soft + states).item(), rel=1e-3)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(chinese: data.Corpus, taught: State) -> None:
    trunk = TEACHER.trunk.replaced(start=TEACHER, lesson=lesson())
    grown = begun(trunk, chinese, taught)
    assert not len(grown.model.projection)
    soft, states = grown.lessons(grown.batch())
    assert states.item() < 1e-6
    own = grown.teacher.logits(grown.teacher.says(0, grown.batch()[:, 1] != -100, (0,))[0]) / 8
    assert soft.item() == pytest.approx(-(own.softmax(-1) * own.log_softmax(-1)).sum(-1).mean().item(), abs=1e-4)


def test_a_student_begins_with_the_layers_that_it_matches(chinese: data.Corpus, taught: State) -> None:
    trunk = student().replaced(shape=Shape(width=48, depth=2), start=TEACHER)
    grown, arrays = begun(trunk, chinese, taught), taught[0]
    for name, p in grown.model.named_parameters():
        theirs = name.replace("layer.1.", "layer.3.").replace("layer.0.", "layer.1.")
        assert torch.equal(p.detach(), torch.from_numpy(arrays[f"model.{theirs}"].copy())), name


def test_forks_are_exact_whoever_computed_the_lessons(
    tmp_path: Path, chinese: data.Corpus, taught: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk, keep = student(), Store(tmp_path / "s")
    trial = Trial(stage="s", number=0, runs=(run_spec(trunk, 3, 2), run_spec(trunk, 6, 3)))
    records = measured(trial, keep, chinese)
    computed = distill.Teacher.computed
    asked = list[int]()

    def counting(self: Any, chunk: int, layers: tuple[int, ...]) -> Any:
        asked.append(chunk)
        return computed(self, chunk, layers)

    monkeypatch.setattr(distill.Teacher, "computed", counting)
    for limit in (None, "0"):  # read what was kept; keep nothing
        if limit is not None:
            shutil.rmtree(distill.folder())
            monkeypatch.setenv("TUNNEL_LESSONS", limit)
        for record, run in zip(records, trial.runs, strict=True):
            grown = begun(trunk, chinese, taught)
            while grown.tokens < run.tokens:
                grown.step(run.multiplier(grown.tokens))
            assert grown.evaluate() == record.loss
            assert checkpoint.digests(*grown.state()) == record.final
        assert asked == ([] if limit is None else [0, 0])
    assert not list(distill.folder().glob("*/*.npy"))


def test_a_killed_student_goes_on_exactly(chinese: data.Corpus, taught: State) -> None:
    one = begun(student(), chinese, taught)
    for _ in range(4):
        one.step(1.0)
    arrays, meta = copied(one), one.state()[1]
    two = begun(student(), chinese, taught)
    two.restore(arrays, meta)
    one.step(0.5)
    two.step(0.5)
    assert_same(copied(one), copied(two))
    assert any(k.startswith("model.projection.") for k in arrays)


def test_micro_batches_are_the_batch(chinese: data.Corpus, taught: State) -> None:
    whole, parts = (begun(student(micro_batch_tokens=m), chinese, taught) for m in (BATCH, SEQ_LEN))
    assert whole.backward(whole.batch()).item() == pytest.approx(parts.backward(parts.batch()).item(), rel=1e-5)


def test_what_a_machine_keeps_is_bounded_and_what_is_damaged_is_computed_again(
    chinese: data.Corpus, taught: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown = begun(student(), chinese, taught)
    first = grown.backward(grown.batch()).item()
    files = sorted(distill.folder().glob("*/*.npy"))
    assert len(files) == 4  # three layers and the head
    files[0].write_bytes(files[0].read_bytes()[:100])
    assert begun(student(), chinese, taught).backward(grown.batch()).item() == first
    most = files[1].stat().st_size + 200
    monkeypatch.setenv("TUNNEL_LESSONS", str(most))
    grown.teacher.computed(1, (0, 1))
    assert 0 < sum(p.stat().st_size for p in distill.folder().glob("*/*.npy")) <= most


def test_a_teacher_may_be_a_checkpoint(tmp_path: Path, chinese: data.Corpus, taught: State) -> None:
    own = begun(student(), chinese, taught)
    own.teacher.loaded().save_pretrained(tmp_path / "ckpt")
    named = Checkpoint(name=str(tmp_path / "ckpt"), digest=teachers.digest(str(tmp_path / "ckpt")))
    trunk = student().replaced(lesson=lesson(teacher=named))
    assert trunk.needs == {}
    other = begun(trunk, chinese, taught)
    assert other.backward(other.batch()).item() == own.backward(own.batch()).item()
    (tmp_path / "ckpt" / "config.json").write_text((tmp_path / "ckpt" / "config.json").read_text() + " ")
    with pytest.raises(UserError, match="changed since the study began"):
        begun(trunk, chinese, taught)


def test_lessons_are_identity_and_no_part_of_old_specs() -> None:
    trunk = wordy()
    prints = {trunk.replaced(lesson=lesson(**k)).fingerprint for k in ({}, {"temperature": 4.0}, {"layer_map": "last"})}
    assert len(prints | {trunk.fingerprint}) == 4
    run = RunSpec(trunk=trunk.replaced(lesson=lesson()), decay_start=0, decay_tokens=1, decay_shape="linear")
    assert RunSpec.model_validate_json(run.model_dump_json()).fingerprint == run.fingerprint
    before = trunk_spec(family="encoder").model_dump(exclude={"start", "lesson"})  # as 0.5 wrote it
    assert TrunkSpec.model_validate(before).fingerprint == trunk_spec(family="encoder").fingerprint


TWO = (
    STUDY.replace(
        'shapes = [[16, 1]]\nrungs = {{ tokens = ["2k"] }}\nspace = {{ masking = ["words", "tokens"] }}',
        'shapes = [[32, 2]]\nrungs = {{ tokens = ["2k"] }}',
    ).replace('name = "masks"', 'name = "big"')
    + """
[[stage]]
name = "assistant"
kind = "distill"
shapes = [[32, 1]]
rungs = {{ tokens = ["1k"] }}
start_layers = true
space = {{ teacher = "big" }}
[[stage]]
name = "students"
kind = "distill"
shapes = [[16, 2]]
rungs = {{ tokens = ["1k"] }}
  [stage.space]
  teacher = ["big", "assistant"]
  temperature = 4.0
[resources]
backend = "inline"
"""
)


def test_two_stages_end_to_end(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text(TWO.format(corpus=texts))
    asked, keep = sweep.opened(tmp_path / "two.toml", tmp_path / "out")
    state = sweep.sweep(asked, keep)
    assert state["trials"]["complete"] == 4
    rows = keep.readings().set_index("stage")
    assert set(rows.loc["students"].teacher) == {"big", "assistant"}
    assert set(rows.loc["students"].temperature) == {4.0}
    by = {r.stage: r for r in keep.records()}
    big, helper = by["big"].run, by["assistant"].run
    assert helper.trunk.start == helper.trunk.lesson.teacher == big  # type: ignore[union-attr]
    assert {r.run.trunk.lesson.teacher.trunk.shape.depth for r in keep.records() if r.stage == "students"} == {2, 1}  # type: ignore[union-attr]
    again = sweep.sweep(asked, keep)
    assert again["trials"] == state["trials"]
    assert len(keep.records()) == 4
    again = rerun.rerun(asked, keep, by["students"].fingerprint_of)
    assert again["equal"], again["first_difference"]


SEARCHED = (
    TWO[: TWO.index('[[stage]]\nname = "students"')]
    + """
[[stage]]
name = "search"
kind = "distill"
  [stage.space]
  width = 16
  depth = 2
  teacher = ["big", "assistant"]
  temperature = {{ low = 1, high = 8 }}
  soft_weight = {{ low = 0.1, high = 1, log = true }}
  layer_map = ["uniform", "last"]
  [stage.budget]
  trials = 4
  tokens = "512"
  [stage.sampler]
  name = "sobol"
[[stage]]
name = "after"
kind = "distill"
after = "search"
shapes = [[16, 2]]
rungs = {{ tokens = ["1k"] }}
space = {{ teacher = "big" }}
[resources]
backend = "inline"
"""
)


@pytest.mark.slow
def test_a_lesson_is_searched_and_handed_on(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(SEARCHED.format(corpus=texts))
    asked, keep = sweep.opened(tmp_path / "s.toml", tmp_path / "out")
    assert sweep.sweep(asked, keep)["trials"]["complete"] == 7
    told = keep.readings().set_index("stage")
    assert told.loc["search"].temperature.nunique() == 4
    assert set(told.loc["search"].teacher) == {"big", "assistant"}
    best = told.loc["search"].sort_values("loss").iloc[0]
    assert told.loc["after"].layer_map == best.layer_map
    assert 1 <= told.loc["after"].temperature <= 8
    assert told.loc["after"].teacher == "big"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('space = {{ teacher = "big" }}', "", "a distill needs space.teacher"),
        ('teacher = "big"', 'teacher = "huge"', "teacher 'huge' is no earlier stage; choices: big"),
        ("temperature = 4.0", "temperature = 0.0", "temperature must be above 0"),
        (
            'kind = "ladder"',
            'kind = "ladder"\nspace = {{ layer_map = "last" }}',
            "layer_map belongs to a stage",
        ),
        ("shapes = [[32, 1]]", "shapes = [[16, 1]]", "start_layers: needs the teacher's width, 32; got 16"),
        ('name = "students"', 'name = "s2"\nstart_layers = true', "stage.s2.start_layers: needs the teacher's width"),
    ],
)
def test_what_a_study_gets_wrong_is_one_line(texts: Path, old: str, new: str, said: str) -> None:
    assert old in TWO
    with pytest.raises(UserError, match=said):
        plan.plan(study.parse(TWO.replace(old, new).format(corpus=texts), "s.toml"))


def test_a_checkpoint_that_is_none_is_one_line(texts: Path, tmp_path: Path) -> None:
    text = TWO.replace('teacher = "big"', 'teacher = "ours"') + f'[[teacher]]\nname = "ours"\npath = "{tmp_path}"\n'
    with pytest.raises(UserError, match=r"teacher.path: has no config.json beside weights"):
        plan.plan(study.parse(text.format(corpus=texts).replace("start_layers = true", ""), "s.toml"))
