"""The two ways a command ends early: the user's mistake, and a stop that can be resumed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

BAD_INPUT = 2  # exit code of a user's mistake
RESUMABLE = 75  # exit code of a stop that the same command continues (EX_TEMPFAIL)
MOST_CHOICES = 60  # that the line names: a table may have thousands of columns
LONGEST_VALUE = 80  # characters of a refused value that the line shows


class UserError(Exception):
    """A mistake of the user's, said in one line: file, key, rule, value, choices."""

    def __init__(
        self,
        rule: str,
        *,
        file: object = None,
        key: str | None = None,
        value: object = None,
        choices: Iterable[object] | None = None,
    ) -> None:
        self.rule, self.file, self.key, self.value = rule, file, key, value
        self.choices = None if choices is None else [str(c) for c in choices]
        super().__init__(self.line())

    def line(self) -> str:
        parts = [str(self.file)] if self.file is not None else []
        parts += [self.key] if self.key is not None else []
        text = ": ".join([*parts, self.rule])
        if self.value is not None:
            text += f"; got {shorten(self.value)}"
        if self.choices:
            more = len(self.choices) - MOST_CHOICES
            text += f"; choices: {', '.join(self.choices[:MOST_CHOICES])}" + (f" and {more} more" if more > 0 else "")
        return shown(" ".join(text.split()))


@contextmanager
def about(file: object) -> Iterator[None]:
    """Names the file in a mistake that was found deeper, where the file is not known."""
    try:
        yield
    except UserError as e:
        if e.file is not None:
            raise
        raise UserError(e.rule, file=file, key=e.key, value=e.value, choices=e.choices) from None


class Stopped(Exception):
    """The work was interrupted and lost nothing: the same command goes on."""


def shown(text: str) -> str:
    """Text that came from elsewhere, as a terminal may show it: what is not printable is escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shorten(value: object) -> str:
    """A refused value as the line shows it: its repr, cut to `LONGEST_VALUE` characters."""
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."
