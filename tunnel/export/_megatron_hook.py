# mypy: ignore-errors
"""What Megatron's flags cannot say of selfcheck.json, which lies beside it; megatron-core 0.19.

    import tunnel_megatron; tunnel_megatron.apply()        # in pretrain_gpt.py, before pretrain(...)

What writes to the residual stream starts with the std of every hidden matrix (Megatron's is sqrt(2·layers) smaller),
learning rate, epsilon and weight decay go by role, and a job whose groups are others ends before its first step.
"""

import math
import re

import selfcheck
from megatron.core.optimizer import ParamKey, ParamWithNamePredicate
from megatron.core.transformer import transformer_config
from megatron.core.utils import init_method_normal
from megatron.training import get_args, training

THEIRS = training.get_optimizer_param_scheduler


def overrides(config, mup_width_mult=1.0, optimizer_type="adam"):
    """In the place of `get_mup_config_overrides`: every role's values. Vectors have no weight decay there anyhow."""
    floor, found = config.min_lr / config.lr, {}
    for group in selfcheck.promised()["groups"]:
        named = ParamWithNamePredicate(
            name=f"tunnel_{group['role']}", fn=lambda p, name, pattern=group["pattern"]: bool(re.search(pattern, name))
        )
        values = {"max_lr": group["lr"], "min_lr": group["lr"] * floor, "eps": group["eps"]}
        if group["role"] != "vector":
            values["wd_mult"] = group["weight_decay"] / config.weight_decay if config.weight_decay else 1.0
        found[ParamKey(with_name_predicate=named)] = values
    return found


def look(optimizer, step):
    """Ends a job whose learning rates are others than promised for a step; on this rank there may be some only."""
    wanted = [g["lr_own_scheduler"].get(str(step)) for g in selfcheck.promised()["groups"]]
    got = [float(g["lr"]) for g in optimizer.param_groups if g["params"]]
    if None not in wanted and not all(any(math.isclose(a, b, rel_tol=1e-6) for b in wanted) for a in got):
        raise SystemExit(f"this job is not what the bundle says: step {step}: learning rates {got}, not {wanted}")


def scheduler(optimizer):
    """Megatron's own, with a look at the groups before steps 0 and 10."""
    built, batch = THEIRS(optimizer), get_args().global_batch_size
    theirs = built.step

    def step(increment):
        theirs(increment)
        look(optimizer, built.num_steps // batch)

    built.step = step
    look(optimizer, 0)
    return built


def apply():
    """Puts them in the place of Megatron's own."""
    training.get_mup_config_overrides = overrides
    training.get_optimizer_param_scheduler = scheduler
    transformer_config.mup_scaled_init_method_normal = lambda sigma, layers, width, multiplier=2.0: init_method_normal(
        sigma / math.sqrt(width)
    )
