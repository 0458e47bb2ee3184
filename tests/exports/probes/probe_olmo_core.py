"""OLMo-core's own model, optimizer and scheduler, from the bundle's script."""

import warnings
from types import SimpleNamespace

warnings.filterwarnings("ignore")

import torch  # noqa: E402
import train  # noqa: E402
from probing import report  # noqa: E402

config, module = train.model(), train.train_module()
model = config.build(init_device="cpu")
model.init_weights(max_seq_len=module.max_sequence_length, device=torch.device("cpu"))
optimizer, scheduler = module.optim.build(model), module.scheduler
steps = train.OLMO["train"]["steps"]
clock = SimpleNamespace(global_step=0, max_steps=steps)  # what the scheduler asks of a trainer


def advance():
    clock.global_step += 1
    for group in optimizer.param_groups:
        scheduler.set_lr(group, clock)


advance()  # a step's rate is set after its gradients, when the trainer has counted it
report(
    model,
    [optimizer],
    advance,
    steps=steps,
    sequences=train.OLMO["train"]["global_batch_size"] // module.max_sequence_length,
    per_device=module.rank_microbatch_size // module.max_sequence_length,
    seq_len=module.max_sequence_length,
    clip=module.max_grad_norm,
    bf16=module.autocast_precision is not None,
    embedding_multiplier=model.embed_scale,
    residual_multiplier=config.block.attention_residual_alpha,
    norm_eps=model.lm_head.norm.eps,
)
