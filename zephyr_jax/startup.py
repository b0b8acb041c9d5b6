"""Where the time before a run's first step goes: seconds by part, since the process or the run began. Never imports jax."""

import time

_clock = time.perf_counter()
_parts: dict[str, float] = {}


def passed(part: str, compiling: float = 0.0) -> None:
    """The time since the last call (or since this module was first imported) went into `part`.

    `compiling` seconds of it go into a part of their own.
    """
    global _clock
    now = time.perf_counter()
    for name, seconds in (part, max(0.0, now - _clock - compiling)), ("compile", compiling):
        _parts[name] = _parts.get(name, 0.0) + seconds
    _clock = now


def begin() -> None:
    """A run begins: it is its process's first, to which what has passed belongs, or the clock starts anew."""
    global _clock
    if not _parts:
        _clock = time.perf_counter()


def report(programs: str) -> str:
    """All parts in one line for people; `programs` says where the compiled ones came from."""
    parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in _parts.items())
    total = sum(_parts.values())
    _parts.clear()
    return f"first step done after {total:.1f} s: {parts} ({programs})"
