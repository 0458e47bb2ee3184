"""What a benchmark measured, and which of what was asked it missed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Found:
    """A line a ratio, printed last."""

    lines: list[str] = field(default_factory=list)
    missed: int = 0

    def say(self, what: str, value: float, asked: float | None, better: Callable[[float, float], bool]) -> None:
        ok = asked is None or better(value, asked)
        self.missed += not ok
        wanted = "" if asked is None else f"  asked {asked:g}{'' if ok else '  MISSED'}"
        self.lines.append(f"{what:58s} {value:6.3f}{wanted}")

    def at_least(self, what: str, value: float, asked: float | None = None) -> None:
        self.say(what, value, asked, lambda a, b: a >= b)

    def at_most(self, what: str, value: float, asked: float) -> None:
        self.say(what, value, asked, lambda a, b: a <= b)
