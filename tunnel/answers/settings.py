"""Every setting of the target: value, 90% interval, the law or rule it comes from, and the readings behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from tunnel import transfer, tuned
from tunnel.answers.basis import Basis
from tunnel.run import RunSpec
from tunnel.space import MIX, Scalar
from tunnel.study import Stage, Study
from tunnel.verdicts.carry import Carried

Setting = dict[str, Any]  # value, low, high, source, readings


def all_of(
    b: Basis, run: RunSpec, carried: Mapping[str, Carried], groups: Sequence[Mapping[str, Any]]
) -> dict[str, Setting]:
    """By name: what the study set, what was searched, and what the transfer rule derives from these."""
    none = {name: 0.0 for name in b.evidence if name.startswith(f"{MIX}.")}
    found = {name: exactly(value, "the study") for name, value in {**none, **trained(run)}.items()}
    for name, known in b.evidence.items():
        if name in found:
            found[name] |= {k: known[k] for k in ("low", "high", "source")} | {"readings": list(known["readings"])}
    ends = {k: b.fit["lr"][k] for k in ("low", "high")}
    where, behind = lr_source(b.fit, b.stage), b.rows.fingerprint.tolist()
    found["lr"] = {"value": run.trunk.settings.lr, **ends, "source": where, "readings": behind}
    for name, c in carried.items():
        if name in found and c.evidence:
            found[name]["source"] += f"; {c.evidence}"
    return found | derived(run, groups)


def trained(run: RunSpec) -> dict[str, Scalar]:
    """A run's settings as they are recommended: the warmup in tokens, the decay as a part of the run."""
    s = run.trunk.settings
    return {
        "decay_shape": run.decay_shape,
        **({"half_life": run.half_life} if run.decay_shape == "exponential" else {}),
        "min_ratio": run.min_ratio,
        **{f"{MIX}.{m.name}": m.share for m in run.mix},
        "batch_tokens": s.batch_tokens,
        "tokens": run.tokens,
        **{k: getattr(s, k) for k in ("weight_decay", "beta1", "beta2", "eps", "clip", "warmup")},
        "decay": run.decay_tokens / run.tokens,
    }


def derived(run: RunSpec, groups: Sequence[Mapping[str, Any]]) -> dict[str, Setting]:
    """What the rule makes of the settings at the target's shape."""
    trunk = run.trunk
    values = dict(vars(transfer.multipliers(trunk.rules, trunk.shape, trunk.body)))
    values |= {f"{name}_{g['role']}": g[name] for g in groups for name in ("lr", "init_std")}
    return {name: exactly(value, f"rule {trunk.rules}") for name, value in values.items()}


def lr_source(fit: Mapping[str, Any], stage: Stage) -> str:
    """Where the target's lr comes from, in words."""
    if not fit["surface"]["curved"]:
        return f"stage {stage.name}'s lr"
    skew, power = fit["lr"]["skew"], fit["lr"]["batch_power"]
    side = "right" if skew["value"] > 0 else "left"
    shape = f"valleys steeper to the {side} (skew {skew['value']:.2g})" if skew["used"] else "symmetric valleys"
    where = f"lr*(N, D) of stage {stage.name}'s fans"
    if power:
        where += f", moved to the target's batch by the power {power['value']:+.2f} of stage {fit['horizon']['stage']}"
    return f"{where}; least expected loss, {shape}"


def exactly(value: Scalar, source: str) -> Setting:
    end = None if isinstance(value, str) else value
    return {"value": value, "low": end, "high": end, "source": source, "readings": []}


def aspects(asked: Study, readings: pd.DataFrame) -> dict[str, Setting]:
    """Width over depth as the last stage that searched the shape found it best; empty where none did."""
    found = [a for stage in asked.stage if (a := tuned.aspect(stage, readings)) is not None]
    if not found:
        return {}
    last = found[-1]
    source = f"width/depth at equal FLOPs: {last.source}"
    ends = {"value": last.value, "low": last.low, "high": last.high}
    return {"aspect": {**ends, "source": source, "readings": list(last.readings)}}
