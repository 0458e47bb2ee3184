"""The loss by held-out slice: what each stage reads best, and what joining data did, so that forgetting shows."""

from __future__ import annotations

from typing import Any

from tunnel.run import Record


def best(records: list[Record]) -> list[dict[str, Any]]:
    """By stage, the reading of least loss with the loss on each source's slice; empty where there is one source."""
    found: dict[str, Record] = {}
    for r in records:
        least = found.get(r.stage)
        if r.slices and r.loss is not None and (least is None or r.loss < (least.loss or r.loss)):
            found[r.stage] = r
    return [
        {
            **{"stage": r.stage, "run": r.fingerprint_of, "shape": str(r.run.trunk.shape), "D": r.D, "loss": r.loss},
            **{"decay_mix": {m.name: m.share for m in r.run.mix}, "slices": r.slices},
        }
        for r in found.values()
    ]


def forgetting(records: list[Record]) -> list[dict[str, Any]]:
    """A row per reading that data had joined: its loss by source, and on the first one what was lost since the join.

    `before` is the longest reading of the same trunk before anything joined it (None where there is none), and
    `forgotten` how much worse the first source's held-out loss became since, in nats per token.
    """
    return [row(r, before(r, records)) for r in records if r.slices and joined(r)]


def joined(r: Record) -> list[int]:
    """The tokens after which data joined a run's trunk."""
    return [j.at for j in r.run.trunk.source.then if j.at > 0]


def before(record: Record, records: list[Record]) -> Record | None:
    at = joined(record)[0]
    alone = record.run.trunk.until(at).fingerprint
    found = [o for o in records if o.loss is not None and at >= o.D and o.run.trunk.fingerprint == alone]
    return max(found, key=lambda o: (o.D, alike(o, record))) if found else None


def alike(one: Record, other: Record) -> bool:
    return (one.run.decay_shape, one.run.mix) == (other.run.decay_shape, other.run.mix)


def row(r: Record, old: Record | None) -> dict[str, Any]:
    first = next(iter(r.slices))
    loss = None if old is None else old.slices.get(first, old.loss)
    return {
        "stage": r.stage,
        "run": r.fingerprint_of,
        "shape": str(r.run.trunk.shape),
        "lr": r.run.trunk.settings.lr,
        "D": r.D,
        "before": loss,
        "slices": r.slices,
        "forgotten": None if loss is None else r.slices[first] - loss,
    }
