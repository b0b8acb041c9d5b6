"""Being told to stop: by a signal, by Google's notice, twice, and too late."""

import http.server
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from zephyr_jax.parallel import preemption as stop
from zephyr_jax.parallel.preemption import StopRequest

WAITING = """
import sys, time
from zephyr_jax import log
from zephyr_jax.parallel.preemption import StopRequest
log.configure()
with StopRequest(grace=float(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(60)
"""


def wait_until(true, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_remembered_and_ends_nothing(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with StopRequest(60) as request:
        assert not request.reached(3)
        os.kill(os.getpid(), number)
        wait_until(lambda: request.reached(4))
        assert request.reason == number.name
    assert signal.getsignal(number) is before
    assert f"{number.name}: saving" in capfd.readouterr().err


class Metadata(http.server.BaseHTTPRequestHandler):
    """What Google's metadata server says of this machine."""

    said = {"maintenance-event": "NONE", "preempted": "FALSE"}

    def do_GET(self) -> None:
        assert self.headers["Metadata-Flavor"] == "Google"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.said[self.path.rpartition("/")[2]].encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_notice_of_preemption_counts_as_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    server = http.server.ThreadingHTTPServer(("localhost", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GCE_METADATA_HOST", f"localhost:{server.server_port}")
    monkeypatch.setattr(stop, "_POLL_SECONDS", 0.05)
    try:
        with StopRequest(60) as request:
            time.sleep(0.3)
            assert not request.reached(0)
            monkeypatch.setitem(Metadata.said, "preempted", "TRUE")
            wait_until(lambda: request.reached(0))
            assert request.reason == "Google's notice preempted TRUE"
    finally:
        server.shutdown()
        server.server_close()


def waiting(grace: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(grace)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_second_interrupt_ends_the_process_at_once() -> None:
    process = waiting(60)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert "saving" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert "second Ctrl-C" in process.communicate(timeout=10)[1]
    assert process.returncode == 130


def test_the_end_of_grace_ends_the_process() -> None:
    """The main thread is busy elsewhere and never asks."""
    process = waiting(0.5)
    process.send_signal(signal.SIGTERM)
    assert "not stopped within 0.5 s (schedule.grace_seconds)" in process.communicate(timeout=10)[1]
    assert process.returncode == 1
