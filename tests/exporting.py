"""What the tests of exports share: a run, and a recommendation for it."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from tunnel import families, transfer
from tunnel.run import Body, Mixture, RunSpec, Settings, Shape, Source, TrunkSpec

BATCH, SEQ = 512, 64  # tokens


def a_run(
    width: int = 128,
    depth: int = 8,
    *,
    warmup: int = 8,
    steps: int = 100,
    decay: int = 20,
    decay_shape: str = "1-sqrt",
    min_ratio: float = 0.0,
    family: str = "gpt",
    rules: str = "minicpm",
    kv_heads: int | None = None,
    precision: Any = "fp32",
    mixture: Mixture | None = None,
) -> RunSpec:
    body = Body(
        head_dim=16,
        base_width=32,
        base_depth=2,
        seq_len=SEQ,
        ffn_ratio=2.5,
        scale_emb=12.0,
        scale_depth=1.4,
        init_std=0.1,
        vocab=256,
    )
    settings = Settings(
        lr=0.01,
        warmup=warmup * BATCH,
        batch_tokens=BATCH,
        micro_batch_tokens=BATCH // 2,
        weight_decay=0.1,
        beta1=0.9,
        beta2=0.95,
        eps=1e-8,
        clip=1.0,
        precision=precision,
    )
    source = Source(corpus="stdlib", corpus_hash="0" * 16, tokenizer="bytes", held_out=0.05, eval_tokens=1024)
    trunk = TrunkSpec(
        family=family,
        rules=rules,
        shape=Shape(width=width, depth=depth, kv_heads=kv_heads, mixture=mixture),
        body=body,
        settings=settings,
        source=source,
        seed=3,
    )
    return RunSpec(
        trunk=trunk,
        decay_start=(steps - decay) * BATCH,
        decay_tokens=decay * BATCH,
        decay_shape=decay_shape,
        min_ratio=min_ratio,
    )


def recommended(run: RunSpec) -> dict[str, Any]:
    """A recommendation for a run, by hand: the fields that an export reads, and a few that it only hands on."""
    shape, body, s = run.trunk.shape, run.trunk.body, run.trunk.settings
    groups = [vars(g) for g in transfer.groups(run.trunk, families.roles(run.trunk))]
    multipliers = transfer.multipliers(run.trunk.rules, shape, body)
    return {
        "schema": 1,
        "study": "by hand",
        "question": "?",
        "target": {"name": "t", **shape.model_dump(), "tokens": run.tokens},
        "run": run.model_dump(mode="json"),
        "settings": {"lr": {"value": s.lr, "low": s.lr / 2, "high": s.lr * 2, "source": "by hand", "readings": []}},
        "groups": groups,
        "multipliers": asdict(multipliers),
        "config": families.config(run.trunk),
        "forecast": 2.0,
        "low": 1.9,
        "high": 2.1,
        "cautions": ["made by hand"],
    }


def shipped(bundle: Path, name: str) -> ModuleType:
    """A script of the bundle, as its user imports it."""
    spec = importlib.util.spec_from_file_location(name, bundle / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
