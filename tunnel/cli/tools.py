"""Commands beside the way."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from tunnel import __version__
from tunnel.cli.app import Json, Out, StudyPath, app, say
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
    address: Annotated[
        str, typer.Option(help="To listen on; others than loopback need a login or --proxy.")
    ] = "127.0.0.1",
    proxy: Annotated[
        str | None, typer.Option(help="The host name under which a proxy that asks who comes serves this dashboard.")
    ] = None,
) -> None:
    """The Streamlit app, on loopback; elsewhere for those on [auth] emails in .streamlit/secrets.toml, or by a proxy.

    Example: tunnel dashboard runs
    """
    try:
        from dashboard import launch as launching
    except ImportError as e:
        raise UserError(f"needs the dashboard extra: pip install '.[dashboard]' ({e.name} is missing)") from None
    raise typer.Exit(launching.serve(folder, port, address, proxy))


@app.command()
def report(
    folder: StudyPath,
    lang: Annotated[str, typer.Option(help="en or ja.")] = "en",
    out: Annotated[Path | None, typer.Option(help="The page; default DIR/report.html, DIR/report.ja.html.")] = None,
    with_pdf: Annotated[bool, typer.Option("--pdf/--no-pdf", help="A PDF beside it, where a browser is there.")] = True,
    as_json: Json = False,
) -> None:
    """One self-contained page: question, answer, figures, cost, next steps, for people who open no dashboard.

    Example: tunnel report runs/quickstart --lang ja
    """
    logging.disable(logging.WARNING)  # Streamlit's, whose caches the loaders use: that no server runs
    try:
        from dashboard import report as reporting
    except ImportError as e:
        raise UserError(f"needs the dashboard extra: pip install '.[dashboard]' ({e.name} is missing)") from None
    from tunnel import show

    say(reporting.write(folder_of(folder, None), lang, out, print_pdf=with_pdf), as_json, show.report)


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


audit = typer.Typer(no_args_is_help=True, help="Who did what to a study, and when.")
app.add_typer(audit, name="audit")


@audit.command()
def verify(
    folder: StudyPath,
    out: Out = None,
    tip: Annotated[str | None, typer.Option(help="A line's hash that you noted, and that must be there.")] = None,
    as_json: Json = False,
) -> None:
    """Whether audit and forecasts are as they were written; exit 1, with the first line that does not fit.

    Example: tunnel audit verify runs/quickstart
    """
    from tunnel import show
    from tunnel.folder import audit as auditing

    found = auditing.verified(folder_of(folder, out), tip)
    say(found, as_json, show.verified)
    raise typer.Exit(0 if found["fits"] else 1)


@audit.command("show")
def show_audit(folder: StudyPath, out: Out = None, as_json: Json = False) -> None:
    """Every line: when, who, what, with which code.

    Example: tunnel audit show runs/quickstart
    """
    from tunnel import show
    from tunnel.folder import audit as auditing

    say(auditing.shown(folder_of(folder, out)), as_json, show.audit)


def folder_of(folder: Path, out: Path | None) -> Path:
    """A study's folder, whose question need not be readable any more."""
    from tunnel.sweeps import sweep

    if not folder.is_dir():
        return sweep.located(folder, out)[1].root
    if not (folder / "study.toml").exists():
        raise UserError("is no study's folder: it has no study.toml", file=folder)
    return folder


@app.callback(invoke_without_command=True)
def version(show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show_version:
        sys.stdout.write(f"tunnel {__version__}\n")
        raise typer.Exit()
