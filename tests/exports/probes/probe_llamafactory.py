"""LLaMA-Factory's own parser, loader and trainer, from the folder that the bundle's prepare.py makes."""

import importlib.machinery
import os
import sys
import types
from pathlib import Path

os.environ["DISABLE_VERSION_CHECK"] = "1"
# it imports torchaudio, for audio; the package index has none for this torch
sys.modules["torchaudio"] = types.ModuleType("torchaudio")
sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
bundle = Path(sys.argv[1])
sys.path.insert(0, str(bundle))

import prepare  # noqa: E402
import selfcheck  # noqa: E402
import yaml  # noqa: E402
from llamafactory.hparams import get_train_args  # noqa: E402
from llamafactory.model import load_model, load_tokenizer  # noqa: E402
from llamafactory.train.pt.trainer import CustomTrainer  # noqa: E402
from probing import report, walked  # noqa: E402


def main():
    folder = bundle.parent / "model"
    prepare.prepare(str(folder))
    given = yaml.safe_load((bundle / "train.yaml").read_text())
    here = {"model_name_or_path": str(folder), "output_dir": str(folder / "out"), "report_to": "none", "use_cpu": True}
    model_args, _, args, finetuning_args, _ = get_train_args({**given, **here})
    tokenizer = load_tokenizer(model_args)
    model = load_model(tokenizer["tokenizer"], model_args, finetuning_args, is_trainable=True)
    trainer = CustomTrainer(model=model, args=args, finetuning_args=finetuning_args, **tokenizer)
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
            "seq_len": given["cutoff_len"],
            "clip": args.max_grad_norm,
            "bf16": args.bf16,
            "embedding_multiplier": model.config.embedding_multiplier,
            "residual_multiplier": model.config.residual_multiplier,
            "attention_multiplier": model.config.attention_multiplier,
            "logits_scaling": model.config.logits_scaling,
            "norm_eps": model.config.rms_norm_eps,
            "tokens": tokenizer["tokenizer"]("é\n")["input_ids"],
        },
    )


main()
