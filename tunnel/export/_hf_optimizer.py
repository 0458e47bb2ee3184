"""The recommendation's optimizer for transformers' Trainer: weights, groups and schedule as the tunnel trains them.

Reads recommendation.json, schedule.csv and selfcheck.json, which lie beside it; needs torch and nothing of the tunnel.

    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(BUNDLE))
    initialise(model)
    Trainer(model, args, optimizers=optimizers(model), ...)        # or (adamw(model), None): the Trainer's own schedule
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

HERE = Path(__file__).resolve().parent
CLOSE = 1e-6  # relative: float arithmetic, not another value


def read(name: str) -> dict[str, Any]:
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def grouped(model: torch.nn.Module) -> list[dict[str, Any]]:
    """The recommendation's groups with their parameters; a parameter without one is an error, never a guess."""
    wanted = read("recommendation.json")["groups"]
    groups: dict[str, dict[str, Any]] = {}
    for name, p in model.named_parameters():
        group = next((g for g in wanted if re.search(g["pattern"], name)), None)
        if group is None:
            raise ValueError(f"parameter {name} matches no group of recommendation.json")
        groups.setdefault(group["role"], {**group, "params": []})["params"].append(p)
    return list(groups.values())


@torch.no_grad()
def initialise(model: torch.nn.Module, seed: int | None = None) -> None:
    """Normal with the role's std, norm gains 1; drawn on the CPU: a seed means the same weights everywhere."""
    seed = read("recommendation.json")["run"]["trunk"]["seed"] if seed is None else seed
    generator = torch.Generator().manual_seed(seed)
    for group in grouped(model):
        for p in group["params"]:
            if group["role"] == "vector":
                p.fill_(1.0)
            else:
                p.copy_(torch.randn(p.shape, generator=generator) * group["init_std"])


def adamw(model: torch.nn.Module) -> torch.optim.AdamW:
    """AdamW with a learning rate, weight decay and eps per role."""
    s = read("recommendation.json")["run"]["trunk"]["settings"]
    kept = ("params", "role", "lr", "weight_decay", "eps")
    groups = [{k: g[k] for k in kept} for g in grouped(model)]
    return torch.optim.AdamW(groups, betas=(s["beta1"], s["beta2"]), fused=True)


def schedule(optimizer: torch.optim.Optimizer) -> LambdaLR:
    """The tunnel's own curve, step by step; past its end the last value."""
    with open(HERE / "schedule.csv", encoding="utf-8", newline="") as f:
        multipliers = [float(row["multiplier"]) for row in csv.DictReader(f)]
    return LambdaLR(optimizer, lambda step: multipliers[min(step, len(multipliers) - 1)])


def optimizers(model: torch.nn.Module) -> tuple[torch.optim.AdamW, LambdaLR]:
    """For `Trainer(optimizers=...)`."""
    optimizer = adamw(model)
    return optimizer, schedule(optimizer)


def differences(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int, own_scheduler: bool = False
) -> list[str]:
    """What selfcheck.json promises for before step 0 or 10 and this job does not do; empty when all is applied.

    `own_scheduler`: the job steps the Trainer's scheduler, not `schedule`.
    """
    promised = read("selfcheck.json")
    lrs = {g["role"]: g["lr"] for g in optimizer.param_groups if "role" in g}
    at = "lr_own_scheduler" if own_scheduler else "lr_at_step"
    pairs = {f"lr of {g['role']}": (g[at][str(step)], lrs.get(g["role"])) for g in promised["groups"]}
    for name, value in promised["multipliers"].items():
        pairs[name] = (value, getattr(model.config, name, None))
    pairs["parameters"] = (promised["parameters"], sum(p.numel() for p in model.parameters()))
    return [
        f"{name}: {got}, promised {want}"
        for name, (want, got) in pairs.items()
        if got is None or abs(got - want) > CLOSE * abs(want)
    ]
