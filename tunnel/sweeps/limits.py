"""What a sweep has taken and what is ahead of it: no trial is handed out that would pass a limit of `budget`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

from tunnel import plan
from tunnel.errors import Stopped
from tunnel.folder.store import Store
from tunnel.run import Record
from tunnel.study import Stage, Study
from tunnel.sweeps import attempts
from tunnel.sweeps.attempts import DONE, INTERRUPTED, Meter
from tunnel.sweeps.status import Live, proxies_of, spent

NEAR = (80, 100)  # percent of a limit that are told
FEW = 5  # ended trials, before the failed ones' share says anything  *assumed*

Tell = Callable[..., None]  # an event, and what there is to say of it


class Account:
    """A sweep's device seconds and FLOPs, taken and ahead; what was taken counts over restarts, from what is on disk.

    For the one that holds the study.
    """

    def __init__(self, asked: Study, keep: Store, tell: Tell = lambda event, **what: None) -> None:
        self.asked, self.keep, self.tell = asked, keep, tell
        self.refused = self.reached = ""  # which limit left no room for a trial, or is passed
        attempts.settle(keep)
        done, proxies = attempts.closed(keep), proxies_of(keep.readings())
        self.paces, self.flops = plan.Paces.of(asked, proxies), spent(proxies)
        self.seconds = sum(s.seconds for s in done) + attempts.earlier(asked, done, proxies)
        self.whole, self.beside = attempts.beside(done)
        self.ended = self.failed = 0
        self.meter, self.live = Meter("", 0.0), Live("")
        self.said: set[Any] = {percent for percent in NEAR if any(100 * r["share"] >= percent for r in self.rows())}

    @contextmanager
    def session(self, stage: Stage, live: Live) -> Iterator[None]:
        """A stage is being run. Raises Stopped, with the line to say, where a limit let it ask no more."""
        self.live, self.meter = live, Meter(stage.name, self.asked.resources_of(stage).devices)
        try:
            yield
        except Stopped:
            if self.reached:
                raise Stopped(self.reached) from None
            raise
        finally:
            with suppress(OSError):  # of a full disk: the next driver finds the spans in progress.json
                attempts.append(self.keep, self.meter.open(INTERRUPTED))
            self.seconds += self.meter.seconds
            self.meter = Meter("", 0.0)
        if self.refused:
            raise Stopped(self.refused)

    @property
    def limited(self) -> bool:
        return bool(self.rows())

    def handed(self, numbers: Collection[int]) -> None:
        self.meter.handed(numbers)

    def measured(self, number: int, record: Record) -> None:
        """A trial wrote a record."""
        size = record.flops / record.D
        flops = size * record.tokens_trained
        self.meter.measured(number, record.seconds)
        self.paces.add(size, flops, record.seconds * self.meter.devices)
        self.flops += flops
        self.live.running[number]["unmeasured"] -= flops

    def over(self, number: int, state: str) -> None:
        """A trial has ended."""
        span = self.meter.ended(number, state)
        attempts.append(self.keep, [span])
        self.seconds += span.seconds
        if state in DONE:
            self.whole, self.beside = self.whole + 1, self.beside + max(span.seconds - span.trained, 0.0)
        self.ended, self.failed = self.ended + 1, self.failed + (state == "failed")
        most = self.asked.notify.failed_share if self.asked.notify else 1.0
        if self.ended >= FEW and self.failed / self.ended > most and "failed" not in self.said:
            self.said.add("failed")
            self.tell("failed", failed=self.failed, ended=self.ended)

    def open(self) -> list[dict[str, Any]]:
        """The spans that are not closed yet, for progress.json."""
        return [asdict(s) for s in self.meter.open("running")] if self.meter.stage else []

    # what is ahead, in device seconds

    def ahead(self, flops: float, size: float, trials: int = 1) -> float:
        """Of so many FLOPs, at the pace of that size, and with what a trial takes beside its training."""
        return flops / self.paces.at(size) + trials * self.beside / max(self.whole, 1)

    def hands(self) -> list[float]:
        """What each worker's trials still take; last, those that wait for a worker."""
        left = {
            n: self.ahead(max(r["of"] - r["tokens"], 0) * r["flops_per_token"], r["flops_per_token"])
            for n, r in self.live.running.items()
        }
        out = [sum(left.pop(n, 0.0) for n in hand) for hand in self.meter.hands]
        return [*out, sum(left.values())]

    def left(self, waiting: Mapping[float, float], trials: int) -> float | None:
        """Seconds until the stage ends; None before anything is measured.

        `waiting`: FLOPs of the trials that are not handed out, by size in FLOPs per token; `trials`: how many.
        """
        if not self.paces.measured or not self.meter.workers:
            return None
        hands = self.hands()
        rest = sum(self.ahead(flops, size, 0) for size, flops in waiting.items()) + self.ahead(0.0, 1.0, trials)
        return max((sum(hands) + rest) / self.meter.workers, *hands) / self.meter.devices

    # the limits

    def rows(self, seconds: float = 0.0, flops: float = 0.0) -> list[dict[str, Any]]:
        """The limits beside what is taken of them, or would be with so much more."""
        held = self.seconds + self.meter.seconds + seconds
        return plan.limits(self.asked, held, self.asked.price.cost(held), self.flops + flops)

    def allow(self, flops: float, size: float) -> bool:
        """Whether one more trial keeps all limits: with what is spent, and what runs to its end.

        All workers are held until the last of them ends, so an idle one counts.
        """
        self.meter.tick()
        *hands, waiting = self.hands()
        hands.append(waiting + self.ahead(flops, size))
        seconds = max(sum(hands), max(self.meter.workers, len(hands)) * max(hands))
        unmeasured = sum(max(r["unmeasured"], 0.0) for r in self.live.running.values())
        self.refused = self.passed("leaves no room for the next trial", self.rows(seconds, unmeasured + flops))
        return not self.refused

    def within(self) -> bool:
        """Tells of limits that are near; False where one is passed: the workers should save and stop."""
        self.meter.tick()
        for row in (rows := self.rows()):
            for percent in NEAR:
                if 100 * row["share"] >= percent and percent not in self.said:
                    self.said.add(percent)
                    self.tell("budget", percent=percent, **row)
        self.reached = self.passed("is reached", rows) if self.meter.stage else ""
        return not self.reached

    def passed(self, what: str, rows: list[dict[str, Any]]) -> str:
        """What to say of the first limit that is passed; "" where none is."""
        row = next((r for r in rows if r["share"] > 1), None)
        if row is None:
            return ""
        taken = next(r["taken"] for r in self.rows() if r["name"] == row["name"])
        then = f", {figure(row['taken'])} with it" if row["taken"] > taken else ""
        return (
            f"budget.{row['name']} = {figure(row['limit'])} ({row['unit']}) {what}: {figure(taken)} taken{then}; "
            "raise it in the study file, and the same command goes on"
        )


def figure(x: Any) -> str:
    """
    >>> figure(0.123456), figure(12345.6), figure(3e18)
    ('0.1235', '12,346', '3e+18')
    """
    return f"{x:,.0f}" if 1e4 <= x < 1e9 else f"{x:.4g}"
