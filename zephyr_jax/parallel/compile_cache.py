"""Compiled programs: kept on disk between processes, and the seconds that making them takes.

JAX's own settings win: JAX_COMPILATION_CACHE_DIR (gs:// works too) and JAX_ENABLE_COMPILATION_CACHE=false.
"""

import jax
from jax import monitoring

from zephyr_jax.storage.files import cache_folder

_LARGEST = 16 * 2**30  # bytes on disk; the programs that were not used longest go first
_COMPILED = "/jax/core/compile/backend_compile_duration"
_FOUND, _ASKED = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/compile_requests_use_cache"


def keep_programs() -> None:
    """Keep what is compiled under the user's cache folder, unless JAX is told another place or not to."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("programs")))
        jax.config.update("jax_compilation_cache_max_size", _LARGEST)


class Compilations:
    """What this process compiles from now on."""

    def __init__(self) -> None:
        self._seconds, self._found, self._asked = 0.0, 0, 0
        monitoring.register_event_duration_secs_listener(self._duration)
        monitoring.register_event_listener(self._event)

    def _duration(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILED:
            self._seconds += duration_secs

    def _event(self, event: str, **_: str | int) -> None:
        self._found += event == _FOUND
        self._asked += event == _ASKED

    def take(self) -> float:
        """Seconds in the compiler, or bringing programs from disk, since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def sources(self) -> str:
        """How many programs were on disk, in words."""
        return f"{self._found} of {self._asked} programs from disk" if self._asked else "no programs kept on disk"
