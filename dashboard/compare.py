"""Studies, or stages of them, side by side: what was asked otherwise, what came of it, and their losses on one axis."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dashboard import load, show
from dashboard.figures import least, shape_name
from dashboard.records import stamp
from dashboard.style import duration, money, nats, short
from tunnel import plan
from tunnel.study import Stage

BETWEEN = " · "  # a study's name and its stage's
MOST = 6  # sides at once: the palette has no more colours
APART = ("question", "notify", "storage", "storage_password_env", "small", "stage")  # no settings of the science
SAME = 1.00005  # losses nearer than this factor are said to be equal: digits that nobody reads  *assumed*
COMPARABLE = ("corpus_hash", "seq_len")  # columns of readings whose losses may stand beside each other


@dataclass(frozen=True)
class Side:
    """A study, or one stage of it."""

    name: str
    seen: load.Opened
    stage: Stage | None = None

    @property
    def done(self) -> pd.DataFrame:
        """The proxies' finished readings."""
        rows = self.seen.complete
        return rows if self.stage is None else rows[rows.fingerprint.isin(self.shared)]

    @property
    def shared(self) -> set[str]:
        assert self.stage is not None
        return set(load.of_stage(self.seen, self.stage.name).fingerprint)


def names(found: Mapping[str, Path]) -> list[str]:
    """All that can be compared: the studies, and after each of them its stages."""
    listed = []
    for name, root in found.items():
        listed.append(name)
        try:
            asked = load.asked_at(str(root), (stamp(root / "study.toml"), stamp(root / "study.resolved.json")))
        except load.UNREADABLE:
            continue
        listed += [f"{name}{BETWEEN}{s.name}" for s in asked.stage]
    return listed


def side(name: str, found: Mapping[str, Path]) -> Side | None:
    """What a name stands for; None where there is none (any more)."""
    if name in found:
        return Side(name, load.opened(found[name]))
    study, _, stage = name.rpartition(BETWEEN)
    if study not in found:
        return None
    seen = load.opened(found[study])
    own = next((s for s in seen.asked.stage if s.name == stage), None) if seen.asked else None
    return Side(name, seen, own) if own else None


# what was asked


def settings(one: Side) -> dict[str, Any]:
    """A side's question, a key a value: `model.seq_len`; of a stage, its own as `stage.…` and what it was handed."""
    asked = one.seen.asked
    if asked is None:
        return {}
    found = flat(asked.model_dump(mode="json", exclude=set(APART)))
    if one.stage is not None:
        found |= flat(one.stage.model_dump(mode="json"), "stage")
        resolved = load.part(one.seen.root, "study.resolved.json", (), []) or {}
        handed = ((resolved.get("stages") or {}).get(one.stage.name) or {}).get("handed_on") or {}
        return found | flat(plan.settings(handed), "handed on")
    for stage in asked.stage:
        found |= flat(stage.model_dump(mode="json", exclude={"name"}), f"stage.{stage.name}")
    return found


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """A tree of tables as a key a value; lists stay values."""
    if not isinstance(value, Mapping):
        return {name: value}
    return {k: v for key, own in value.items() for k, v in flat(own, f"{name}.{key}" if name else str(key)).items()}


def differences(sides: Sequence[Side]) -> pd.DataFrame:
    """The settings in which the sides differ, one a row, a column a side; what a side does not have is None."""
    told = {s.name: settings(s) for s in sides}
    keys = list(dict.fromkeys(k for own in told.values() for k in own))
    texts = {name: [text(own[k]) if k in own else None for k in keys] for name, own in told.items()}
    table = pd.DataFrame({"setting": keys, **texts})
    return table[table[list(told)].nunique(axis=1, dropna=False) > 1].reset_index(drop=True)


def text(value: Any) -> str:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return str(value)
    if isinstance(value, int | float):
        return short(value, 4) if abs(value) >= 1e4 else f"{value:g}"
    return json.dumps(value)


# what came of it


def results(sides: Sequence[Side]) -> pd.DataFrame:
    """A row a measure, a column a side."""
    told = {s.name: result(s) for s in sides}
    rows = list(dict.fromkeys(k for own in told.values() for k in own))
    return pd.DataFrame({"": rows, **{name: [own.get(k, "–") for k in rows] for name, own in told.items()}})


def result(one: Side) -> dict[str, str]:
    """A side's outcome in words and numbers."""
    seen, done = one.seen, one.done
    found = {"finished models": f"{len(done):,}"}
    if len(done):
        best = least(done)
        found["best loss (nats per token)"] = nats(best.loss)
        found["at shape"] = shape_name(best.width, best.depth)
        found["at lr"] = f"{best.lr:.3g}"
        found["at D (tokens)"] = short(best.D)
        found["FLOPs trained"] = f"{float((done.flops / done.D * done.tokens_trained).sum()):.3g}"
        found["training time"] = duration(float(done.seconds.sum()))
    if one.stage is not None:
        return found
    status, told, check = load.status(seen.root), seen.recommendation, seen.check
    if status:
        found["state"] = show.state_of(status, load.alive(seen.root))
        found["device time"] = duration(status["seconds"])
        found["cost"] = money(status["cost"], status["currency"])
    if told:
        found["forecast (nats per token)"] = nats(told["forecast"])
        found["90% interval"] = f"{nats(told['low'])} – {nats(told['high'])}"
    if check and check["measured"] is not None:
        found["measured (nats per token)"] = nats(check["measured"])
        found["error"] = f"{check['error_percent']:+.2f}%, {show.verdict(check, told)}"
    return found


def doubts(sides: Sequence[Side]) -> list[str]:
    """Why these losses may not be compared."""
    found = []
    for column, said in zip(COMPARABLE, ("They read other data", "Their sequences differ in length"), strict=True):
        values = {v for s in sides for v in s.done[column].dropna().unique()}
        if len(values) > 1:
            found.append(f"{said}: which loss is lower says nothing about which settings are better.")
    tokenizers = {s.seen.asked.data.tokenizer for s in sides if s.seen.asked}
    if len(tokenizers) > 1:
        found.append(f"Their tokenizers differ ({', '.join(sorted(tokenizers))}): a token is not the same thing.")
    return found


# on one axis


def frontiers(sides: Sequence[Side]) -> dict[str, pd.DataFrame]:
    """Each side's best readings: those that no reading of as little compute beats. x: FLOPs of the one model."""
    found = {}
    for s in sides:
        rows = s.done.sort_values(["flops", "loss"])
        rows = rows[rows.loss < rows.loss.cummin().shift(fill_value=float("inf"))]
        if len(rows):
            found[s.name] = points(rows, rows.flops)
    return found


def spent(sides: Sequence[Side]) -> dict[str, pd.DataFrame]:
    """Each side's best loss so far. x: FLOPs that all its readings had taken by then, shared trunks once."""
    found = {}
    for s in sides:
        rows = s.done.sort_values("started")
        taken = (rows.flops / rows.D * rows.tokens_trained).cumsum()
        better = rows.loss < rows.loss.cummin().shift(fill_value=float("inf"))
        if len(rows):
            last = better.copy()
            last.iloc[-1] = True
            best = rows.assign(loss=rows.loss.cummin())[last]
            found[s.name] = points(best, taken[last])
    return found


def curves(sides: Sequence[Side], most: int = 500) -> dict[str, pd.DataFrame]:
    """The training loss of each side's best model: its trunk, and the fork off it. x: tokens."""
    found = {}
    for s in sides:
        if not len(s.done):
            continue
        best = least(s.done)
        trunk, fork = (load.curve(s.seen.root, name) for name in (best.run, best.fingerprint))
        parts = [trunk[trunk.tokens <= best.decay_start]] if trunk is not None else []
        parts += [fork] if fork is not None else []
        whole = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
        if len(whole):
            whole = whole[(whole.tokens > 0) & whole.loss.notna()].iloc[:: max(len(whole) // most, 1)]
            found[s.name] = pd.DataFrame({"x": whole.tokens, "y": whole.loss})
    return found


def common(sides: Sequence[Side]) -> list[tuple[str, float]]:
    """Shapes and rungs that at least two sides have, the largest last."""
    each = [set(s.done[["width", "depth", "D"]].itertuples(index=False, name=None)) for s in sides]
    seen = sorted(k for k in set().union(*each) if sum(k in own for own in each) > 1)
    return [(shape_name(w, d), float(tokens)) for w, d, tokens in seen]


def valleys(sides: Sequence[Side], shape: str, tokens: float) -> dict[str, pd.DataFrame]:
    """Loss against lr at one shape and rung, the best of each lr. x: lr."""
    found = {}
    for s in sides:
        rows = s.done[s.done.D.eq(tokens)]
        named = [shape_name(w, d) for w, d in zip(rows.width, rows.depth, strict=True)]
        rows = rows[pd.Series(named, index=rows.index, dtype=str) == shape]
        rows = rows.sort_values("loss").drop_duplicates("lr").sort_values("lr")
        if len(rows):
            found[s.name] = points(rows, rows.lr)
    return found


def points(rows: pd.DataFrame, x: pd.Series) -> pd.DataFrame:
    each = zip(rows.width, rows.depth, rows.lr, rows.D, strict=True)
    text = [f"{shape_name(w, d)}, lr {lr:.3g}, D {short(tokens)}" for w, d, lr, tokens in each]
    return pd.DataFrame({"x": x.to_numpy(float), "y": rows.loss.to_numpy(float), "text": text})


def finding(lines: Mapping[str, pd.DataFrame]) -> str:
    """Which line goes lowest, and by how much."""
    lowest = sorted((float(rows.y.min()), name) for name, rows in lines.items())
    first, name = lowest[0]
    if len(lowest) == 1:
        return f"{name} goes down to {nats(first)} nats per token"
    second = lowest[1]
    if second[0] < first * SAME:
        return f"{name} and {second[1]} go equally low: {nats(first)} nats per token"
    return f"{name} goes lowest: {nats(first)} nats per token, {100 * (second[0] / first - 1):.2g}% below {second[1]}"
