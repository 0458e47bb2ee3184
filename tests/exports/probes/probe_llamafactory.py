"""LLaMA-Factory's own parser, loader and trainer, from the folder that the bundle's prepare.py makes."""

import importlib.machinery
import os
import sys
import types

os.environ["DISABLE_VERSION_CHECK"] = "1"
# it imports torchaudio, for audio; the package index has none for this torch
sys.modules["torchaudio"] = types.ModuleType("torchaudio")
sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)

import prepare  # noqa: E402
import yaml  # noqa: E402
from llamafactory.hparams import get_train_args  # noqa: E402
from llamafactory.model import load_model, load_tokenizer  # noqa: E402
from llamafactory.train.pt.trainer import CustomTrainer  # noqa: E402
from probing import bundle, report_trainer  # noqa: E402

folder = bundle.parent / "model"
prepare.prepare(str(folder))
given = yaml.safe_load((bundle / "train.yaml").read_text())
here = {"model_name_or_path": str(folder), "output_dir": str(folder / "out"), "report_to": "none", "use_cpu": True}
model_args, _, args, finetuning_args, _ = get_train_args({**given, **here})
tokenizer = load_tokenizer(model_args)
model = load_model(tokenizer["tokenizer"], model_args, finetuning_args, is_trainable=True)
report_trainer(
    CustomTrainer(model=model, args=args, finetuning_args=finetuning_args, **tokenizer),
    seq_len=given["cutoff_len"],
    tokens=tokenizer["tokenizer"]("é\n")["input_ids"],
)
