"""The coordinate check: what a few real steps change inside the model, against width and against depth.

A rule that transfers changes its activations as much at every size. So each shape is trained for ten steps at a
constant lr without warmup, and the RMS change of its activations on a fixed batch is taken against step 0; the slopes
of log change against log width (or depth) must be 0 within ±0.15. The control, `standard`, must exceed +0.4 over
width: where it does not, the check itself failed (SCIENCE §3).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tunnel import families
from tunnel.folder.store import Store, read_json, write_json
from tunnel.quantiles import student
from tunnel.run import Shape, TrunkSpec, fingerprint
from tunnel.training.data import Corpus

STEPS = (1, 3, 10)  # SCIENCE §3  *from paper*
LEAST_SIZES = 3  # that a slope takes  *assumed*
SEEDS = (0, 1, 2)  # SCIENCE §3: at least 3  *from paper*
BAND = 0.15  # of a slope's 90% interval  *from paper*
CONTROL, LEAST_CONTROL = "standard", 0.4  # SCIENCE §3  *from paper*
SEQUENCES = 8  # of a training batch and of the fixed one: the change of a few steps hardly asks for more  *assumed*
BLOCK = re.compile(r"(^|\.)layers\.\d+$")  # its output is the residual stream
FINAL = re.compile(r"^(model\.)?norm$")
JUDGED = ("middle", "residual", "final")  # logits are shown beside: SCIENCE's slopes are of the activations
MOST_SIZES = 5  # of an axis: more make the slope no surer  *assumed*
MOST_FLOPS = 2e11  # of one probe, about 10 s of a CPU core: larger shapes are left out  *assumed*
METHOD = 2  # of this file: another one makes kept checks again
Changes = dict[tuple[str, int], float]  # (what, step): RMS change
Shapes = Sequence[tuple[int, int]]  # (width, depth)


def check(
    trunk: TrunkSpec,
    lr: float,
    sizes: Mapping[str, Mapping[str, Shapes]],
    corpus: Corpus | None,
    keep: Store,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, Any]]:
    """The check of each rule: `sizes` has its shapes along width and along depth; `trunk` gives all else.

    The control is trained at the union of the widths. What was measured lies in DIR/fits/coordinates.json, and is
    measured once; `say` is told before training. {} without a corpus.
    """
    if corpus is None:
        return {}
    widths = max((s.get("width", ()) for s in sizes.values()), key=len, default=())
    asked = {**sizes, CONTROL: {**sizes.get(CONTROL, {}), **({"width": widths} if widths else {})}}
    path = keep.path("fits", "coordinates.json")
    known = read_json(path, {})
    by_rules: dict[str, dict[str, dict[str, Any]]] = {}
    for rules, axes in asked.items():
        by_rules[rules] = {}
        for axis, shapes in axes.items():
            chosen = affordable(trunk, shapes)
            if len(chosen) < LEAST_SIZES:
                continue
            probes = [probe(trunk, lr, rules, shape, seed) for shape in chosen for seed in SEEDS]
            key = fingerprint([METHOD, axis, STEPS, *(p.fingerprint for p in probes)])
            if key not in known:
                say(f"coordinate check: {rules} over {axis}, {len(probes)} models of {max(STEPS)} steps")
                at = [float(getattr(p.shape, axis)) for p in probes]
                known[key] = along(at, [p.seed for p in probes], measured(probes, corpus))
                write_json(path, known)
            by_rules[rules][axis] = known[key]
    return {rules: judged(rules, by_rules) for rules in sizes}


def affordable(trunk: TrunkSpec, shapes: Shapes) -> list[Shape]:
    """At most five shapes that the check can pay for, the ends among them."""
    family, body = families.load(trunk.family), trunk.body
    tokens = max(STEPS) * SEQUENCES * body.seq_len
    found = [Shape(width=w, depth=d) for w, d in shapes]
    found = [s for s in found if family.flops_per_token(s, body) * tokens <= MOST_FLOPS]
    if len(found) <= MOST_SIZES:
        return found
    return [found[i] for i in np.linspace(0, len(found) - 1, MOST_SIZES).round().astype(int)]


def probe(trunk: TrunkSpec, lr: float, rules: str, shape: Shape, seed: int) -> TrunkSpec:
    """`trunk` as the check trains it: at `lr`, no warmup, a small batch, the first corpus alone."""
    small = min(trunk.settings.batch_tokens, SEQUENCES * trunk.body.seq_len)
    settings = trunk.settings.replaced(lr=lr, warmup=0, batch_tokens=small, micro_batch_tokens=small)
    return trunk.replaced(rules=rules, shape=shape, seed=seed, settings=settings, source=trunk.source.replaced(then=()))


def changes(trunk: TrunkSpec, corpus: Corpus, steps: Sequence[int] = STEPS) -> Changes:
    """RMS changes against step 0, by what and step: see `activations`."""
    import torch

    grown: Any = families.load(trunk.family).grown(trunk, corpus)
    body = trunk.body
    fixed = torch.from_numpy(corpus.evaluation(SEQUENCES * body.seq_len, body.seq_len)[:, :-1]).to(grown.device)
    before, found = activations(grown.model, fixed), {}
    for step in range(1, max(steps) + 1):
        grown.step(1.0)
        if step in steps:
            after = activations(grown.model, fixed)
            for what, values in after.items():
                found[what, step] = math.sqrt(float((values - before[what]).pow(2).mean()))
    return found


def activations(model: Any, batch: Any) -> dict[str, Any]:
    """What the model holds for a batch: the residual stream in the middle and after the last block, the final norm's
    output, the logits; all float32.

    Places at equal *relative* depth compare across depths; a mean over the blocks would not.
    """
    import torch

    kept: dict[str, list[Any]] = {"residual": [], "final": []}
    hooks = [
        module.register_forward_hook(
            lambda _module, _args, out, into=kept[what]: into.append(out[0] if isinstance(out, tuple) else out)
        )
        for name, module in model.named_modules()
        for what, pattern in (("residual", BLOCK), ("final", FINAL))
        if pattern.search(name)
    ]
    try:
        with torch.no_grad():
            logits = model(input_ids=batch, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    assert all(kept.values()), "no block or no final norm was found in the model"
    blocks, (final,) = kept["residual"], kept["final"]
    found = {"middle": blocks[(len(blocks) - 1) // 2], "residual": blocks[-1], "final": final, "logits": logits}
    return {what: values.float() for what, values in found.items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """The check runs in the driver, beside workers that have the other cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measured(trunks: Sequence[TrunkSpec], corpus: Corpus, steps: Sequence[int] = STEPS) -> list[Changes]:
    """`changes` of each trunk, one after the other on one thread."""
    with one_thread():
        return [changes(t, corpus, steps) for t in trunks]


def along(sizes: Sequence[float], seeds: Sequence[int], found: Sequence[Changes]) -> dict[str, Any]:
    """Slopes of log change against log size over all models, and whether all lie within the band.

    `sizes`, `seeds`, `found`: one entry a model.
    """
    rows: list[dict[str, Any]] = []
    for what, step in found[0]:
        y = np.array([max(f[what, step], 1e-30) for f in found])
        value, low, high = slope(np.log(sizes), np.log(y), np.array(seeds))
        means = [float(y[np.array(sizes) == s].mean()) for s in sorted(set(sizes))]
        rows.append({"what": what, "step": step, "slope": value, "low": low, "high": high, "changes": means})
    judged = [r for r in rows if r["what"] in JUDGED]
    return {
        "values": sorted({float(s) for s in sizes}),
        "slopes": rows,
        "passes": all(r["low"] >= -BAND and r["high"] <= BAND for r in judged),
        "worst": max(judged, key=lambda r: max(abs(r["low"]), abs(r["high"]))),
    }


def slope(x: np.ndarray, y: np.ndarray, seed: np.ndarray) -> tuple[float, float, float]:
    """Least-squares slope with its 90% interval by Student's t; each seed has a level of its own."""
    own = seed[:, None] == np.unique(seed)
    x, y = (v - (own @ (own.T @ v / own.sum(0))) for v in (x, y))
    b = float(x @ y / (x @ x))
    free = len(x) - own.shape[1] - 1
    spread = math.sqrt(float(((y - b * x) ** 2).sum()) / free / float(x @ x))
    half = student(0.95, free) * spread
    return b, b - half, b + half


def control_of(over: dict[str, dict[str, Any]]) -> float | None:
    """The control's slope: of the residual stream over width, the least of the steps asked."""
    width = over.get("width")
    return None if width is None else min(r["slope"] for r in width["slopes"] if r["what"] == "residual")


def judged(rules: str, by_rules: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """One rule's check, next to the control's: `passes`, `fails`, or `refused` where it cannot tell.

    It cannot where the control did not fail, and where a slope lies within the band but its interval does not.
    """
    over, control = by_rules[rules], control_of(by_rules[CONTROL])
    wide = [axis for axis, found in over.items() if not found["passes"]]
    failed = [axis for axis in wide if any(abs(r["slope"]) > BAND for r in over[axis]["slopes"] if r["what"] in JUDGED)]
    worst = ", ".join(f"over {a} {said(over[a]['worst'])}" for a in failed or wide)
    if control is None:
        verdict, reason = "refused", "needs three widths at one depth"
    elif control <= LEAST_CONTROL:
        verdict, reason = "refused", f"the control did not fail: {CONTROL}'s slope over width is {control:+.2f}"
    elif wide:
        verdict = "fails" if failed else "refused"
        why = "" if failed else "not settled: "
        reason = f"{why}slope of log change {worst}; its interval must lie within ±{BAND}"
    else:
        verdict, reason = "passes", f"all slopes lie within ±{BAND}; the control's is {control:+.2f}"
    return {"verdict": verdict, "reason": reason, "control": control, "band": BAND, "over": over}


def said(row: dict[str, Any]) -> str:
    return f"{row['slope']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f}; {row['what']}, step {row['step']})"
