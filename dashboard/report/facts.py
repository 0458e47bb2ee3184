"""What a report tells, read by the dashboard's own loaders, so that screen and page cannot disagree. No words here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dashboard import judge, load
from dashboard.judge import Judged
from dashboard.load import Opened

LOST = ("idle", "failed", "interrupted")  # states of device time that trained nothing that is kept


@dataclass(frozen=True)
class Facts:
    """A study's folder as a report sees it; what it does not have is None."""

    seen: Opened
    status: Mapping[str, Any] | None
    forecasts: Mapping[str, Any] | None
    judged: Judged
    running: bool
    compared: Mapping[str, dict[str, Any]]  # tables by title, with the sentences that they say

    @property
    def name(self) -> str:
        return self.seen.root.name

    @property
    def told(self) -> dict[str, Any] | None:
        return self.seen.recommendation

    @property
    def check(self) -> dict[str, Any] | None:
        """The target's outcome, where it is about the recommendation's target."""
        check = self.seen.check
        ours = self.told is None or (check is not None and check["target"] == self.told["target"]["name"])
        return check if ours else None

    @property
    def ladder(self) -> str | None:
        found = [s.name for s in self.seen.asked.stage if s.kind == "ladder"] if self.seen.asked else []
        return found[-1] if found else None

    @property
    def target(self) -> str | None:
        """The first target's name, or the recommended one's."""
        if self.told:
            return str(self.told["target"]["name"])
        return self.seen.asked.target[0].name if self.seen.asked and self.seen.asked.target else None

    @property
    def known(self) -> list[dict[str, Any]]:
        """Forecasts with a known outcome."""
        return [r for r in (self.forecasts or {}).get("forecasts", []) if r["inside"] is not None]

    @property
    def state(self) -> str:
        """nothing, measuring, measured, judged, compared, forecast, inside, outside or diverged."""
        if self.check is not None:
            measured = self.check["measured"] is not None
            return ("inside" if self.check["inside"] else "outside") if measured else "diverged"
        if self.told is not None:
            return "forecast"
        if not len(self.seen.complete):
            return "nothing"
        done = self.status is not None and self.status["state"] == "complete"
        if done and self.seen.compares:
            return "compared"
        if done and self.ladder is None and self.judged.by_setting:
            return "judged"
        return "measured" if done and self.ladder else "measuring"

    @property
    def is_old(self) -> bool:
        """Whether there are newer readings than the recommendation rests on, and it can still be made anew."""
        told = self.told
        old = self.check is None and told is not None and load.outdated(self.seen, told)
        return old and load.newer(self.seen, "recommendation.json")


def read(root: Path) -> Facts:
    """A folder's facts as they are now."""
    seen = load.opened(root)
    alive = load.alive(root)
    judged = judge.judged(seen) if seen.verdict or not has_ladder(seen) else Judged({})
    running = alive is not None and alive.running
    return Facts(seen, load.status(root), load.forecasts(root)[0], judged, running, load.comparison(seen))


def has_ladder(seen: Opened) -> bool:
    return seen.asked is not None and any(s.kind == "ladder" for s in seen.asked.stage)
