"""Out of memory: a step is tried once more with half the micro-batch; what does not fit then is said in a line."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tunnel import families
from tunnel.run import TrunkSpec

Found = TypeVar("Found")
BYTES = 16  # of a parameter that trains: weight, gradient and two moments in fp32  *derived*
ROOM = 0.7  # of a device's memory: these may take so much beside activations and what is on its way  *assumed*
SAID = ("can't allocate memory", "not enough memory")  # torch's allocator on the CPU  *measured here*


class OutOfMemory(Exception):
    """Trials that this machine's memory is too small for."""


def is_out_of_memory(e: BaseException) -> bool:
    """Python's and numpy's error, torch's on a GPU, and its allocator's on the CPU; torch need not be loaded."""
    by_name = any(c.__name__ == "OutOfMemoryError" for c in type(e).__mro__)
    return isinstance(e, MemoryError | OutOfMemory) or by_name or any(text in str(e) for text in SAID)


def fitted(work: Callable[[], Found], halve: Callable[[], bool]) -> Found:
    """`work()`; where memory is too small for it, once more after `halve()`, if that finds anything to halve."""
    try:
        return work()
    except (RuntimeError, MemoryError) as e:
        if not is_out_of_memory(e) or not halve():
            raise
    return work()  # out here the first try's tensors are free


def state(trunk: TrunkSpec) -> int:
    """Bytes of a model's weights, gradients and moments."""
    n = families.total(trunk.family, trunk.shape, trunk.body) + trunk.body.vocab * trunk.shape.width
    return BYTES * n


def line(trunk: TrunkSpec, together: int = 1, workers: int = 1) -> str:
    """What did not fit: the shape, and the batch as it was tried last."""
    s, length = trunk.settings, trunk.body.seq_len
    least = max(-(-min(s.micro_batch_tokens, s.batch_tokens // workers) // length // 2), 1) * length
    others = f", {together} together" if together > 1 else ""
    return f"out of memory: {trunk.shape} with a batch of {s.batch_tokens:,} tokens, {least:,} at a time{others}"
