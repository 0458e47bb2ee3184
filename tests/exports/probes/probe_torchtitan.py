"""torchtitan's own config manager, model, optimizers and schedulers."""

import sys

sys.path.insert(0, sys.argv[1])

import selfcheck
import torch
from probing import report, walked
from torchtitan.config import ConfigManager


def main():
    config = ConfigManager().parse_args(["--module", "tunnel_recipe", "--config", "target"])
    torch.manual_seed(0)
    model = config.model_spec.model.build()
    model.init_states(buffer_device=torch.device("cpu"))
    container = config.optimizer.build(model_parts=[model])
    optimizers = list(container)
    schedulers = config.lr_scheduler.build(optimizers=container, training_steps=config.training.steps)
    rows, found = walked(model, optimizers, schedulers.step, config.training.steps, selfcheck.differences)
    training, net = config.training, config.model_spec.model
    report(
        model=model,
        optimizer=optimizers,
        rows=rows,
        selfcheck=found,
        parsed={
            "steps": training.steps,
            "sequences": training.global_batch_size,
            "per_device": training.local_batch_size,
            "seq_len": training.seq_len,
            "clip": training.max_norm,
            "bf16": training.mixed_precision_param == "bfloat16",
            "embedding_multiplier": net.tok_embeddings.multiplier,
            "residual_multiplier": net.layers[0].residual,
            "logits_scaling": net.norm.divisor,
            "norm_eps": net.norm.eps,
        },
    )


main()
