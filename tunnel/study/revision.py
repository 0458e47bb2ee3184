"""What a revision of a study may do: add, and never change what was asked."""

from __future__ import annotations

from typing import Any

from tunnel.study.models import Study
from tunnel.study.stages import Decay

# No reading depends on them. pydantic's way to say which: the key, and of each stage its resources and gate.
FREE: dict[str, Any] = dict.fromkeys(
    ("question", "resources", "price", "budget", "notify", "storage", "storage_password_env", "small"), True
) | {"stage": {"__all__": {"resources", "accept"}}, "data": {"get"}, "task": {"__all__": {"get"}}}
RUNGS = {"tokens", "tokens_per_param", "flops", "epochs"}
GROWS = {"stage", "target", "shapes", "seeds", "batches", "fan", "decays", "then", "source", "teacher", "task"} | RUNGS
IMPLIED: dict[str, list[Any]] = {"fan": [1.0], "decays": [Decay().model_dump()]}  # what an empty list stands for


def changes(before: Study, after: Study) -> str:
    """The first key in which a revision does more than add, or "".

    It may add trials, seeds, shapes, stages, targets, learning rates, batches, decays, rungs above the shortest, and
    sources and data that join later; the words of the question, and where and at what price it runs, are free.
    """
    asked, revised = (s.model_dump(mode="json", exclude=FREE) for s in (before, after))
    return first_change(asked, revised, "")


def first_change(a: Any, b: Any, key: str) -> str:
    if isinstance(a, dict) and isinstance(b, dict):
        found = (first_change(a.get(k), b.get(k), f"{key}.{k}".lstrip(".")) for k in {**a, **b})
        return next((f for f in found if f), "")
    last = key.rsplit(".", 1)[-1]
    if last in GROWS and isinstance(a, list) and isinstance(b, list):
        a = a or IMPLIED.get(last, []) if b else a
        if last in ("stage", "target") and len(b) >= len(a):
            pairs = zip(a, b, strict=False)
            return next((f for x, y in pairs if (f := first_change(x, y, f"{key}.{x['name']}"))), "")
        if last in ("then", "source"):  # each joins what was there before it; a weight changes every trunk
            return "" if b[: len(a)] == a and not any(x.get("weight") for x in b[len(a) :]) else key
        if last in RUNGS and a and b and min(b) < min(a):  # a warmup may be a fraction of the shortest
            return key
        return "" if all(x in b for x in a) else key
    if last == "trials" and isinstance(a, int) and isinstance(b, int):
        return "" if b >= a else key
    return "" if a == b else key
