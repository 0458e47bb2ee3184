"""The report's language: a text by its key, and what the dashboard's functions say in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache

from dashboard import style
from dashboard.report.texts import LANGUAGES, SAID, TEXTS
from tunnel.errors import UserError

FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Words:
    """One language. Raises UserError for one that has no texts."""

    lang: str

    def __post_init__(self) -> None:
        if self.lang not in LANGUAGES:
            raise UserError("is no language of the report", key="--lang", value=self.lang, choices=LANGUAGES)

    def __call__(self, key: str, **values: object) -> str:
        return filled(TEXTS[key][LANGUAGES.index(self.lang)], values)

    def has(self, key: str) -> bool:
        return key in TEXTS

    def said(self, text: str) -> str:
        """What a figure or a formatter says, in this language; as it is where the table does not know it."""
        for pattern, *ours in patterns():
            if found := pattern.fullmatch(text):
                values = {k: self.said(v) for k, v in found.groupdict().items()}
                return filled(ours[LANGUAGES.index(self.lang)], values)
        return text

    def duration(self, seconds: float) -> str:
        return self.said(style.duration(seconds))

    def date(self, iso: str) -> str:
        """An ISO time as a date and minutes, in UTC."""
        at = datetime.fromisoformat(iso)
        at = (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
        return self("date", year=at.year, month=f"{at:%m}", day=f"{at:%d}", time=f"{at:%H:%M}")


def filled(text: str, values: Mapping[str, object]) -> str:
    """Fields replaced, and nothing in their values: a name may hold braces. Raises KeyError for one that is missing."""
    return FIELD.sub(lambda found: str(values[found[1]]), text)


@cache
def patterns() -> list[tuple[re.Pattern[str], str, str]]:
    return [(re.compile(pattern_of(said)), en, ja) for said, en, ja in SAID]


def pattern_of(said: str) -> str:
    """A text with fields as a pattern that takes whatever stands in them.

    >>> re.fullmatch(pattern_of("law “{law}” at D = {d}"), "law “floor” at D = 400k").groupdict()
    {'law': 'floor', 'd': '400k'}
    """
    parts = FIELD.split(said)
    return "".join(f"(?P<{p}>.+?)" if i % 2 else re.escape(p) for i, p in enumerate(parts))
