"""What every bundle holds: our curve, how the trainer's own compares with it, and what the job must show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Any

from tunnel import families
from tunnel.export._forms import Tensors
from tunnel.export._parts import Carried, Parts, steps_of
from tunnel.run import RunSpec

SCHEMA = 1  # of FIDELITY.json, selfcheck.json and manifest.json
CHECKED_STEPS = (0, 10)  # at which the job proves its learning rates
ROUNDING = 1e-9  # of a multiplier; float arithmetic, not a difference of schedules
PEAK_STEPS = 1.0  # that the two schedules' sums may differ by (EXPORT.md)  *assumed*
SCRIPT = Path(__file__).with_name("_selfcheck.py")


def files(
    recommendation: dict[str, Any], run: RunSpec, to: str, parts: Parts, lossy: Mapping[str, str]
) -> dict[str, str]:
    """The whole bundle but its manifest, by name."""
    judged = compared(run, parts.multiplier)
    fidelity = {
        "schema": SCHEMA,
        "target": to,
        "lossy": dict(lossy),
        "schedule": judged,
        "fields": {name: asdict(carried) for name, carried in parts.judged.items()},
    }
    shared = {
        "recommendation.json": text(recommendation),
        "schedule.csv": schedule_csv(run),
        "FIDELITY.json": text(fidelity),
        "selfcheck.json": text(selfcheck(recommendation, run, parts)),
        "README.md": readme(recommendation, run, to, parts, lossy),
    }
    script = {} if parts.form is None else {"selfcheck.py": SCRIPT.read_text(encoding="utf-8")}
    return {**parts.files, **shared, **script}


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


def sentence(judged: Mapping[str, Any]) -> str:
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


def selfcheck(recommendation: dict[str, Any], run: RunSpec, parts: Parts) -> dict[str, Any]:
    """What the job compares itself with, to prove that it applied the bundle, in the trainer's own form of the model.

    `lr` per group is our curve's (schedule.csv), `lr_own_scheduler` what the trainer's own scheduler gives.
    """
    shape, body, batch = run.trunk.shape, run.trunk.body, run.trunk.settings.batch_tokens
    n = families.total(run.trunk.family, shape, body)
    steps = [s for s in CHECKED_STEPS if s < steps_of(run)]
    groups = [asdict(g) for g in parts.form.groups] if parts.form else recommendation["groups"]
    names = [f for f in Tensors.__dataclass_fields__]
    return {
        "schema": SCHEMA,
        "parameters": families.parameters(run.trunk),
        "non_embedding_parameters": n,
        "steps": steps_of(run),
        "multipliers": parts.form.multipliers if parts.form else recommendation["multipliers"],
        "groups": [
            {
                **{k: g[k] for k in names},
                "lr_at_step": {str(s): g["lr"] * run.multiplier(s * batch) for s in steps},
                "lr_own_scheduler": {str(s): g["lr"] * parts.multiplier(s) for s in steps},
            }
            for g in groups
        ],
    }


def readme(recommendation: dict[str, Any], run: RunSpec, to: str, parts: Parts, lossy: Mapping[str, str]) -> str:
    """How the job is started, and what it does otherwise than was recommended."""
    s, target = run.trunk.settings, recommendation["target"].get("name", "")
    lines = [
        f"# {target} for {to}",
        "",
        f"{steps_of(run):,} steps of {s.batch_tokens:,} tokens. The data is the job's own: {data(run)}, "
        f"tokenizer {run.trunk.source.tokenizer}, {run.trunk.body.seq_len:,} tokens a sequence.",
    ]
    if parts.start:
        lines += ["", "```sh", parts.start.strip(), "```"]
    if parts.form is not None:
        lines += ["", SELFCHECK]
    other = {k: f for k, f in parts.judged.items() if f.how != "exact"}
    if other:
        lines += ["", "What is not as recommended:", ""]
        lines += [f"- {name}: {f.how}{because(f)}" for name, f in other.items()]
    lines += [f"- {name}: lost, as --allow-lossy allowed: {why}" for name, why in lossy.items()]
    return "\n".join(lines) + "\n"


def data(run: RunSpec) -> str:
    """What the job must read, and from which step on."""
    source, batch = run.trunk.source, run.trunk.settings.batch_tokens
    joined = [f"{j.share:.0%} {j.source.corpus} from step {j.at // batch:,} on" for j in source.then]
    decay = f"in the decay, from step {run.decay_start // batch:,} on"
    return "; ".join([source.corpus, *joined, *(f"{m.share:.0%} {m.source.corpus} {decay}" for m in run.mix)])


SELFCHECK = """`selfcheck.py` proves at steps 0 and 10 that the job applied the groups' learning rates and multipliers:
`selfcheck.verify(model, optimizer, step)` before the step, in the training process, ends a job that did not."""


def because(carried: Carried) -> str:
    return f" ({carried.reason})" if carried.reason else ""


def text(value: Any) -> str:
    return dumps(value, indent=1, allow_nan=False) + "\n"
