"""What names the content of a model that another trained."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from tunnel.errors import UserError

READ = ("config.json", "*.safetensors", "pytorch_model*.bin")  # of a checkpoint's folder: what the model is made of


def digest(name: str) -> str:
    """Of a transformers folder's files, or the commit of what is kept of a hub's model (16 hex digits).

    Raises UserError where there is neither.
    """
    folder = Path(name)
    if folder.is_dir():
        files = sorted({p for pattern in READ for p in folder.glob(pattern)})
        if len(files) > 1:
            return digest_of(tuple((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in files))
        raise UserError("has no config.json beside weights", file=folder, key="teacher.path")
    from huggingface_hub import snapshot_download  # only now: it may ask the network

    try:
        return Path(snapshot_download(name, allow_patterns=list(READ))).name[:16]
    except (OSError, ValueError) as e:
        rule = f"is neither a folder nor a model that the hub gives ({type(e).__name__})"
        raise UserError(rule, key="teacher.path", value=name) from None


@lru_cache(maxsize=32)
def digest_of(files: tuple[tuple[str, int, int], ...]) -> str:
    found = hashlib.sha256()
    for path, _, _ in files:
        with open(path, "rb") as file:
            found.update(Path(path).name.encode() + hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()[:16]
