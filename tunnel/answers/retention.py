"""What students keep of their teacher: depth against width at held-out loss, and scores and speed on tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tunnel import families, plan, tuned
from tunnel.answers.seeds import apart, best_lr, rounded, spread
from tunnel.folder.store import Store
from tunnel.run import Record, RunSpec, Shape
from tunnel.study import Stage, Study

Rows = list[dict[str, Any]]
Told = dict[str, Any]
TEACHER = "the teacher"  # in place of a verdict


def depths(asked: Study, keep: Store) -> Told | None:
    """Encoders' shapes side by side, by stage and teacher; None where no stage has several.

    rows: stage, teacher, shape, N, parameters (tokens' rows included), D, seeds, held-out loss (nats per hidden token)
    with a 90% interval from seeds, and what percent it lies off the widest, by seed. A shape counts at its best lr.
    """
    if not families.hides(asked.family):
        return None
    rows, words = Rows(), list[str]()
    readings = keep.readings()
    for stage in (s for s in asked.stage if len(s.shapes) > 1):
        found = tuned.last_rung(tuned.of_stage(readings, stage.name))
        by = [k for k in ("teacher", "masking") if k in found and found[k].nunique() > 1]
        for which, here in found.groupby(by, sort=False) if by else [((), found)]:
            each = [best_lr(body) for _, body in here.groupby(["width", "depth"])][::-1]
            told = " ".join(map(str, which))
            rows += [depth_row(asked, stage, told, body, each[0]) for body in each]
            words += answer(stage, told, each)
        words += [line for _, body in found.groupby(["width", "depth"]) for line in ways(stage, body, stage.teachers)]
    return {"rows": rows, "words": words} if rows else None


def depth_row(asked: Study, stage: Stage, which: str, body: pd.DataFrame, widest: pd.DataFrame) -> dict[str, Any]:
    first, (low, high), (off, least, most) = body.iloc[0], spread(body.loss), apart(body, widest)
    return {
        "stage": stage.name,
        "of": which,
        "shape": f"{first.width}×{first.depth}",
        "N": int(first.N),
        "parameters": int(first.N_embed),
        "D": int(body.D.mean()),
        "seeds": len(body),
        "loss": rounded(float(body.loss.mean()), 4),
        "low": rounded(low, 4),
        "high": rounded(high, 4),
        "% off widest": rounded(off, 2),
        "from": rounded(least, 2),
        "to": rounded(most, 2),
    }


def answer(stage: Stage, which: str, each: list[pd.DataFrame]) -> list[str]:
    """Whether the deepest beats the widest; only an interval that leaves out 0 is an answer."""
    deepest, widest = max(each, key=lambda b: float(b.depth.iloc[0])), each[0]
    if deepest is widest:
        return []
    off, low, high = apart(deepest, widest)
    names = [f"{b.width.iloc[0]}×{b.depth.iloc[0]}" for b in (deepest, widest)]
    where = f"{stage.name}{f' ({which})' if which else ''}: {names[0]} against {names[1]}: {off:+.2f}%"
    if math.isnan(low):
        return [f"{where}, without an interval: more seeds would give one"]
    verdict = "narrow and deep wins" if high < 0 else "wide and shallow wins" if low > 0 else "not to be told apart"
    return [f"{where} ({low:+.2f} to {high:+.2f}): {verdict}"]


def ways(stage: Stage, body: pd.DataFrame, teachers: tuple[str, ...]) -> list[str]:
    """What another teacher than the first is worth to a shape: one stage against two, where one is an assistant."""
    each = {t: best_lr(own) for t in teachers if len(own := body[body.teacher == t])}
    first, *others = each or [""]
    shape = f"{stage.name}: {body.width.iloc[0]}×{body.depth.iloc[0]}"
    found = []
    for other in others:
        off, low, high = apart(each[other], each[first])
        told = "better" if high < 0 else "worse" if low > 0 else "not to be told apart"
        span = "no interval" if math.isnan(low) else f"{low:+.2f} to {high:+.2f}"
        found.append(f"{shape} taught by {other} against {first}: {off:+.2f}% ({span}): {told}")
    return found


@dataclass(frozen=True)
class Tuned:
    """A finished model at its best lr and epochs on each task."""

    label: str  # without its seed
    best: Mapping[str, Record]  # by task


def kept(asked: Study, keep: Store) -> Told | None:
    """What each model keeps of the teacher, and what it costs; None where nothing was tuned.

    rows: model, seeds, parameters and their percent of the teacher's, mean percent kept of its score over the tasks
    (with a 90% interval from seeds) and the worst of these, the verdict, which goes by each task, how many times as
    fast with one sequence and with a batch, and megabytes of the weights.
    """
    rows, words = Rows(), list[str]()
    for stage, teacher, each in tuned_models(asked, keep):
        every = [m for same in each for m in same]
        rows += [kept_row(stage, same, teacher, [m for m in every if shape(m) == shape(same[0])]) for same in each]
        words += [headline(r) for r in rows if r["verdict"] != TEACHER]
        told = ", ".join(f"{t} {100 * r.scores['guess']:.0f}%" for t, r in teacher.best.items())
        words.append(f"the commonest label alone scores: {told}; what is kept begins there, not at 0")
        words += [
            f"{t}: the teacher itself hardly beats that, so it says nothing of its students" for t in mute(teacher)
        ]
    return {"rows": rows, "words": words} if rows else None


def by_task(asked: Study, keep: Store) -> Told | None:
    """Each model on each task, with the verdict there; None where nothing was tuned.

    rows: task, model, seeds, score (accuracy, held out), percent kept of the teacher's with a 90% interval from seeds,
    the verdict, and the percent of examples of which both say the same.
    """
    rows = Rows()
    for stage, teacher, each in tuned_models(asked, keep):
        for task in teacher.best:
            for same in each:
                shares = pd.Series([100 * share(m, teacher, task) for m in same])
                low, high = spread(shares)
                passed = "accepted" if shares.mean() >= 100 * stage.accept else "refused"
                rows.append(
                    {
                        "task": task,
                        "model": same[0].label,
                        "seeds": len(same),
                        "score": rounded(mean(score(m, task) for m in same), 4),
                        "kept %": rounded(float(shares.mean()), 1),
                        "from": rounded(low, 1),
                        "to": rounded(high, 1),
                        "verdict": TEACHER if teacher in same else "undecided" if task in mute(teacher) else passed,
                        "agreement %": rounded(100 * mean(agreement(m, teacher, task) for m in same), 1),
                    }
                )
    return {"rows": rows, "words": []} if rows else None


def tuned_models(asked: Study, keep: Store) -> Iterator[tuple[Stage, Tuned, list[list[Tuned]]]]:
    """Of each stage that tunes: its teacher, and its models by label, each at all seeds; those on all tasks."""
    for stage in (s for s in asked.stage if s.kind == "finetune"):
        found = models(stage, keep)
        whole = [m for m in found if m.best.keys() == set(stage.tasks)]
        teachers = [m for m in whole if m.label.startswith(f"{stage.models[0]}-")]
        if teachers:
            teacher = max(teachers, key=lambda m: mean(r.scores["accuracy"] for r in m.best.values()))
            yield stage, teacher, [[m for m in whole if m.label == x] for x in dict.fromkeys(m.label for m in whole)]


def models(stage: Stage, keep: Store) -> list[Tuned]:
    """What a stage tuned, in the order of its models, at the least held-out loss of each task that is measured."""
    handed = tuned.handed_on(keep, stage)
    labels = {k.removeprefix(plan.RUN): str(v) for k, v in handed.items() if k.startswith(plan.RUN)}
    named = {RunSpec.model_validate_json(v).fingerprint: label for label, v in labels.items()}
    best: dict[str, dict[str, Record]] = {label: {} for label in labels}
    for r in keep.records():
        start, task = r.run.trunk.start, r.run.trunk.task
        if r.loss is None or start is None or task is None or start.fingerprint not in named:
            continue
        mine = best[named[start.fingerprint]]
        if task.name not in mine or r.loss < (mine[task.name].loss or math.inf):
            mine[task.name] = r
    return [Tuned(label.rpartition("-s")[0], own) for label, own in best.items() if own]


def kept_row(stage: Stage, same: list[Tuned], teacher: Tuned, alike: list[Tuned]) -> dict[str, Any]:
    """A row of `kept`; `alike`: what has its shape, and so its speed."""
    each = {t: 100 * mean(share(m, teacher, t) for m in same) for t in teacher.best}
    means = pd.Series([100 * mean(share(m, teacher, t) for t in each) for m in same])
    low, high = spread(means)
    silent = mute(teacher)
    failed = [t for t in each if each[t] < 100 * stage.accept and t not in silent]
    verdict = f"refused: {', '.join(failed)}" if failed else f"undecided: {', '.join(silent)}" if silent else "accepted"
    size, theirs = (mean(r.scores["parameters"] for m in ms for r in m.best.values()) for ms in (same, [teacher]))
    return {
        "model": same[0].label,
        "seeds": len(same),
        "parameters": round(size),
        "% of teacher": rounded(100 * size / theirs, 1),
        "mean kept %": rounded(float(means.mean()), 1),
        "from": rounded(low, 1),
        "to": rounded(high, 1),
        "worst kept %": rounded(min(each.values()), 1),
        "verdict": TEACHER if teacher in same else verdict,
        "faster": rounded(faster(alike, teacher, "latency"), 2),
        "in batches": rounded(faster(alike, teacher, "throughput"), 2),
        "MB": rounded(mean(r.scores["memory"] for m in same for r in m.best.values()) / 1e6, 2),
    }


def shape(model: Tuned) -> Shape:
    return next(iter(model.best.values())).run.trunk.shape


def share(model: Tuned, teacher: Tuned, task: str) -> float:
    """What a model keeps of the teacher's score."""
    return score(model, task) / score(teacher, task)


def mute(teacher: Tuned) -> list[str]:
    """The tasks on which the teacher is no better than the commonest label, by two standard errors: no gate there."""
    found = []
    for task, r in teacher.best.items():
        guess = r.scores["guess"]
        if r.scores["accuracy"] - guess < 2 * math.sqrt(guess * (1 - guess) / len(r.predicted)):
            found.append(task)
    return found


def score(model: Tuned, task: str) -> float:
    return model.best[task].scores["accuracy"]


def mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def agreement(model: Tuned, teacher: Tuned, task: str) -> float:
    """The share of held-out examples of which both say the same."""
    ours, theirs = model.best[task].predicted, teacher.best[task].predicted
    return mean(a == b for a, b in zip(ours, theirs, strict=True)) if len(ours) == len(theirs) else math.nan


def faster(same: list[Tuned], teacher: Tuned, what: str) -> float:
    """How many times as fast, each at its fastest: work beside it only slows a model down."""
    each = ([r.scores[what] for m in models for r in m.best.values()] for models in (same, [teacher]))
    ours, theirs = (min(x) if what == "latency" else max(x) for x in each)
    return theirs / ours if what == "latency" else ours / theirs


def headline(row: Mapping[str, Any]) -> str:
    return (
        f"{row['model']}: {row['% of teacher']}% of the teacher's parameters, {row['mean kept %']}% of its score "
        f"(worst {row['worst kept %']}%), {row['faster']}× as fast: {row['verdict']}"
    )
