"""A checkpoint: a folder of tensors and JSON whose manifest holds the hashes of all the rest. No pickle anywhere.

One process writes `state.safetensors`. Where several hold a state, each writes its rows of every tensor, and the
manifest comes last; a tensor is its rows in the order of the files, so that any number of processes reads what any
other number wrote. A folder without manifest, or with a file that is not what that says, is no checkpoint.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tunnel.errors import UserError
from tunnel.families import Arrays
from tunnel.folder.files import file_hash, flush, read_json

STATE, META, MANIFEST = "state.safetensors", "meta.json", "manifest.json"
State = tuple[Arrays, dict[str, Any]]  # tensors by name, and JSON


def part(i: int, n: int) -> str:
    """The file of the i-th of n processes, counted from 0."""
    return f"state-{i + 1:05d}-of-{n:05d}.safetensors"


class Where(Protocol):
    """Where processes put the files of one checkpoint; travels to them."""

    def put(self, file: str, arrays: Arrays) -> str:
        """Writes a file of tensors; returns its hash."""


@dataclass(frozen=True)
class Folder:
    """A folder that all of them see."""

    path: Path

    def put(self, file: str, arrays: Arrays) -> str:
        return written(self.path / file, arrays)


class Parts(Mapping[str, np.ndarray]):
    """A state that several processes hold; a tensor by name is gathered from all when it is asked for."""

    @abstractmethod
    def put(self, where: Where) -> dict[str, str]:
        """Lets each write its rows; the files' hashes by name."""


def put(arrays: Arrays, where: Where) -> dict[str, str]:
    """Writes a state's tensors; the files' hashes by name."""
    return arrays.put(where) if isinstance(arrays, Parts) else {STATE: where.put(STATE, arrays)}


def written(path: Path, arrays: Arrays) -> str:
    """Writes tensors into a file, flushed; returns its hash. Raises OSError."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file({k: np.asarray(v, order="C") for k, v in arrays.items()}, path)
    except SafetensorError as e:  # a full disk, in its words: "I/O error: ... (os error 28)"
        code = re.search(r"os error (\d+)", str(e))
        raise OSError(int(code[1]) if code else errno.EIO, str(e), str(path)) from None
    flush(path)
    return file_hash(path)


def write(folder: Path, arrays: Arrays, meta: dict[str, Any]) -> None:
    """Fills an empty folder, which is a checkpoint when this returns; all of it is flushed."""
    seal(folder, put(arrays, Folder(folder)), meta)


def seal(folder: Path, hashes: dict[str, str], meta: dict[str, Any]) -> None:
    """Writes what belongs to tensors of such hashes: the JSON, and last the manifest."""
    (folder / META).write_text(json.dumps(meta))
    (folder / MANIFEST).write_text(json.dumps({**hashes, META: file_hash(folder / META)}))
    for path in (folder / META, folder / MANIFEST, folder):
        flush(path)


def files(folder: Path) -> list[str]:
    """The files that a checkpoint's manifest vouches for, tensors first; none where they are no checkpoint's."""
    try:
        names = sorted(read_json(folder / MANIFEST, {}))
    except (UserError, OSError):
        return []
    tensors = [n for n in names if n != META]
    whole = META in names and tensors in ([STATE], [part(i, len(tensors)) for i in range(len(tensors))])
    return [*tensors, META] if whole else []


def intact(folder: Path) -> bool:
    """Whether a checkpoint's files are all there, and what its manifest says."""
    names = files(folder)
    try:
        return bool(names) and read_json(folder / MANIFEST) == {n: file_hash(folder / n) for n in names}
    except (UserError, OSError):  # no JSON, no file
        return False


def read(folder: Path) -> State | None:
    """A checkpoint; None where there is none, or a damaged one."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not intact(folder):
        return None
    tensors = [folder / name for name in files(folder)[:-1]]
    try:
        return load_file(tensors[0]) if len(tensors) == 1 else Joined(tensors), read_json(folder / META)
    except (SafetensorError, UserError):  # its hashes are right, so somebody made it so: a pickle, another format
        return None


class Joined(Mapping[str, np.ndarray]):
    """The tensors of several files, each read when it is asked for: no process need hold them all."""

    def __init__(self, paths: Sequence[Path]) -> None:
        from safetensors import safe_open

        self.files = [safe_open(path, framework="np") for path in paths]
        self.holders: dict[str, list[Any]] = {}
        for file in self.files:
            for name in file.offset_keys():
                self.holders.setdefault(name, []).append(file)

    def __getitem__(self, name: str) -> np.ndarray:
        parts = [file.get_tensor(name) for file in self.holders[name]]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.holders)

    def __len__(self) -> int:
        return len(self.holders)


KINDS = {"model": "weights", "adam": "moments", "rng": "rng"}  # what the rest of a state's arrays is called: counters


def digests(arrays: Arrays, meta: dict[str, Any]) -> dict[str, str]:
    """What a state was, to be compared later: 16 hex digits of weights, moments, RNG, counters, cursor."""
    found: dict[str, Any] = {}
    for name in sorted(arrays):
        part = KINDS.get(name.split(".")[0], "counters")
        value = arrays[name]
        digest = found.setdefault(part, hashlib.sha256())
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    found["cursor"] = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    return {part: digest.hexdigest()[:16] for part, digest in found.items()}
