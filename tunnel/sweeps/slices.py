"""What joining data did: the loss on the old held-out slice beside the new one's, so that forgetting shows."""

from __future__ import annotations

from typing import Any

from tunnel.run import Record


def forgetting(records: list[Record]) -> list[dict[str, Any]]:
    """A row per reading that data had joined: its loss by corpus, and on the first one what was lost since the join.

    `before` is the longest reading of the same trunk before anything joined it (None where there is none), and
    `forgotten` how much worse the first corpus' held-out loss became since, in nats per token.
    """
    return [row(r, before(r, records)) for r in records if r.slices]


def before(record: Record, records: list[Record]) -> float | None:
    joined = record.run.trunk.source.then[0].at
    alone = record.run.trunk.until(joined).fingerprint
    found = [o for o in records if o.loss is not None and joined >= o.D and o.run.trunk.fingerprint == alone]
    return max(found, key=lambda o: (o.D, o.run.decay_shape == record.run.decay_shape)).loss if found else None


def row(r: Record, loss: float | None) -> dict[str, Any]:
    return {
        "stage": r.stage,
        "run": r.fingerprint_of,
        "shape": str(r.run.trunk.shape),
        "lr": r.run.trunk.settings.lr,
        "D": r.D,
        "before": loss,
        "slices": r.slices,
        "forgotten": None if loss is None or r.loss is None else r.loss - loss,
    }
