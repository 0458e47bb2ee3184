"""Commands beside the way."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from tunnel import __version__
from tunnel.cli.app import Json, app, say
from tunnel.errors import UserError


@app.command()
def schema() -> None:
    """The JSON schema of study files, for editors.

    Example: tunnel schema > study.schema.json
    """
    from tunnel import study

    sys.stdout.write(json.dumps(study.schema(), indent=1) + "\n")


@app.command()
def dashboard(
    folder: Annotated[Path, typer.Argument(help="A study's folder, or a folder of them.")] = Path("runs"),
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8501,
) -> None:
    """The Streamlit app, on loopback.

    Example: tunnel dashboard runs
    """
    try:
        from dashboard import launch as launching
    except ImportError as e:
        raise UserError(f"needs the dashboard extra: pip install '.[dashboard]' ({e.name} is missing)") from None
    raise typer.Exit(launching.serve(folder, port))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Whether this machine has what the tunnel needs.

    Example: tunnel doctor
    """
    from tunnel import doctor as doctoring
    from tunnel import show

    found = doctoring.examine()
    say(found, as_json, show.doctor)
    raise typer.Exit(0 if found["ok"] else 1)


@app.callback(invoke_without_command=True)
def version(show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show_version:
        sys.stdout.write(f"tunnel {__version__}\n")
        raise typer.Exit()
