"""Axolotl's own schema and optimizer groups, in transformers' Trainer, from the folder that prepare.py makes."""

import prepare
import yaml
from axolotl.core.trainers.mixins.optimizer import OptimizerMixin
from axolotl.core.trainers.mixins.scheduler import SchedulerMixin
from axolotl.core.training_args import AxolotlTrainingArguments
from axolotl.utils.schemas.config import AxolotlInputConfig
from probing import bundle, report_trainer
from transformers import AutoModelForCausalLM, Trainer
from transformers.trainer_utils import SchedulerType

SAME = "learning_rate embedding_lr lr_groups weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm max_steps"
SAME += " warmup_steps lr_scheduler_kwargs gradient_accumulation_steps bf16 seed"
RENAMED = {
    "lr_scheduler": "lr_scheduler_type",
    "optimizer": "optim",
    "micro_batch_size": "per_device_train_batch_size",
    **{name: name for name in SAME.split()},
}


class AxolotlsTrainer(SchedulerMixin, OptimizerMixin, Trainer):
    """The parts of axolotl's trainer that make groups and schedule."""


folder = bundle.parent / "model"
prepare.prepare(str(folder))
given = yaml.safe_load((bundle / "axolotl.yaml").read_text())
unknown = set(given) - set(AxolotlInputConfig.model_fields)
assert not unknown, unknown  # the schema lets them pass
SchedulerType(given["lr_scheduler"])  # it lets any name pass
parsed = AxolotlInputConfig(**given).model_dump(exclude_none=True)
args = AxolotlTrainingArguments(
    output_dir=str(folder / "out"), report_to="none", use_cpu=True, **{RENAMED[k]: parsed[k] for k in RENAMED}
)
model = AutoModelForCausalLM.from_pretrained(folder)
report_trainer(AxolotlsTrainer(model=model, args=args), seq_len=parsed["sequence_len"])
