"""What to run to remove a caution: a command, or the lines that a study file lacks and the command after them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tunnel.answers import additions
from tunnel.answers.basis import Basis
from tunnel.space import Choice, Range
from tunnel.study import Stage
from tunnel.sweeps import sweep
from tunnel.sweeps.extend import spelled

WIDER = 2.0  # a range, or a fan, is widened by this factor  *assumed*
SEEDS = (0, 1, 2)  # of a verdict (SCIENCE §3)
OCTAVES = (
    0.25,
    0.5,
    1,
    2,
    4,
)  # of a new fan: wide enough to hold the minimum with a neighbour on both sides  *assumed*


def then(b: Basis, lines: list[str]) -> str:
    """Lines that a revision adds, and what runs them."""
    return "\n".join([*lines, f"# then: tunnel sweep {b.keep.root} && tunnel recommend {b.keep.root}"])


def anew(b: Basis, lines: list[str]) -> str:
    """Lines that change what was asked: another study, since a revision may only add."""
    return "\n".join(["# in a copy of the study file:", *lines, "# then: tunnel run COPY --out ANOTHER_FOLDER"])


def grown(b: Basis, **fields: Any) -> str:
    """The ladder's stage with fields that grew."""
    after = b.stage.model_copy(update=fields)
    revised = b.asked.model_copy(update={"stage": tuple(after if s is b.stage else s for s in b.asked.stage)})
    return then(b, additions.lines(b.asked, revised, b.stage.name, sweep.is_small(b.keep)))


def seeds(b: Basis) -> str:
    known = b.stage.budget.seeds
    return grown(b, budget=b.stage.budget.model_copy(update={"seeds": (*known, max(known) + 1)}))


def fan(b: Basis, *factors: float) -> str:
    known = b.stage.fan or (1.0,)
    return grown(b, fan=tuple(sorted({*known, *(float(f"{f:.3g}") for f in factors)})))


def wider_fan(b: Basis) -> str:
    known = b.stage.fan or (1.0,)
    return fan(b, min(known) / WIDER, max(known) * WIDER)


def fan_to(b: Basis, lr: float) -> str:
    """A fan that holds an lr, with a neighbour beyond it."""
    factor = lr / (float(b.handed_on.get("lr", b.asked.train.lr)))
    beyond = factor / WIDER if factor < min(b.stage.fan or (1.0,)) else factor * WIDER
    return fan(b, factor, beyond)


def shapes(b: Basis) -> str:
    """One shape more on the way to the target; where none lies between, what narrows the forecast most."""
    more = [fields for _, _, fields in additions.shapes(b.asked, b.stage, b.goal)]
    return grown(b, **more[-1]) if more else next_runs(b)


def next_runs(b: Basis) -> str:
    return f"tunnel plan {b.keep.root} --next 3"


def longer(b: Basis) -> str:
    """The ladder's trunks up to the target's D."""
    rungs = b.stage.rungs
    assert rungs is not None
    ratio = b.goal.tokens / float(b.rows.D.max())
    tokens = spelled(b.goal.tokens) if rungs.tokens else f"{math.ceil(100 * ratio) / 100:g}x"
    return f"tunnel extend {b.keep.root} --tokens {tokens} --stage {b.stage.name}"


def batch_stage(b: Basis, batch: int) -> str:
    """The ladder's smallest shape at several batches, the target's among them, with fans of 3."""
    own = int(b.rows.batch_tokens.max())
    batches = sorted({own, batch, *(int(own * f) for f in (1 / WIDER, WIDER))})
    whole = [x for x in batches if x % b.asked.model.seq_len == 0]
    return then(b, new_stage(b, "batch", "batch", [*fan_line(OCTAVES[1:4]), f"batches = {whole}"], few=1))


def verdict_stage(b: Basis, setting: str, value: Any) -> str:
    """The ladder's shapes with a grid about the setting's value, and seeds."""
    if setting == "lr":
        lines = fan_line(OCTAVES)
    elif setting == "decay":
        lines = [f"decays = [{', '.join(f'{{ decay = {value * f:.3g} }}' for f in (0.5, 1, 1.5))}]"]
    else:
        lines = [f"space = {{ {setting} = [{', '.join(f'{value * f:.3g}' for f in OCTAVES)}] }}"]
    name = f"verdict-{setting.replace('_', '-')}"
    return then(b, new_stage(b, name, "verdict", [*lines, f"budget = {{ seeds = {list(SEEDS)} }}"], few=3))


def new_stage(b: Basis, name: str, kind: str, lines: list[str], few: int) -> list[str]:
    """A listed stage at the `few` smallest of the ladder's shapes, at its last rung."""
    taken = {s.name for s in b.asked.stage}
    while name in taken:
        name += "-more"
    shapes = [list(s) for s in sorted(b.stage.shapes, key=lambda s: s[0] ** 2 * s[1])[:few]]
    longest = int(b.rows.D.max())
    after = f'after = "{b.stage.after[0]}"' if b.stage.after else ""
    head = ["[[stage]]", f'name = "{name}"', f'kind = "{kind}"', after, f"shapes = {shapes}"]
    return [line for line in (*head, f'rungs = {{ tokens = ["{spelled(longest)}"] }}', *lines) if line]


def fan_line(factors: tuple[float, ...]) -> list[str]:
    return [f"fan = {list(factors)}"]


def searched(b: Basis, name: str, text: str) -> str:
    """What a stage that searched a setting lacks: a wider range, or more trials; more seeds of values without order."""
    stages = [s for s in b.asked.stage if name in s.axes or (name == "lr" and s.fan)]
    stage = next((s for s in stages if s.name in b.stage.after), stages[-1] if stages else b.stage)
    axis = stage.axes.get(name)
    if isinstance(axis, Range):
        lines = [f"[stage.{stage.name}.space]  {name} = {wider(axis)}"] if "range" in text else []
        return anew(b, [*lines, f"[stage.{stage.name}.budget]  trials = {2 * stage.budget.trials}"])
    if isinstance(axis, Choice) or "seeds" in text:
        return anew(b, [f"[stage.{stage.name}.budget]  seeds = {[*stage.budget.seeds, max(stage.budget.seeds) + 1]}"])
    return wider_of(b, stage)


def wider_of(b: Basis, stage: Stage) -> str:
    if stage is b.stage:
        return wider_fan(b)
    known = stage.fan or (1.0,)
    return anew(b, [f"[stage.{stage.name}]  fan = {[min(known) / WIDER, *known, max(known) * WIDER]}"])


def wider(axis: Range) -> str:
    low, high = axis.low / WIDER, axis.high * WIDER
    low, high = (int(low), int(high)) if axis.step else (low, high)
    return f"{{ low = {low:.3g}, high = {high:.3g}{', log = true' if axis.log else ''} }}"


def more_data(b: Basis) -> str:
    return anew(
        b, ["[data]", 'corpus = "files"', f'paths = ["MORE/*.txt"]  # at least {b.goal.tokens:,} tokens in all']
    )


def joined_throughout(b: Basis, share: float) -> str:
    return anew(b, [f"[[data.then]]  from = {b.asked.train.batch_tokens}, share = {share:g}  # before the first rung"])


def trained_with(b: Basis, known: Mapping[str, Any]) -> str:
    return anew(b, ["[train]", f"weight_decay = {known['value']:.3g}"])


def target_of(b: Basis, aspect: float) -> str:
    """A target of about as many parameters, and of another width over depth."""
    head, ratio = b.asked.model.head_dim, aspect / (b.goal.width / b.goal.depth)
    width = max(head, round(b.goal.width * ratio ** (1 / 3) / head) * head)  # N ∝ width²·depth = width³/aspect
    depth = max(1, round(width / aspect))
    name = f"{width}x{depth}"
    lines = [f'name = "{name}"', f"width = {width}", f"depth = {depth}", f'tokens = "{spelled(b.goal.tokens)}"']
    return "\n".join(["[[target]]", *lines, f"# then: tunnel recommend {b.keep.root} --target {name}"])
