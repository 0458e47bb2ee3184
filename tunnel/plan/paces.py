"""How fast training goes: measured, by the size of the model; the price's word before anything is measured."""

from __future__ import annotations

import math

import pandas as pd

from tunnel.study import Study


class Paces:
    """FLOP/s of one device by FLOPs per token, the size as a device feels it; `expected` where nothing is measured."""

    def __init__(self, expected: float) -> None:
        self.expected = expected
        self.flops: dict[float, float] = {}
        self.seconds: dict[float, float] = {}

    @classmethod
    def of(cls, asked: Study, readings: pd.DataFrame) -> Paces:
        """Those of a study's readings; each stage's seconds count for as many devices as its workers hold."""
        found = cls(asked.price.pace(asked.train.precision))
        if len(readings):
            devices = {s.name: asked.resources_of(s).devices for s in asked.stage}
            held = readings.stage.map(devices).fillna(asked.resources.devices) * readings.seconds
            size = readings.flops / readings.D
            for row in zip(size.tolist(), (size * readings.tokens_trained).tolist(), held.tolist(), strict=True):
                found.add(*row)
        return found

    def add(self, per_token: float, flops: float, seconds: float) -> None:
        """A measurement: device seconds that so many FLOPs took."""
        if flops > 0 and seconds > 0:
            size = float(f"{per_token:.6g}")  # one shape, whatever its lengths were divided by
            self.flops[size] = self.flops.get(size, 0.0) + flops
            self.seconds[size] = self.seconds.get(size, 0.0) + seconds

    @property
    def measured(self) -> bool:
        return bool(self.flops)

    def at(self, per_token: float) -> float:
        """FLOP/s at a size: as measured there, else at the nearest size, by ratio."""
        if not self.flops:
            return self.expected
        size = min(self.flops, key=lambda s: abs(math.log(s / per_token)))
        return self.flops[size] / self.seconds[size]
