"""The recommendation's optimizer for transformers' Trainer: weights, groups and schedule as the tunnel trains them.

Reads recommendation.json, schedule.csv and selfcheck.json, which lie beside it; needs torch and nothing of the tunnel.

    model = built()
    Trainer(model, args, optimizers=optimizers(model), ...)        # or (adamw(model), None): the Trainer's own schedule

    python BUNDLE/prepare.py FOLDER       # where a trainer loads a folder: the initialised model and its tokenizer
"""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

HERE = Path(__file__).resolve().parent


def read(name: str) -> dict[str, Any]:
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def grouped(model: torch.nn.Module) -> list[dict[str, Any]]:
    """The groups of selfcheck.json with their parameters; a parameter without one is an error, never a guess."""
    wanted = read("selfcheck.json")["groups"]
    groups: dict[str, dict[str, Any]] = {}
    for name, p in model.named_parameters():
        group = next((g for g in wanted if re.search(g["pattern"], name)), None)
        if group is None:
            raise ValueError(f"parameter {name} matches no group of selfcheck.json")
        groups.setdefault(group["role"], {**group, "params": []})["params"].append(p)
    return list(groups.values())


@torch.no_grad()
def initialise(model: torch.nn.Module, seed: int | None = None) -> None:
    """Normal with the role's std, norm gains 1, biases 0; drawn on the CPU: a seed means the same everywhere."""
    seed = read("recommendation.json")["run"]["trunk"]["seed"] if seed is None else seed
    generator = torch.Generator().manual_seed(seed)
    biases = {id(p) for name, p in model.named_parameters() if name.endswith("bias")}
    for group in grouped(model):
        for p in group["params"]:
            if group["role"] == "vector":
                p.fill_(0.0 if id(p) in biases else 1.0)
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


def built() -> Any:
    """The model at 0 tokens."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(HERE)
    model = getattr(transformers, config.architectures[0])(config)
    initialise(model)
    return model


def prepare(out: str) -> None:
    """Writes the model at 0 tokens, with its tokenizer where the bundle has one, for a trainer that loads a folder."""
    from transformers import AutoTokenizer

    built().save_pretrained(out)
    if (HERE / "tokenizer.json").exists():
        AutoTokenizer.from_pretrained(HERE).save_pretrained(out)


if __name__ == "__main__":
    prepare(sys.argv[1])
