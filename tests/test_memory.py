"""Too little memory: a step goes through in halves, and the record says so."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BATCH, trunk_spec
from killing import Ended, gpt_study, results, tunnel

from tunnel.folder.store import Store
from tunnel.sampler import states
from tunnel.sweeps import rerun, sweep
from tunnel.training import data

# 9: out of memory


@pytest.mark.fault(9)
@pytest.mark.parametrize(("said", "packed"), [("python", False), ("torch", True), ("allocator", True)])
def test_a_step_that_does_not_fit_is_taken_in_halves(
    monkeypatch: pytest.MonkeyPatch, corpus: data.Corpus, packed: bool, said: str
) -> None:
    """From there on with the bits of half the micro-batch: nothing of the pass that failed is left in the gradients."""
    import torch

    from tunnel.families import gpt
    from tunnel.training.pack import Pack
    from tunnel.training.train import Trained

    errors = {"python": MemoryError(), "torch": torch.OutOfMemoryError("CUDA out of memory.")}
    allocator = RuntimeError("[enforce fail at alloc_cpu.cpp:132] DefaultCPUAllocator: can't allocate memory")
    trunk, passes, fails = trunk_spec(shape=(16, 1), micro_batch_tokens=BATCH // 2), [0], [-1]

    def grown() -> tuple[Trained, Callable[[float], bool]]:
        model = gpt.grown(trunk, corpus)
        if not packed:
            return model, model.step
        pack = Pack([model])
        return model, lambda multiplier: pack.step([multiplier])[0]

    owner, name = (Pack, "losses") if packed else (Trained, "loss")
    real = getattr(owner, name)

    def small(self: Any, sequences: torch.Tensor) -> torch.Tensor:
        passes[0] += 1
        if passes[0] in fails:
            raise errors.get(said, allocator)
        return real(self, sequences)

    monkeypatch.setattr(owner, name, small)
    model, step = grown()
    fails[:] = [2 * 3 + 2]  # of the fourth step the second pass, when the first one's gradients are there
    for _ in range(6):
        step(1.0)
    assert model.halved_at == 3 * BATCH
    assert passes[0] == 2 * 3 + 2 + 4 * 3
    fails.clear()
    other, step = grown()
    for i in range(6):
        if i == 3:
            other.halve()
        step(1.0)
    arrays, meta = other.state()
    assert meta == model.state()[1] == {"tokens": 6 * BATCH, "halved_at": 3 * BATCH}
    assert all(np.array_equal(v, arrays[k]) for k, v in model.state()[0].items())
    passes[0], fails[:] = 0, [1]  # and a second time
    with pytest.raises((RuntimeError, MemoryError)):
        step(1.0)


def address_space(what: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(what))
    return int(line.split()[1]) * 1024


def one_arena() -> None:
    """Threads share one heap: where each may have its own, a process takes as much as it gets."""
    import ctypes

    ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX: malloc.h


def peak(study: Path, out: Path, log: Path) -> int:
    """How far beyond its beginning a sweep's address space grows, in bytes."""
    before = [0]

    def begin() -> None:
        one_arena()
        before[0] = address_space("VmSize")
        exit_ = os._exit

        def leave(code: int) -> None:
            log.with_suffix(".peak").write_text(str(address_space("VmPeak") - before[0]))
            exit_(code)

        os._exit = leave  # type: ignore[assignment]

    assert tunnel("sweep", study, "--out", out, log=log, before=begin).code == 0
    return int(log.with_suffix(".peak").read_text())


@pytest.mark.slow
@pytest.mark.fault(9)
def test_a_machine_with_too_little_memory(tmp_path: Path) -> None:
    """Under a real limit, ever lower: all of the micro-batch fits, then its half, then not even that."""
    log, batch = tmp_path / "log", 64 * 1024
    sweep.sweep(*sweep.opened(gpt_study(tmp_path, batch=256, rungs="512"), tmp_path / "warm"))  # all is imported here
    study = gpt_study(tmp_path, batch=batch, rungs='"128k"')
    whole = peak(study, tmp_path / "whole", log)

    def limited(room: float) -> Callable[[], None]:
        def begin() -> None:
            one_arena()
            most = address_space("VmSize") + int(room)
            resource.setrlimit(resource.RLIMIT_AS, (most, most))

        return begin

    halved, stopped, room = list[Path](), Ended(0, ""), float(whole)
    while stopped.code == 0 and room > 0:  # ever less
        room -= whole / 10
        out = tmp_path / f"{room:.0f}"
        stopped = tunnel("sweep", study, "--out", out, log=log, before=limited(room))
        if stopped.code == 0 and Store(out).records()[0].halved_at == 0:
            halved.append(out)
    assert halved
    (before,), (after,) = (Store(folder).records() for folder in (tmp_path / "whole", halved[0]))
    assert (before.halved_at, before.fingerprint_of) == (None, after.fingerprint_of)
    assert after.loss == pytest.approx(before.loss, 1e-3)
    assert rerun.rerun(*sweep.frozen(halved[0]), after.fingerprint_of)["equal"]
    assert stopped.code == 75, stopped
    assert f"out of memory: 16×1 with a batch of {batch:,} tokens, {batch // 2:,} at a time" in stopped.line
    assert [t["state"] for t in states(out, "ladder")] == ["failed"]
    assert tunnel("sweep", study, "--out", out, log=log).code == 0
    (again,) = Store(out).records()
    assert (again.fingerprint_of, again.loss) == (before.fingerprint_of, pytest.approx(before.loss, 1e-3))
    if again.halved_at is None:  # else it went on from a checkpoint that was halved, and is equal but for rounding
        assert results(out) == results(tmp_path / "whole")


@pytest.mark.fault(9)
def test_a_gpu_with_too_little_memory(corpus: data.Corpus) -> None:
    """The driver's own limit on a process; a captured step is captured again."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    from tunnel.families import gpt
    from tunnel.training.pack import stepper

    batch = 2**17
    trunk = trunk_spec(shape=(64, 4), batch_tokens=batch, micro_batch_tokens=batch)
    peaks = []
    for part in (batch, batch // 2):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        step = stepper(gpt.grown(trunk_spec(shape=(64, 4), batch_tokens=batch, micro_batch_tokens=part), corpus))
        step(1.0)
        peaks.append(torch.cuda.max_memory_reserved())
        del step
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(sum(peaks) / 2 / total)
    try:
        grown = gpt.grown(trunk, corpus)
        step = stepper(grown)
        assert all(step(1.0) for _ in range(3))
        assert grown.halved_at == 0
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
