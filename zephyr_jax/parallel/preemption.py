"""Being told to stop: SIGTERM (a preempted host, a job's end), Ctrl-C, or Google's notice of a host's maintenance.

Whoever is told, all processes stop at the same step, so that what they save together is whole.
"""

import os
import signal
import socket
import sys
import threading
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
from jax._src import distributed

_FOLDER = "zephyr_jax_stop"
_AHEAD = 2  # no process is more than a step ahead: each waits for the metrics of the step before
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_POLL = 5.0
_HOST = "metadata.google.internal"
_QUIET = {"maintenance-event": "NONE", "preempted": "FALSE"}


class StopRequest:
    """While entered, a signal is remembered and no longer ends the process; `reached` says when to stop.

    A second Ctrl-C ends the process at once, and so does the end of `grace` seconds. Signals are taken in the main thread
    only: elsewhere nothing is changed.
    """

    def __init__(self, grace: float):
        self.reason = ""
        """Who asked, once somebody has."""
        self._grace, self._stop_at = grace, None if jax.process_count() == 1 else -1
        self._handlers: dict[int, Any] = {}
        self._over = threading.Event()
        self._timer: threading.Timer | None = None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is not threading.main_thread():
            return self
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        self._sockets = reader, writer
        self._wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
        # the main thread may be inside a compilation or a collective, so others watch
        threading.Thread(target=self._watch_signals, args=(reader,), daemon=True).start()
        if _on_google():
            threading.Thread(target=self._watch_notices, daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        if self._timer:
            self._timer.cancel()
        if self._handlers:
            signal.set_wakeup_fd(self._wakeup)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            for each in reversed(self._sockets):
                each.close()

    def reached(self, step: int) -> bool:
        """Whether to stop before the step after `step`; the same answer in every process. To be asked at every step."""
        if self._stop_at is None:
            return bool(self.reason)
        client: Any = distributed.global_state.client
        if self.reason:
            with suppress(jax.errors.JaxRuntimeError):  # another process was told, too, and first
                client.key_value_set(f"{_FOLDER}/at", f"{step + _AHEAD} {self.reason}")
        if self._stop_at < 0:
            self._ask(client)
        return 0 <= self._stop_at <= step

    def _ask(self, client: Any) -> None:
        for _, value in client.key_value_dir_get(_FOLDER):
            at, _, reason = value.partition(" ")
            self._stop_at, self.reason = int(at), self.reason or f"another process: {reason}"

    def _watch_signals(self, reader: socket.socket) -> None:
        while not self._over.is_set():
            try:
                numbers = reader.recv(16)
            except OSError:
                return
            for number in (number for number in numbers if number in _SIGNALS):
                if self.reason and number == signal.SIGINT:
                    self._leave("interrupted twice: stopped at once; what was saved before stays.", 130)
                self._ask_for(signal.Signals(number).name)
            if not numbers:
                return

    def _watch_notices(self) -> None:
        while not self._over.wait(_POLL):
            for name, quiet in _QUIET.items():
                said = _notice(name)
                if said not in ("", quiet):
                    self._ask_for(f"Google's notice {name} {said}")

    def _ask_for(self, reason: str) -> None:
        if self.reason:
            return
        self.reason = reason
        print(f"{reason}: saving, then stopping", file=sys.stderr, flush=True)
        self._timer = threading.Timer(
            self._grace,
            self._leave,
            (
                f"not stopped within schedule.grace_seconds ({self._grace:g} s) after {reason}: what was saved before stays.",
                1,
            ),
        )
        self._timer.daemon = True
        self._timer.start()

    def _leave(self, message: str, code: int) -> None:
        print(message, file=sys.stderr, flush=True)
        os._exit(code)


def _on_google() -> bool:
    product = Path("/sys/class/dmi/id/product_name")
    return "GCE_METADATA_HOST" in os.environ or (product.exists() and "Google" in product.read_text())


def _notice(name: str) -> str:
    host = os.environ.get("GCE_METADATA_HOST", _HOST)
    request = urllib.request.Request(
        f"http://{host}/computeMetadata/v1/instance/{name}", headers={"Metadata-Flavor": "Google"}
    )
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return answer.read().decode().strip()
    except OSError:
        return ""
