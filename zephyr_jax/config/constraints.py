"""Types of settings with their bounds, and where a value may change. `validation` checks them; this module never imports jax."""

from typing import Annotated, Any

from pydantic import Field

MAX_COUNT = 2**31 - 1
"""Tokens, rows and steps are counted in 32 bits on the device."""

type Metadata = dict[str, Any]
RESUMABLE: Metadata = {"resumable": True}
"""Field metadata: a resumed run may change the setting (or the whole section) without changing what it computes."""
ADVANCED: Metadata = {"advanced": True}
"""Field metadata: help lists the setting among the advanced ones, after those that most runs change."""

PositiveInt = Annotated[int, Field(gt=0, le=MAX_COUNT)]
NonNegativeInt = Annotated[int, Field(ge=0, le=MAX_COUNT)]
PositiveFloat = Annotated[float, Field(gt=0, le=MAX_COUNT)]
NonNegativeFloat = Annotated[float, Field(ge=0, le=MAX_COUNT)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
"""Of a moving average; also a share that may not be everything."""
