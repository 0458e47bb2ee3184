# mypy: ignore-errors
"""OLMo-core 3.0: the tunnel's model, optimizer groups and schedule, from olmo.json, which lies beside it.

    PYTHONPATH=BUNDLE torchrun --nproc-per-node 8 BUNDLE/train.py SAVE_FOLDER TOKENS.npy...

The tokens are raw little-endian uint16 or uint32 files, as OLMo-core's tokenizer writes them, and as the tunnel keeps
its own (train.bin in its cache). `selfcheck` runs at steps 0 and 10 by itself.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import selfcheck
from olmo_core.config import DType
from olmo_core.data import NumpyDataLoaderConfig, NumpyFSLDatasetConfig, TokenizerConfig
from olmo_core.distributed.parallel import DataParallelType
from olmo_core.nn.transformer import TransformerConfig
from olmo_core.optim import AdamWConfig, OptimGroupOverride
from olmo_core.optim.scheduler import ComposableScheduler, ComposableSchedulerStage
from olmo_core.train import Duration, TrainerConfig, prepare_training_environment, teardown_training_environment
from olmo_core.train.callbacks import Callback, CheckpointerCallback
from olmo_core.train.train_module import TransformerDataParallelConfig, TransformerTrainModuleConfig
from olmo_core.utils import seed_all

HERE = Path(__file__).resolve().parent
OLMO = json.loads((HERE / "olmo.json").read_text(encoding="utf-8"))


@dataclass
class Selfcheck(Callback):
    """Ends a job whose groups, in the step that was just made, were not what the bundle says."""

    def post_train_batch(self):
        module = self.trainer.train_module
        selfcheck.verify(module.model, module.optim, self.step - 1)


def model() -> TransformerConfig:
    m = dict(OLMO["model"])
    residual, hidden = m.pop("residual_multiplier"), m.pop("hidden_size")
    config = TransformerConfig.llama_like(**m)
    config.block.feed_forward.hidden_size = hidden
    config.block.attention_residual_alpha = config.block.feed_forward_residual_alpha = residual
    return config


def optimizer() -> AdamWConfig:
    names = ("lr", "weight_decay", "eps")
    groups = [
        OptimGroupOverride(params=OLMO["globs"][g["role"]], opts={k: g[k] for k in names})
        for g in selfcheck.promised()["groups"]
    ]
    return AdamWConfig(group_overrides=groups, betas=tuple(OLMO["betas"]))


def scheduler() -> ComposableScheduler:
    return ComposableScheduler(stages=[ComposableSchedulerStage(**s) for s in OLMO["stages"]])


def train_module() -> TransformerTrainModuleConfig:
    t = OLMO["train"]
    return TransformerTrainModuleConfig(
        rank_microbatch_size=t["rank_microbatch_size"],
        max_sequence_length=t["sequence_length"],
        optim=optimizer(),
        scheduler=scheduler(),
        max_grad_norm=t["max_grad_norm"],
        autocast_precision=DType.bfloat16 if t["bf16"] else None,
        dp_config=TransformerDataParallelConfig(name=DataParallelType.ddp),
    )


def main(save_folder: str, paths: list[str]) -> None:
    t = OLMO["train"]
    seed_all(t["seed"])
    net = model().build(init_device="meta")
    module = train_module().build(net)
    tokens = TokenizerConfig(vocab_size=OLMO["model"]["vocab_size"], eos_token_id=0, pad_token_id=0)
    data = NumpyFSLDatasetConfig(
        paths=paths, sequence_length=t["sequence_length"], tokenizer=tokens, work_dir=save_folder
    ).build()
    loader = NumpyDataLoaderConfig(global_batch_size=t["global_batch_size"], seed=t["seed"], work_dir=save_folder)
    trainer = TrainerConfig(save_folder=save_folder, save_overwrite=True, max_duration=Duration.steps(t["steps"]))
    trainer.add_callback("checkpointer", CheckpointerCallback(save_interval=1000))
    trainer.add_callback("selfcheck", Selfcheck())
    trainer.build(module, loader.build(data, dp_process_group=module.dp_process_group)).fit()


if __name__ == "__main__":
    prepare_training_environment()
    try:
        main(sys.argv[1], sys.argv[2:])
    finally:
        teardown_training_environment()
