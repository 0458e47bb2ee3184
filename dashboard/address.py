"""The address of what is seen: study, page, filters and selection live in its query, so that a view can be linked to.

A widget keeps itself there: `key="stage", bind="query-params"`. For what is no widget (a point that was clicked, a
brushed range) there are `get` and `put`, whose keys no widget may have. A trial has a page of its own: `open_trial`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlencode

import streamlit as st

TRIAL = "app_pages/trial.py"
DIGITS = 9  # of a trial's number  *assumed*

T = TypeVar("T", str, bool, int, float, tuple[Any, ...])


def get(key: str, default: T) -> T:
    """What the address says under a key, in the default's type; the default where it says nothing, or nonsense.

    A tuple's members are of the type of the default's first one, and texts where it is empty.
    """
    told = st.query_params.get_all(key)
    try:
        if isinstance(default, tuple):
            return tuple(read(one, default[0] if default else "") for one in told) if told else default
        return read(told[-1], default) if told else default
    except ValueError:
        return default


def read(text: str, like: Any) -> Any:
    """A text of the address in the type of `like`. Raises ValueError where it is no such value."""
    if isinstance(like, bool):
        return bool(("false", "true").index(text))
    if not isinstance(like, int | float):
        return text
    value = type(like)(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def put(key: str, value: str | float | Sequence[str | float] | None) -> None:
    """Keeps a value in the address; None and what is empty leave it."""
    texts = [value] if isinstance(value, str | int | float) else list(value or ())
    said = [str(t).lower() if isinstance(t, bool) else str(t) for t in texts if t != ""]
    if said != st.query_params.get_all(key):
        if said:
            st.query_params[key] = said
        else:
            del st.query_params[key]


def trial_of(stage: str, number: int) -> str:
    """A trial's name in an address; `stage_and_number` reads it."""
    return f"{stage}.{int(number)}"


def stage_and_number(name: str) -> tuple[str, int] | None:
    """The stage and number that a trial's name says; None where it is none."""
    stage, _, number = name.rpartition(".")
    return (stage, int(number)) if stage and number.isdecimal() and len(number) <= DIGITS else None


def open_trial(stage: str, number: int) -> NoReturn:
    """Leaves this page for that of a trial of the same study: what a click on a point, or on a row, does."""
    st.switch_page(TRIAL, query_params={"study": get("study", ""), "trial": trial_of(stage, number)})


def link(page: str = "", **query: str | Sequence[str]) -> str:
    """The address of a page (the first one where it has no name), relative to any other; for columns of links."""
    return f"{page}?{urlencode(query, doseq=True)}" if query else page
