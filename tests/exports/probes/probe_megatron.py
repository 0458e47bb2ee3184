"""Megatron's own argparse, model, optimizer groups and scheduler, on one CPU process."""

import sys
import typing
import warnings

import typing_extensions

typing.override = typing_extensions.override  # megatron-core 0.19 is of Python 3.12
warnings.filterwarnings("ignore")
# what only a GPU has: fused kernels of Transformer Engine
HERE = ["--transformer-impl", "local", "--no-persist-layer-norm", "--no-gradient-accumulation-fusion"]
HERE += ["--no-masked-softmax-fusion", "--no-bias-swiglu-fusion", "--mock-data", "--distributed-backend", "gloo"]

import torch  # noqa: E402
import tunnel_megatron  # noqa: E402
from megatron.core import parallel_state  # noqa: E402
from megatron.core.models.gpt import GPTModel  # noqa: E402
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec  # noqa: E402
from megatron.core.optimizer import _get_param_groups  # noqa: E402
from megatron.training import global_vars, training  # noqa: E402
from megatron.training.arguments import core_transformer_config_from_args, parse_args, validate_args  # noqa: E402
from probing import bundle, report  # noqa: E402

tunnel_megatron.apply()
words = [w for line in (bundle / "megatron.args").read_text().splitlines() if line[0] != "#" for w in line.split()]
sys.argv = ["pretrain_gpt.py", *words, *HERE]
args = validate_args(parse_args())
global_vars.set_args(args)
global_vars.rebuild_tokenizer(args)  # which pads the vocabulary
torch.distributed.init_process_group("gloo", init_method=f"file://{bundle.parent}/rendezvous", rank=0, world_size=1)
parallel_state.initialize_model_parallel()
config = core_transformer_config_from_args(args)
config.use_cpu_initialization = True
torch.manual_seed(0)
model = GPTModel(
    config,
    get_gpt_layer_local_spec(num_experts=args.num_experts, moe_grouped_gemm=False, normalization="RMSNorm"),
    vocab_size=args.padded_vocab_size,
    max_sequence_length=args.seq_length,
    share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
    position_embedding_type=args.position_embedding_type,
    rotary_base=args.rotary_base,
)
optimizer_config, overrides = training.get_megatron_optimizer_config(args)
mup = training.get_mup_config_overrides(
    config=optimizer_config, mup_width_mult=config.mup_width_mult, optimizer_type=optimizer_config.optimizer
)
groups = _get_param_groups([model], optimizer_config, {**(overrides or {}), **mup})
betas = (args.adam_beta1, args.adam_beta2)
optimizer = torch.optim.AdamW([{"lr": g["max_lr"], "eps": args.adam_eps, **g} for g in groups], betas=betas)
scheduler = training.get_optimizer_param_scheduler(optimizer)
report(
    model,
    [optimizer],
    lambda: scheduler.step(args.global_batch_size),
    steps=args.train_iters,
    sequences=args.global_batch_size,
    per_device=args.micro_batch_size,
    seq_len=args.seq_length,
    clip=args.clip_grad,
    bf16=args.bf16,
    embedding_multiplier=config.mup_embedding_mult,
    logits_scaling=1 / config.mup_output_mult,
    attention_multiplier=config.softmax_scale,
    norm_eps=config.layernorm_epsilon,
)
