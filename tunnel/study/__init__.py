"""A study file is the whole question: `load` reads it, `changes` says what a revision would change."""

from tunnel.study.corpora import Data, Origin, Texts, Then
from tunnel.study.models import Limit, Model, Notify, Price, Resources, Study, Target, Train
from tunnel.study.reading import load, parse, read_text, schema
from tunnel.study.revision import changes
from tunnel.study.stages import Budget, Decay, Rungs, Sampler, Stage

__all__ = [
    "Budget", "Data", "Decay", "Limit", "Model", "Notify", "Origin", "Price", "Resources", "Rungs", "Sampler", "Stage",
    "Study", "Target", "Texts", "Then", "Train", "changes", "load", "parse", "read_text", "schema",
]  # fmt: skip
