"""Processes that tokenize rows."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import multiprocess


@contextmanager
def workers() -> Iterator[None]:
    """Processes that `datasets` starts inside are new ones that do not run the main script of this process.

    Python's own worker processes import the main script first: one that does not guard its statements by
    `if __name__ == "__main__"`, as few scripts and no examples of a documentation do, would run again in each of them.
    """
    multiprocess.set_start_method("forkserver", force=True)  # a fork of a process in which JAX runs may deadlock
    main = sys.modules["__main__"]
    hidden = {name: getattr(main, name, None) for name in ("__file__", "__spec__")}
    vars(main).update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        vars(main).update(hidden)
