"""The byte tokenizer as transformers loads it: a token's id is its byte, and byte 0 separates documents."""

from __future__ import annotations

from json import dumps
from typing import Any

SEPARATOR = 0  # tunnel.training.data's


def characters() -> list[str]:
    """The printable character that stands for each byte in byte-level vocabularies (GPT-2's table)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [b for b in range(256) if b not in shown]
    table = {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}
    return [table[b] for b in range(256)]


def files(tokenizer: str = "bytes") -> dict[str, str]:
    """tokenizer.json and tokenizer_config.json: byte-level BPE without a merge; nothing for others than bytes."""
    if tokenizer != "bytes":
        return {}
    table = characters()
    end = table[SEPARATOR]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    made: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {c: b for b, c in enumerate(table)},
            "merges": [],
        },
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "eos_token": end,
        "pad_token": end,
    }
    return {
        "tokenizer.json": dumps(made, ensure_ascii=False) + "\n",
        "tokenizer_config.json": dumps(config, ensure_ascii=False, indent=1) + "\n",
    }
