"""What every probe measures of its trainer, printed as one JSON object on the last line."""

import json
import re


def walked(model, optimizer, advance, steps, differences):
    """Each group's lr before every step, and what selfcheck says at its steps; no weight moves."""
    optimizers = optimizer if isinstance(optimizer, (list, tuple)) else [optimizer]
    rows, found = [], {}
    for step in range(steps):
        rows.append([float(g["lr"]) for o in optimizers for g in o.param_groups])
        if step in (0, 10):
            found[str(step)] = differences(model, optimizers, step)
        advance()
    return rows, found


def report(*, model, optimizer, rows, parsed, selfcheck):
    """`stds` by a name without its layer's number; `groups` as the optimizer has them, their names likewise."""
    optimizers = optimizer if isinstance(optimizer, (list, tuple)) else [optimizer]
    names = {id(p): re.sub(r"\.\d+\.", ".*.", n) for n, p in model.named_parameters()}
    groups = [
        {
            "names": sorted({names[id(p)] for p in g["params"]}),
            "weight_decay": g["weight_decay"],
            "eps": g["eps"],
            "betas": list(g["betas"]),
        }
        for o in optimizers
        for g in o.param_groups
    ]
    stds = {}
    for p in model.parameters():
        stds.setdefault(names[id(p)], []).append(float(p.detach().float().std()))
    told = {
        "parsed": parsed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "groups": groups,
        "rows": rows,
        "stds": {n: sum(s) / len(s) for n, s in stds.items()},
        "selfcheck": selfcheck,
    }
    print("\n" + json.dumps(told))
