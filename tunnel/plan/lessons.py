"""Whom a student learns from, and what is tuned: runs of earlier stages, or a checkpoint that the study names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunnel.errors import UserError
from tunnel.run import Checkpoint, Lesson, RunSpec, Task
from tunnel.space import Scalar
from tunnel.study import Stage, Study
from tunnel.training import tasks, teachers

RUN = "run:"  # and a stage's name: its best run, among what is handed on
TASK = "task:"  # and a task's name: what it was when the stage began, so that a copied folder needs no files of it
# The authors' code: temperature 8 without its square, which is w = 1/64; hidden states at 1.  *from paper*: SCIENCE §7
USUAL: dict[str, Scalar] = {"temperature": 8.0, "soft_weight": 1 / 64, "hidden_weight": 1.0, "layer_map": "uniform"}


def begins(study: Study, stage: Stage, values: Mapping[str, Scalar], width: int) -> dict[str, Any]:
    """What a stage's trunk begins with, and learns from or is tuned on, as fields of its spec."""
    if stage.kind == "finetune":
        start = RunSpec.model_validate_json(str(values[RUN + str(values["model"])]))
        return {"start": start, "task": task_of(study, str(values["task"]), values)}
    if stage.kind != "distill":
        return {}
    told = {k: values.get(k, usual) for k, usual in USUAL.items()}
    name = str(values.get("teacher", stage.teachers[0]))
    teacher = teacher_of(study, name, values)
    lesson = Lesson(name=name, teacher=teacher, **told)
    if not stage.start_layers:
        return {"lesson": lesson}
    where = f"stage.{stage.name}.start_layers"
    if isinstance(teacher, Checkpoint):
        raise UserError("needs a teacher that is a stage of this study", key=where, value=name)
    if teacher.trunk.shape.width != width:
        raise UserError(f"needs the teacher's width, {teacher.trunk.shape.width}", key=where, value=width)
    return {"lesson": lesson, "start": teacher}


def settings(handed: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """What is handed on, but for whole runs and tasks."""
    return {k: v for k, v in handed.items() if not k.startswith((RUN, TASK))}


def tasks_of(study: Study, stage: Stage) -> dict[str, Scalar]:
    """A stage's tasks as they are now, to be handed on."""
    return {TASK + name: task_of(study, name, {}).model_dump_json() for name in stage.tasks}


def tasks_known(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Scalar]:
    """The tasks that the stages of a study.resolved.json were handed."""
    return {k: v for s in stages.values() for k, v in s["handed_on"].items() if k.startswith(TASK)}


def task_of(study: Study, name: str, values: Mapping[str, Scalar]) -> Task:
    if TASK + name in values:
        return Task.model_validate_json(str(values[TASK + name]))
    return tasks.spec(next(t for t in study.task if t.name == name))


def teacher_of(study: Study, name: str, values: Mapping[str, Scalar]) -> RunSpec | Checkpoint:
    found = next((t for t in study.teacher if t.name == name), None)
    if found is not None:
        return Checkpoint(name=found.path, digest=teachers.digest(found.path))
    return RunSpec.model_validate_json(str(values[RUN + name]))
