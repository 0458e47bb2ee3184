"""What a device hour does and costs, what a study may spend, and whom it tells. Money is decimal, and sums exactly."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from decimal import ROUND_HALF_EVEN, Context, Decimal
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from tunnel.study.values import Frozen, Positive

TABLE = Path(__file__).parent.parent / "prices.toml"
STEP = Decimal("0.000001")  # a cost is rounded to this once, where it arises: sums of costs need no rounding  *assumed*
EXACT = Context(prec=60, rounding=ROUND_HALF_EVEN)  # digits enough for 1e50 of a currency in millionths  *derived*

Money = Annotated[Decimal, Field(allow_inf_nan=False)]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]  # a name in the environment


@cache
def table() -> dict[str, dict[str, Any]]:
    """The price table by device; its numbers are decimal."""
    return tomllib.loads(TABLE.read_text(encoding="utf-8"), parse_float=Decimal)


class Price(Frozen):
    """What an hour of one device does and costs; what is not given is the price table's (`prices.toml`)."""

    device: str = "CPU core"
    flops_per_second: Positive | None = None  # peak of one device; default: the table's, by precision
    mfu: float = Field(1.0, gt=0, le=1)  # the share of the peak that training reaches
    per_hour: Money = Field(Decimal(0), ge=0, le=Decimal(10**9))
    currency: str = "USD"

    @model_validator(mode="before")
    @classmethod
    def of_table(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("device", ""), str):
            return given  # refused below, in pydantic's words
        known = table().get(given.get("device", "CPU core"))
        missing = [k for k in ("flops_per_second", "per_hour") if k not in given]
        if known is None and missing:
            raise ValueError(
                f"device {given['device']!r} is not in the price table: give {' and '.join(missing)}, "
                f"or one of {', '.join(table())}"
            )
        if known is None:
            return given
        if "per_hour" not in given and given.get("currency", known["currency"]) != known["currency"]:
            raise ValueError(f"currency {given['currency']!r} needs per_hour: the table's are in {known['currency']}")
        filled = ("per_hour", "currency") if "flops_per_second" in given else ("per_hour", "currency", "mfu")
        return {k: known[k] for k in filled} | given

    def pace(self, precision: str) -> float:
        """FLOP/s that training is expected to reach on one device, at "fp32" or "bf16"."""
        return (self.flops_per_second or float(table()[self.device][precision])) * self.mfu

    def cost(self, seconds: float) -> Decimal:
        """Money for device seconds, to a millionth.

        >>> Price(device="H100", per_hour="2.50").cost(60)
        Decimal('0.041667')
        """
        amount = EXACT.multiply(Decimal(str(float(seconds))), self.per_hour)
        return EXACT.divide(amount, Decimal(3600)).quantize(STEP, context=EXACT)


def total(amounts: Iterable[Decimal]) -> Decimal:
    """An exact sum, whatever the order."""
    found = Decimal(0)
    for amount in amounts:
        found = EXACT.add(found, amount)
    return found


class Limit(Frozen):
    """What a study's sweeps may take in all, over restarts; no trial is handed out that would pass it."""

    max_hours: float | None = Field(None, gt=0)  # device hours, idle and failed time included
    max_cost: Money | None = Field(None, gt=0)  # in price.currency
    max_flops: Positive | None = None  # full count, of the readings


class Notify(Frozen):
    """A webhook that hears how a sweep fares; its address and secret lie in the environment, under these names."""

    url_env: Variable
    secret_env: Variable | None = None  # signs what is sent (HMAC-SHA256)
    failed_share: float = Field(0.2, gt=0, le=1)  # of the ended trials: above it, the webhook hears of it  *assumed*
