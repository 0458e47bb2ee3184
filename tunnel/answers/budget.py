"""What a budget of FLOPs buys, asked of a runs table or of a study's ladder: `laws.allocate` from the command line."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tunnel import laws
from tunnel.errors import UserError
from tunnel.folder.store import Store
from tunnel.space import amount
from tunnel.valleys import allocate
from tunnel.valleys.allocate import Budget


def asked(flops: float | None, inference: str | None) -> Budget | None:
    """The options --budget and --inference; None where there is no budget."""
    if flops is None:
        if inference is not None:
            raise UserError("needs --budget, the FLOPs of training", key="--inference", value=inference)
        return None
    if not (math.isfinite(flops) and flops > 0):
        raise UserError("must be a number above 0", key="--budget", value=flops)
    try:
        tokens = float(str(amount(inference))) if inference is not None else 0.0
    except ValueError:
        tokens = math.nan
    if not (math.isfinite(tokens) and tokens >= 0):
        raise UserError("must be tokens, such as 2T", key="--inference", value=inference)
    return Budget(flops, tokens)


def of_ladder(found: dict[str, Any], keep: Store, budget: Budget) -> dict[str, Any]:
    """A ladder's fit (`ladder.fitted`) and the key optimal: from its valleys' minima, FLOPs as its readings counted."""
    if "minima" not in found:
        raise UserError("has no ladder, so there is no law to split a budget by", key="--budget")
    names = ("N", "D", "loss", "width", "depth")
    table = {k: np.array([m[k] for m in found["minima"]], float) for k in names}
    table["run"] = table["width"] * 1e6 + table["depth"]  # a shape's rungs share their trunks
    read = keep.readings()
    read = read[np.isfinite(read["loss"].to_numpy(float)) & (read["flops"] > 0)]
    count = allocate.counted(laws.columns({"N": read["N"], "D": read["D"], "C": read["flops"]}))
    return found | {"optimal": allocate.optimal(found["chosen"], table, budget, count)}
