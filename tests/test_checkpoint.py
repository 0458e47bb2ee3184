"""Checkpoints that several processes wrote: whole or not at all, and read by any number."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunnel.folder import checkpoint, fence, shared
from tunnel.folder.checkpoint import MANIFEST, META, part
from tunnel.folder.files import file_hash
from tunnel.folder.remote import Place
from tunnel.folder.store import Store

STATE = {
    "w": np.arange(21, dtype=np.float32).reshape(7, 3),
    "norm": np.arange(2, dtype=np.float32),  # fewer rows than processes
    "step": np.array(4.0, dtype=np.float32),
    "rng": np.arange(16, dtype=np.uint8),
}
WHOLE = ("step", "rng")  # the first one's alone


class Rows(checkpoint.Parts):
    """A state of which n processes hold rows, without the processes; the one called `dies` writes nothing."""

    def __init__(self, n: int, state: dict[str, np.ndarray] = STATE, dies: int | None = None) -> None:
        self.n, self.state, self.dies = n, state, dies

    def __getitem__(self, name: str) -> np.ndarray:
        return self.state[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)

    def of(self, i: int) -> dict[str, np.ndarray]:
        rows = {k: np.array_split(v, self.n)[i] for k, v in self.state.items() if k not in WHOLE}
        return {**rows, **({k: self.state[k] for k in WHOLE} if i == 0 else {})}

    def put(self, where: checkpoint.Where) -> dict[str, str]:
        found = {}
        for i in range(self.n):
            if i == self.dies:
                raise OSError(28, "No space left on device")
            found[part(i, self.n)] = where.put(part(i, self.n), self.of(i))
        return found


Made = Callable[[], Store]


@pytest.fixture(params=["a folder", "a URL"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Made]:
    """Makes stores that see one place, as processes on several nodes do."""
    place, opened = Place(f"file://{tmp_path}/there", "me"), list[Store]()

    def make() -> Store:
        opened.append(Store(tmp_path / "there") if request.param == "a folder" else shared.Worker(place))
        return opened[-1]

    yield make
    for keep in opened:
        keep.close()


def same(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_what_any_number_wrote_is_read_whole(made: Made, tmp_path: Path, n: int) -> None:
    made().save_state("t", 128, Rows(n), {"tokens": 128})
    arrays, meta = made().load_state("t", 999) or ({}, {})
    assert same(arrays, STATE)
    assert meta == {"tokens": 128}
    files = sorted(p.name for p in (tmp_path / "there/trunks/t" / f"{128:015d}").iterdir())
    assert files == [MANIFEST, META, *(part(i, n) for i in range(n))]
    one = Store(tmp_path / "one")
    one.save_state("t", 128, arrays, meta)  # as `--decay now` copies it
    assert same((one.peek("t", 128) or ({},))[0], STATE)


def test_a_row_is_read_only_where_it_is_asked_for(tmp_path: Path) -> None:
    """And of a checkpoint that its writer has replaced since."""
    keep = Store(tmp_path)
    keep.save_state("t", 128, Rows(2), {"tokens": 128})
    arrays, _ = keep.load_state("t", 128) or ({}, {})
    keep.forget_state("t", 128)
    assert np.array_equal(arrays["w"], STATE["w"])
    with pytest.raises(KeyError):
        arrays["other"]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no manifest": lambda f: (f / MANIFEST).unlink(),
    "no JSON": lambda f: (f / META).unlink(),
    "a shard is gone": lambda f: (f / part(1, 2)).unlink(),
    "a shard is cut": lambda f: (f / part(1, 2)).write_bytes((f / part(1, 2)).read_bytes()[:-4]),
    "a shard is another's": lambda f: (f / part(1, 2)).write_bytes((f / part(0, 2)).read_bytes()),
    "the manifest knows one of two": lambda f: manifest(f, part(0, 2), META),
    "the manifest knows no JSON": lambda f: manifest(f, part(0, 2), part(1, 2)),
    "the manifest leaves the folder": lambda f: manifest(f, part(0, 2), part(1, 2), META, "../../../passwd"),
    "the manifest is a list": lambda f: (f / MANIFEST).write_text("[]"),
}


def manifest(folder: Path, *names: str) -> None:
    hashes = {n: file_hash(folder / n) if (folder / n).is_file() else "0" for n in names}
    (folder / MANIFEST).write_text(json.dumps(hashes))


@pytest.mark.fault(6)
@pytest.mark.parametrize("damage", DAMAGES)
def test_the_one_before_a_damaged_one_is_used(made: Made, tmp_path: Path, damage: str) -> None:
    keep = made()
    for tokens in (128, 256):
        keep.save_state("t", tokens, Rows(2), {"tokens": tokens})
    DAMAGES[damage](tmp_path / "there/trunks/t" / f"{256:015d}")
    _, meta = made().load_state("t", 999) or ({}, {})
    assert meta == {"tokens": 128}
    made().save_state("t", 256, Rows(3), {"tokens": 256})  # by another number of processes, in its place
    arrays, meta = made().load_state("t", 999) or ({}, {})
    assert meta == {"tokens": 256}
    assert same(arrays, STATE)


@pytest.mark.fault(5)
def test_a_process_that_could_not_write_leaves_no_checkpoint(made: Made, tmp_path: Path) -> None:
    keep = made()
    keep.save_state("t", 128, Rows(2), {"tokens": 128})
    with pytest.raises(OSError, match="No space"):
        keep.save_state("t", 256, Rows(2, dies=1), {"tokens": 256})
    assert (made().load_state("t", 999) or ({}, {}))[1] == {"tokens": 128}
    assert not list((tmp_path / "there").glob("**/.saving-*"))


@pytest.mark.fault(23)
def test_a_leader_that_was_given_up_publishes_nothing(tmp_path: Path) -> None:
    """On a common file system and at a URL; there its followers cannot either."""
    attempt = fence.open_attempt(tmp_path)
    late: list[Store] = [Store(tmp_path, attempt), shared.Worker(Place(f"file://{tmp_path}", "me"), attempt.name)]
    fence.close_attempt(attempt)
    for keep in late:
        with pytest.raises(fence.Overtaken):
            keep.save_state("t", 128, Rows(2), {})
        keep.close()
    assert not list(tmp_path.glob("trunks/t/*/*"))
