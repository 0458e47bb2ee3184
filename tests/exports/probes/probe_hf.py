"""transformers' own parser, model and schedulers, with the bundle's optimizer hook."""

import optimizer as hook
import yaml
from probing import bundle, report_trainer
from transformers import AutoConfig, AutoModelForCausalLM, HfArgumentParser, Trainer, TrainingArguments

given = yaml.safe_load((bundle / "training_args.yaml").read_text())
args = HfArgumentParser(TrainingArguments).parse_dict({**given, "use_cpu": True, "report_to": "none"})[0]
model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(bundle))
hook.initialise(model)
report_trainer(Trainer(model=model, args=args, optimizers=(hook.adamw(model), None)))
