"""What every probe measures of its trainer, printed as one JSON object on the last line.

A probe is started with the bundle's path as its argument, and with the bundle on PYTHONPATH, as its job is.
"""

import json
import re
import sys
from pathlib import Path

import selfcheck

bundle = Path(sys.argv[1])


def report(model, optimizers, advance, **parsed):
    """Walks the schedule and prints what was parsed and built; no weight moves.

    `rows` has each group's lr before every step, `selfcheck` what the bundle's script says at its steps, `stds` goes by
    a name without its layer's number, `groups` as the optimizers have them, their names likewise.
    """
    names = {id(p): re.sub(r"\.\d+\.", ".*.", n) for n, p in model.named_parameters()}
    groups = [g for o in optimizers for g in o.param_groups]
    rows, found, stds = [], {}, {}
    for step in range(parsed["steps"]):
        rows.append([float(g["lr"]) for g in groups])
        if step in selfcheck.STEPS:
            found[str(step)] = selfcheck.differences(model, optimizers, step)
        advance()
    for p in model.parameters():
        stds.setdefault(names[id(p)], []).append(float(p.detach().float().std()))
    told = {
        "parsed": parsed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "groups": [
            {
                "names": sorted({names[id(p)] for p in g["params"]}),
                **{k: g[k] for k in ("weight_decay", "eps", "betas")},
            }
            for g in groups
        ],
        "rows": rows,
        "stds": {n: sum(s) / len(s) for n, s in stds.items()},
        "selfcheck": found,
    }
    print("\n" + json.dumps(told))


def report_trainer(trainer, **parsed):
    """The same of a Trainer of transformers, or of what is built on it."""
    args, config = trainer.args, trainer.model.config
    trainer.create_optimizer_and_scheduler(args.max_steps)
    multipliers = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")
    report(
        trainer.model,
        [trainer.optimizer],
        trainer.lr_scheduler.step,
        steps=args.max_steps,
        sequences=args.per_device_train_batch_size * args.gradient_accumulation_steps,
        per_device=args.per_device_train_batch_size,
        processes=1,  # whose sequences these are
        clip=args.max_grad_norm,
        bf16=args.bf16,
        norm_eps=config.rms_norm_eps,
        **{name: getattr(config, name) for name in multipliers},
        **parsed,
    )
