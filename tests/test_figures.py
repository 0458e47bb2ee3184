"""The dashboard's figures: pure functions of tables, each with a finding, units, and names for its colours."""

from __future__ import annotations

import doctest
import itertools
import math
from decimal import Decimal
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

pytest.importorskip("plotly")

from dashboard import (
    answer_figures,
    cost_figures,
    curve_figures,
    expert_figures,
    figures,
    forecast_figures,
    groups,
    landscape,
    landscape_figures,
    law_figures,
    spend,
    stability_figures,
    study_figures,
    style,
    takeaway,
    target_figures,
    transfer_figures,
    trunk_figures,
    whatif,
)
from dashboard.curve_figures import FLOPS, HOURS, Units
from dashboard.judge import Line
from dashboard.trunk_figures import Grown
from tunnel.study import Stage
from tunnel.valleys.drift import Cell
from tunnel.verdicts.cells import Place

GROUNDS = {"light": "#FFFFFF", "dark": "#191817"}  # Streamlit's two grounds  *measured here*
# Machado, Oliveira and Fernandes 2009, severity 1.0, linear RGB  *from paper*
BLIND = {
    "neither": np.eye(3).tolist(),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}


def ladder(lr_star: float = 0.01) -> pd.DataFrame:
    """A ladder of 3 shapes, 2 rungs and 3 learning rates, on a known valley."""
    rows = []
    for (width, depth), d, factor in itertools.product([(32, 2), (48, 3), (64, 4)], [100_000, 200_000], [0.5, 1, 2]):
        n, lr = 12 * depth * width**2, 0.01 * factor
        loss = 1 + (n / 1e3) ** -0.3 + (d / 1e5) ** -0.5 + 0.05 * math.log(lr / lr_star) ** 2
        rows.append(
            {"stage": "ladder", "status": "complete", "width": width, "depth": depth, "N": n, "D": d, "lr": lr}
            | {"loss": loss, "run": f"{width}-{factor}", "fingerprint": f"{width}-{factor}-{d}", "flops": 6.0 * n * d}
            | {"warmup": 5000, "decay": 0.2, "decay_start": int(0.8 * d), "decay_shape": "linear", "min_ratio": 0.0}
            | {"batch_tokens": 1000, "diverged_at": None, "name": f"ladder.{len(rows)}", "C": 6.0 * n * d}
            | {"bpb": loss / math.log(2) / 4, "seconds": d / 1e3, "tokens_trained": d, "seed": 0, "trial": len(rows)}
            | {"started": f"2026-01-01T00:{len(rows):02d}:00+00:00"}
        )
    return pd.DataFrame(rows)


def fit(curved: bool = True) -> dict:
    """A fit as fits/ladder.json holds it."""
    rows = ladder()
    low = rows[rows.lr == 0.01]
    lows = [
        {"width": r.width, "depth": r.depth, "N": r.N, "D": r.D, "C": r.flops, "loss": r.loss, "low": r.loss - 0.01}
        | {"high": r.loss + 0.01, "lr": 0.01, "lrs": [0.005, 0.01, 0.02], "losses": [r.loss] * 3, "own": None}
        for r in low.itertuples()
    ]
    curve = [{"N": n, "D": 2e5, "value": 3 - math.log10(n) / 5, "low": 1.5, "high": 3.0} for n in (2e4, 2e5, 2e6)]
    return {
        "stage": "ladder",
        "minima": lows,
        "surface": {"h": 0.02, "a": 0.0, "b": 0.0, "c": 0.0, "curved": curved},
        "lr_drift": {"per_10x_N_octaves": -0.1, "per_10x_D_octaves": -0.4}
        | {"N_low": -0.3, "N_high": 0.1, "D_low": -0.5, "D_high": -0.3},
        "laws": {
            "size": {"params": {"A": 2.0, "a": 0.04}, "status": "converged", "reason": "", "formula": "L = A·N^-a"}
        },
        "chosen": "size",
        "rejected": ["chinchilla: worse"],
        "holdouts": [
            {"law": law, "axis": axis, "left_out": "", "N": 1e5, "D": 2e5, "measured": 2.0, "predicted": 2.1}
            | {"error_percent": error, "distance": 0.3}
            for law, axis, error in (("size", "N", 0.5), ("chinchilla", "N", -5.0), ("size", "D", -0.2))
        ],
        "forecast": {"target": "big", "N": 1e6, "D": 2e5, "value": 1.8, "low": 1.75, "high": 1.85, "law": "size"},
        "curve": curve,
    }


CHECK = {"target": "big", "measured": 1.83, "inside": True, "error_percent": -1.6}


def search(diverged: bool = True) -> pd.DataFrame:
    rows = ladder().assign(stage="shape", decay=np.linspace(0.1, 0.4, 18), flops=1e12)
    rows.loc[3, ["status", "loss"]] = ["diverged" if diverged else "complete", math.nan if diverged else 2.0]
    return rows


def curve(start: int, end: int, rows: int = 50) -> pd.DataFrame:
    tokens = np.linspace(start, end, rows)
    return pd.DataFrame({"tokens": tokens, "loss": 5 - np.log10(tokens + 1) / 2})


def trunk_rows() -> pd.DataFrame:
    rows = ladder()
    return rows[rows["run"] == "32-1"]


def valley_at(size: float, best: float, fault: str = "") -> dict:
    """A minimum as verdict.json holds it, of a parabola about `best`."""
    lrs = [0.005, 0.01, 0.02, 0.04]
    return {
        **{"at": size, "width": int(size), "depth": 2, "D": 100_000, "B": 512, "best": best, "edge": bool(fault)},
        **{"low": best / 1.2, "high": best * 1.2, "loss": 2.0, "fault": fault, "values": lrs, "seeds": 2},
        "losses": [2 + 0.05 * math.log(lr / best) ** 2 for lr in lrs],
    }


def told(slope: float = 0.0, verdict: str = "transfers", fault: str = "") -> dict:
    """One axis of a verdict: minima whose best lr moves by N^slope, and the law that says so."""
    return {
        **{"verdict": verdict, "reason": "said why, and how far", "limit_percent": 0.1, "penalty_noise": 0.5},
        **{"penalty_percent": None if fault else 0.05, "penalty_high": None if fault else 0.08},
        **{"drift_octaves": None if fault else slope, "low": slope - 0.1, "high": slope + 0.1},
        **{"law_penalty_high": 0.02 if "law" in verdict else None, "fixed": {"depth": 2.0, "D": 1e5, "B": 512.0}},
        "law": None if fault else {"a": math.log(0.02) - slope * math.log(32), "b": slope},
        "minima": [valley_at(w, 0.02 * (w / 32) ** slope, fault) for w in (32.0, 64.0, 128.0)],
        "lines": [],
    }


def line(rules: str = "minicpm", decay: float = 0.0, seeds: int = 2, **of: Any) -> Line:
    """A line with the readings of its seeds, which scatter by 1% about the means."""
    one = told(**of)
    places = []
    for m in one["minima"]:
        y = np.log(m["losses"]) + 0.01 * np.linspace(-1, 1, seeds)[:, None] * (seeds > 1)
        at = {"width": m["width"], "depth": 2.0, "D": 1e5, "B": 512.0}
        places.append(Place(at, (), Cell(np.log(m["values"]), y)))
    return Line(rules, "width", one, tuple(places), {"weight_decay": decay})


def verdict(**of: Any) -> dict:
    return {"rules": "minicpm", "over": {"width": told(**of), "D": told(verdict="drifts by this law")}}


def check(slope: float = 0.0, kept: bool = True) -> dict:
    """A coordinate check whose changes go with width^slope."""
    widths = [32.0, 64.0, 128.0]
    rows = [
        {"what": what, "step": step, "slope": slope, "low": slope - 0.05, "high": slope + 0.05}
        | ({"changes": [step * w**slope for w in widths]} if kept else {})
        for what, step in itertools.product(stability_figures.WHAT, (1, 3, 10))
    ]
    said = {"verdict": "passes" if abs(slope) < 0.1 else "fails", "reason": "as it is", "control": 0.5, "band": 0.15}
    return {**said, "over": {"width": {"values": widths, "slopes": rows}}}


def edge(b: float | None = -0.5) -> dict:
    """lr_max of three shapes, on a known law; None: nothing diverged."""
    shapes = [
        {"width": 32, "depth": 2, "N": n, "survives": 0.02, "diverges": None if b is None else 0.04 * (n / 1e4) ** b}
        for n in (1e4, 1e5, 1e6)
    ]
    law = None if b is None else {"a": -3.0, "b": b, "low": b - 0.1, "high": b + 0.1}
    return {"status": "none diverged" if b is None else "fitted", "shapes": shapes, "law": law}


FLOORS = [
    {"width": w, "depth": 2, "D": d, "B": 512, "floor_percent": 0.2, "low": 0.1, "high": 0.4, "seeds": 3}
    | {"effect_percent": 0.1, "seeds_needed": 50}
    for w, d in itertools.product((32, 64), (100_000, 200_000))
]


def several_decays() -> pd.DataFrame:
    """A trunk with two decays to each of its two rungs."""
    long = trunk_rows().assign(seed=0)
    brief = long.assign(
        decay=0.1, decay_start=(0.9 * long.D).astype(int), fingerprint=long.fingerprint + "b", loss=long.loss + 0.1
    )
    return pd.concat([long, brief])


def forecasts(measured: bool = True) -> list[dict]:
    """Forecasts of 2.0 ± 0.1 of which every fourth missed, as `tunnel check DIR --all` lists them."""
    found = []
    for i, kind in enumerate(["rolling"] * 9 + ["target", "counterfactual"]):
        loss = 2.15 if i % 4 == 3 else 2.0 + 0.05 * math.sin(i)
        told = {"forecast": 2.0, "low": 1.9, "high": 2.1, "lr": 0.005 * 2**i, "distance": 0.1 * i, "target": f"run {i}"}
        known = {"measured": loss, "error_percent": 100 * (2.0 / loss - 1), "inside": 1.9 <= loss <= 2.1}
        unknown = dict.fromkeys(known)
        fate = {"status": "complete", **known} if measured else {"status": "waiting", **unknown}
        found.append({"kind": kind, **told, **fate})
    return found


ALARM = {"tokens": 500, "step": 50, "percent": 5.0, "by": "level", "text": "big left the bundle at step 50: 5.0% above"}
LOSSES = (np.arange(1, 1001), 2.0 + 1.0 / np.arange(1, 1001))
RATIOS = [(name, 1.0 + (1 + i) / np.arange(1, 11) / 10) for i, name in enumerate(["32×2", "32×2", "64×4"])]


def standing(
    *, alarm: dict | None = None, inside: bool | None = True, known: int = 6, told: bool = True
) -> dict[str, Any]:
    """A target that has trained `known` of ten slices, as `running.standing` tells it."""
    at = [50.0 + 100 * i for i in range(10)]
    slices = [
        {"tokens": t, "loss": 2.0 + 40 / t if i < known else None}
        | (dict.fromkeys(("expected", "low", "high"), None) if not told or i == 0 else told_at(t))
        for i, t in enumerate(at)
    ]
    live = {"tokens": 100 * known, "of": 1000, "progress": known / 10, "off_percent": 0.4 if known else None}
    course = {"value": 2.02, "low": 1.98, "high": 2.06} if known else None
    live |= {"inside": inside and alarm is None, "alarm": alarm, "course": course, "slices": slices, "reason": ""}
    return {"target": "big", "forecast": 2.0, "low": 1.95, "high": 2.05, "measured": None, "live": live}


def told_at(t: float) -> dict[str, float]:
    return {"expected": 2 + 40 / t, "low": 1.9 + 40 / t, "high": 2.1 + 40 / t}


def held(*states: str) -> pd.DataFrame:
    """What two stages' devices were held for: an hour a state, and two of what is complete."""
    rows = [
        {"stage": stage, "state": s, "spans": 1, "seconds": hours * 1800.0, "cost": Decimal(hours)}
        for s in states
        for stage in ("calibrate", "<b>")
        for hours in ([2] if s == "complete" else [1])
    ]
    return pd.DataFrame(rows)


def spans(*states: str) -> pd.DataFrame:
    whens = pd.date_range("2026-11-22", periods=len(states), freq="h", tz="UTC").map(lambda t: t.isoformat())
    rows = [{"stage": "<b>", "trial": i, "state": s, "seconds": 60.0 * i} for i, s in enumerate(states)]
    return pd.DataFrame(rows).assign(when=whens)


SEVERAL = several_decays()


def grown(lr: float, stopped: bool = False) -> Grown:
    rows = SEVERAL.assign(lr=lr, run=str(lr))
    return Grown(rows.head(1) if stopped else rows, curve(0, 160_000), FORKS, stopped)


def tried(n: int = 200) -> pd.DataFrame:
    """A search of `n` trials whose loss depends on lr and batch, and on nothing else."""
    rng = np.random.default_rng(0)
    lr, batch = 10 ** rng.uniform(-3, -1, n), 2 ** rng.integers(8, 14, n)
    known = {"width": 32, "depth": 2, "D": rng.choice([1e5, 2e5], n), "status": "complete", "stage": "shape"}
    rows = pd.DataFrame({"lr": lr, "batch_tokens": batch, "decay": rng.uniform(0.1, 0.4, n), **known})
    loss = 2 + 0.2 * np.log10(lr / 0.01) ** 2 + 0.01 * np.log2(batch / 1024) ** 2 + 0.002 * rng.standard_normal(n)
    shapes = rng.choice(["linear", "1-sqrt"], n)
    return rows.assign(loss=loss, decay_shape=shapes, name=[f"shape.{i}" for i in range(n)], seed=0)


def settings(rows: pd.DataFrame) -> list[landscape.Axis]:
    return [a for a in landscape.axes_of(rows).values() if a.name != "loss"]


def parallel(rows: pd.DataFrame, brush: landscape.Brush | None = None, by: str = "loss") -> go.Figure:
    axes, brush = landscape.axes_of(rows), brush or {}
    return landscape_figures.parallel(rows, list(axes.values()), landscape.kept(rows, brush), brush, by)


def contours(rows: pd.DataFrame) -> go.Figure:
    axes = landscape.axes_of(rows)
    x, y = axes["lr"], axes["batch_tokens"]
    return landscape_figures.contours(rows, x, y, landscape.smoothed(rows, x, y))


def with_both() -> dict:
    """A fit with the law of N and D that made its minima."""
    params = {"E": 1.0, "A": 1e3**0.3, "B": 1e5**0.5, "alpha": 0.3, "beta": 0.5}
    return fit() | {"laws": {"chinchilla": {"params": params, "status": "converged", "reason": "", "formula": "L"}}}


def one_budget() -> pd.DataFrame:
    """Readings of one compute budget about a best size of 30,000 parameters."""
    n = np.array([1e4, 2e4, 3e4, 4e4, 8e4])
    return pd.DataFrame({"N": n, "D": 1e9 / 6 / n, "C": 1e9, "loss": 2 + 0.02 * np.log(n / 3e4) ** 2})


def bought(times: float) -> spend.Spent:
    return spend.spent(ANSWER, ANSWER["path"], times, None)


OTHERS = [
    whatif.Told(law, loss, v, v - 0.1, v + 0.1)
    for law in ("size", "floor")
    for loss, v in zip(whatif.LOSSES, (1.7, 1.8, 1.9), strict=True)
]
ANSWER = {
    "target": {"name": "big", "N": 1_000_000, "tokens": 200_000, "seconds": 3600.0, "cost": 2.0, "currency": "USD"},
    "path": {"law": "chinchilla", "params": {"E": 1.0, "A": 8.0, "B": 300.0, "alpha": 0.3, "beta": 0.5}}
    | {"N": 1e6, "D": 2e5, "share": 0.5},
    **{"forecast": 1.8, "low": 1.75, "high": 1.85, "compute_ratio": 30.0},
}
FIGURES = {
    "verdicts": lambda: transfer_figures.verdicts("lr", {"minicpm": verdict(), "standard": verdict(verdict="refused")}),
    "verdicts, refused": lambda: transfer_figures.verdicts("lr", {"minicpm": verdict(fault="edge below")}),
    "transfer": lambda: transfer_figures.valleys("lr", [line(), line("standard", slope=-0.4)]),
    "transfer, losses": lambda: transfer_figures.valleys("lr", [line()], relative=False),
    "transfer, refused": lambda: transfer_figures.valleys("lr", [line(verdict="refused", fault="edge above")]),
    "drift": lambda: transfer_figures.drift("lr", [line(), line("standard", slope=-0.4)]),
    "coordinates": lambda: stability_figures.coordinates({"minicpm": check(), "standard": check(0.5)}),
    "changes": lambda: stability_figures.changed({"minicpm": check(), "standard": check(0.5)}),
    "lr_max": lambda: stability_figures.lr_max({"minicpm": edge(), "standard": edge(None)}),
    "noise": lambda: stability_figures.noise(FLOORS),
    "fan": lambda: trunk_figures.fan([grown(0.01), grown(0.02), grown(0.04, stopped=True)], "32×2", 3),
    "fan, many": lambda: trunk_figures.fan([grown(0.01 * k) for k in range(1, 13)], "32×2", 40),
    "tree, several decays": lambda: curve_figures.tree(several_decays(), curve(0, 160_000), FORKS, [50_000.0]),
    "valleys, best": lambda: figures.valleys(ladder(), relative=True),
    "valleys, running": lambda: figures.valleys(ladder()),
    "valleys": lambda: figures.valleys(ladder(), fit()),
    "valleys, relative": lambda: figures.valleys(ladder(), fit(), relative=True),
    "valleys, one reading": lambda: figures.valleys(ladder().head(1)),
    "valleys, flat": lambda: figures.valleys(ladder(), fit(curved=False), relative=True),
    "searched": lambda: figures.searched(search(), ["lr", "decay", "width", "decay_shape"], {}, "shape"),
    "searched, fitted": lambda: figures.searched(search(False), ["lr"], EVIDENCE, "shape"),
    "searched, one trial": lambda: figures.searched(search().head(1), ["lr", "warmup"], {}, "shape"),
    "aspect": lambda: figures.aspect(search(False), "shape"),
    "progress": lambda: study_figures.progress(ladder()),
    "running trial": lambda: study_figures.running(curve(0, 160_000), "ladder.3", "64×4 lr 0.01", 2e5),
    "compared": lambda: study_figures.compared(
        {n: pd.DataFrame({"x": [1e9, 1e10], "y": [3.0, y], "text": "64×4"}) for n, y in (("a", 2.5), ("<b>", 2.6))},
        "compute of the one model (FLOPs)",
        "a goes lowest: 2.5 nats per token",
        "lower is better.",
        True,
    ),
    "tree": lambda: curve_figures.tree(trunk_rows(), curve(0, 160_000), FORKS),
    "tree, no curves": lambda: curve_figures.tree(trunk_rows(), None, {}),
    "tree, diverged": lambda: curve_figures.tree(trunk_rows().assign(loss=math.nan), curve(0, 9000), {}),
    "trunks": lambda: trunk_figures.trunks([grown(0.01), grown(0.02)], "ladder", 2),
    "trunks, bands": lambda: trunk_figures.trunks([grown(0.01 * k) for k in range(1, 203)], "ladder", 202),
    "fan, bands": lambda: trunk_figures.fan([grown(0.01 * k) for k in range(1, 73)], "32×2", 72),
    "tree, hours": lambda: curve_figures.tree(trunk_rows(), curve(0, 160_000), FORKS, (), Units(HOURS, "bits", 0.36)),
    "fan, FLOPs": lambda: trunk_figures.fan([grown(0.01), grown(0.02)], "32×2", 2, Units(FLOPS, "bits", 0.36)),
    "parallel": lambda: parallel(tried()),
    "parallel, brushed": lambda: parallel(tried(), {"lr": (0.002, 0.02), "decay_shape": frozenset({"linear"})}),
    "parallel, by rung": lambda: parallel(tried(), by="rung"),
    "parallel, nothing left": lambda: parallel(tried(), {"lr": (9.0, 10.0)}),
    "importance": lambda: landscape_figures.importance(landscape.importance(tried(), settings(tried()))),
    "importance, of noise": lambda: landscape_figures.importance(
        landscape.importance(tried().assign(loss=np.random.default_rng(1).uniform(2, 3, 200)), settings(tried()))
    ),
    "map": lambda: contours(tried()),
    "map, few": lambda: contours(tried().head(4)),
    "slices": lambda: figures.searched(
        tried(),
        ["lr", "decay"],
        {},
        "shape",
        [(g.name, g.rows, g.look) for g in landscape_figures.groups(tried(), "loss")],
    ),
    "residuals": lambda: law_figures.residuals(whatif.residuals(fit(), "size", "huber"), "size"),
    "alternatives": lambda: law_figures.alternatives(OTHERS, fit(), CHECK),
    "budgets": lambda: law_figures.iso_flops(whatif.iso_flop(with_both())[0], [], with_both()),
    "budgets, as read": lambda: law_figures.iso_flops([], whatif.parabolas(one_budget()), fit()),
    "evidence": lambda: answer_figures.evidence("lr", EVIDENCE["lr"], ladder()),
    "evidence, a name": lambda: answer_figures.evidence(
        "decay_shape", {"value": "linear", "low": None, "high": None, "source": "best of 2"}, ladder()
    ),
    "what a budget buys": lambda: answer_figures.budget(
        spend.curve(ANSWER, ANSWER["path"], spend.TIMES, None), bought(4.0), ANSWER, "size", "USD"
    ),
    "law": lambda: law_figures.law(fit()),
    "law, checked": lambda: law_figures.law(fit(), CHECK),
    "holdouts": lambda: law_figures.holdouts(fit()),
    "forecasts": lambda: forecast_figures.in_order(forecasts()),
    "forecasts, one": lambda: forecast_figures.in_order(forecasts()[:1]),
    "forecasts, by distance": lambda: forecast_figures.by_distance(forecasts()),
    "forecasts, none measured": lambda: forecast_figures.by_distance(forecasts(measured=False)),
    "three lrs": lambda: forecast_figures.contrast(forecasts()[:3]),
    "held": lambda: cost_figures.held(held(*cost_figures.STATES), "USD"),
    "held, earlier": lambda: cost_figures.held(held("earlier"), "USD"),
    "attempts": lambda: cost_figures.attempts(spans("complete", "failed", "complete", "new"), 2),
    "attempts, one": lambda: cost_figures.attempts(spans("complete"), 1),
    "three lrs, waiting": lambda: forecast_figures.contrast(forecasts(measured=False)[:3]),
    "calibration": lambda: forecast_figures.calibration(forecasts()),
    "experts": lambda: expert_figures.load(LOADS, "32×2"),
    "experts, many layers": lambda: expert_figures.load(LOADS * 20, "32×2"),
    "target": lambda: target_figures.loss(standing(), LOSSES),
    "target, alarmed": lambda: target_figures.loss(standing(alarm=ALARM), LOSSES),
    "target, finished": lambda: target_figures.loss(standing(), LOSSES, 2.01),
    "target, too early": lambda: target_figures.loss(standing(inside=None, known=0), LOSSES),
    "target, no bundle": lambda: target_figures.loss(standing(inside=None, told=False), LOSSES),
    "normalised": lambda: target_figures.normalised(standing(), RATIOS),
    "normalised, no ladder": lambda: target_figures.normalised(standing(inside=None, known=0), []),
}
EVIDENCE = {"lr": {"value": 0.01, "low": 0.008, "high": 0.012, "source": "valley's fitted minimum", "caution": ""}}
LOADS = [[0.25] * 4, [0.7, 0.28, 0.02, 0.0]]
FORKS = {"32-1-100000": curve(80_000, 100_000), "32-1-200000": curve(160_000, 200_000)}
UNITLESS = {"decay_shape", "trial", "rule over axis"}
VERDICTS = ("yet", "no minimum", "refused", "diverged", "none", "passes", "fails", "transfers", "clearly")


@cache
def drawn(name: str) -> go.Figure:
    return FIGURES[name]()


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_can_be_read_without_its_author(name: str) -> None:
    fig = drawn(name)
    finding, read = fig.layout.meta["finding"], fig.layout.meta["read"]
    assert fig.layout.title.text
    assert any(c.isdigit() for c in finding) or any(v in finding for v in VERDICTS), finding
    assert read.endswith(".")
    assert read.count(". ") == 0  # one sentence
    fig.to_json()
    axes = [a for k, a in fig.to_dict()["layout"].items() if k.startswith(("xaxis", "yaxis"))]
    for axis in axes:
        title = (axis.get("title") or {}).get("text")
        shared = axis.get("matches") or axis.get("showticklabels") is False
        assert shared or (title and (title in UNITLESS or "(" in title or "÷" in title or title == "tokens")), axis


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_s_data_can_be_taken_away(name: str) -> None:
    """All that is drawn, and nothing that only explains the legend."""
    fig = drawn(name)
    rows = takeaway.table(fig)
    assert set(rows.columns) <= set(takeaway.COLUMNS)
    shown = [t for t in fig.data if getattr(t, "x", None) is not None and len(t.x) and t.x[0] is not None]
    assert bool(len(rows)) == bool(shown)
    assert not rows[["x", "y"]].isna().any().any() if len(rows) else True
    assert all(rows.x_name) and all(rows.y_name) if len(rows) else True


def test_a_taken_table_is_what_was_drawn() -> None:
    rows = takeaway.table(law_figures.law(fit(), CHECK))
    told = rows[rows.series.str.startswith("forecast")].iloc[0]
    assert (told.x, told.y, told.y_low, told.y_high) == pytest.approx((1e6, 1.8, 1.75, 1.85))
    assert set(rows[rows.series.str.startswith("valleys")].y) == set(ladder()[ladder().lr == 0.01].loss)
    cells = takeaway.table(contours(tried()))
    assert (cells.series == "smoothed").sum() == landscape.GRID**2


@pytest.mark.parametrize("name", FIGURES)
def test_every_colour_is_named_in_the_legend(name: str) -> None:
    fig = drawn(name)
    named = {t.legendgroup or t.name for t in fig.data if t.showlegend is not False}
    for t in fig.data:
        assert (t.legendgroup or t.name) in named or t.marker.symbol == figures.RING["symbol"]


@pytest.mark.parametrize(("ground", "colour"), itertools.product(GROUNDS, style.PALETTE))
def test_colours_stand_out_from_both_grounds(ground: str, colour: str) -> None:
    assert contrast(colour, GROUNDS[ground]) >= 3  # WCAG 2.2, 1.4.11: graphics


@pytest.mark.parametrize(("eye", "pair"), itertools.product(BLIND, itertools.combinations(style.PALETTE, 2)))
def test_colours_stay_apart_for_red_green_blind_eyes_too(eye: str, pair: tuple[str, str]) -> None:
    a, b = (lab(np.array(BLIND[eye]) @ linear(c)) for c in pair)
    assert np.linalg.norm(a - b) >= 10  # ΔE 1976: a just visible step is about 2.3


def linear(colour: str) -> np.ndarray:
    v = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def contrast(a: str, b: str) -> float:
    y = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) + 0.05 for c in (a, b))
    return y[1] / y[0]


def lab(rgb: np.ndarray) -> np.ndarray:
    m = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.clip(m @ np.clip(rgb, 0, 1), 0, None) / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_the_drawn_valley_goes_through_its_readings() -> None:
    """A known valley: the fitted line, drawn from the fit alone, passes the readings it was made of."""
    told = fit() | {"surface": {**fit()["surface"], "h": 0.0}}
    line = next(t for t in figures.valleys(ladder(), told).data if t.mode == "lines")
    assert np.allclose(line.y, line.y[0])  # no curvature, no valley
    rises = figures.above_minimum(ladder(), fit())[0]
    assert rises[rises.lr == 0.01].loss.abs().max() < 1e-9
    assert (rises[rises.lr != 0.01].loss > 0).all()


def test_the_lr_panel_is_the_schedule() -> None:
    r = trunk_rows().iloc[0]
    at, m = curve_figures.multipliers(r)
    by = dict(zip(at.tolist(), m, strict=True))
    assert by[0] == pytest.approx(0.2)  # (s + 1)/W with 5 steps of warmup
    assert by[80_000] == 1.0
    assert by[100_000] == 0.0


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (None, "not yet measured"),
        (CHECK, "measured 1.830, inside the interval, 1.60% off"),
        (CHECK | {"inside": False}, "outside the interval"),
        (CHECK | {"target": "another"}, "not yet measured"),
        (CHECK | {"measured": None}, "not yet measured"),
    ],
)
def test_the_law_says_what_became_of_its_forecast(check: dict | None, said: str) -> None:
    fig = law_figures.law(fit(), check)
    assert said in fig.layout.meta["finding"]
    assert any(t.name == "measured" for t in fig.data) == ("not yet" not in said)


@pytest.mark.parametrize(
    ("octaves", "low", "high", "said"),
    [
        (-0.4, -0.5, -0.3, "falls by 0.40 octaves per tenfold D (0.30 to 0.50)"),
        (0.4, 0.3, 0.5, "rises by 0.40 octaves per tenfold D (0.30 to 0.50)"),
        (-0.1, -0.3, 0.1, "does not clearly move with D (-0.30 to +0.10 octaves per tenfold)"),
        (-0.1, None, None, "moves -0.10 octaves per tenfold D"),
    ],
)
def test_findings_are_no_surer_than_their_interval(octaves: float, low: float, high: float, said: str) -> None:
    assert figures.movement(octaves, low, high, "D") == said


@pytest.mark.parametrize(("low", "high"), [(0.003, 0.06), (0.01, 0.011), (1e3, 1e9), (0.5, 2.0), (0.008, 0.033)])
def test_log_axes_have_ticks_that_do_not_crowd(low: float, high: float) -> None:
    axis = style.log_axis("lr (per step)", low, high)
    ticks, ends = np.log10(axis["tickvals"]), axis["range"]
    assert 3 <= len(ticks) <= 8
    assert ends[0] <= ticks.min() <= ticks.max() <= ends[1]
    assert len(set(axis["ticktext"])) == len(ticks)
    assert np.diff(ticks).min() >= (ends[1] - ends[0]) / 12


def test_names_are_text_and_never_markup() -> None:
    rows = ladder().assign(stage="<b>x</b>")
    fig = figures.aspect(rows, "<img src=x onerror=alert(1)>")
    assert "<img" not in fig.layout.title.text
    assert isinstance(fig, go.Figure)


def test_long_curves_are_thinned_and_keep_their_mean() -> None:
    long = curve(0, 1_000_000, 10_007)
    thin = curve_figures.thinned(long)
    assert len(thin) <= curve_figures.POINTS
    assert thin.loss.mean() == pytest.approx(long.loss.mean(), rel=1e-3)
    assert curve_figures.thinned(thin) is thin


@pytest.mark.parametrize("module", [style, figures, transfer_figures, landscape, takeaway])
def test_the_examples_in_the_docstrings_hold(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


# transfer


def test_a_drift_is_drawn_on_its_law() -> None:
    fig = transfer_figures.drift("lr", [line(slope=-0.4)])
    marks, law = (next(t for t in fig.data if t.mode == mode) for mode in ("markers", "lines"))
    at = np.log(np.array(law.x))
    slope = np.diff(np.log(np.array(law.y)))[0] / np.diff(at)[0]
    assert slope == pytest.approx(-0.4)
    on = np.exp(np.interp(np.log(np.array(marks.x)), at, np.log(np.array(law.y))))
    assert np.allclose(marks.y, on, rtol=0.01)
    assert transfer_figures.drift("lr", [line(fault="edge below")]) is None


@pytest.mark.parametrize("relative", [True, False])
def test_a_valley_shows_every_seed_about_its_mean(relative: bool) -> None:
    one = line()
    fig = transfer_figures.valleys("lr", [one], relative)
    seeds = [t for t in fig.data if t.marker.symbol == "line-ew-open" and t.x[0] is not None]
    assert len(seeds) == len(one.told["minima"])
    assert len(seeds[0].x) == 2 * 4
    read = np.exp(one.seeds[0].cell.y).ravel()
    assert np.allclose(seeds[0].y, 100 * (read / 2.0 - 1) if relative else read)


def test_panels_say_what_tells_them_apart() -> None:
    assert transfer_figures.titles([line(), line("standard")]) == ["minicpm", "standard"]
    apart = transfer_figures.titles([line(decay=0.1), line(decay=0.2)])
    assert apart == ["minicpm (weight_decay 0.1)", "minicpm (weight_decay 0.2)"]


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("transfers", "Over width, lr transfers under minicpm (it gives away 0.05%, at most 0.08%"),
        ("does not transfer", "Over width, lr does not transfer under minicpm"),
        ("drifts by this law", "Over width, lr drifts by a law under minicpm"),
    ],
)
def test_the_title_is_the_verdict(verdict: str, said: str) -> None:
    assert said in transfer_figures.valleys("lr", [line(verdict=verdict)]).layout.meta["finding"]


def test_a_penalty_is_drawn_against_its_limit() -> None:
    fig = transfer_figures.verdicts("lr", {"minicpm": verdict()})
    mark = next(t for t in fig.data if t.name == "transfers")
    assert mark.x[0] == pytest.approx(0.5)  # 0.05% of 0.1%
    assert mark.x[0] + mark.error_x.array[0] == pytest.approx(0.8)
    law = next(t for t in fig.data if "with its law" in t.name)
    assert law.x[0] == pytest.approx(0.2)


def test_changes_rise_by_their_slope_and_are_left_out_where_they_were_not_kept() -> None:
    fig = stability_figures.changed({"standard": check(0.5)})
    t = next(t for t in fig.data if t.x[0] is not None)
    assert np.polyfit(np.log10(t.x), t.y, 1)[0] == pytest.approx(0.5)
    assert stability_figures.changed({"standard": check(0.5, kept=False)}) is None


@pytest.mark.parametrize(
    ("b", "said"),
    [
        (-0.5, "goes with N^-0.50"),
        (0.05, "does not clearly move with N"),
        (None, "Nothing diverged up to lr 0.02 under minicpm"),
    ],
)
def test_the_edge_is_no_surer_than_its_interval(b: float | None, said: str) -> None:
    assert said in stability_figures.lr_max({"minicpm": edge(b)}).layout.meta["finding"]


# trees and fans


def test_decays_to_one_rung_share_a_colour_and_differ_in_their_line() -> None:
    fig = curve_figures.tree(several_decays(), curve(0, 160_000), {})
    lines = {t.name: t.line for t in fig.data if t.name and t.name.startswith("fork")}
    one, two = (lines[f"fork to D = 100k, decay {d}% linear"] for d in (20, 10))
    assert one.color == two.color
    assert one.dash != two.dash
    bands = [s for s in fig.layout.shapes if s.opacity == style.PHASES["decay"]]
    assert sorted({(s.x0, s.x1) for s in bands}) == [(80_000, 100_000), (160_000, 200_000)]  # the longest's


def test_a_fan_tells_the_best_lr_from_its_neighbours() -> None:
    trunks = [grown(0.01), grown(0.02), grown(0.04)]
    trunks[1] = Grown(trunks[1].rows.assign(loss=trunks[1].rows.loss - 1), None, {})
    looks = trunk_figures.looks_of(trunks)
    assert [looks[lr][0] for lr in (0.01, 0.02, 0.04)] == ["lr 0.01", "lr 0.02 (best)", "lr 0.04"]
    assert len({looks[lr][1]["color"] for lr in looks}) == 3
    assert "lr 0.02 is best at D = 200k" in trunk_figures.fan(trunks, "32×2", 3).layout.meta["finding"]


# groups


@pytest.mark.parametrize(
    ("stage", "changed", "names"),
    [
        ({}, {}, ["all"]),
        ({"space": {"rules": ["minicpm", "standard"]}}, {"rules": ["minicpm", "standard"]}, ["minicpm", "standard"]),
        ({"batches": [512, 1024]}, {"batch_tokens": [512, 1024]}, ["B 512", "B 1,024"]),
        ({"decays": [{"decay": 0.1}, {"decay": 0.2}]}, {"decay": [0.104, 0.196]}, ["decay 0.1", "decay 0.2"]),
        ({"decays": [{"decay": 0.1}, {}]}, {"decay": [0.104, 0.196]}, ["decay 0.1", "decay 0.2"]),
        ({}, {"decay": [0.104, 0.196]}, ["all"]),
        (
            {"decays": [{"decay_mix": {"a": 0.3}}, {}]},
            {"decay_mix.a": [0.3, 0.0]},
            ["decay_mix.a 0.3", "decay_mix.a 0"],
        ),
        ({}, {"decay_mix.a": [0.3, 0.3]}, ["all"]),
    ],
)
def test_a_figure_holds_what_may_be_compared(stage: dict, changed: dict, names: list[str]) -> None:
    asked = Stage(name="v", kind="verdict", shapes=[[32, 2]], rungs={"tokens": [1000]}, **stage)
    rows = ladder().head(2).assign(rules="minicpm", half_life=0.2)
    found = groups.of(rows.assign(**changed), asked)
    assert list(found) == names
    assert sum(len(r) for r in found.values()) == 2


# money


def test_the_title_says_where_the_money_went() -> None:
    said = cost_figures.held_finding(held("complete", "idle", "failed"), "USD")
    assert said == "50.0% of 4 h 0 min of one device (8.00 USD) went into trials; 25.0% idle, 25.0% failed"
    fig = cost_figures.held(held("complete", "idle", "failed"), "USD")
    assert fig.layout.annotations[0].text == "50.0% · 2 h 0 min · 4.00 USD"
    assert sum(sum(bar.x) for bar in fig.data) == pytest.approx(4.0)  # hours
    assert "not kept" in cost_figures.held_finding(held("earlier"), "USD")


def test_attempts_that_were_lost_are_counted() -> None:
    said = cost_figures.attempts_finding(spans("complete", "failed", "complete", "interrupted"), 3)
    assert said == "4 attempts at 3 trials: 1 failed, 1 interrupted; the longest took 3 min of a device"
    assert "none failed" in cost_figures.attempts_finding(spans("complete"), 1)


# forecasts


def test_a_forecast_s_interval_and_its_fate_are_drawn() -> None:
    fig = forecast_figures.in_order(forecasts())
    assert "9 of 11 forecasts (82%) lay inside" in fig.layout.title.text.replace("<br>", " ")
    bars, *marks = fig.data
    assert bars.y[:2] == pytest.approx([-5.0, 5.0])  # % of the forecast
    fates = {trace.name: trace for trace in marks}
    assert list(fates) == ["rolling, inside", "rolling, outside", "target, inside", "counterfactual, inside"]
    assert all(abs(y) <= 5 for y in fates["rolling, inside"].y)
    assert list(fates["rolling, outside"].x) == [4, 8]
    assert all(y > 5 for y in fates["rolling, outside"].y)
    parts = {trace.name: trace.y for trace in forecast_figures.by_distance(forecasts()).data}
    assert max(parts["rolling, inside"]) <= 1 < min(parts["rolling, outside"])


def test_the_best_of_three_lrs_is_named() -> None:
    rows = forecasts()[:3]
    rows[1] = {**rows[1], "measured": 1.91}
    assert forecast_figures.contrast_finding(rows).startswith("run 1 was best")
    lost = [{**r, "measured": None, "status": "diverged"} for r in rows]
    assert "diverged" in forecast_figures.contrast_finding(lost)


def test_a_target_s_figure_says_where_it_stands() -> None:
    titles = {
        name: FIGURES[name]().layout.meta["finding"]
        for name in ("target", "target, alarmed", "target, finished", "target, too early")
    }
    assert titles["target"] == "big is inside the bundle at 60%, 0.4% above what forecast and ladder say"
    assert titles["target, alarmed"] == ALARM["text"]
    assert titles["target, finished"] == "big stayed inside the bundle to its end: measured 2.010, forecast 2.000"
    assert "too early" in titles["target, too early"]
    marked = {t.name: t for t in FIGURES["target, alarmed"]().data}
    assert list(marked["alarm, step 50"].x) == [450.0]


def test_calibration_counts_the_losses_inside() -> None:
    """Of 11 forecasts 2 missed (every fourth); at a level that no error reaches all hold."""
    rows = forecast_figures.known(forecasts())
    assert forecast_figures.held_at(rows, 0.9) == pytest.approx(9 / 11)
    assert forecast_figures.held_at(rows, 0.9999) == 1.0
    narrow = [{**r, "low": 1.999, "high": 2.001} for r in rows]
    assert "too narrow" in forecast_figures.calibration_finding(narrow)


def test_the_title_names_the_busiest_expert_and_counts_the_idle() -> None:
    said = expert_figures.finding(LOADS, "32×2")
    assert (
        said == "The busiest expert of 32×2 takes 2.8 times an even share, in layer 2; 2 of 8 take under a tenth of one"
    )
    assert len(expert_figures.load(LOADS * 20, "32×2").data) == expert_figures.MOST + 1
