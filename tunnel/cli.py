"""The command line: contract 1. Each command is one call of a function that Python and the tests call too."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from tunnel import __version__
from tunnel.errors import BAD_INPUT, RESUMABLE, Stopped, UserError, about

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
Concurrent = Annotated[int | None, typer.Option(min=1, help="Trials at a time; default: as many as fit.")]
Scale = Annotated[str, typer.Option(help="full, or small where the study has a [small] table.")]
TargetName = Annotated[str | None, typer.Option("--target", help="A target of the study; default: the first.")]


def say(found: dict[str, Any], as_json: bool, show: Callable[[dict[str, Any]], None]) -> None:
    if as_json:
        sys.stdout.write(json.dumps(found, indent=1, allow_nan=False) + "\n")
    else:
        show(found)


def small(scale: str) -> bool:
    if scale not in ("full", "small"):
        raise UserError("is no scale", key="--scale", value=scale, choices=["full", "small"])
    return scale == "small"


@app.command()
def plan(
    study: StudyPath,
    out: Out = None,
    scale: Scale = "full",
    next_: Annotated[
        int | None,
        typer.Option("--next", min=1, help="Additions to the ladder that narrow the interval most per FLOP."),
    ] = None,
    target: TargetName = None,
    as_json: Json = False,
) -> None:
    """What would run: readings, N, D, FLOPs, hours, money, learning rates. Starts nothing.

    Example: tunnel plan studies/minicpm.toml

    With --next, of a study that is swept: what to add to its ladder, at what cost, and the interval expected then.
    """
    from tunnel import plan as planning
    from tunnel import show
    from tunnel.sweeps import sweep

    asked, keep = sweep.located(study, out, small=small(scale))
    with about(study):
        found = planning.plan(asked)
    if next_ is None:
        say(found, as_json, show.plan)
        return
    from tunnel.answers import next_runs

    say({**found, "next": next_runs.proposed(asked, keep, next_, target)}, as_json, show.next_runs)


@app.command()
def sweep(
    study: StudyPath,
    out: Out = None,
    scale: Scale = "full",
    address: Address = None,
    max_concurrent: Concurrent = None,
    takeover: Annotated[
        bool, typer.Option("--takeover", help="Take the study from a driver on another host, where that is dead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run the study's stages, or go on with them; what is measured is not measured again.

    Example: tunnel sweep studies/quickstart.toml
    """
    from tunnel import show
    from tunnel.sweeps import sweep as sweeping

    asked, keep = sweeping.opened(study, out, small=small(scale))
    if takeover:
        keep.take_over()
    with watching(as_json) as watch:
        found = sweeping.sweep(asked, keep, address=address, max_concurrent=max_concurrent, watch=watch)
    say(found, as_json, show.status)


@app.command()
def extend(
    folder: StudyPath,
    tokens: Annotated[str, typer.Option(help='A factor on each stage\'s longest rung ("2x"), or a length ("4M").')],
    stage: Annotated[str | None, typer.Option(help="One listed stage; default: all that have rungs.")] = None,
    out: Out = None,
    address: Address = None,
    max_concurrent: Concurrent = None,
    as_json: Json = False,
) -> None:
    """Longer trunks, from their last stable checkpoints, with new forks; nothing is trained again.

    Example: tunnel extend runs/quickstart --tokens 2x
    """
    from tunnel import show
    from tunnel.sweeps import extend as extending

    with watching(as_json) as watch:
        found = extending.extend(
            folder, tokens, stage, out=out, address=address, max_concurrent=max_concurrent, watch=watch
        )
    say(found, as_json, show.extended)


@app.command()
def status(folder: StudyPath, out: Out = None, as_json: Json = False) -> None:
    """Trials by state, readings, tokens and FLOPs spent and saved, cost, ETA.

    Example: tunnel status runs/quickstart
    """
    from tunnel import show
    from tunnel.sweeps import sweep as sweeping

    say(sweeping.status(*sweeping.located(folder, out)), as_json, show.status)


@app.command()
def fit(
    table: Annotated[Path, typer.Argument(help="A runs table (CSV or Parquet), a study file, or a study's folder.")],
    law: Annotated[str | None, typer.Option(help="The law; default: chosen by hold-outs.")] = None,
    delta: Annotated[float, typer.Option(help="Huber's delta, on log loss.")] = 1e-3,
    misfit: Annotated[str, typer.Option(help="What a fit minimises: huber, squares, or envelope.")] = "huber",
    columns: Annotated[str, typer.Option(help="Renames: N=n,D=t,C=flops.")] = "",
    drop: Annotated[list[str] | None, typer.Option(help="Leave out rows where this column is not zero.")] = None,
    predict: Annotated[Path | None, typer.Option(help="A table of targets to forecast.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the forecasts go; of a study: its folder.")] = None,
    budget: Annotated[float | None, typer.Option(help="FLOPs of training: the best N and D for them.")] = None,
    inference: Annotated[str | None, typer.Option(help="Tokens to be served, such as 2T: the cheapest in all.")] = None,
    target: TargetName = None,
    as_json: Json = False,
) -> None:
    """Fit laws to a study's ladder, or to your own runs.

    Example: tunnel fit runs.csv --columns N=n,D=t --law chinchilla --budget 1e21
    """
    from tunnel import show
    from tunnel.answers import budget as budgeting

    spent = budgeting.asked(budget, inference)

    if table.is_dir() or table.suffix == ".toml":
        from tunnel.answers import ladder
        from tunnel.sweeps import sweep as sweeping

        asked, keep = sweeping.located(table, out)
        found = ladder.fitted(asked, keep, target)
        say(budgeting.of_ladder(found, keep, spent) if spent else found, as_json, show.ladder)
        return
    from tunnel import table as tables

    found = tables.fit_report(
        table,
        law,
        delta,
        columns=renames(columns),
        drop=drop or [],
        predict=predict,
        out=out,
        budget=spent,
        misfit=misfit,
    )
    say(found, as_json, show.fit)


def renames(text: str) -> dict[str, str]:
    pairs = [p.split("=", 1) for p in text.split(",") if p]
    if any(len(p) != 2 or not all(p) for p in pairs):
        raise UserError("must look like N=n,D=t,C=flops", key="--columns", value=text)
    return {ours.strip(): theirs.strip() for ours, theirs in pairs}


@app.command()
def verdict(
    folder: StudyPath,
    out: Out = None,
    check: Annotated[bool, typer.Option(help="With the coordinate check, which trains for minutes once.")] = True,
    as_json: Json = False,
) -> None:
    """Does each setting transfer: penalty, drift, coordinate check, edges; over width, depth, D and batch.

    Example: tunnel verdict runs/transfer
    """
    from tunnel import show
    from tunnel.sweeps import sweep as sweeping
    from tunnel.verdicts import verdict as judging

    with redirect_stdout(sys.stderr):
        found = judging.verdicts(*sweeping.located(folder, out), check=check, say=print)
    say(found, as_json, show.verdicts)


@app.command()
def recommend(
    folder: StudyPath,
    out: Out = None,
    target: TargetName = None,
    force: Annotated[
        bool, typer.Option("--force", help="Go on where it would not be honest; the file says so.")
    ] = False,
    as_json: Json = False,
) -> None:
    """The target's settings with intervals, evidence and cautions; registers the forecast of its loss.

    Example: tunnel recommend runs/quickstart
    """
    from tunnel import show
    from tunnel.answers import recommend as recommending
    from tunnel.sweeps import sweep as sweeping

    say(recommending.recommend(*sweeping.located(folder, out), target, force=force), as_json, show.recommendation)


@app.command()
def export(
    folder: Annotated[Path | None, typer.Argument(help="A study file, or a study's folder.")] = None,
    to: Annotated[str, typer.Option(help="The trainer; see --list.")] = "hf",
    out: Annotated[Path | None, typer.Option(help="The bundle's folder; default DIR/export/<trainer>.")] = None,
    target: TargetName = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
    allow_lossy: Annotated[
        bool, typer.Option("--allow-lossy", help="Leave out what the trainer cannot express.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="What each trainer can and cannot carry.")] = False,
    as_json: Json = False,
) -> None:
    """The config bundle for a trainer.

    Example: tunnel export runs/quickstart --to hf
    """
    from tunnel import export as exporting
    from tunnel import show
    from tunnel.answers import recommend as recommending
    from tunnel.sweeps import sweep as sweeping

    if list_:
        found = exporting.targets()
        say({"targets": found}, as_json, show.targets)
        return
    if folder is None:
        raise UserError("is missing: a study file, or a study's folder", key="DIR")
    asked, keep = sweeping.located(folder)
    told = recommending.recommend(asked, keep, target)
    bundle = out or keep.path("export", to)
    say(exporting.export(told, to, bundle, force=force, allow_lossy=allow_lossy), as_json, show.bundle)


@app.command()
def train(
    folder: StudyPath,
    out: Out = None,
    target: TargetName = None,
    address: Address = None,
    counterfactual: Annotated[
        bool, typer.Option("--counterfactual", help="Instead: the recommended lr, half and double it, forecast first.")
    ] = False,
    hours: Annotated[
        float | None, typer.Option(min=0, help="What these may take of one device; default: as the proxies took.")
    ] = None,
    as_json: Json = False,
) -> None:
    """The full-size run from the recommendation; the same command goes on where it stopped.

    Example: tunnel train runs/quickstart

    With --counterfactual, the largest affordable shape between proxies and target is forecast and trained at three
    learning rates; exit 1 where another than the recommended one is better by more than noise.
    """
    from tunnel import show
    from tunnel.sweeps import launch
    from tunnel.sweeps import sweep as sweeping

    asked, keep = sweeping.located(folder, out)
    if counterfactual:
        with watching(as_json) as watch:
            found = launch.contrast(asked, keep, target, hours=hours, address=address, watch=watch)
        say(found, as_json, show.contrast)
        raise typer.Exit(0 if found["holds"] else 1)
    with watching(as_json) as watch:
        found = launch.train(asked, keep, target, address=address, watch=watch)
    say(found, as_json, show.trained)


@app.command()
def check(
    folder: StudyPath,
    out: Out = None,
    target: TargetName = None,
    all_: Annotated[bool, typer.Option("--all", help="Every forecast that the study ever registered.")] = False,
    as_json: Json = False,
) -> None:
    """The registered forecast against what was measured; exit 1 where the interval missed.

    Example: tunnel check runs/quickstart

    With --all, exit 1 where fewer lay inside than 90% intervals allow.
    """
    from tunnel import show
    from tunnel.answers import forecasts, ladder
    from tunnel.sweeps import sweep as sweeping

    asked, keep = sweeping.located(folder, out)
    if all_:
        found = forecasts.every(keep)
        say(found, as_json, show.forecasts)
        raise typer.Exit(0 if found["enough"] else 1)
    found = forecasts.check(keep, ladder.target_named(asked, target).name)
    say(found, as_json, show.check)
    raise typer.Exit(0 if found["inside"] else 1)


@app.command()
def prune(
    folder: StudyPath,
    out: Out = None,
    yes: Annotated[bool, typer.Option("--yes", help="Free it without asking.")] = False,
    as_json: Json = False,
) -> None:
    """What of the folder nobody needs any more, in bytes; frees it where you say yes.

    Example: tunnel prune runs/quickstart
    """
    from tunnel import show
    from tunnel.sweeps import prune as pruning
    from tunnel.sweeps import sweep as sweeping

    asked, keep = sweeping.located(folder, out)
    ask = sys.stdin.isatty() and not as_json

    def agreed(found: dict[str, Any]) -> bool:
        if yes or not ask or not found["bytes"]:
            return yes
        show.prunable(found)
        return typer.confirm("Free it?")

    say(pruning.prune(asked, keep, agreed), as_json, show.prunable)


@app.command()
def rerun(
    folder: StudyPath,
    run: Annotated[str, typer.Argument(help="A reading's fingerprint, or enough of its beginning.")],
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Train one reading again, from scratch, and compare it bit for bit; exit 1 where it differs.

    Example: tunnel rerun runs/quickstart 3f2a
    """
    from tunnel import show
    from tunnel.sweeps import rerun as rerunning
    from tunnel.sweeps import sweep as sweeping

    asked, keep = sweeping.located(folder, out)
    with watching(as_json) as watch:
        found = rerunning.rerun(asked, keep, run, watch=watch)
    say(found, as_json, show.rerun)
    raise typer.Exit(0 if found["equal"] else 1)


@app.command()
def run(
    study: StudyPath,
    out: Out = None,
    scale: Scale = "full",
    address: Address = None,
    max_concurrent: Concurrent = None,
    as_json: Json = False,
) -> None:
    """All of it: sweep, fit, recommend, export, train the target, check the forecast.

    Example: tunnel run studies/quickstart.toml
    """
    from tunnel import show
    from tunnel.sweeps import pipeline

    with watching(as_json) as watch:
        found = pipeline.run(
            study,
            out,
            small=small(scale),
            address=address,
            max_concurrent=max_concurrent,
            watch=watch,
            say=(lambda text: None) if as_json else show.out.print,
        )
    say(found, as_json, show.run)


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


@contextmanager
def watching(as_json: bool) -> Iterator[Any]:
    """Bars on the terminal; where a machine reads, whatever a library prints goes to standard error."""
    from tunnel import show

    with redirect_stdout(sys.stderr) if as_json else show.progress() as watch:
        yield None if as_json else watch


def main() -> None:
    """Runs a command; a mistake is one line and exit 2, a stop that can be resumed is exit 75."""
    for s in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(s, interrupted)
    try:
        app()
    except UserError as e:
        leave(f"error: {e}", BAD_INPUT)
    except Stopped as e:
        leave(f"stopped: {e}", RESUMABLE)
    except KeyboardInterrupt:
        leave("stopped: interrupted; the same command goes on", RESUMABLE)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def interrupted(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def leave(line: str, code: int) -> NoReturn:
    sys.stderr.write(line + "\n")
    sys.stdout.flush()
    raise SystemExit(code)


if __name__ == "__main__":
    main()
