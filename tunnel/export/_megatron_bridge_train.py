# mypy: ignore-errors
"""Megatron-Bridge 0.6: its bare GPT recipe with bridge.yaml, which lies beside it, and the groups of selfcheck.json.

    PYTHONPATH=BUNDLE torchrun --nproc-per-node 8 BUNDLE/train.py dataset.data_path=PATH

Further arguments are its own overrides, in Hydra's form.
"""

import sys
from pathlib import Path

import tunnel_megatron
from megatron.bridge.recipes.gpt.vanilla_gpt import vanilla_gpt_pretrain_config
from megatron.bridge.training import optim
from megatron.bridge.training.utils.omegaconf_utils import process_config_with_overrides
from torch.nn.functional import silu


def config(overrides):
    file = str(Path(__file__).with_name("bridge.yaml"))
    found = process_config_with_overrides(vanilla_gpt_pretrain_config(), file, overrides)
    found.model.activation_func = silu  # a function, which the YAML cannot hold
    return found


if __name__ == "__main__":
    from megatron.bridge.training.gpt_step import forward_step
    from megatron.bridge.training.pretrain import pretrain

    tunnel_megatron.apply(optim)
    pretrain(config(sys.argv[1:]), forward_step)
