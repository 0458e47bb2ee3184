"""A study of many trials × 20 values, really planned: our folder with its records, and a plain Optuna study of it.

The folder has a record a reading, as the store writes them; beside it lies a SQLite study of Optuna's with the same
trials, parameters and intermediate values, and nothing of ours in it.
"""

from __future__ import annotations

import json
import math
import sqlite3
from datetime import UTC, datetime, timedelta
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from tunnel import plan, study
from tunnel.families import synthetic
from tunnel.folder import database, store
from tunnel.folder.store import Store
from tunnel.proposals import distributions
from tunnel.run import Record

TRIALS, RUNGS = 10_000, 20
STEP = 840 * 1024  # tokens between two rungs: whole batches of every size
QUESTION = """question = "Which settings train the proxy best?"
family = "synthetic"
[model]
head_dim = 32
base_width = 64
base_depth = 4
seq_len = 128
[[target]]
name = "big"
width = 512
depth = 16
tokens = "1B"
[[stage]]
name = "search"
kind = "search"
rungs = {{ tokens = {rungs} }}
  [stage.space]
  width = 64
  depth = 4
  lr = {{ low = 1e-3, high = 1e-1 }}
  warmup = {{ low = 0.01, high = 0.2 }}
  decay = {{ low = 0.05, high = 0.4 }}
  min_ratio = {{ low = 0.001, high = 0.2, log = true }}
  weight_decay = {{ low = 0.001, high = 0.3, log = true }}
  beta2 = {{ low = 0.9, high = 0.999 }}
  batch_tokens = {{ low = 1024, high = 8192, step = 1024, log = false }}
  [stage.budget]
  trials = {trials}
  [stage.sampler]
  name = "random"
"""
Trial = dict[str, Any]  # number, params, runs, values {D: loss}


def made(root: Path, trials: int) -> Path:
    """The study's folder, with Optuna's own beside it as plain.db; taken as it is where it is there already."""
    if (root / "study" / "readings.parquet").exists():
        return root
    folder = root / "study"
    (folder / "records").mkdir(parents=True)
    text = QUESTION.format(trials=trials, rungs=[STEP * (i + 1) for i in range(RUNGS)])
    (folder / "study.toml").write_text(text)
    resolved = {
        "scale": "full",
        "schema": 2,
        "stages": {"search": {"handed_on": {}, "evidence": {}, "when": store.now()}},
    }
    store.write_json(folder / "study.resolved.json", resolved)
    parts = [(folder, range(i, trials, 64)) for i in range(64)]
    with Pool(2) as pool:
        done = [x for found in pool.starmap(measured, parts) for x in found]
    told = sorted((t for t, _ in done), key=lambda t: t["number"])
    frame = Store(folder).table([row for _, rows in done for row in rows])
    frame.to_parquet(folder / "readings.parquet", index=False)
    axes = study.load(folder / "study.toml").stage[0].axes
    written(folder, "search", told, axes, ours=True)
    written(root / "plain", "search", told, axes, ours=False)
    return root


def measured(folder: Path, numbers: range) -> list[tuple[Trial, list[dict[str, Any]]]]:
    """Trains trials by arithmetic, and writes their records."""
    asked = study.load(folder / "study.toml")
    stage, began = asked.stage[0], datetime(2026, 11, 1, tzinfo=UTC)
    base, dims, found = plan.values_of(asked, stage, {}), distributions(stage.axes), []
    for number in numbers:
        rng = np.random.default_rng(number)
        params = {k: drawn(d, rng) for k, d in dims.items()}
        trial = plan.trial(asked, stage, {**base, **params}, number=number)
        n = synthetic.count(trial.trunk.shape, trial.trunk.body)
        per_token = synthetic.flops_per_token(trial.trunk.shape, trial.trunk.body)
        rows, values, start = [], {}, began + timedelta(seconds=40 * number)
        for run in trial.runs:
            loss = surface(n, run.tokens, params) * (1 + 0.0005 * rng.normal())
            record = Record(
                fingerprint_of=run.fingerprint, run=run, stage=stage.name, trial=number, status="complete",
                N=n, D=run.tokens, C=6.0 * n * run.tokens, flops=per_token * run.tokens, loss=loss,
                bpb=loss / math.log(2), tokens_trained=run.decay_tokens + STEP,
                started=start.isoformat(), seconds=2.0, host=f"node-{number % 16}",
            )  # fmt: skip
            path = folder / "records" / f"{run.fingerprint}.json"
            path.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
            rows.append(store.flat(record))
            values[run.tokens] = loss
        runs = {"runs": [r.fingerprint for r in trial.runs], "trunk": trial.trunk.fingerprint, "D": trial.rung}
        found.append(({"number": number, "params": params, "values": values, "at": start, **runs}, rows))
    return found


def drawn(d: Any, rng: np.random.Generator) -> Any:
    if isinstance(d, optuna.distributions.IntDistribution):
        return int(rng.integers(0, (d.high - d.low) // d.step + 1) * d.step + d.low)
    low, high = (math.log(x) if d.log else x for x in (d.low, d.high))
    x = float(rng.uniform(low, high))
    return min(max(math.exp(x), d.low), d.high) if d.log else x


def surface(n: float, tokens: float, p: Trial) -> float:
    """The calibration body's loss, and a little for what it does not know."""
    truth = synthetic.TRUTH
    off, decay = math.log(p["lr"] / truth.best_lr(n, tokens)), math.log(p["decay"] / truth.decay)
    more = 0.004 * math.log(p["weight_decay"] / 0.03) ** 2 + 0.2 * p["min_ratio"] + 0.5 * (p["beta2"] - 0.95) ** 2
    return truth.best_loss(n, tokens) + truth.h * off**2 + truth.k * decay**2 + more


def written(folder: Path, name: str, trials: list[Trial], axes: Any, ours: bool) -> None:
    """A study in Optuna's own tables, as its storage writes them; `ours`: with what the sampler notes of each trial."""
    folder.mkdir(exist_ok=True)
    storage = database.storage(folder)
    theirs = optuna.create_study(study_name=name, storage=storage, direction="minimize")
    theirs.set_metric_names(["loss"])
    storage.engine.dispose()
    kinds = {k: (d, optuna.distributions.distribution_to_json(d)) for k, d in distributions(axes).items()}
    db = sqlite3.connect(folder / database.SQLITE)
    with db:
        ids = [(t["number"] + 1, t) for t in trials]
        times = [
            (i, t["number"], 1, "COMPLETE", str(t["at"])[:19], str(t["at"] + timedelta(seconds=40))[:19])
            for i, t in ids
        ]
        into(db, "trials", "trial_id, number, study_id, state, datetime_start, datetime_complete", times)
        params = [(i, k, d.to_internal_repr(t["params"][k]), j) for i, t in ids for k, (d, j) in kinds.items()]
        into(db, "trial_params", "trial_id, param_name, param_value, distribution_json", params)
        last = [(i, 0, t["values"][max(t["values"])], "FINITE") for i, t in ids]
        into(db, "trial_values", "trial_id, objective, value, value_type", last)
        each = [(i, d, x, "FINITE") for i, t in ids for d, x in t["values"].items()]
        into(db, "trial_intermediate_values", "trial_id, step, intermediate_value, intermediate_value_type", each)
        if ours:
            notes = [
                (i, k, json.dumps(v))
                for i, t in ids
                for k, v in {"candidate": t["number"], "seed": 0, **{k: t[k] for k in ("runs", "trunk", "D")}}.items()
            ]
            into(db, "trial_user_attributes", "trial_id, key, value_json", notes)
    db.close()


def into(db: sqlite3.Connection, table: str, columns: str, rows: list[tuple[Any, ...]]) -> None:
    db.executemany(f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' * len(rows[0]))})", rows)
