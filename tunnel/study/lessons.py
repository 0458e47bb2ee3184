"""[[teacher]] and [[task]]: models of somebody else's to learn from, and what finished models are tried on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from tunnel.study.values import Frozen, Name, Text, listed

Paths = Annotated[tuple[Text, ...], BeforeValidator(listed)]


class Teacher(Frozen):
    name: Name
    path: Text  # a transformers folder, or a hub's name


class Task(Frozen):
    """Examples in jsonl files: a text, or two, with a label."""

    name: Name
    kind: Literal["classify", "pair"] = "classify"
    paths: Annotated[Paths, Field(min_length=1)]
    held_out_paths: Paths = ()  # default: a part of `paths`, by the hash of the text
    held_out: float = Field(0.2, gt=0, lt=1)  # that part
    text: Text = "text"  # columns
    text2: Text = "text2"  # of a pair
    label: Text = "label"
    get: str = ""  # how to get its files, said where there are none

    @model_validator(mode="after")
    def apart(self) -> Task:
        if set(self.paths) & set(self.held_out_paths):
            raise ValueError("held_out_paths names a file that is trained on")
        return self
