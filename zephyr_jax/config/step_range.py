"""A range of training steps as a setting: `10:13`."""

import re
from typing import NamedTuple, Self

from zephyr_jax.errors import InputError


class StepRange(NamedTuple):
    """Training steps, both ends included; the first step of a run is 1."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str, name: str) -> Self:
        """The range of `first:last`, the value of setting `name`. Raises InputError."""
        match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text)
        steps = cls(*map(int, match.groups())) if match else None
        if steps is None or not 1 <= steps.first <= steps.last:
            raise InputError(
                f"{name}: expected the first and the last step to profile, such as 10:13, with 1 <= first <= last; got {text!r}."
            )
        return steps

    @classmethod
    def of_run(cls, text: str, name: str, total: int) -> Self:
        """As `parse`, of a run of `total` steps. Raises InputError for steps that the run does not have, too."""
        steps = cls.parse(text, name)
        if steps.last > total:
            raise InputError(f"{name}: expected steps of the run, 1 to {total:,}; got {steps.first}:{steps.last}.")
        return steps

    def __str__(self) -> str:
        return f"{self.first} to {self.last}"
