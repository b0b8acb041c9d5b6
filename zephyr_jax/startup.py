"""Time before a run's first step, in seconds by phase. Never imports jax."""

import time

_clock = time.perf_counter()
_phases: dict[str, float] = {}
_has_begun = False


def add_phase(name: str, compile_seconds: float = 0.0) -> None:
    """Attribute the time since the last call (or since this module was imported) to a phase.

    `compile_seconds` of it are attributed to the phase `compile`.
    """
    global _clock
    now = time.perf_counter()
    for phase, seconds in (name, max(0.0, now - _clock - compile_seconds)), ("compile", compile_seconds):
        _phases[phase] = _phases.get(phase, 0.0) + seconds
    _clock = now


def begin() -> None:
    """Start a run. The first run of a process includes the phases so far, such as imports; a later one restarts the clock."""
    global _clock, _has_begun
    if _has_begun:  # phases are left where the run before failed
        _phases.clear()
        _clock = time.perf_counter()
    _has_begun = True


def phases() -> dict[str, float]:
    """Seconds of the phases so far."""
    return dict(_phases)


def summary(cache: str) -> str:
    """All phases in one line, and reset them; `cache` describes the use of the compile cache."""
    text = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in _phases.items())
    total = sum(_phases.values())
    _phases.clear()
    return f"first step done after {total:.1f} s: {text} ({cache})"
