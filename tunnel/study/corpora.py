"""[data]: what is read, from which sources, and how it becomes tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from tunnel.study.values import Frozen, Name, Positive, Text, Tokens


class Texts(Frozen):
    """Where documents come from."""

    corpus: Text = "files"  # stdlib | files | a datasets name
    paths: tuple[str, ...] = ()  # of corpus "files": txt, txt.gz, jsonl, parquet; globs allowed
    text: Text = "text"  # the column of jsonl, parquet and hub rows
    get: str = ""  # how to get its files, said where there are none

    @model_validator(mode="after")
    def with_paths(self) -> Texts:
        named = getattr(self, "source", None)
        if (self.corpus == "files" and not isinstance(named, str)) != bool(self.paths):
            raise ValueError('paths belong to corpus = "files", and it needs them')
        return self


class Origin(Texts):
    """A named source beside the first: a part of the pre-training mix, or there to join it or a decay later."""

    name: Name
    weight: float = Field(0.0, ge=0, allow_inf_nan=False)  # in the pre-training mix


class Then(Texts):
    """Data that joins a trunk after `from` tokens; tokenizer, vocabulary and split are those of [data]."""

    model_config = ConfigDict(populate_by_name=True)

    at: Tokens = Field(alias="from")
    source: Name | None = None  # one of [[data.source]], instead of a corpus of its own
    share: float = Field(1.0, gt=0, le=1)  # of the sequences from there on


def weights(value: object) -> object:
    return {value: 1.0} if isinstance(value, str) else value


Weights = Annotated[dict[str, Positive], BeforeValidator(weights)]


def shares(value: Mapping[str, float]) -> Mapping[str, float]:
    if sum(value.values()) > 1 + 1e-9:
        raise ValueError(f"shares sum to {sum(value.values()):.3g}; at most 1")
    return value


Share = Annotated[float, Field(ge=0, le=1)]
Mix = Annotated[dict[Name, Share], AfterValidator(shares)]  # of a decay's sequences, by source


class Data(Texts):
    """What is read, and how it becomes tokens."""

    corpus: Text = "stdlib"
    name: Name | None = None  # of the first source; default: its corpus
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)  # of the first source in the pre-training mix
    tokenizer: Text = "bytes"  # bytes | wordpiece, learned from the corpus | a transformers one, by name or folder
    words: Literal["tokenizer", "jieba"] | None = None  # who says where a word begins, to mask whole ones (encoders)
    vocab: int = Field(256, gt=1)
    held_out: float = Field(0.05, gt=0, lt=0.5)  # of the documents, by the hash of their name
    eval_tokens: Tokens = 32_768  # of each source's held-out slice
    source: Annotated[tuple[Origin, ...], Field(max_length=64)] = ()
    then: tuple[Then, ...] = ()  # data that joins later
    loss: Weights = Field(default_factory=dict)  # held-out slices that are *the* loss; default: the pre-training mix

    @property
    def first(self) -> str:
        return self.name or self.corpus

    @property
    def joins(self) -> list[tuple[int, float, Texts]]:
        """What joins the first source, from which token on, as which share of all sequences from there.

        Of the pre-training mix each takes its part of what those after it leave.
        """
        found: list[tuple[int, float, Texts]] = []
        total = self.weight
        for s in self.source:
            total += s.weight
            if s.weight:
                found.append((0, s.weight / total, s))
        return found + [(t.at, t.share, self.named(t.source) if t.source else t) for t in self.then]

    def named(self, name: str) -> Origin:
        return next(s for s in self.source if s.name == name)

    @property
    def weighs(self) -> dict[str, float]:
        """The slices that are *the* loss: their weights sum to 1."""
        mix = {self.first: self.weight} | {s.name: s.weight for s in self.source if s.weight}
        found = self.loss or mix
        return {k: v / sum(found.values()) for k, v in found.items()}

    @model_validator(mode="after")
    def together(self) -> Data:
        if list(self.then) != sorted(self.then, key=lambda t: t.at):
            raise ValueError("then lists what joins later, earliest first")
        if self.words == "jieba" and self.tokenizer == "bytes":
            raise ValueError('words = "jieba" needs a tokenizer: bytes have words of their own')
        names = [self.first, *(s.name for s in self.source)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"source {name}: the name is taken")
        joined = [t.source for t in self.then if t.source is not None]
        for key, asked, known in (("then", joined, names[1:]), ("loss", [*self.loss], names)):
            for name in (n for n in asked if n not in known):
                raise ValueError(f"{key}: {name!r} is not the name of a source; choices: {', '.join(known)}")
        return self
