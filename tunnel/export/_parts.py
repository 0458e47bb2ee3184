"""What a target hands over: its files, how faithful they are, and the units of its batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from tunnel.errors import UserError
from tunnel.export._forms import Form, Tensors
from tunnel.run import RunSpec

CLOSE = 1e-9  # relative; float arithmetic, not another value


@dataclass(frozen=True)
class Carried:
    """How one field of the recommendation comes over, where it then stands, and why not exactly."""

    how: Literal["exact", "approximated", "impossible"]
    where: str
    reason: str = ""


def exact(where: Mapping[str, str]) -> dict[str, Carried]:
    """Fields that come over as they are, by where they then stand."""
    return {name: Carried("exact", place) for name, place in where.items()}


@dataclass(frozen=True)
class Parts:
    """A target's share of a bundle: its files by name, and what they carry.

    `multiplier` is the lr multiplier that the trainer's own scheduler gives to a step; `lost` names by key what fails
    the export unless lossy is allowed; `form` is the model as this trainer writes it, and `start` the shell's lines
    that start the job, from a folder that holds the bundle as BUNDLE.
    """

    files: Mapping[str, str]
    fields: Mapping[str, Carried]
    multiplier: Callable[[int], float]
    lost: Mapping[str, str] = field(default_factory=dict)
    form: Form | None = None
    start: str = ""

    @property
    def judged(self) -> dict[str, Carried]:
        """The fields, and as impossible what is lost without being one."""
        return {**{name: Carried("impossible", "nowhere", why) for name, why in self.lost.items()}, **self.fields}


@dataclass(frozen=True)
class Batch:
    """A step's batch in sequences: per_device × accumulation × world of them."""

    sequences: int
    per_device: int
    accumulation: int
    world: int

    def __str__(self) -> str:
        parts = f"{self.per_device} × {self.accumulation} accumulated × {self.world} processes"
        return f"{self.sequences} sequences: {parts}"


def batch_of(run: RunSpec, world: int) -> Batch:
    """The batch for a number of data-parallel processes; raises UserError where they cannot share it evenly."""
    s, seq_len = run.trunk.settings, run.trunk.body.seq_len
    n = s.batch_tokens // seq_len
    if world < 1 or n % world:
        even = [w for w in range(1, n + 1) if n % w == 0]
        raise UserError(f"does not divide the batch of {n} sequences", key="--world-size", value=world, choices=even)
    share, most = n // world, max(s.micro_batch_tokens // seq_len, 1)
    per_device = max(d for d in range(1, min(share, most) + 1) if share % d == 0)
    return Batch(n, per_device, share // per_device, world)


def steps_of(run: RunSpec) -> int:
    """Optimizer steps of the whole run."""
    return run.tokens // run.trunk.settings.batch_tokens


def unmixed(run: RunSpec, fields: Mapping[str, Carried]) -> dict[str, str]:
    """The data that changes within the run, where a trainer's data is the job's own: its config knows of no change."""
    if "data" not in fields or fields["data"].how == "exact":
        return {}
    batch = run.trunk.settings.batch_tokens
    joined = [f"{j.share:.0%} {j.source.corpus} from step {j.at // batch:,} on" for j in run.trunk.source.then if j.at]
    mixed = [f"{m.share:.0%} {m.name} from step {run.decay_start // batch:,} on" for m in run.mix]
    told = {"data_joined": joined, "decay_mix": mixed}
    return {k: f"the job itself must make its data {' and '.join(changes)}" for k, changes in told.items() if changes}


def undropped(run: RunSpec, whose: str) -> dict[str, str]:
    """The dropout of the attention's weights, where a trainer's model has none."""
    rate = run.trunk.settings.dropout
    return {"dropout": f"{whose} model has no attention dropout, {rate:g} here"} if rate else {}


GROUPED = {"lr": "groups.lr", "weight_decay": "groups.weight_decay", "eps": "groups.eps", "init_std": "init_std"}


def grouped(
    form: Form, applied: tuple[Tensors, ...], where: Mapping[str, str]
) -> tuple[dict[str, Carried], dict[str, str]]:
    """What of a form's groups comes over where the trainer applies `applied` to them, and what of it is lost.

    What matrices train with is lost where it differs. Adam's epsilon, far below its denominator, and the gains' values,
    a thousandth of the parameters, are approximated.  *assumed*
    """
    fields, lost = {}, {}
    for name, key in GROUPED.items():
        pairs = [(g.role, getattr(g, name), getattr(a, name)) for g, a in zip(form.groups, applied, strict=True)]
        off = [(role, want, got) for role, want, got in pairs if abs(got - want) > CLOSE * abs(want)]
        reason = "; ".join(f"{role} {got:.3g} instead of {want:.3g}" for role, want, got in off)
        fields[key] = Carried("approximated" if off else "exact", where[name], reason)
        if name != "eps" and any(role != "vector" for role, _, _ in off):
            lost[key] = f"this trainer gives {reason}"
    return fields, lost
