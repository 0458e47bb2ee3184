"""The trained target as a folder that transformers loads: Granite as it was trained, or folded into a plain Llama.

Its final state lies beside its record. Where that is gone (0.5 and before kept none), the decay is trained again from
the trunk's checkpoint, by one process: bit for bit where one had trained it, on the same kind of machine. The record's
digest of the weights says whether it was.
"""

from __future__ import annotations

from collections.abc import Callable
from json import dumps
from pathlib import Path
from typing import Any

from tunnel import families
from tunnel.errors import UserError
from tunnel.export import _tokenizer
from tunnel.export._bundle import data as data_of
from tunnel.export._bundle import text
from tunnel.export._forms import folded, granite
from tunnel.export._write import write
from tunnel.folder import checkpoint
from tunnel.folder.store import Store
from tunnel.run import Record, RunSpec
from tunnel.study import Study
from tunnel.training import data

KINDS = ("hf", "llama")
SAME = 1e-3  # relative, of held-out loss: another machine's rounding, not another model  *assumed*
MODEL = "model."  # what a state calls the weights
LICENCES = {"stdlib": "PSF-2.0"}


def export(
    asked: Study,
    keep: Store,
    recommendation: dict[str, Any],
    kind: str,
    out: Path,
    *,
    force: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Writes the target's weights with config, tokenizer and card; says what was written, and how exact it is.

    Raises UserError where the kind is unknown, the target has not been trained, or neither state nor trunk are left.
    """
    if kind not in KINDS:
        raise UserError("is no kind of model", key="--model", value=kind, choices=KINDS)
    run = RunSpec.model_validate(recommendation["run"])
    if not hasattr(families.load(run.trunk.family), "config_dict"):
        raise UserError("is not a model that transformers builds", key="family", value=run.trunk.family)
    if kind == "llama" and run.trunk.shape.mixture is not None:
        raise UserError("has no experts: --model hf writes a GraniteMoe", key="--model", value=kind)
    record = keep.record(run.fingerprint)
    if record is None or record.loss is None:
        raise UserError("has no trained model: `tunnel train` first", file=keep.root, key="target")
    arrays, exact = kept(keep, run, record), True
    if arrays is None:
        say("training the decay again, from the trunk's checkpoint")
        arrays, exact = trained(asked, keep, run, record)
    files = folder(recommendation, run, record, kind, arrays, exact)
    about = {"kind": kind, "run": run.fingerprint, "weights": record.final.get("weights"), "exact": exact}
    written = write(files, out, about, force=force)
    return {"model": kind, "out": str(out), "files": written, "exact": exact, "loss": record.loss}


def kept(keep: Store, run: RunSpec, record: Record) -> dict[str, Any] | None:
    """The record's own weights, as its processes left them, by transformers' names; None where they are gone."""
    arrays, _ = keep.peek(run.fingerprint, run.tokens) or ({}, {})
    weights = {k: arrays[k] for k in arrays if k.startswith(MODEL)}
    same = checkpoint.digests(weights, {}).get("weights") == record.final.get("weights")
    return {k.removeprefix(MODEL): v for k, v in weights.items()} if weights and same else None


def trained(asked: Study, keep: Store, run: RunSpec, record: Record) -> tuple[dict[str, Any], bool]:
    """The weights after the same decay, and whether they are the record's, bit for bit."""
    from tunnel.training import train

    trunk, start = run.trunk.until(run.decay_start).fingerprint, run.decay_start
    fork = keep.peek(trunk, start)
    if fork is None:
        raise UserError("is gone, and the model with it: train the target again", file=keep.checkpoint(trunk, start))
    train.one_thread()
    grown: Any = families.load(run.trunk.family).grown(run.trunk, data.opened(asked.data, asked.model.seq_len))
    try:
        grown.restore(*fork)
    except KeyError as e:
        raise UserError(f"is another version's checkpoint, without {e}", file=keep.checkpoint(trunk, start)) from None
    grown.mix_in(run.mix, run.decay_start)
    while grown.tokens < run.tokens:
        grown.step(run.multiplier(grown.tokens))
    arrays, meta = grown.state()
    exact = checkpoint.digests(arrays, meta)["weights"] == record.final.get("weights")
    if not exact and abs(loss := grown.evaluate()) - (record.loss or 0) > SAME * (record.loss or 0):
        raise UserError(f"the decay trained again ends at {loss:.4f}, not {record.loss:.4f}", key="target")
    return {k.removeprefix(MODEL): v for k, v in arrays.items() if k.startswith(MODEL)}, exact


def folder(
    recommendation: dict[str, Any], run: RunSpec, record: Record, kind: str, arrays: dict[str, Any], exact: bool
) -> dict[str, str | bytes]:
    """The folder's files by name."""
    from safetensors.numpy import save

    config, form = dict(recommendation["config"]), granite(recommendation)
    if kind == "llama":
        plain = form.plain()
        arrays = folded(arrays, form)
        config = {k: v for k, v in config.items() if k not in form.multipliers}
        config |= {"rms_norm_eps": plain.norm_eps, "head_dim": run.trunk.body.head_dim}
    bytes_used = run.trunk.source.tokenizer == "bytes"
    end = {"eos_token_id": _tokenizer.SEPARATOR, "pad_token_id": _tokenizer.SEPARATOR} if bytes_used else {}
    name, sort = named(run, kind)
    head = {"architectures": [name], "model_type": sort, "dtype": "float32"}
    return {
        "config.json": text({**head, **config, **end}),
        "generation_config.json": dumps({**end, "max_new_tokens": run.trunk.body.seq_len}) + "\n",
        "model.safetensors": save({k: v.copy() for k, v in arrays.items()}, metadata={"format": "pt"}),
        "README.md": card(recommendation, run, record, kind, exact),
        **_tokenizer.files(run.trunk.source.tokenizer),
    }


def named(run: RunSpec, kind: str) -> tuple[str, str]:
    """transformers' class, and its type."""
    if kind == "llama":
        return "LlamaForCausalLM", "llama"
    family = families.load(run.trunk.family)  # the calibration body has a card all the same
    own: tuple[str, str] = family.architecture(run.trunk.shape) if hasattr(family, "architecture") else ("no model", "")
    return own


def card(recommendation: dict[str, Any], run: RunSpec, record: Record, kind: str, exact: bool) -> str:
    """The model card: data, licence, forecast against measured, and limits."""
    source, shape, r = run.trunk.source, run.trunk.shape, recommendation
    licence = "other" if source.then or run.mix else LICENCES.get(source.corpus, "other")
    inside = "inside" if r["low"] <= (record.loss or 0) <= r["high"] else "outside"
    form = "as it was trained" if kind == "hf" else "with its multipliers folded into the weights; the same logits"
    active = f", {record.N:,} of them for a token" if record.N_total else ""
    twin = "" if exact else " These weights were made again on another machine: near those of the record, not equal."
    return f"""---
license: {licence}
library_name: transformers
pipeline_tag: text-generation
---
# {r["target"].get("name", "target")}

{shape}, {record.N_total or record.N:,} parameters without embeddings{active}, {run.tokens:,} tokens.
{named(run, kind)[0]}, {form}.
Embedding and readout share one tensor.{twin}

- Data: {data_of(run)} (hash {source.corpus_hash}), tokenizer {source.tokenizer}; its licence: {licence}.
- Loss on held-out text: {record.loss:.4f} nats per token; forecast before training: {r["forecast"]:.4f}, 90% interval
  {r["low"]:.4f} to {r["high"]:.4f}: {inside}.
- Run {run.fingerprint}, of the study `{r.get("study", "")}`: {r["question"]}

Limits: trained to measure how loss scales, on this data only; neither aligned nor checked for safety, bias or memorised
text. It has seen {run.trunk.body.seq_len:,} tokens at a time, and no longer ones.
"""
