# mypy: ignore-errors
"""What Megatron's flags cannot say of selfcheck.json, which lies beside it; megatron-core 0.19, and Bridge on it.

    import tunnel_megatron; tunnel_megatron.apply()        # in pretrain_gpt.py, before pretrain(...)

What writes to the residual stream starts with the std of every hidden matrix (Megatron's is sqrt(2·layers) smaller),
learning rate, epsilon and weight decay go by role, and a job whose groups are others ends before its first step.
"""

import math
import re

import selfcheck
from megatron.core.optimizer import ParamKey, ParamWithNamePredicate
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer import transformer_config
from megatron.core.utils import init_method_normal


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


class Checked(OptimizerParamScheduler):
    """Megatron's own, with a look at the groups before steps 0 and 10; on this rank there may be some only."""

    def step(self, increment):
        super().step(increment)
        step = self.num_steps // increment if increment else self.num_steps  # of samples, a batch at a time
        wanted = [g["lr_own_scheduler"].get(str(step)) for g in selfcheck.promised()["groups"]]
        got = [float(g["lr"]) for g in self.optimizer.param_groups if g["params"]]
        if None not in wanted and not all(any(math.isclose(a, b, rel_tol=1e-6) for b in wanted) for a in got):
            raise SystemExit(f"this job is not what the bundle says: step {step}: learning rates {got}, not {wanted}")


def apply(builder=None):
    """Puts them in the place of Megatron's own, in the module that builds the optimizer and its scheduler."""
    if builder is None:
        from megatron.training import training as builder
    builder.get_mup_config_overrides = overrides
    builder.OptimizerParamScheduler = Checked
    transformer_config.mup_scaled_init_method_normal = lambda sigma, layers, width, multiplier=2.0: init_method_normal(
        sigma / math.sqrt(width)
    )
