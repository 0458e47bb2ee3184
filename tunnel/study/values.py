"""What the tables of a study file are made of: frozen values, names, amounts."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from tunnel.space import amount, whole

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # names become paths: one allow-list before any is made


def listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def once(values: tuple[object, ...]) -> tuple[object, ...]:
    if len(set(values)) < len(values):
        raise ValueError("names a value twice")
    return values


Once = AfterValidator(once)  # what stands twice would be asked once, and waited for twice
Tokens = Annotated[int, BeforeValidator(whole), Field(gt=0, lt=1 << 63)]
Positive = Annotated[float, BeforeValidator(amount), Field(gt=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
