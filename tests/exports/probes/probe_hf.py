"""transformers' own parser, model and schedulers, with the bundle's optimizer hook."""

import sys
from pathlib import Path

bundle = Path(sys.argv[1])
sys.path.insert(0, str(bundle))

import optimizer as hook  # noqa: E402
import selfcheck  # noqa: E402
import yaml  # noqa: E402
from probing import report, walked  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, HfArgumentParser, Trainer, TrainingArguments  # noqa: E402


def main():
    given = yaml.safe_load((bundle / "training_args.yaml").read_text())
    args = HfArgumentParser(TrainingArguments).parse_dict({**given, "use_cpu": True, "report_to": "none"})[0]
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(bundle))
    hook.initialise(model)
    trainer = Trainer(model=model, args=args, optimizers=(hook.adamw(model), None))
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
            "sequences": args.per_device_train_batch_size * args.gradient_accumulation_steps,
            "per_device": args.per_device_train_batch_size,
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
