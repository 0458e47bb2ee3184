"""The alarm of a full-size run: raised once per run, written down, noted and told. It never stops or fails a run.

Watched are the target at each of its seeds, a decay off its trunk (`early`), and the counterfactual's run at the
recommended lr. Those at half and double that lr are not: the bundle is of well-tuned runs, which they are meant to
leave.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

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
    """Watches full-size runs as a sweep's watcher does; `then` is told what it is told.

    `awaited`: what is expected of each, asked once; `at`: the folder that their curves are written in.
    """

    def __init__(
        self,
        asked: Study,
        keep: Store,
        runs: Sequence[RunSpec],
        awaited: Callable[[RunSpec], running.Awaited],
        then: Watch | None = None,
        at: Store | None = None,
    ) -> None:
        self.asked, self.keep, self.at, self.runs, self.then = asked, keep, at or keep, list(runs), then
        self.expected, self.awaited = awaited, dict[str, running.Awaited]()
        self.next = time.monotonic() + LOOK_SECONDS

    def __call__(self, live: Live) -> None:
        if self.then is not None:
            self.then(live)
        if self.runs and time.monotonic() > self.next:
            try:
                took = self.look()
            except Exception as e:  # whatever it is: a run that nobody watches is better than none
                log.warning("the run is not watched from here on: %s", e)
                took, self.runs = 0.0, []
            self.next = time.monotonic() + max(LOOK_SECONDS, took / SHARE)

    def look(self) -> float:
        """Raises the alarm of every run that left its bundle since the last look; the seconds that every look takes."""
        raised = forecasts.alarms(self.keep)
        self.runs = [r for r in self.runs if r.fingerprint not in raised]
        self.awaited |= {r.fingerprint: self.expected(r) for r in self.runs if r.fingerprint not in self.awaited}
        begun = time.monotonic()
        for run in self.runs:
            fp = run.fingerprint
            found = running.standing(self.at, self.awaited[fp])["live"]["alarm"]
            if found is not None:
                raised[fp] = {**found, "when": store.now()}
                store.write_json(self.keep.path(forecasts.ALARMS), raised)
                audit.note(self.keep.root, "alarmed", run=fp, text=found["text"])
                log.warning("%s", found["text"])
                notify.once(self.asked, self.keep, "alarm", **found)
        return time.monotonic() - begun
