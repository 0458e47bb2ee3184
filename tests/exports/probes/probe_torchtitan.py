"""torchtitan's own config manager, model, optimizers and schedulers."""

import torch
from probing import report
from torchtitan.config import ConfigManager

config = ConfigManager().parse_args(["--module", "tunnel_recipe", "--config", "target"])
torch.manual_seed(0)
model = config.model_spec.model.build()
model.init_states(buffer_device=torch.device("cpu"))
container = config.optimizer.build(model_parts=[model])
schedulers = config.lr_scheduler.build(optimizers=container, training_steps=config.training.steps)
training, net = config.training, config.model_spec.model
report(
    model,
    list(container),
    schedulers.step,
    steps=training.steps,
    sequences=training.global_batch_size,
    per_device=training.local_batch_size,
    seq_len=training.seq_len,
    clip=training.max_norm,
    bf16=training.mixed_precision_param == "bfloat16",
    embedding_multiplier=net.tok_embeddings.multiplier,
    residual_multiplier=net.layers[0].residual,
    logits_scaling=net.norm.divisor,
    norm_eps=net.norm.eps,
)
