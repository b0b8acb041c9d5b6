"""Processes that tokenize rows."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import multiprocess


@contextmanager
def workers() -> Iterator[None]:
    """Processes that `datasets` starts inside are new ones that do not import the main script of this process.

    By default Python imports the main script in each worker, which runs a script again that has no
    `if __name__ == "__main__"` guard.
    """
    multiprocess.set_start_method("forkserver", force=True)  # a fork of a process in which JAX runs may deadlock
    main = sys.modules["__main__"]
    hidden = {name: getattr(main, name, None) for name in ("__file__", "__spec__")}
    vars(main).update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        vars(main).update(hidden)
