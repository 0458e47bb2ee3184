"""What LLaMA-Factory and Axolotl share: a model folder that `prepare.py` makes, and the Trainer's own scheduler."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Any

from tunnel.export import _tokenizer
from tunnel.export._forms import Form
from tunnel.export.hf import config_of
from tunnel.run import RunSpec

PREPARE = Path(__file__).with_name("_hf_optimizer.py")


def files(recommendation: dict[str, Any], run: RunSpec, form: Form) -> dict[str, str]:
    """config.json in a form of the model, the script that initialises it, and the byte tokenizer where it was used."""
    config = {**config_of(recommendation, run), **form.multipliers, "rms_norm_eps": form.norm_eps}
    return {
        "config.json": dumps(config, indent=1) + "\n",
        "prepare.py": PREPARE.read_text("utf-8"),
        **_tokenizer.files(run.trunk.source.tokenizer),
    }
