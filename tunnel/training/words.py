"""Words: a vocabulary of pieces for encoders, learned from the corpus, and where a word of it begins.

A token that begins a word is kept as token + vocabulary size: shards and streams are the same integers as any others.
The library's own trainer gives another vocabulary in every process (its ties fall by a hash's seed), so pieces are
merged here; what a text becomes under them is the library's affair.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunnel.errors import UserError

if TYPE_CHECKING:
    from tunnel.study import Data

LEARNED = "wordpiece"
NAMES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # BERT's  *from paper*
Encode = Callable[[str], Iterable[int]]


@dataclass(frozen=True)
class Marks:
    """Tokens that are no text, in the order of `NAMES`; from `text` on a random token may be drawn."""

    pad: int
    unknown: int
    begin: int
    end: int
    mask: int
    text: int = 0

    @property
    def never(self) -> tuple[int, ...]:
        """What no mask hides."""
        return self.pad, self.begin, self.end, self.mask


# The byte tokenizer's are bytes that UTF-8 never has (RFC 3629), so that no row is added to the embedding; its
# separator ends a document.  *derived*
BYTES = Marks(0xFB, 0xFC, 0xFD, 0, 0xFF)


def marks(tokenizer: str) -> Marks:
    """A tokenizer's; raises UserError where it has no [MASK]."""
    if tokenizer == "bytes":
        return BYTES
    if tokenizer == LEARNED:
        return Marks(0, 1, 2, 3, 4, text=len(NAMES))
    tok = pretrained(tokenizer)
    found = (tok.pad_token_id, tok.unk_token_id, tok.cls_token_id, tok.sep_token_id, tok.mask_token_id)
    if None in found:
        raise UserError("has no [MASK] and its like: an encoder needs them", key="data.tokenizer", value=tokenizer)
    return Marks(*found)


def parted(raw: np.ndarray, tokenizer: str, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, and which of them begin a word (bool), of a stream as it is stored.

    Of bytes: a run of ASCII letters and digits is a word, and so is a character of several bytes.
    """
    if tokenizer != "bytes":
        return raw % vocab, raw >= vocab
    small = raw | 0x20
    within = ((small >= ord("a")) & (small <= ord("z"))) | ((raw >= ord("0")) & (raw <= ord("9")))
    goes_on = (raw >= 0x80) & (raw < 0xC0)
    goes_on[..., 1:] |= within[..., 1:] & within[..., :-1]
    return raw, ~goes_on


def learned(texts: Callable[[], Iterable[str]], name: str, size: int, folder: Path) -> Path:
    """The file of a vocabulary, a piece a line; learned where it is not kept. `name`: what it is learned from."""
    path = folder / f"vocabulary-{hashlib.sha256(json.dumps([name, size]).encode()).hexdigest()[:16]}.txt"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text("\n".join(pieces(counted(texts()), size)) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    return path


def pretrained(name: str) -> Any:
    """A transformers tokenizer, by name or folder; raises UserError where it is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)  # its folder may hold code
    except (OSError, ValueError) as e:
        raise UserError(f"is not a tokenizer here ({type(e).__name__})", key="data.tokenizer", value=name) from None


def counted(texts: Iterable[str]) -> Counter[str]:
    """Words as BERT has them: lower case, without accents, each Chinese character and sign by itself."""
    from tokenizers import normalizers, pre_tokenizers

    clean, cut = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    return Counter(word for text in texts for word, _ in cut.pre_tokenize_str(clean.normalize_str(text)))


def pieces(words: Counter[str], size: int) -> list[str]:
    """The vocabulary: marks, characters by their number, then merges of the most frequent pair, ties by spelling."""
    characters: Counter[str] = Counter()
    cut = {word: [word[0], *("##" + c for c in word[1:])] for word in sorted(words)}
    for word, parts in cut.items():
        for part in parts:
            characters[part] += words[word]
    ranked = sorted(characters, key=lambda c: (-characters[c], c))
    found = [*NAMES, *ranked[: size - len(NAMES)]]  # what is rarer is [UNK]
    return found + merged(cut, words, size - len(found), set(found))


def merged(cut: dict[str, list[str]], words: Counter[str], most: int, known: set[str]) -> list[str]:
    """Up to `most` new pieces of the words' parts (WordPiece's pieces, found as byte-pair encoding finds them)."""
    count: Counter[tuple[str, str]] = Counter()
    where: dict[tuple[str, str], set[str]] = {}

    def note(word: str, sign: int) -> None:
        for pair in zip(cut[word], cut[word][1:], strict=False):
            count[pair] += sign * words[word]
            where.setdefault(pair, set()).add(word)

    for word in cut:
        note(word, 1)
    heap = [(-n, *pair) for pair, n in count.items()]
    heapq.heapify(heap)
    found: list[str] = []
    while heap and len(found) < most:
        n, a, b = heapq.heappop(heap)
        if -n != count[a, b] or n >= -1:  # of old, or seen once
            continue
        new = a + b[2:]
        if new not in known:
            known.add(new)
            found.append(new)
        changed = set[tuple[str, str]]()
        for word in where.pop((a, b)):
            note(word, -1)
            cut[word] = joined(cut[word], a, b, new)
            note(word, 1)
            changed |= set(zip(cut[word], cut[word][1:], strict=False))
        for pair in changed:
            heapq.heappush(heap, (-count[pair], *pair))
        del count[a, b]
    return found


def joined(parts: list[str], a: str, b: str, new: str) -> list[str]:
    found: list[str] = []
    for part in parts:
        if found and found[-1] == a and part == b:
            found[-1] = new
        else:
            found.append(part)
    return found


def tokenizer(vocabulary: Path) -> Any:
    """The library's tokenizer over a learned vocabulary."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    rows = vocabulary.read_text(encoding="utf-8").split("\n")[:-1]
    made = Tokenizer(models.WordPiece({row: i for i, row in enumerate(rows)}, unk_token=NAMES[1]))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made


def encoder(data: Data, made: Any, end: int) -> Encode:
    """Documents with flags where words begin, and a separator; `made`: a `tokenizers.Tokenizer`."""
    cut, vocab = segmenter() if data.words == "jieba" else None, data.vocab

    def encode(text: str) -> np.ndarray:
        found = made.encode(text, add_special_tokens=False)
        ids = np.array([*found.ids, end], dtype=np.int64)
        if ids.max() >= vocab:
            raise UserError("is smaller than the tokenizer's largest token", key="data.vocab", value=vocab)
        if cut is None:
            words = np.array([-1 if w is None else w for w in found.word_ids], dtype=np.int64)
            starts = np.diff(words, prepend=-2) != 0
        else:
            begins = cut(text)
            starts = np.array([first in begins for first, _ in found.offsets], dtype=bool)
        return ids + vocab * np.append(starts, True)

    return encode


def segments(data: Data) -> str:
    """What says where words begin, for a corpus' hash."""
    return f"jieba {with_jieba().__version__}" if data.words == "jieba" else "tokenizer"


def segmenter() -> Callable[[str], set[int]]:
    """Where jieba's words begin in a text, as offsets of characters; raises UserError where it is not installed."""
    jieba = with_jieba()
    return lambda text: {first for _, first, _ in jieba.tokenize(text)}


def with_jieba() -> Any:
    try:
        import logging

        import jieba
    except ImportError:
        rule = "needs the words extra: pip install 'hyperparameter-wind-tunnel[words]'"
        raise UserError(rule, key="data.words", value="jieba") from None
    jieba.setLogLevel(logging.WARNING)
    return jieba
