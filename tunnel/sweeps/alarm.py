"""The alarm of a running target: raised once per run, written down, noted and told. It never stops or fails a run."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from tunnel.answers import forecasts, running
from tunnel.folder import audit, store
from tunnel.folder.store import Store
from tunnel.run import RunSpec
from tunnel.study import Study
from tunnel.sweeps import notify
from tunnel.sweeps.status import Live, Watch

LOOK_SECONDS = 2.0  # between looks, at least: a slice's least length
SHARE = 0.02  # of the driver's time that looking takes at most  *assumed*

log = logging.getLogger(__name__)


class Alarm:
    """Watches a target's runs as a sweep's watcher does; `then` is told what it is told."""

    def __init__(
        self, asked: Study, keep: Store, target: str, runs: Sequence[RunSpec], then: Watch | None = None
    ) -> None:
        self.asked, self.keep, self.target, self.runs, self.then = asked, keep, target, list(runs), then
        self.awaited: dict[str, running.Awaited] = {}
        self.next = time.monotonic() + LOOK_SECONDS

    def __call__(self, live: Live) -> None:
        if self.then is not None:
            self.then(live)
        if self.runs and time.monotonic() > self.next:
            begun = time.monotonic()
            try:
                self.look()
            except Exception as e:  # whatever it is: a run that nobody watches is better than none
                log.warning("the target is not watched from here on: %s", e)
                self.runs = []
            took = time.monotonic() - begun
            self.next = begun + max(LOOK_SECONDS, took / SHARE)

    def look(self) -> None:
        """Raises the alarm of every run that left its bundle since the last look."""
        raised = forecasts.alarms(self.keep)
        self.runs = [r for r in self.runs if r.fingerprint not in raised]
        for run in self.runs:
            fp = run.fingerprint
            if fp not in self.awaited:
                self.awaited[fp] = running.awaited(self.asked, self.keep, self.target, run)
            found = running.standing(self.keep, self.awaited[fp])["live"]["alarm"]
            if found is not None:
                raised[fp] = {**found, "when": store.now()}
                store.write_json(self.keep.path(forecasts.ALARMS), raised)
                audit.note(self.keep.root, "alarmed", run=fp, text=found["text"])
                log.warning("%s", found["text"])
                notify.once(self.asked, self.keep, "alarm", **found)
