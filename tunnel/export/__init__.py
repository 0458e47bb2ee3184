"""Config bundles for trainers: one file per target, found by its name.

A target has
    CARRIES, CANNOT_CARRY            what of a recommendation its own config can say, and cannot, in a few words each
    parts(recommendation, run, world)   its files and how faithful they are (`Parts`), for `world` data-parallel
                                     processes; UserError where it cannot take the run
    TAKES                            transformers' types of the models that it has a form of; dense decoders unless said
    BEST_EFFORT                      True where no test asks the real package
What every bundle holds, how its schedule is judged and how it is written is here. Files whose name begins with _ are
no targets: what targets share, and what is shipped in bundles.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from dataclasses import replace

# by name: the submodule `json` takes the name of the module `json` in this package as soon as it is imported
from json import dumps
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from tunnel import __version__
from tunnel.errors import UserError
from tunnel.export import _bundle
from tunnel.export._parts import Carried, Parts, steps_of, unmixed
from tunnel.export._write import write
from tunnel.run import RunSpec

__all__ = ["REFUSED", "Carried", "Parts", "checked", "export", "get", "names", "place", "steps_of", "targets"]

READS = 1  # the recommendation's schema that this code understands
NEEDED = ("target", "run", "settings", "groups", "multipliers")
GROUP = ("role", "pattern", "lr", "weight_decay", "eps", "init_std")
MODELS = {"granitemoe": "mixtures of experts", "bert": "encoders"}  # transformers' types, beside dense decoders
REFUSED = {
    "litgpt": "its schedulers cannot express warmup-stable-decay",
    "deepspeed": "its own schedulers cannot express warmup-stable-decay",
    "llm_foundry": "its schedulers cannot express warmup-stable-decay",
    "nanochat": "it takes no schedule and no learning rates of ours: they follow from its depth",
}


def names() -> list[str]:
    """The targets that can be exported to, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def get(name: str) -> ModuleType:
    """The target's module; raises UserError where there is none, with the reason where one is known."""
    if name in names():
        return importlib.import_module(f"{__name__}.{name}")
    rule = f"is refused: {REFUSED[name]}" if name in REFUSED else "is not an export target"
    raise UserError(rule, key="--to", value=name, choices=names())


def targets() -> list[dict[str, Any]]:
    """Every target with its status (first class, best effort, refused), what it carries and cannot, and the reason."""
    found = []
    for name in names():
        module = get(name)
        best = getattr(module, "BEST_EFFORT", False)
        status, why = ("best effort", "golden files only") if best else ("first class", "")
        untaken = [what for kind, what in MODELS.items() if kind not in getattr(module, "TAKES", ())]
        found.append(row(name, status, list(module.CARRIES), [*module.CANNOT_CARRY, *untaken], why))
    return found + [row(name, "refused", [], [], reason) for name, reason in REFUSED.items()]


def row(name: str, status: str, carries: list[str], cannot: list[str], reason: str) -> dict[str, Any]:
    return {"name": name, "status": status, "carries": carries, "cannot carry": cannot, "reason": reason}


def place(root: Path, to: str) -> Path:
    """Where a study's folder has its bundle for a trainer; raises UserError where a link leads out of the folder."""
    get(to)  # before a path is made of it
    return inside(root, to)


def inside(root: Path, name: str) -> Path:
    """Where a study's folder has an export by name; raises UserError where a link leads out of the folder."""
    found = root / "export" / name
    if not found.parent.resolve().is_relative_to(root.resolve()):
        raise UserError("is a symbolic link out of the study's folder: an export never follows one", file=found.parent)
    return found


def export(
    recommendation: dict[str, Any],
    to: str,
    out: Path,
    *,
    force: bool = False,
    allow_lossy: bool = False,
    world_size: int = 1,
) -> dict[str, Any]:
    """Writes the recommendation as a config bundle for a trainer, all of it or nothing; says what was written.

    `world_size`: data-parallel processes, among which the batch is divided. Raises UserError where the target is
    unknown, the recommendation is not one, the target cannot express it (unless lossy is allowed), or `out` exists
    (with `force`, where it is anything but an earlier bundle).
    """
    module, run = get(to), checked(recommendation)
    parts: Parts = module.parts(recommendation, run, world_size)
    parts = replace(parts, lost={**parts.lost, **unmixed(run, parts.fields)})
    judged, lost = _bundle.compared(run, parts.multiplier), dict(parts.lost)
    if not judged["within_tolerance"]:
        lost.setdefault("schedule", f"{to} steps it otherwise: {_bundle.sentence(judged)}")
    if lost and not allow_lossy:
        key, why = next(iter(lost.items()))
        raise UserError(f"{why}; --allow-lossy writes the nearest there is", key=key)
    files = _bundle.files(recommendation, run, to, parts, lost)
    about = {"schema": _bundle.SCHEMA, "target": to, "world_size": world_size, "made_by": f"tunnel {__version__}"}
    written = write(files, Path(out), about, force=force)
    by = {how: [n for n, f in parts.judged.items() if f.how == how] for how in ("approximated", "impossible")}
    exact = Counter(f.how for f in parts.judged.values())["exact"]
    return {
        "target": to,
        "out": str(out),
        "files": written,
        "fidelity": {"exact": exact, **by, "lossy": list(lost), "schedule": judged},
    }


def checked(recommendation: dict[str, Any]) -> RunSpec:
    """The target's run, where this is a recommendation that can be exported; raises UserError where it is not."""
    where = "recommendation.json"
    if not isinstance(recommendation, dict) or recommendation.get("schema") != READS:
        got = recommendation.get("schema") if isinstance(recommendation, dict) else type(recommendation).__name__
        raise UserError("is of another schema than this tunnel reads", file=where, value=got, choices=[READS])
    for key in NEEDED:
        if key not in recommendation:
            raise UserError("is missing: recommend again", file=where, key=key)
    for i, group in enumerate(recommendation["groups"]):
        if missing := [k for k in GROUP if k not in group]:
            raise UserError(f"lacks {', '.join(missing)}", file=where, key=f"groups.{i}")
    try:
        run = RunSpec.model_validate(recommendation["run"])
        dumps(recommendation, allow_nan=False)
    except ValidationError as e:
        first = e.errors()[0]
        raise UserError(first["msg"], file=where, key=".".join(["run", *map(str, first["loc"])])) from None
    except (TypeError, ValueError) as e:
        raise UserError(f"cannot be written as JSON ({e})", file=where) from None
    s = run.trunk.settings
    lengths = {"warmup": s.warmup, "decay_start": run.decay_start, "decay_tokens": run.decay_tokens}
    for key, tokens in lengths.items():
        if tokens % s.batch_tokens:
            raise UserError(f"is not whole batches of {s.batch_tokens}", file=where, key=f"run.{key}", value=tokens)
    return run
