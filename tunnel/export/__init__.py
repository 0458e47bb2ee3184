"""Config bundles for trainers: one file per target, found by its name.

A target has
    CARRIES, CANNOT_CARRY         what of a recommendation its own config can say, and cannot, in a few words each
    parts(recommendation, run)    its files and how faithful they are (`Parts`); UserError where it cannot take the run
What every bundle holds, how its schedule is judged and how it is written is here. Files whose name begins with _ are
shipped in bundles, and imported by nothing of ours.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

# by name: the submodule `json` takes the name of the module `json` in this package as soon as it is imported
from json import dumps
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import ValidationError

from tunnel import __version__, families
from tunnel.errors import UserError
from tunnel.export._write import write
from tunnel.run import RunSpec

SCHEMA = 1  # of FIDELITY.json, selfcheck.json and manifest.json
READS = 1  # the recommendation's schema that this code understands
NEEDED = ("target", "run", "settings", "groups", "multipliers")
GROUP = ("role", "pattern", "lr", "weight_decay", "eps", "init_std")
CHECKED_STEPS = (0, 10)  # at which the job proves its learning rates
ROUNDING = 1e-9  # of a multiplier; float arithmetic, not a difference of schedules
PEAK_STEPS = 1.0  # that the two schedules' sums may differ by (EXPORT.md)  *assumed*

NOT_YET = {
    "torchtitan": "a Python recipe; its parser is not yet part of the tests",
    "megatron": "command-line arguments; its parser is not yet part of the tests",
    "llamafactory": "YAML as hf's; needs an environment of its own",
    "axolotl": "YAML; its parser is not yet part of the tests",
    "olmo_core": "Python; linear decay only; its parser is not yet part of the tests",
    "nanotron": "YAML; best effort at most",
    "megatron_bridge": "Python; best effort at most",
    "nemo_automodel": "YAML; best effort at most",
}
REFUSED = {
    "litgpt": "its schedulers cannot express warmup-stable-decay",
    "deepspeed": "its own schedulers cannot express warmup-stable-decay",
    "llm_foundry": "its schedulers cannot express warmup-stable-decay",
    "nanochat": "it takes no schedule and no learning rates of ours: they follow from its depth",
}


@dataclass(frozen=True)
class Carried:
    """How one field of the recommendation comes over, where it then stands, and why not exactly."""

    how: Literal["exact", "approximated", "impossible"]
    where: str
    reason: str = ""


@dataclass(frozen=True)
class Parts:
    """A target's share of a bundle: its files by name, and what they carry.

    `multiplier` is the lr multiplier that the trainer's own scheduler gives to a step; `lost` names by key what fails
    the export unless lossy is allowed.
    """

    files: Mapping[str, str]
    fields: Mapping[str, Carried]
    multiplier: Callable[[int], float]
    lost: Mapping[str, str] = field(default_factory=dict)


def names() -> list[str]:
    """The targets that can be exported to, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def get(name: str) -> ModuleType:
    """The target's module; raises UserError where there is none, with the reason where one is known."""
    if name in names():
        return importlib.import_module(f"{__name__}.{name}")
    if name in REFUSED:
        raise UserError(f"is refused: {REFUSED[name]}", key="--to", value=name, choices=names())
    rule = f"is not a target yet ({NOT_YET[name]})" if name in NOT_YET else "is not an export target"
    raise UserError(rule, key="--to", value=name, choices=names())


def targets() -> list[dict[str, Any]]:
    """Every target with its status (first class, not yet, refused), what it carries and cannot, and the reason."""
    found = []
    for name in names():
        module = get(name)
        found.append(row(name, "first class", list(module.CARRIES), list(module.CANNOT_CARRY), ""))
    found += [row(name, "not yet", [], [], reason) for name, reason in NOT_YET.items()]
    return found + [row(name, "refused", [], [], reason) for name, reason in REFUSED.items()]


def row(name: str, status: str, carries: list[str], cannot: list[str], reason: str) -> dict[str, Any]:
    return {"name": name, "status": status, "carries": carries, "cannot carry": cannot, "reason": reason}


def export(
    recommendation: dict[str, Any], to: str, out: Path, *, force: bool = False, allow_lossy: bool = False
) -> dict[str, Any]:
    """Writes the recommendation as a config bundle for a trainer, all of it or nothing; says what was written.

    Raises UserError where the target is unknown, the recommendation is not one, the target cannot express it (unless
    lossy is allowed), or `out` exists (with `force`, where it is anything but an earlier bundle).
    """
    module, run = get(to), checked(recommendation)
    parts: Parts = module.parts(recommendation, run)
    judged = compared(run, parts.multiplier)
    lost = dict(parts.lost)
    if not judged["within_tolerance"]:
        lost.setdefault("schedule", f"{to} steps it otherwise: {sentence(judged)}")
    if lost and not allow_lossy:
        key, why = next(iter(lost.items()))
        raise UserError(f"{why}; --allow-lossy writes the nearest there is", key=key)
    fidelity = {
        "schema": SCHEMA,
        "target": to,
        "lossy": lost,
        "schedule": judged,
        "fields": {name: asdict(carried) for name, carried in parts.fields.items()},
    }
    files = {
        **parts.files,
        "recommendation.json": text(recommendation),
        "schedule.csv": schedule_csv(run),
        "FIDELITY.json": text(fidelity),
        "selfcheck.json": text(selfcheck(recommendation, run, parts.multiplier)),
    }
    written = write(files, Path(out), {"schema": SCHEMA, "target": to, "made_by": f"tunnel {__version__}"}, force=force)
    by = {how: [n for n, f in parts.fields.items() if f.how == how] for how in ("approximated", "impossible")}
    exact = Counter(f.how for f in parts.fields.values())["exact"]
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


def steps_of(run: RunSpec) -> int:
    """Optimizer steps of the whole run."""
    return run.tokens // run.trunk.settings.batch_tokens


def compared(run: RunSpec, own: Callable[[int], float]) -> dict[str, Any]:
    """The trainer's own scheduler stepped against our curve, in multiples of the peak lr.

    EXPORT.md's tolerance: at most one warmup step anywhere, and the sums within one peak step. A warmup of one step or
    none has no step to be off by.
    """
    batch = run.trunk.settings.batch_tokens
    differences = [own(s) - run.multiplier(s * batch) for s in range(steps_of(run))]
    at = max(range(len(differences)), key=lambda s: abs(differences[s]))
    warmup = run.trunk.settings.warmup // batch
    tolerance = 1 / warmup if warmup > 1 else 0.0
    largest, total = abs(differences[at]), sum(differences)
    return {
        "exact": largest <= ROUNDING,
        "within_tolerance": largest <= tolerance + ROUNDING and abs(total) <= PEAK_STEPS + ROUNDING,
        "max_difference": largest,
        "max_difference_allowed": tolerance,
        "at_step": at,
        "sum_difference": total,
        "sum_difference_allowed": PEAK_STEPS,
        "unit": "multiples of the peak lr",
    }


def sentence(judged: dict[str, Any]) -> str:
    return (
        f"up to {judged['max_difference']:.3g} of the peak lr away, at step {judged['at_step']} "
        f"({judged['max_difference_allowed']:.3g} allowed), and {judged['sum_difference']:+.3g} peak steps in sum"
    )


def schedule_csv(run: RunSpec) -> str:
    """Our curve: for every step the tokens before it, the multiplier, and the lr at the base shape."""
    s = run.trunk.settings
    lines = ["step,tokens,multiplier,lr"]
    for step in range(steps_of(run)):
        multiplier = run.multiplier(step * s.batch_tokens)
        lines.append(f"{step},{step * s.batch_tokens},{multiplier!r},{s.lr * multiplier!r}")
    return "\n".join(lines) + "\n"


def selfcheck(recommendation: dict[str, Any], run: RunSpec, own: Callable[[int], float]) -> dict[str, Any]:
    """What the job compares itself with, to prove that it applied the bundle.

    `lr` per group is our curve's (schedule.csv), `lr_own_scheduler` what the trainer's own scheduler gives.
    """
    shape, body, batch = run.trunk.shape, run.trunk.body, run.trunk.settings.batch_tokens
    n = families.load(run.trunk.family).count(shape, body)
    steps = [s for s in CHECKED_STEPS if s < steps_of(run)]
    groups = [
        {
            **{k: g[k] for k in GROUP},
            "lr_at_step": {str(s): g["lr"] * run.multiplier(s * batch) for s in steps},
            "lr_own_scheduler": {str(s): g["lr"] * own(s) for s in steps},
        }
        for g in recommendation["groups"]
    ]
    return {
        "schema": SCHEMA,
        "parameters": n + body.vocab * shape.width,  # the embedding is tied to the readout: counted once
        "non_embedding_parameters": n,
        "steps": steps_of(run),
        "multipliers": recommendation["multipliers"],
        "groups": groups,
    }


def text(value: Any) -> str:
    return dumps(value, indent=1, allow_nan=False) + "\n"
