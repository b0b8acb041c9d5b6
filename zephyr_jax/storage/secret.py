"""Keys: named by the environment variable that holds them, so that no card, log or record ever does."""

import os
import re

from zephyr_jax.errors import InputError


def secret(variable: str | None, setting: str) -> str | None:
    """The key in a variable, None where none is named. Raises InputError, naming `setting`, where it is not there."""
    if variable is None:
        return None
    if not re.fullmatch(r"[A-Za-z_]\w*", variable):
        raise InputError(
            f"{setting} is no name of a variable, and may be a key, so it is not repeated here. Put the key into an environment "
            "variable and give that variable's name."
        )
    key = os.environ.get(variable)
    if not key:
        raise InputError(
            f"{setting} is {variable!r}, and the environment has no variable of that name, or an empty one. Set it to the "
            f"key: `export {variable}=...`."
        )
    return key
