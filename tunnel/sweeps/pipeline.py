"""All of it, in order: sweep, fit, recommend, export, train the target, check the forecast; or sweep and compare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunnel import export, families
from tunnel.answers import comparisons, forecasts, ladder, recommend
from tunnel.errors import UserError
from tunnel.folder import audit, store
from tunnel.folder.store import Store
from tunnel.sweeps import launch, sweep

Say = Callable[[str], None]


def run(
    where: str | Path,
    out: str | Path | None = None,
    *,
    small: bool = False,
    url: str | None = None,
    address: str | None = None,
    max_concurrent: int | None = None,
    watch: sweep.Watch | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Runs a study from its question to its checked forecast; what is done already is used again.

    Returns the folder, `status`, the recommendation, the bundle's folder and the check; of a study without a target
    folder, `status` and comparison. Raises UserError and Stopped.
    """
    asked, keep = sweep.opened(where, out, small=small, url=url)
    say("training the proxies")
    state = sweep.sweep(asked, keep, address=address, max_concurrent=max_concurrent, watch=watch)
    if not asked.target:
        found = {"folder": str(keep.root), "status": state, "sweep": state["trials"]}
        return {**found, "comparison": comparisons.compared(asked, keep)}
    say("fitting the ladder")
    fit = ladder.fitted(asked, keep)
    told = recommend.recommend(asked, keep)
    name, span = told["target"]["name"], f"{told['low']:.4f} to {told['high']:.4f}"
    say(f"forecast for {name}: {told['forecast']:.4f} ({span}), registered")
    to = "hf" if hasattr(families.load(asked.family), "config_dict") else "json"
    bundle = exported(keep, told, to, say)
    say("training the target")
    launch.train(asked, keep, address=address, watch=watch)
    checked = forecasts.check(keep, told["target"]["name"])
    return {
        "folder": str(keep.root),
        "status": sweep.status(asked, keep),
        "sweep": state["trials"],
        "fit": fit,
        "recommendation": told,
        "bundle": str(bundle),
        "check": checked,
    }


def exported(keep: Store, told: dict[str, Any], to: str, say: Say) -> Path:
    """The recommendation's bundle for a trainer; where that would lose something of it, the neutral one."""
    bundle = export.place(keep.root, to)
    if store.read_json(bundle / "recommendation.json") == told:
        return bundle
    try:
        export.export(told, to, bundle, force=True)
    except UserError as e:
        if to == "json":
            raise
        say(f"{e}: exported as data instead")
        return exported(keep, told, "json", say)
    audit.note(keep.root, "exported", to=to, out=str(bundle))
    return bundle
