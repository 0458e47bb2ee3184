"""A study file is the whole question: `load` reads it, `changes` says what a revision would change."""

from tunnel.study.corpora import Data, Origin, Texts, Then
from tunnel.study.models import (
    Budget,
    Decay,
    Limit,
    Model,
    Notify,
    Price,
    Resources,
    Rungs,
    Sampler,
    Stage,
    Study,
    Target,
    Train,
)
from tunnel.study.reading import load, parse, read_text, schema
from tunnel.study.revision import changes

__all__ = [
    "Budget", "Data", "Decay", "Limit", "Model", "Notify", "Origin", "Price", "Resources", "Rungs", "Sampler", "Stage",
    "Study", "Target", "Texts", "Then", "Train", "changes", "load", "parse", "read_text", "schema",
]  # fmt: skip
