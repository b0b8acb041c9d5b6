"""Keys: named by the environment variable that holds them, so that no card, log or record ever does."""

import os

from zephyr_jax.errors import InputError


def secret(variable: str | None, setting: str) -> str | None:
    """The key in a variable, None where none is named. Raises InputError, naming `setting`, where it is not there."""
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise InputError(f"{setting} is {variable!r}, and the environment has no such variable. Set it to the key.")
    return key
