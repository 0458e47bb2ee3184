# mypy: ignore-errors
"""What nanotron's YAML cannot say of selfcheck.json, which lies beside it; nanotron at 2411b02.

    import tunnel_nanotron; tunnel_nanotron.apply()        # in run_train.py, before the trainer is made

Learning rate, weight decay, epsilon and initial std go by role, all groups follow one curve down to the same share of
their peaks, and a job whose groups are others ends before its first step.
"""

import math
import re
from functools import partial

import selfcheck
from nanotron import helpers
from nanotron.scaling.parametrization import StandardParametrizator
from torch.nn import init
from torch.optim.lr_scheduler import LambdaLR

THEIRS = helpers.lr_scheduler_builder


def groups(with_lr, with_weight_decay):
    """In the place of `merge_named_param_groups`: one group a parameter, with its role's values."""
    promised, found = selfcheck.promised()["groups"], []
    for named in (pair for given in with_lr for pair in given["named_params"]):
        group = next(g for g in promised if re.search(g["pattern"], named[0]))
        found.append({"named_params": [named], **{k: group[k] for k in ("lr", "weight_decay", "eps")}})
    return found


class Checked(LambdaLR):
    """nanotron's own, with a look at the groups before steps 0 and 10."""

    def step(self, *given):
        super().step(*given)
        self.look()

    def look(self):
        wanted = [g["lr_own_scheduler"].get(str(self.last_epoch)) for g in selfcheck.promised()["groups"]]
        got = [float(g["lr"]) for g in self.optimizer.param_groups]
        if None not in wanted and not all(any(math.isclose(a, b, rel_tol=1e-6) for b in wanted) for a in got):
            raise SystemExit(
                f"this job is not what the bundle says: step {self.last_epoch}: learning rates {got}, not {wanted}"
            )


def scheduler(optimizer, lr_scheduler_args, total_training_steps):
    """Its min_decay_lr is one for all groups: the multiplier of the base learning rate's is every group's."""
    built = THEIRS(optimizer, lr_scheduler_args, total_training_steps)
    own = partial(built.lr_lambdas[0].func, initial_lr=lr_scheduler_args.learning_rate)
    built.lr_lambdas = [own for _ in built.lr_lambdas]
    for group, base in zip(built.optimizer.param_groups, built.base_lrs, strict=True):
        group["lr"] = base * own(built.last_epoch)
    built.__class__ = Checked
    built.look()
    return built


def apply():
    """Puts them in the place of nanotron's own."""
    from nanotron import trainer

    stds = {g["role"]: g["init_std"] for g in selfcheck.promised()["groups"]}
    helpers.merge_named_param_groups = groups
    trainer.lr_scheduler_builder = scheduler
    StandardParametrizator._compute_scaling_factor = lambda self: stds["hidden"] / stds["out"]
    StandardParametrizator._parametrize_embedding = lambda self, name, module: init.normal_(
        module.weight, std=stds["embedding"]
    )
