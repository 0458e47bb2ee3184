"""Corpora: the order is a function of seed and tokens consumed, the held-out side stays, and bad text is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SEQ_LEN, write_corpus

from tunnel.errors import UserError
from tunnel.run import Joined, Source
from tunnel.study import Data, Then
from tunnel.training import data, stream


def files(*paths: object, **changed: Any) -> Data:
    return Data(corpus="files", paths=tuple(str(p) for p in paths), **{"held_out": 0.2, **changed})


def windows(corpus: data.Corpus) -> int:
    return (len(corpus.train) - 1) // SEQ_LEN


# order


def test_an_epoch_reads_every_sequence_once(corpus: data.Corpus) -> None:
    n = windows(corpus)
    read = corpus.sequences(0, 0, n, SEQ_LEN)
    every = stream.gather(corpus.train, np.arange(n) * SEQ_LEN, SEQ_LEN)
    assert sorted(map(bytes, read)) == sorted(map(bytes, every))
    assert not np.array_equal(read, every)


def test_epochs_differ_and_meet_in_one_batch(corpus: data.Corpus) -> None:
    n = windows(corpus)
    first, second = corpus.sequences(0, 0, n, SEQ_LEN), corpus.sequences(0, n, n, SEQ_LEN)
    assert sorted(map(bytes, first)) == sorted(map(bytes, second))
    assert not np.array_equal(first, second)
    across = corpus.sequences(0, n - 3, 8, SEQ_LEN)
    assert np.array_equal(across, np.concatenate([first[-3:], second[:5]]))


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_order_is_stateless_and_free_of_the_batch(corpus: data.Corpus, batch: int) -> None:
    whole = corpus.sequences(7, 0, 24, SEQ_LEN)
    parts = [corpus.sequences(7, first, batch, SEQ_LEN) for first in reversed(range(0, 24, batch))]
    assert np.array_equal(np.concatenate(parts[::-1]), whole)


def test_seeds_differ(corpus: data.Corpus) -> None:
    assert not np.array_equal(corpus.sequences(0, 0, 8, SEQ_LEN), corpus.sequences(1, 0, 8, SEQ_LEN))


def test_targets_are_the_next_tokens(corpus: data.Corpus) -> None:
    sequence = corpus.sequences(0, 0, 1, SEQ_LEN)[0]
    assert sequence.shape == (SEQ_LEN + 1,)
    assert sequence.tobytes() in corpus.train.astype(np.int64).tobytes()


def test_the_evaluation_is_spread_and_is_capped_by_what_there_is(corpus: data.Corpus) -> None:
    few, all_of_it = corpus.evaluation(4 * SEQ_LEN, SEQ_LEN), corpus.evaluation(10**9, SEQ_LEN)
    held_out = (len(corpus.held_out) - 1) // SEQ_LEN
    assert (len(few), len(all_of_it)) == (4, held_out)
    assert np.array_equal(few, all_of_it[np.arange(4) * held_out // 4])
    assert len(corpus.evaluation(1, SEQ_LEN)) == 1


# data that joins


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> data.Corpus:
    folder = tmp_path_factory.mktemp("other")
    for i in range(30):
        (folder / f"{i:03d}.txt").write_text("".join(chr(200 + (i * j) % 50) for j in range(300)))
    return data.opened(files(folder / "*.txt"), SEQ_LEN)


def joined(corpus: data.Corpus, *then: data.Joins) -> data.Corpus:
    return dataclasses.replace(corpus, then=then)


def rows(a: np.ndarray) -> list[bytes]:
    return [r.tobytes() for r in a]


@pytest.mark.parametrize("share", [1.0, 0.5, 0.3, 1 / 3, 0.99])
@pytest.mark.parametrize("at", [0, 10 * SEQ_LEN, 10 * SEQ_LEN + 7])
def test_both_go_on_in_their_own_order_where_one_joins(
    corpus: data.Corpus, other: data.Corpus, share: float, at: int
) -> None:
    mixed, first = joined(corpus, data.Joins(at, share, other)), at // SEQ_LEN
    read = rows(mixed.sequences(3, 0, 110, SEQ_LEN))
    old, new = (rows(c.sequences(3, 0, 110, SEQ_LEN)) for c in (corpus, other))
    assert read[:first] == old[:first]
    theirs = [r in set(new) for r in read]
    count = sum(theirs)
    assert abs(count - share * (110 - first)) < 1
    assert [r for r, t in zip(read, theirs, strict=True) if t] == new[:count]
    assert [r for r, t in zip(read, theirs, strict=True) if not t] == old[: 110 - count]
    for start in range(first, 90, 20):  # evenly spread
        assert abs(sum(theirs[start : start + 20]) - 20 * share) <= 1


@pytest.mark.parametrize("batch", [1, 7, 50])
def test_mixed_data_is_stateless_too(corpus: data.Corpus, other: data.Corpus, batch: int) -> None:
    third = dataclasses.replace(other, train=other.train[::-1], hash="third")
    mixed = joined(corpus, data.Joins(9 * SEQ_LEN, 0.4, other), data.Joins(33 * SEQ_LEN, 0.5, third))
    whole = mixed.sequences(7, 0, 100, SEQ_LEN)
    parts = [mixed.sequences(7, i, min(batch, 100 - i), SEQ_LEN) for i in reversed(range(0, 100, batch))]
    assert np.array_equal(np.concatenate(parts[::-1]), whole)
    found = [sum(r in set(rows(c.sequences(7, 0, 100, SEQ_LEN))) for r in rows(whole)) for c in (corpus, other, third)]
    assert found == [44, 23, 33]  # 33 = ⌊67/2⌋ of the last, and of the 58 after the ninth that it left, ⌊0.4 · 58⌋


def test_a_trunk_reads_what_had_joined_it(tmp_path: Path, documents: Data, corpus: data.Corpus) -> None:
    write_corpus(tmp_path, 12, seed=1)
    then = Then(corpus="files", paths=(f"{tmp_path}/*.txt",), **{"from": 640}, share=0.5)
    asked = documents.model_copy(update={"then": (then,)})
    both = data.opened(asked, SEQ_LEN)
    new = both.then[0].corpus
    assert both.hash == f"{corpus.hash}+{new.hash}"
    assert [(n, c.hash) for n, c in both.slices.items()] == [("files", both.hash), ("files#2", new.hash)]
    assert np.array_equal(both.evaluation(512, SEQ_LEN), corpus.evaluation(512, SEQ_LEN))
    source = Source(corpus="files", corpus_hash=corpus.hash, tokenizer="bytes", held_out=0.2, eval_tokens=512)
    alone = both.of(source)
    assert (alone.hash, alone.then, alone.slices) == (corpus.hash, (), {})
    assert np.array_equal(alone.sequences(0, 0, 60, SEQ_LEN), corpus.sequences(0, 0, 60, SEQ_LEN))
    part = Joined(at=640, share=0.5, source=source.replaced(corpus_hash=new.hash))
    assert both.of(source.replaced(then=(part,))).hash == both.hash
    with pytest.raises(UserError, match=r"data\.then: no longer holds"):
        both.of(source.replaced(then=(part.replaced(at=641),)))


def test_what_joins_and_is_not_there_is_one_line(documents: Data) -> None:
    asked = documents.model_copy(update={"then": (Then(paths=("/nowhere/*",), **{"from": 1}),)})
    for read in (lambda: data.opened(asked, SEQ_LEN), lambda: data.look(asked)):
        with pytest.raises(UserError, match=r"data\.(then\.)?paths: no file of the corpus exists; got '/nowhere"):
            read()


# sides


def test_the_sides_are_disjoint_and_whole(documents: Data, corpus: data.Corpus) -> None:
    texts = {name: path.read_text() for name, path in data.files(documents)}
    held_out = {n for n in texts if data.is_held_out(n, 0.2)}
    assert 0 < len(held_out) < len(texts)
    for side, names in ((corpus.train, set(texts) - held_out), (corpus.held_out, held_out)):
        kept = bytes(side.astype(np.uint8)).decode().split("\0")
        assert sorted(kept) == sorted(["", *(texts[n] for n in names)])
    assert corpus.bytes_per_token == pytest.approx(1, rel=1e-2)
    assert corpus.bytes_per_token < 1  # the separators


def test_the_held_out_side_stays_when_the_corpus_grows(tmp_path: Path, documents: Data, corpus: data.Corpus) -> None:
    grown = tmp_path / "grown"
    shutil.copytree(Path(documents.paths[0]).parent, grown)
    before = data.opened(files(grown / "*.txt"), SEQ_LEN)
    assert before.hash == corpus.hash  # by content, not by place
    write_corpus(tmp_path, 0)
    for i in range(40):
        (grown / f"new-{i}.txt").write_text(f"a new document {i}")
    after = data.opened(files(grown / "*.txt"), SEQ_LEN)
    assert after.hash != before.hash
    old, new = (bytes(c.held_out.astype(np.uint8)) for c in (before, after))
    assert new.startswith(old)  # "new-..." sorts behind
    assert len(new) > len(old)


@pytest.mark.parametrize("changed", [{"held_out": 0.3}, {"text": "content"}])
def test_what_changes_the_tokens_changes_the_hash(documents: Data, changed: dict[str, Any]) -> None:
    assert data.corpus_hash(documents.model_copy(update=changed)) != data.corpus_hash(documents)


@pytest.mark.fault(21)
def test_one_byte_changes_the_hash(tmp_path: Path) -> None:
    write_corpus(tmp_path, 3)
    asked = files(tmp_path / "*.txt")
    before = data.corpus_hash(asked)
    (tmp_path / "001.txt").write_text((tmp_path / "001.txt").read_text() + "!")
    assert data.corpus_hash(asked) != before


def test_a_second_opening_reads_the_shards(documents: Data, corpus: data.Corpus) -> None:
    shard = data.cache() / corpus.hash / "train.bin"
    before = shard.stat().st_mtime_ns
    again = data.opened(documents, SEQ_LEN)
    assert np.array_equal(again.train, corpus.train)
    assert shard.stat().st_mtime_ns == before


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_are_documents(tmp_path: Path, kind: str) -> None:
    rows = [{"text": f"row {i} " + "word " * 30, "id": i} for i in range(50)]
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    else:
        import pandas as pd

        pd.DataFrame(rows).to_parquet(path)
    assert list(data.documents(files(path))) == [(f"rows.{kind}:{i}", r["text"]) for i, r in enumerate(rows)]


def test_the_standard_library_is_a_corpus_without_its_tests() -> None:
    found = dict(data.files(Data()))
    assert {"json/decoder.py", "dataclasses.py"} <= set(found)
    assert not [n for n in found if data.NOT_SOURCE & set(Path(n).parts)]


# bad input

BAD = {  # name of a file: content, rule, key
    "latin.txt": (b"caf\xe9", "is not UTF-8 at byte 3", "latin.txt"),
    "none.jsonl": (b'{"text": 5}\n', "has no text here", "row 0.text"),
    "column.jsonl": (b'{"content": "a"}\n', "has no text here", "choices: content"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', "broken.jsonl", "broken.jsonl"),
    "no.parquet": (b"PAR1 is no parquet", "no.parquet", "no.parquet"),
    "empty.txt": (b"", "the corpus is empty", "data.paths"),
    "short.txt": (b"too short", "less than one sequence", "data.corpus"),
    "one.txt": (b"long enough, but on one side only" * 10, "side has 0 tokens", "data.corpus"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_corpus_is_one_line_and_leaves_nothing(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, rule, key = BAD[name]
    monkeypatch.setenv("TUNNEL_CACHE", str(tmp_path / "cache"))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as e:
        data.opened(files(tmp_path / name), SEQ_LEN)
    line = str(e.value)
    assert rule in line
    assert key in line
    assert "\n" not in line
    assert not [p for p in (tmp_path / "cache").glob("tmp*")]


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        (files("/nowhere/*.txt"), "data.paths: no file of the corpus exists; got '/nowhere/"),
        (files(Path(__file__).parent), "data.paths: no file of the corpus exists"),
    ],
)
def test_a_corpus_that_does_not_exist(asked: Data, rule: str) -> None:
    with pytest.raises(UserError, match=rule.replace("*", r"\*")):
        data.opened(asked, SEQ_LEN)


def test_a_vocabulary_that_is_too_small(tmp_path: Path) -> None:
    write_corpus(tmp_path, 10)
    with pytest.raises(UserError, match=r"data.vocab: is smaller than the tokenizer's largest token; got 64"):
        data.opened(files(tmp_path / "*.txt", vocab=64), SEQ_LEN)


def test_a_tokenizer_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_corpus(tmp_path, 2)
    with pytest.raises(UserError, match=r"data.tokenizer: is not a tokenizer here"):
        data.opened(files(tmp_path / "*.txt", tokenizer=str(tmp_path)), SEQ_LEN)
