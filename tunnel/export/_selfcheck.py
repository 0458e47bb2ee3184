"""Proves at steps 0 and 10 that the job trains what selfcheck.json, which lies beside it, promises. Needs torch only.

import selfcheck; selfcheck.verify(model, optimizer, step)     # before the step; `optimizer` may be several
Trainer(..., callbacks=[selfcheck.Callback()])                 # transformers' Trainer, and what is built on it
"""

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
STEPS = (0, 10)
CLOSE = 1e-6  # relative: float arithmetic, not another value
LOOSE = 0.2  # relative, of an initial std: a draw, not a value


def promised() -> dict[str, Any]:
    return json.loads((HERE / "selfcheck.json").read_text(encoding="utf-8"))


def off(got: Any, want: float, close: float = CLOSE) -> bool:
    return got is None or abs(got - want) > close * abs(want)


def differences(model: Any, optimizers: Any, step: int, own_scheduler: bool = True) -> list[str]:
    """What is promised for before `step` and not so, in words; empty when all is applied."""
    promise, at = promised(), "lr_own_scheduler" if own_scheduler else "lr_at_step"
    optimizers = optimizers if isinstance(optimizers, (list, tuple)) else [optimizers]
    groups = [g for o in optimizers for g in o.param_groups]
    applied = {id(p): g for g in groups for p in g["params"]}
    found: set[str] = set()
    count = 0
    for name, p in model.named_parameters():
        count += p.numel()
        group = next((g for g in promise["groups"] if re.search(g["pattern"], name)), None)
        got = applied.get(id(p))
        if group is None or got is None:
            found.add(f"{name} is in no group of {'selfcheck.json' if group is None else 'the optimizer'}")
            continue
        if str(step) in group[at] and off(float(got["lr"]), group[at][str(step)]):
            found.add(f"lr of {group['role']}: {float(got['lr'])}, promised {group[at][str(step)]}")
        if step == 0 and p.numel() > 1000 and off(float(p.detach().float().std()), group["init_std"], LOOSE):
            found.add(f"initial std of {group['role']}: {float(p.detach().float().std())}, not {group['init_std']}")
    if count != promise["parameters"]:
        found.add(f"parameters: {count}, promised {promise['parameters']}")
    config = getattr(model, "config", None)
    for name, value in promise["multipliers"].items():
        if hasattr(config, name) and off(getattr(config, name), value):
            found.add(f"{name}: {getattr(config, name)}, promised {value}")
    return sorted(found)


def verify(model: Any, optimizers: Any, step: int, own_scheduler: bool = True) -> None:
    """Ends the job where it is not what the bundle says; does nothing at other steps than 0 and 10."""
    if step in STEPS and (found := differences(model, optimizers, step, own_scheduler)):
        raise SystemExit("this job is not what the bundle says: " + "; ".join(found))


try:
    from transformers import TrainerCallback
except ImportError:
    pass
else:

    class Callback(TrainerCallback):
        def __init__(self, own_scheduler: bool = True) -> None:
            self.own_scheduler = own_scheduler

        def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            model, optimizer = given["model"], given["optimizer"]
            inner = getattr(optimizer, "optimizer", optimizer)
            verify(getattr(model, "module", model), inner, state.global_step, self.own_scheduler)
