"""Corpora: documents become tokens once, are kept as raw shards, and are served by memory map (`training.stream`).

Shards are little-endian uint16 or uint32 with a `meta.json`, as nanoGPT and OLMo-core read them. The held-out split
goes by the hash of a document's name, so that it stays when the corpus grows.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import os
import shutil
import sysconfig
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tunnel.errors import UserError
from tunnel.run import RunSpec
from tunnel.study import Data, Origin, Texts
from tunnel.training import words
from tunnel.training.stream import Corpus, Joins

SEPARATOR = 0  # the byte between documents of the byte tokenizer
# Folders of the standard library that hold no source: tests, and generated tables and texts. One such file would be
# most of the held-out side, and a model's luck with it most of the noise (studies/LOG.md).
NOT_SOURCE = {"test", "tests", "idle_test", "site-packages", "__pycache__", "pydoc_data", "encodings"}
Document = tuple[str, str]  # name, text


def cache() -> Path:
    return Path(os.environ.get("TUNNEL_CACHE", "~/.cache/tunnel")).expanduser()


def identity(run: RunSpec) -> str:
    """What names a run's data, as `Corpus.hash` does: "first+joined;name=source of the decay"."""
    source = run.trunk.source
    trunk = "+".join([source.corpus_hash, *(j.source.corpus_hash for j in source.then)])
    return trunk + "".join(f";{m.name}={m.source.corpus_hash}" for m in run.mix)


def newest(identities: Iterable[str]) -> str:
    """What names all data that runs of one study read: the trunk's with all that joined, and every decay's.

    >>> newest(["a;x=1", "a+b", "a;y=2"])
    'a+b;x=1;y=2'
    """
    known = sorted({str(i) for i in identities})
    trunks, mixed = [i.split(";")[0] for i in known], {part for i in known for part in i.split(";")[1:]}
    return ";".join([max(trunks, key=len, default=""), *sorted(mixed)])


def is_local(data: Texts) -> bool:
    """Whether the corpus can be looked at without a network."""
    return data.corpus in ("stdlib", "files")


def look(data: Data) -> None:
    """Raises UserError where a local corpus, or one that joins it, is not there."""
    for part in (data, *data.source, *(t for t in data.then if not t.source)):
        if is_local(part):
            files(part)


def opened(data: Data, seq_len: int) -> Corpus:
    """The corpus with its sources and what joins it, tokenized once per machine and served by memory map.

    Raises UserError where one does not exist, is empty, or is too short for one sequence on either side.
    """
    data = with_vocabulary(data)
    first = replace(alone(data, seq_len), name=data.first)
    sources = {s.name: replace(beside(data, s, seq_len, "source"), name=s.name) for s in data.source}
    then = tuple(
        Joins(at, share, sources[t.name] if isinstance(t, Origin) else beside(data, t, seq_len, "then"))
        for at, share, t in data.joins
    )
    trunk = "+".join([first.hash, *(j.corpus.hash for j in then)])
    identity = trunk + "".join(f";{name}={c.hash}" for name, c in sources.items())
    return replace(first, hash=identity, then=then, sources=tuple(sources.values()))


def with_vocabulary(data: Data) -> Data:
    """The same, with its tokenizer named by its learned vocabulary, which what joins it shares."""
    if data.tokenizer != words.LEARNED:
        return data
    alone = data.model_copy(update={"then": (), "source": ()})

    def texts() -> Iterator[str]:
        return (text for name, text in documents(alone) if not is_held_out(name, data.held_out))

    return data.model_copy(update={"tokenizer": str(words.learned(texts, corpus_hash(data), data.vocab, cache()))})


def is_learned(data: Data) -> bool:
    """Whether its tokenizer is a vocabulary that was learned here, by its file."""
    return Path(data.tokenizer).parent == cache()


def is_flagged(data: Data) -> bool:
    """Whether its tokens say where a word begins (`tunnel.training.words`); bytes say so by themselves."""
    return is_learned(data) or (data.words is not None and data.tokenizer != "bytes")


def beside(data: Data, texts: Texts, seq_len: int, key: str) -> Corpus:
    """Another source's corpus: tokenizer, vocabulary and split are the first one's."""
    its = {"corpus": texts.corpus, "paths": texts.paths, "text": texts.text}
    try:
        return alone(data.model_copy(update={**its, "then": (), "source": ()}), seq_len)
    except UserError as e:
        inner = (e.key or "corpus").removeprefix("data.")
        raise UserError(e.rule, file=e.file, key=f"data.{key}.{inner}", value=e.value, choices=e.choices) from None


def alone(data: Data, seq_len: int) -> Corpus:
    """One corpus, without what joins it."""
    folder = cache() / corpus_hash(data)
    if not (folder / "meta.json").exists():
        build(data, folder)
    meta = json.loads((folder / "meta.json").read_text())
    for side, tokens in meta["tokens"].items():
        if tokens < seq_len + 1:
            raise UserError(
                f"its {side.replace('_', '-')} side has {tokens} tokens, less than one sequence of {seq_len + 1}",
                key="data.corpus",
                value=data.corpus,
            )
    train, held_out = (
        np.memmap(folder / f"{side}.bin", dtype=meta["dtype"], mode="r") for side in ("train", "held_out")
    )
    return Corpus(train, held_out, bytes_per_token=meta["bytes_per_token"], hash=folder.name, name=data.corpus)


def corpus_hash(data: Data) -> str:
    """What names the corpus' content: its files' content, its tokenizer and its split (16 hex digits)."""
    tokenizer = Path(data.tokenizer).stem if is_learned(data) else data.tokenizer  # by what it was learned from
    told: list[Any] = [data.corpus, data.text, tokenizer, data.held_out]
    if is_flagged(data):
        told += [data.vocab, words.segments(data)]
    digest = hashlib.sha256(json.dumps(told).encode())
    if is_local(data):
        for name, path in files(data):
            digest.update(name.encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def files(data: Texts) -> list[tuple[str, Path]]:
    """The corpus' files by name; raises UserError where there are none."""
    if data.corpus == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        found = [p for p in root.rglob("*.py") if not NOT_SOURCE & set(p.relative_to(root).parts)]
        return [(str(p.relative_to(root)), p) for p in sorted(found)]
    found = sorted({p for pattern in data.paths for p in map(Path, glob.glob(pattern, recursive=True)) if p.is_file()})
    paths = sorted({p.resolve(): p for p in reversed(found)}.values())  # what two names have would be on both sides
    if not paths:
        how = f"; {data.get}" if data.get else ""
        raise UserError(f"no file of the corpus exists{how}", key="data.paths", value=", ".join(data.paths))
    if not sum(p.stat().st_size for p in paths):
        raise UserError("the corpus is empty", key="data.paths", value=", ".join(data.paths))
    return [(p.name, p) for p in paths]


def documents(data: Data) -> Iterator[Document]:
    if data.corpus == "stdlib":
        for name, path in files(data):
            yield name, path.read_bytes().decode("utf-8", "replace")
    elif data.corpus == "files":
        for name, path in files(data):
            yield from read(name, path, data.text)
    else:
        yield from hub(data)


def read(name: str, path: Path, column: str) -> Iterator[Document]:
    """Documents of one file: a txt is one, each row of jsonl and parquet is one."""
    if path.suffix in (".jsonl", ".parquet"):
        datasets = with_datasets()
        kind = "json" if path.suffix == ".jsonl" else "parquet"
        try:
            rows = datasets.load_dataset(kind, data_files=str(path), split="train", streaming=True)
            for i, row in enumerate(rows):
                if not isinstance(row.get(column), str):
                    raise UserError("has no text here", file=path, key=f"row {i}.{column}", choices=row)
                yield f"{name}:{i}", row[column]
        except (OSError, ValueError) as e:  # pyarrow's complaints are ValueErrors
            raise UserError(f"cannot be read as {path.suffix[1:]}: {e}", file=path) from None
        return
    try:
        raw = path.read_bytes()
        yield name, (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    except UnicodeDecodeError as e:
        raise UserError(f"is not UTF-8 at byte {e.start}", file=path) from None
    except (OSError, EOFError, zlib.error) as e:
        raise UserError(f"cannot be read: {e}", file=path) from None


def with_datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError("needs the data extra: pip install 'hyperparameter-wind-tunnel[data]'", key="data") from None
    return datasets


def hub(data: Data) -> Iterator[Document]:
    datasets = with_datasets()
    try:
        rows = datasets.load_dataset(data.corpus, split="train", streaming=True)
        for i, row in enumerate(rows):
            yield str(i), row[data.text]
    except (OSError, ValueError, KeyError) as e:
        raise UserError(
            f"cannot be read as a dataset ({type(e).__name__})",
            key="data.corpus",
            value=data.corpus,
            choices=["stdlib", "files", "a datasets name"],
        ) from None


def tokenizer(data: Data) -> tuple[words.Encode, Any]:
    """Encoder of one document, separator included, and the dtype that holds its tokens."""
    if data.tokenizer == "bytes":
        return lambda text: [*text.encode(), SEPARATOR], np.dtype("<u2")
    flagged = np.dtype("<u2" if 2 * data.vocab < 1 << 16 else "<u4")
    if is_learned(data):
        return words.encoder(data, words.tokenizer(Path(data.tokenizer)), words.marks(words.LEARNED).end), flagged
    tok = words.pretrained(data.tokenizer)
    if is_flagged(data):
        return words.encoder(data, tok.backend_tokenizer, words.marks(data.tokenizer).end), flagged
    end = [] if tok.eos_token_id is None else [tok.eos_token_id]
    return lambda text: tok.encode(text, add_special_tokens=False) + end, np.dtype(
        "<u2" if len(tok) < 1 << 16 else "<u4"
    )


def build(data: Data, folder: Path) -> None:
    """Writes both sides' shards under a temporary name and renames them when whole."""
    encode, dtype = tokenizer(data)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent))
    counts = {"train": 0, "held_out": 0}
    size = 0
    try:
        with open(temporary / "train.bin", "wb") as train, open(temporary / "held_out.bin", "wb") as held_out:
            for name, text in documents(data):
                side = "held_out" if is_held_out(name, data.held_out) else "train"
                tokens = np.asarray(encode(text), dtype=dtype)
                if not is_flagged(data) and tokens.size and int(tokens.max()) >= data.vocab:
                    raise UserError("is smaller than the tokenizer's largest token", key="data.vocab", value=data.vocab)
                (held_out if side == "held_out" else train).write(tokens.tobytes())
                counts[side] += len(tokens)
                size += len(text.encode())
        if not sum(counts.values()):
            raise UserError("the corpus is empty", key="data.corpus", value=data.corpus)
        if is_learned(data):
            shutil.copy(data.tokenizer, temporary / "vocab.txt")
        meta = {
            "dtype": dtype.str,
            "tokens": counts,
            "bytes_per_token": size / sum(counts.values()),
            "tokenizer": words.LEARNED if is_learned(data) else data.tokenizer,
        }
        (temporary / "meta.json").write_text(json.dumps(meta))
        os.rename(temporary, folder)
    except OSError:
        if not (folder / "meta.json").exists():  # another process was first: its shards are the same
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_held_out(name: str, share: float) -> bool:
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32 < share
