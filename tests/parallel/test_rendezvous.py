"""Processes that wait for one another, here threads over loopback: what they print, and how they end when not all come."""

import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.methods.hosts import free_port
from zephyr_jax.errors import InputError
from zephyr_jax.parallel import rendezvous
from zephyr_jax.parallel.rendezvous import Cluster, wait_for_cluster


class Meeting:
    """Several calls of `wait_for_cluster`, each in a thread."""

    def __init__(self, pool: ThreadPoolExecutor):
        self.address, self._pool = f"localhost:{free_port()}", pool

    def join(self, process: int, count: int, timeout: float = 30.0) -> "Future[None]":
        return self._pool.submit(wait_for_cluster, Cluster(self.address, count, process), timeout)

    def connect(self) -> socket.socket:
        """A connection to process 0, as soon as it listens."""
        for _ in range(100):
            try:
                return socket.create_connection(("localhost", int(self.address.rpartition(":")[2])))
            except OSError:
                time.sleep(0.05)
        raise TimeoutError


@pytest.fixture
def meeting() -> "Meeting":
    return Meeting(ThreadPoolExecutor(8))


def error(joined: "Future[None]") -> str:
    with pytest.raises(InputError) as found:
        joined.result(timeout=30)
    return str(found.value)


def test_all_that_come_go_on_whatever_their_order(meeting: Meeting) -> None:
    """Others may start before process 0; afterwards the port is free for JAX."""
    early = meeting.join(2, 3)
    time.sleep(0.3)
    for joined in (meeting.join(0, 3), meeting.join(1, 3), early):
        joined.result(timeout=30)
    meeting.join(0, 1).result(timeout=30)


def test_process_0_that_never_comes_is_named_at_once_and_in_the_end(
    meeting: Meeting, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "_LOG_INTERVAL", 0.5)
    monkeypatch.setattr(rendezvous, "_RETRY_INTERVAL", 0.1)
    text = error(meeting.join(1, 2, timeout=1.4))
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].endswith(f"process 1 of 2: waiting for process 0 at {meeting.address}")
    assert len(lines) == 3
    assert "still waiting" in lines[1]
    assert all(part in text for part in ("process 1 of 2", meeting.address, "within 1 s", "process 0 does not answer"))
    assert "ZEPHYR_JAX_JOIN_TIMEOUT" in text


def test_all_end_with_the_name_of_the_process_that_is_missing(
    meeting: Meeting, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of three, process 2 never starts: process 0 names it, and process 1, which would wait longer, ends with it."""
    first, second = meeting.join(0, 3, timeout=1.5), meeting.join(1, 3)
    for joined in (first, second):
        assert f"process 2 did not reach process 0 at {meeting.address} within 2 s" in error(joined)
    assert f"process 0 of 3: waiting for processes 1, 2 at {meeting.address}" in capfd.readouterr().err


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", b"", b"[" * 3000 + b"\n", b'{"of": 1}\n', b"\xff" * 9000])
def test_strangers_are_not_counted(meeting: Meeting, sent: bytes) -> None:
    first = meeting.join(0, 2)
    with meeting.connect() as stranger:
        stranger.sendall(sent)
        time.sleep(0.2)
        assert not first.done()
        meeting.join(1, 2).result(timeout=30)
        first.result(timeout=30)


def test_a_process_that_goes_away_while_it_waits_may_come_again(meeting: Meeting) -> None:
    first = meeting.join(0, 3)
    with meeting.connect() as lost:
        lost.sendall(b'{"zephyr-jax process": 1, "of": 3}\n')
        time.sleep(0.3)
    time.sleep(0.3)
    second = meeting.join(2, 3)
    time.sleep(0.5)
    assert not first.done()
    for joined in (meeting.join(1, 3), first, second):
        joined.result(timeout=30)


@pytest.mark.parametrize(
    ("count", "process", "problem"),
    [
        (2, 1, "JAX_NUM_PROCESSES is 2 in process 1 and 3 in process 0"),
        (3, 1, "two processes have JAX_PROCESS_ID 1"),
        (3, 7, "expected JAX_PROCESS_ID from 1 to 2, got 7"),
    ],
)
def test_processes_that_contradict_each_other_are_named(
    meeting: Meeting, capfd: pytest.CaptureFixture[str], count: int, process: int, problem: str
) -> None:
    """In the process that is refused, and in process 0."""
    first, good = meeting.join(0, 3, timeout=4), meeting.join(1, 3)
    time.sleep(0.5)
    errors = [error(meeting.join(process, count)), error(good)]
    (refused,) = (text for text in errors if problem in text)  # of two with one id, the one that came second
    errors.remove(refused)
    assert all("did not reach process 0" in text for text in [error(first), *errors])
    assert f"refused a process: {problem}" in capfd.readouterr().err


def test_a_port_that_another_program_has_is_named(meeting: Meeting) -> None:
    with socket.create_server(("", free_port())) as taken:
        meeting.address = f"localhost:{taken.getsockname()[1]}"
        assert f"process 0 could not listen at {meeting.address}" in error(meeting.join(0, 2))
        joined = meeting.join(1, 2, timeout=2.5)
        connection, _ = taken.accept()
        connection.sendall(b"\x00\x00\x06\x04 settings\n")
        assert "another program answers" in error(joined)
        connection.close()
