"""Axolotl's own schema and optimizer groups, in transformers' Trainer, from the folder that prepare.py makes."""

import sys
from pathlib import Path

bundle = Path(sys.argv[1])
sys.path.insert(0, str(bundle))

import prepare  # noqa: E402
import selfcheck  # noqa: E402
import yaml  # noqa: E402
from axolotl.core.trainers.mixins.optimizer import OptimizerMixin  # noqa: E402
from axolotl.core.trainers.mixins.scheduler import SchedulerMixin  # noqa: E402
from axolotl.core.training_args import AxolotlTrainingArguments  # noqa: E402
from axolotl.utils.schemas.config import AxolotlInputConfig  # noqa: E402
from probing import report, walked  # noqa: E402
from transformers import AutoModelForCausalLM, Trainer  # noqa: E402
from transformers.trainer_utils import SchedulerType  # noqa: E402

SAME = {
    "learning_rate": "learning_rate",
    "embedding_lr": "embedding_lr",
    "lr_groups": "lr_groups",
    "weight_decay": "weight_decay",
    "adam_beta1": "adam_beta1",
    "adam_beta2": "adam_beta2",
    "adam_epsilon": "adam_epsilon",
    "max_grad_norm": "max_grad_norm",
    "max_steps": "max_steps",
    "warmup_steps": "warmup_steps",
    "lr_scheduler": "lr_scheduler_type",
    "lr_scheduler_kwargs": "lr_scheduler_kwargs",
    "optimizer": "optim",
    "micro_batch_size": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "bf16": "bf16",
    "seed": "seed",
}


class AxolotlsTrainer(SchedulerMixin, OptimizerMixin, Trainer):
    """The parts of axolotl's trainer that make groups and schedule."""


def main():
    folder = bundle.parent / "model"
    prepare.prepare(str(folder))
    given = yaml.safe_load((bundle / "axolotl.yaml").read_text())
    unknown = set(given) - set(AxolotlInputConfig.model_fields)
    assert not unknown, unknown  # the schema lets them pass
    SchedulerType(given["lr_scheduler"])  # it lets any name pass
    parsed = AxolotlInputConfig(**given).model_dump(exclude_none=True)
    args = AxolotlTrainingArguments(
        output_dir=str(folder / "out"), report_to="none", use_cpu=True, **{SAME[k]: parsed[k] for k in SAME}
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    trainer = AxolotlsTrainer(model=model, args=args)
    trainer.create_optimizer_and_scheduler(args.max_steps)
    optimizer = trainer.optimizer
    rows, found = walked(model, optimizer, trainer.lr_scheduler.step, args.max_steps, selfcheck.differences)
    report(
        model=model,
        optimizer=optimizer,
        rows=rows,
        selfcheck=found,
        parsed={
            "steps": args.max_steps,
            "sequences": parsed["micro_batch_size"] * parsed["gradient_accumulation_steps"],
            "per_device": parsed["micro_batch_size"],
            "seq_len": parsed["sequence_len"],
            "clip": args.max_grad_norm,
            "bf16": args.bf16,
            "embedding_multiplier": model.config.embedding_multiplier,
            "residual_multiplier": model.config.residual_multiplier,
            "attention_multiplier": model.config.attention_multiplier,
            "logits_scaling": model.config.logits_scaling,
            "norm_eps": model.config.rms_norm_eps,
        },
    )


main()
