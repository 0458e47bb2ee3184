"""Commands that plan and train."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tunnel.cli.app import (
    Address,
    Concurrent,
    Json,
    Out,
    Scale,
    Shared,
    StudyPath,
    Takeover,
    TargetName,
    app,
    say,
    small,
    watching,
)
from tunnel.errors import UserError, about


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

    Of a study that is swept, at the pace that was measured, with an ETA for what is left.

    With --next, of a study that is swept: what to add to its ladder, at what cost, and the interval expected then.
    """
    from tunnel import plan as planning
    from tunnel import show
    from tunnel.sweeps import sweep

    asked, keep = sweep.located(study, out, small=small(scale))
    readings = keep.readings()
    with about(study):
        found = planning.plan(asked, planning.Paces.of(asked, readings))
    if len(readings):
        found["eta_seconds"] = sweep.status(asked, keep)["eta_seconds"]
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
    shared: Shared = None,
    max_concurrent: Concurrent = None,
    takeover: Takeover = False,
    as_json: Json = False,
) -> None:
    """Run the study's stages, or go on with them; what is measured is not measured again.

    Example: tunnel sweep studies/quickstart.toml
    """
    from tunnel import show
    from tunnel.sweeps import sweep as sweeping

    asked, keep = sweeping.opened(study, out, small=small(scale), url=shared)
    if takeover:
        keep.take_over()
    with watching(as_json) as watch:
        found = sweeping.sweep(asked, keep, address=address, max_concurrent=max_concurrent, watch=watch)
    say(found, as_json, show.status)


@app.command()
def submit(
    study: StudyPath,
    address: Annotated[str, typer.Option(help="The cluster's dashboard, such as http://127.0.0.1:8265.")],
    out: Annotated[
        Path | None, typer.Option(help="The study's folder as the cluster sees it; default runs/<name> from here.")
    ] = None,
    scale: Scale = "full",
    shared: Shared = None,
    max_concurrent: Concurrent = None,
    takeover: Takeover = False,
    ship: Annotated[
        bool, typer.Option("--ship", help="Send this package's source too: the cluster has not installed it.")
    ] = False,
    python: Annotated[str, typer.Option(help="The Python of the cluster's head, by name or path.")] = "python",
    as_json: Json = False,
) -> None:
    """`tunnel sweep` as a job on a Ray cluster, which goes on when this machine sleeps; prints how to follow it.

    Example: tunnel submit studies/minicpm.toml --address http://127.0.0.1:8265 --out /shared/runs/minicpm
    """
    from tunnel import show
    from tunnel.sweeps import submit as submitting

    found = submitting.submit(
        study,
        address,
        out,
        small=small(scale),
        url=shared,
        max_concurrent=max_concurrent,
        takeover=takeover,
        ship=ship,
        python=python,
    )
    say(found, as_json, show.submitted)


@app.command()
def extend(
    folder: StudyPath,
    tokens: Annotated[str, typer.Option(help='A factor on each stage\'s longest rung ("2x"), or a length ("4M").')],
    stage: Annotated[str | None, typer.Option(help="One listed stage; default: all that have rungs.")] = None,
    join: Annotated[
        str | None, typer.Option(help="A source of the study that joins all trunks from the longest reading on.")
    ] = None,
    share: Annotated[float, typer.Option(help="Its share of the sequences from there.")] = 1.0,
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
            folder,
            tokens,
            stage,
            join=join,
            share=share,
            out=out,
            address=address,
            max_concurrent=max_concurrent,
            watch=watch,
        )
    say(found, as_json, show.extended)


@app.command()
def status(folder: StudyPath, out: Out = None, as_json: Json = False) -> None:
    """Trials by state, readings, tokens, FLOPs, what the devices were held for, its cost, limits, ETA.

    Example: tunnel status runs/quickstart
    """
    from tunnel import show
    from tunnel.sweeps import sweep as sweeping

    say(sweeping.status(*sweeping.located(folder, out)), as_json, show.status)


@app.command()
def train(
    folder: StudyPath,
    out: Out = None,
    target: TargetName = None,
    address: Address = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share every batch (Ray Train: DDP, FSDP2).")] = 1,
    decay: Annotated[
        str | None, typer.Option(help='"now": a finished model off the running trunk, which goes on.')
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(min=0, help="A further seed of the same run, for promote; several times.")
    ] = None,
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
    from tunnel.sweeps import early, launch
    from tunnel.sweeps import sweep as sweeping

    if decay not in (None, "now"):
        raise UserError("is no time to decay at", key="--decay", value=decay, choices=["now"])
    asked, keep = sweeping.located(folder, out)
    if decay:
        with watching(as_json) as watch:
            found = early.decay_now(asked, keep, target, workers=workers, address=address, watch=watch)
        say(found, as_json, show.trained)
        return
    if counterfactual:
        with watching(as_json) as watch:
            found = launch.contrast(asked, keep, target, hours=hours, address=address, watch=watch)
        say(found, as_json, show.contrast)
        raise typer.Exit(0 if found["holds"] else 1)
    with watching(as_json) as watch:
        found = launch.train(asked, keep, target, seeds=seed or [], workers=workers, address=address, watch=watch)
    say(found, as_json, show.trained)


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
def run(
    study: StudyPath,
    out: Out = None,
    scale: Scale = "full",
    address: Address = None,
    shared: Shared = None,
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
            url=shared,
            address=address,
            max_concurrent=max_concurrent,
            watch=watch,
            say=(lambda text: None) if as_json else show.out.print,
        )
    say(found, as_json, show.run)
