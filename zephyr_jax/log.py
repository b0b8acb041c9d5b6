"""Logging: messages with time, level and host on stderr, and the levels of noisy libraries, all set in one place.

Modules log through `logging.getLogger(__name__)`. `cli.main` calls `configure`; a Python program that calls the pipelines
configures logging itself, with this function or its own handlers. Never imports jax.
"""

import inspect
import logging
import os
import sys
import warnings
from functools import cache
from typing import Any, Literal, get_args

from zephyr_jax.errors import terminal_text

type Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = get_args(Level.__value__)

_LIBRARY_LEVELS = {
    # Their errors are raised again in the main thread, where they become one message with a fix.
    "absl": logging.CRITICAL,  # orbax logs through it
    "asyncio": logging.CRITICAL,
    "concurrent.futures": logging.CRITICAL,
    "gcsfs": logging.CRITICAL,
    # They log every request or task at INFO.
    "datasets": logging.WARNING,
    "httpx": logging.WARNING,
    "jax": logging.WARNING,
    "lm_eval": logging.WARNING,
    "openai": logging.WARNING,
    "transformers": logging.WARNING,
}


class _StderrHandler(logging.Handler):
    """Writes to the current `sys.stderr`, so that progress bars and tests may replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


class _Formatter(logging.Formatter):
    """`12:03:04 message`; `12:03:04 WARNING [host 1] message` for other levels than INFO and more than one host.

    Control characters are escaped: messages may hold text of models and data.
    """

    host = ""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname} "
        return f"{self.formatTime(record, '%H:%M:%S')} {level}{self.host}{terminal_text(super().format(record))}"


_formatter = _Formatter()
_handler = _StderrHandler()
_handler.setFormatter(_formatter)


def configure(level: Level = "info") -> None:
    """Log this package's messages from `level` on, and warnings of libraries, to stderr. May be called again."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would advise to install torch
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    root = logging.getLogger()
    if _handler not in root.handlers:
        root.addHandler(_handler)
    logging.getLogger("zephyr_jax").setLevel(level.upper())
    silence_library_logs()


def set_host(process: int, num_processes: int) -> None:
    """Mark the messages of this process with its index where there are several."""
    _formatter.host = f"[host {process}] " if num_processes > 1 else ""


def silence_library_logs() -> None:
    """Set the levels of library loggers, and drop warnings about asynchronous reads that orbax gave up."""
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    for name, level in _LIBRARY_LEVELS.items():
        logging.getLogger(name).setLevel(level)
    _ignore_abandoned_reads()


@cache
def _ignore_abandoned_reads() -> None:
    """Ignore orbax's abandoned reads when they are garbage collected: the read's error was raised already."""
    original_hook = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        abandoned = inspect.iscoroutine(unraisable.object) and "orbax" in unraisable.object.cr_code.co_filename
        if not abandoned and str(unraisable.exc_value) != "Event loop is closed":
            original_hook(unraisable)

    sys.unraisablehook = hook
