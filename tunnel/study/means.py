"""What a study runs with: what a worker takes, and the server that may hold its asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import AfterValidator, Field

from tunnel.study.values import Frozen

SMALL = 1e-6  # 0.3 of a GPU holds three times 0.1; Ray counts in 1e-4


def divisible(gpus: float) -> float:
    """Ray's rule: trials share a GPU, or take whole ones."""
    if gpus > 1 and gpus != int(gpus):
        raise ValueError("must be a fraction of one GPU, or whole GPUs")
    return gpus


Cpus = Annotated[float, Field(gt=0)]
Gpus = Annotated[float, Field(ge=0), AfterValidator(divisible)]
Memory = Annotated[float, Field(gt=0, le=1)]
Pack = Annotated[int, Field(ge=1, le=256)]


class Resources(Frozen):
    """What one worker takes, and where the workers run."""

    cpus: Cpus = 1
    gpus: Gpus = 0
    gpu_memory: Memory | None = None  # of each GPU that it runs on; default: as much as `gpus`, where that is below 1
    backend: Literal["ray", "inline"] = "ray"  # inline: the same loop in this process
    pack: Pack = 1  # trials of one shape that a worker trains as one batched model
    # of the full-size run over several workers: who holds weights, gradients and moments (`training.parallel`)
    shard: Literal["auto", "none", "full"] = "auto"
    recompute: bool = False  # of the full-size run: activations in the backward pass, which then need no memory

    @property
    def devices(self) -> float:
        """What a worker holds of what `price` prices: its GPUs, or its cores where it has none."""
        return self.gpus or self.cpus

    @property
    def memory(self) -> float:
        """The fraction of a GPU's memory that a worker may take."""
        return self.gpu_memory or (self.gpus if 0 < self.gpus < 1 else 1.0)

    def places(self, there: Mapping[str, float]) -> int:
        """How many workers a cluster's CPUs and GPUs have room for; 1 where none fits: Ray may wait for a node."""
        takes = {"CPU": self.cpus, "GPU": self.gpus}
        return max(min(int(there.get(k, 0) / each + SMALL) for k, each in takes.items() if each), 1)


class StageResources(Frozen):
    """What a stage's workers take, where that is not what the study's do."""

    cpus: Cpus | None = None
    gpus: Gpus | None = None
    gpu_memory: Memory | None = None
    pack: Pack | None = None


def check_server(url: str) -> None:
    """Raises ValueError where a storage is no PostgreSQL database by URL, or holds its password."""
    parts = urlsplit(url)
    if parts.scheme != "postgresql" or not parts.path.strip("/"):
        raise ValueError('storage must look like "postgresql://user@host/database"')
    if parts.password is not None or "password" in parse_qs(parts.query, keep_blank_values=True):
        raise ValueError("storage holds a password: keep it in the environment, under the name storage_password_env")
