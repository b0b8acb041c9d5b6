"""Where the time before the first step goes: seconds by part, since the process began. Never imports jax."""

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


def report(programs: str) -> str:
    """All parts in one line for people; `programs` says where the compiled ones came from."""
    parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in _parts.items())
    return f"first step done after {sum(_parts.values()):.1f} s: {parts} ({programs})"
