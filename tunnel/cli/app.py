"""What the commands share: the application, their options, how they answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from tunnel.errors import UserError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="A hyperparameter wind tunnel for language-model training.",
)

StudyPath = Annotated[Path, typer.Argument(help="A study file, or a study's folder.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, and nothing else there.")]
Out = Annotated[Path | None, typer.Option(help="The study's folder; default runs/<name of the study file>.")]
Address = Annotated[str | None, typer.Option(help="A Ray cluster to run on; default: a local one.")]
Shared = Annotated[
    str | None,
    typer.Option("--shared", help="Where workers write, as a URL (s3://bucket/path), if they share no file system."),
]
Concurrent = Annotated[int | None, typer.Option(min=1, help="Trials at a time; default: as many as fit.")]
Takeover = Annotated[
    bool, typer.Option("--takeover", help="Take the study from a driver on another host, where that is dead.")
]
Scale = Annotated[str, typer.Option(help="full, or small where the study has a [small] table.")]
TargetName = Annotated[str | None, typer.Option("--target", help="A target of the study; default: the first.")]


def say(found: dict[str, Any], as_json: bool, show: Callable[[dict[str, Any]], None]) -> None:
    if as_json:  # money is decimal, and a plain number there
        sys.stdout.write(json.dumps(found, indent=1, allow_nan=False, default=float) + "\n")
    else:
        show(found)


def small(scale: str) -> bool:
    if scale not in ("full", "small"):
        raise UserError("is no scale", key="--scale", value=scale, choices=["full", "small"])
    return scale == "small"


@contextmanager
def watching(as_json: bool) -> Iterator[Any]:
    """Bars on the terminal; where a machine reads, whatever a library prints goes to standard error."""
    from tunnel import show

    with redirect_stdout(sys.stderr) if as_json else show.progress() as watch:
        yield None if as_json else watch
