"""Commands that answer from what was trained."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from tunnel.cli.app import Json, Out, StudyPath, TargetName, app, say
from tunnel.errors import UserError


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
        from tunnel.answers import ladder, mixes
        from tunnel.sweeps import sweep as sweeping

        asked, keep = sweeping.located(table, out)
        found = ladder.fitted(asked, keep, target)
        if effects := mixes.told(keep.readings()):
            found = {**found, "mixes": effects}
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
def compare(folder: StudyPath, out: Out = None, as_json: Json = False) -> None:
    """What a study's bodies show side by side: depths, retention by task, experts against dense.

    Example: tunnel compare runs/narrow_deep
    """
    from tunnel import show
    from tunnel.answers import comparisons
    from tunnel.sweeps import sweep as sweeping

    say(comparisons.compared(*sweeping.located(folder, out)), as_json, show.comparison)


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
    world_size: Annotated[int, typer.Option(help="Data-parallel processes that share the batch.")] = 1,
    model: Annotated[
        str | None, typer.Option(help="The trained weights instead: hf (Granite, as trained) or llama (folded).")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="What each trainer can and cannot carry.")] = False,
    as_json: Json = False,
) -> None:
    """The config bundle for a trainer, or the trained target as a folder that transformers loads.

    Example: tunnel export runs/quickstart --to torchtitan --world-size 8

    The weights: tunnel export runs/quickstart --model llama
    """
    from tunnel import export as exporting
    from tunnel import show
    from tunnel.answers import recommend as recommending
    from tunnel.folder import audit
    from tunnel.sweeps import sweep as sweeping

    if list_:
        say({"targets": exporting.targets()}, as_json, show.targets)
        return
    if folder is None:
        raise UserError("is missing: a study file, or a study's folder", key="DIR")
    asked, keep = sweeping.located(folder)
    told = recommending.recommend(asked, keep, target)
    if model is not None:
        from tunnel.export import _model

        folder_ = out or exporting.inside(keep.root, f"model-{model}")
        with redirect_stdout(sys.stderr):
            made = _model.export(asked, keep, told, model, folder_, force=force, say=print)
        audit.note(keep.root, "exported", model=model, out=str(folder_), target=target, force=force)
        say(made, as_json, show.bundle)
        return
    bundle = out or exporting.place(keep.root, to)
    found = exporting.export(told, to, bundle, force=force, allow_lossy=allow_lossy, world_size=world_size)
    audit.note(keep.root, "exported", to=to, out=str(bundle), target=target, force=force, allow_lossy=allow_lossy)
    say(found, as_json, show.bundle)


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

    While the target trains: its loss against forecast and ladder; exit 1 where it left their bundle.

    With --all, exit 1 where fewer lay inside than 90% intervals allow.
    """
    from tunnel import show
    from tunnel.answers import forecasts, running
    from tunnel.sweeps import sweep as sweeping

    asked, keep = sweeping.located(folder, out)
    if all_:
        found = forecasts.every(keep)
        say(found, as_json, show.forecasts)
        raise typer.Exit(0 if found["enough"] else 1)
    found = running.check(asked, keep, target)
    say(found, as_json, show.check)
    raise typer.Exit(0 if (found["live"]["alarm"] is None if "live" in found else found["inside"]) else 1)


Champions = Annotated[Path, typer.Option("--champions", help="Who is champion; its history lies beside it, as .jsonl.")]


@app.command()
def promote(
    folder: StudyPath,
    out: Out = None,
    target: TargetName = None,
    champions: Champions = Path("runs/champion.json"),
    force: Annotated[str | None, typer.Option(metavar="REASON", help="Promote it all the same, and say why.")] = None,
    as_json: Json = False,
) -> None:
    """Make the recommendation the champion, if it earns it; exit 1, with every condition, where it does not.

    Example: tunnel promote runs/quickstart

    Its forecast held, no optimum lies on an edge, and at held-out sizes it beats the last champion at 3 paired seeds.
    """
    from tunnel import show
    from tunnel.answers import promote as promoting
    from tunnel.sweeps import sweep as sweeping

    asked, keep = sweeping.located(folder, out)
    found = promoting.promote(asked, keep, target, path=champions, force=force)
    say(found, as_json, show.promotion)
    raise typer.Exit(0 if found["promoted"] else 1)


@app.command()
def rollback(
    to: Annotated[int | None, typer.Option(min=1, help="A promotion's number; default: the one before.")] = None,
    champions: Champions = Path("runs/champion.json"),
    as_json: Json = False,
) -> None:
    """Make an earlier champion the champion again.

    Example: tunnel rollback --to 1
    """
    from tunnel import show
    from tunnel.answers import champions as reigning

    say(reigning.rollback(champions, to), as_json, show.rolled_back)
