"""Stop requests: SIGTERM (preemption, the end of a job), Ctrl-C, or Google's notice of a host's maintenance.

Whichever process gets the request, all of them stop at the same step, so that the checkpoint they save together is complete.
"""

import logging
import os
import signal
import socket
import threading
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from zephyr_jax.parallel import jax_internals

logger = logging.getLogger(__name__)

_KEY = "zephyr_jax_stop"
_STEPS_AHEAD = 2  # no process is further ahead of another: each waits for the metrics of the step before
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_POLL_SECONDS = 5.0
_METADATA_HOST = "metadata.google.internal"
_NO_NOTICE = {"maintenance-event": "NONE", "preempted": "FALSE"}


class StopRequest:
    """While entered, a signal is recorded and does not end the process; `reached` decides when to stop.

    A second Ctrl-C ends the process at once, and so does the end of `grace` seconds. Python delivers signals to the main
    thread only: entered in another thread, nothing changes.
    """

    def __init__(self, grace: float):
        self.reason = ""
        """The signal or notice that requested the stop; empty before one did."""
        self._grace = grace
        self._stop_at = None if jax.process_count() == 1 else -1
        self._handlers: dict[int, Any] = {}
        self._closed = threading.Event()
        self._timer: threading.Timer | None = None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is not threading.main_thread():
            return self
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        self._sockets = reader, writer
        # Python runs handlers between bytecodes of the main thread, which may be inside a compilation or a collective for
        # minutes. The wakeup descriptor is written in the C handler itself, so that a thread sees the signal at once.
        self._wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
        threading.Thread(target=self._watch_signals, args=(reader,), daemon=True).start()
        if _on_google_cloud():
            threading.Thread(target=self._watch_notices, daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed.set()
        if self._timer:
            self._timer.cancel()
        if self._handlers:
            signal.set_wakeup_fd(self._wakeup)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            for end in reversed(self._sockets):
                end.close()

    def reached(self, step: int) -> bool:
        """Whether to stop after `step`; the same answer in every process. Must be called at every step."""
        if self._stop_at is None:
            return bool(self.reason)
        client: Any = jax_internals.distributed_client()
        # A stop "now" would be seen by the other processes at different steps, and one would save alone while another is
        # inside the next step's collectives. So the first to write the key sets a step that none has passed yet: no process
        # is more than `_STEPS_AHEAD` ahead. The store keeps the first value, and every process reads it before that step.
        if self.reason:
            with suppress(jax.errors.JaxRuntimeError):  # another process wrote the key first
                client.key_value_set(f"{_KEY}/at", f"{step + _STEPS_AHEAD} {self.reason}")
        if self._stop_at < 0:
            self._read_stop_step(client)
        return 0 <= self._stop_at <= step

    def _read_stop_step(self, client: Any) -> None:
        for _, value in client.key_value_dir_get(_KEY):
            at, _, reason = value.partition(" ")
            self._stop_at, self.reason = int(at), self.reason or f"another process: {reason}"

    def _watch_signals(self, reader: socket.socket) -> None:
        while not self._closed.is_set():
            try:
                numbers = reader.recv(16)
            except OSError:
                return
            for number in (number for number in numbers if number in _SIGNALS):
                if self.reason and number == signal.SIGINT:
                    self._exit("second Ctrl-C: stopping without a checkpoint; earlier checkpoints are kept", 130)
                self._request(signal.Signals(number).name)
            if not numbers:
                return

    def _watch_notices(self) -> None:
        while not self._closed.wait(_POLL_SECONDS):
            for name, no_notice in _NO_NOTICE.items():
                notice = _read_notice(name)
                if notice not in ("", no_notice):
                    self._request(f"Google's notice {name} {notice}")

    def _request(self, reason: str) -> None:
        if self.reason:
            return
        self.reason = reason
        logger.info("%s: saving a checkpoint, then stopping", reason)
        message = (
            f"{reason}: not stopped within {self._grace:g} s (schedule.grace_seconds); earlier checkpoints are kept"
        )
        self._timer = threading.Timer(self._grace, self._exit, (message, 1))
        self._timer.daemon = True
        self._timer.start()

    def _exit(self, message: str, code: int) -> None:
        logger.error(message)
        os._exit(code)


def _on_google_cloud() -> bool:
    product = Path("/sys/class/dmi/id/product_name")
    return "GCE_METADATA_HOST" in os.environ or (product.exists() and "Google" in product.read_text())


def _read_notice(name: str) -> str:
    host = os.environ.get("GCE_METADATA_HOST", _METADATA_HOST)
    request = urllib.request.Request(
        f"http://{host}/computeMetadata/v1/instance/{name}", headers={"Metadata-Flavor": "Google"}
    )
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return str(answer.read().decode()).strip()
    except OSError:
        return ""
