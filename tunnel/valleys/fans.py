"""A fan that is too narrow widens by itself: a valley's minimum is only known between neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tunnel.space import Scalar

Candidate = dict[str, Scalar]
Loss = Callable[[Candidate, int], float | None]  # at a seed: infinite where it diverged, None before it is known
FAN = 3  # lrs that make a fan; fewer say nothing of an edge


def widened(listed: Sequence[Candidate], seeds: Sequence[int], loss: Loss, most: int) -> list[Candidate]:
    """What a stage's fans need beyond the candidates listed; more may follow when that is measured.

    A fan is what differs in nothing but lr. Where its best, by the mean over seeds, lies at an edge, one lr is added
    beyond, in its neighbours' ratio; at most `most` times a side. It depends on the losses alone, not on when one asks.
    """
    fans: dict[tuple[tuple[str, Scalar], ...], list[Candidate]] = {}
    for c in listed:
        rest = tuple(sorted((k, v) for k, v in c.items() if k != "lr"))
        fans.setdefault(rest, []).append(c)
    return [new for fan in fans.values() if len(fan) >= FAN for new in beyond(fan, seeds, loss, most)]


def beyond(fan: Sequence[Candidate], seeds: Sequence[int], loss: Loss, most: int) -> list[Candidate]:
    """What one fan needs beyond its edges, nearest first."""
    ordered, added = sorted(fan, key=lambda c: c["lr"]), list[Candidate]()
    room = {0: most, -1: most}
    while True:
        means = [mean([loss(c, s) for s in seeds]) for c in ordered]
        known = [m for m in means if m is not None]
        if len(known) < len(means):
            return added
        best = known.index(min(known))  # all diverged: the lowest
        edge = 0 if best == 0 else -1
        if best not in (0, len(ordered) - 1) or not room[edge]:
            return added
        room[edge] -= 1
        last, inner = (ordered[edge], ordered[1 if edge == 0 else -2])
        new = {**last, "lr": float(last["lr"]) ** 2 / float(inner["lr"])}
        added.append(new)
        ordered.insert(0 if edge == 0 else len(ordered), new)


def mean(losses: Sequence[float | None]) -> float | None:
    known = [x for x in losses if x is not None]
    return sum(known) / len(known) if len(known) == len(losses) else None
