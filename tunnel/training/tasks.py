"""Tasks: labelled texts from jsonl files, and what names them."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from tunnel import run
from tunnel.errors import UserError
from tunnel.study.lessons import Task
from tunnel.training.data import cache
from tunnel.training.words import LEARNED, Marks, pretrained, tokenizer

MOST = 64  # labels: a character each in a record's predictions  *assumed*
LETTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_"


@dataclass(frozen=True)
class Examples:
    """Texts (one or two each) with the number of their label, to train on and held out."""

    train: tuple[tuple[tuple[str, ...], int], ...]
    held_out: tuple[tuple[tuple[str, ...], int], ...]
    labels: tuple[str, ...]
    digest: str


def spec(task: Task) -> run.Task:
    """A task as a value; raises UserError where its files do not hold it."""
    found = examples(task)
    told = task.model_dump(exclude={"get", "paths", "held_out_paths"})
    paths = {"paths": task.paths, "held_out_paths": task.held_out_paths}
    return run.Task(**told, **paths, digest=found.digest, labels=len(found.labels), examples=len(found.train))


def again(task: run.Task) -> Examples:
    """The examples of a task's value; raises UserError where its files changed since."""
    found = examples(Task(**task.model_dump(exclude={"digest", "labels", "examples"})))
    if found.digest != task.digest:
        raise UserError("changed since a run read it: put it back as it was, or try --out", key=f"task.{task.name}")
    return found


def examples(task: Task) -> Examples:
    train, held = (files(task, patterns) for patterns in (task.paths, task.held_out_paths))
    return read(task, *(tuple((str(p), p.stat().st_mtime_ns) for p in side) for side in (train, held)))


def files(task: Task, patterns: Iterable[str]) -> list[Path]:
    found = sorted({p for pattern in patterns for p in map(Path, glob.glob(pattern, recursive=True)) if p.is_file()})
    if patterns and not found:
        how = f"; {task.get}" if task.get else ""
        raise UserError(f"no file of the task exists{how}", key=f"task.{task.name}.paths", value=", ".join(patterns))
    return found


@lru_cache(maxsize=16)
def read(task: Task, train: tuple[tuple[str, int], ...], held: tuple[tuple[str, int], ...]) -> Examples:
    """Rows of the files, in their order; without held-out files a text's hash says on which side it is."""
    digest = hashlib.sha256(json.dumps([task.kind, task.text, task.text2, task.label, task.held_out]).encode())
    rows: list[tuple[tuple[str, ...], str, bool]] = []
    for paths, apart in ((train, False), (held, True)):
        for name, _ in paths:
            raw = Path(name).read_bytes()
            digest.update(hashlib.sha256(raw).digest())
            for number, line in enumerate(raw.splitlines(), start=1):
                texts, label = example(task, line, name, number)
                share = int(hashlib.sha256(texts[0].encode()).hexdigest()[:8], 16) / 2**32
                rows.append((texts, label, apart if held else share < task.held_out))
    labels = tuple(sorted({label for _, label, _ in rows}))
    sides = [tuple((t, labels.index(x)) for t, x, apart in rows if apart is side) for side in (False, True)]
    where = f"task.{task.name}"
    if not 2 <= len(labels) <= MOST:
        raise UserError(f"needs 2 to {MOST} labels", key=where, value=len(labels))
    if not all(sides):
        raise UserError("needs examples to train on, and examples to hold out", key=where)
    return Examples(sides[0], sides[1], labels, digest.hexdigest()[:16])


def example(task: Task, line: bytes, name: str, number: int) -> tuple[tuple[str, ...], str]:
    columns = (task.text, task.text2) if task.kind == "pair" else (task.text,)
    try:
        row = json.loads(line)
        texts, label = tuple(row[c] for c in columns), row[task.label]
        if not all(isinstance(t, str) for t in texts) or not isinstance(label, str | int):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        rule = f"is not a row with {', '.join(columns)} and {task.label}"
        raise UserError(rule, file=name, key=f"line {number}") from None
    return texts, str(label)


def encoder(name: str, corpus_hash: str) -> Callable[[str], list[int]]:
    """A tokenizer for texts by themselves; a learned one is that of a corpus that was built here."""
    if name == "bytes":
        return lambda text: list(text.encode())
    made = tokenizer(cache() / corpus_hash / "vocab.txt") if name == LEARNED else pretrained(name).backend_tokenizer
    return lambda text: made.encode(text, add_special_tokens=False).ids


def encoded(
    rows: Iterable[tuple[tuple[str, ...], int]], encode: Callable[[str], list[int]], marks: Marks, length: int
) -> np.ndarray:
    """(examples, 3, T): tokens [CLS] a [SEP] (b [SEP]), which of the two texts, and the label everywhere.

    Of a pair too long the longer text is cut first.
    """
    found = []
    for texts, label in rows:
        parts = [encode(t)[:length] for t in texts]
        while sum(map(len, parts)) + len(parts) + 1 > length:
            max(parts, key=len).pop()
        ids = [marks.begin, *(i for p in parts for i in (*p, marks.end))]
        which = [0] * (len(parts[0]) + 2) + [1] * (len(parts[1]) + 1 if len(parts) > 1 else 0)
        empty = length - len(ids)
        found.append([ids + [marks.pad] * empty, which + [0] * empty, [label] * length])
    return np.array(found, dtype=np.int64)
