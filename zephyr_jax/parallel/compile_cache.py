"""JAX's persistent compilation cache, and the time that compilation takes.

JAX's own settings take precedence: JAX_COMPILATION_CACHE_DIR (gs:// works too) and JAX_ENABLE_COMPILATION_CACHE=false.
"""

import jax
from jax import monitoring

from zephyr_jax.storage.files import cache_folder

_MAX_BYTES = 16 * 2**30  # on disk; the least recently used entries are deleted first
_COMPILE_DURATION = "/jax/core/compile/backend_compile_duration"
_CACHE_HITS, _CACHE_REQUESTS = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/compile_requests_use_cache"


def enable_compile_cache() -> None:
    """Cache compiled executables in the user's cache folder, unless JAX's settings name another one or disable it."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("programs")))
        jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)


class CompileStats:
    """Compile time and cache hits of this process since the object was made; `total_seconds` is all of the time."""

    def __init__(self) -> None:
        self._seconds, self._hits, self._requests = 0.0, 0, 0
        self.total_seconds = 0.0
        monitoring.register_event_duration_secs_listener(self._on_duration)
        monitoring.register_event_listener(self._on_event)

    def _on_duration(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILE_DURATION:
            self._seconds += duration_secs
            self.total_seconds += duration_secs

    def _on_event(self, event: str, **_: str | int) -> None:
        self._hits += event == _CACHE_HITS
        self._requests += event == _CACHE_REQUESTS

    def take_seconds(self) -> float:
        """Seconds spent in the compiler or loading from the cache since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def cache_summary(self) -> str:
        """For example `3 of 5 executables from the compile cache`."""
        if not self._requests:
            return "compile cache not used"
        return f"{self._hits} of {self._requests} executables from the compile cache"
