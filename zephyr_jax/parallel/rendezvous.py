"""The wait for all processes of a cluster, before JAX's own start-up, which is silent and aborts the process when time is up.

Process 0 listens at the coordinator's address until every other process has connected, then closes the port and releases all of
them; JAX's coordination service takes the port over. No secret is sent.
"""

import asyncio
import json
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field

from zephyr_jax.errors import InputError, escape_control_chars, join_items, truncate_repr

_REPORT = 30.0  # seconds between two lines about the wait
_RETRY = 1.0  # seconds between two attempts to connect
_LINE = 4096  # bytes of a message
_GREETING = 10.0  # seconds for a connection to introduce itself
_PARTING = 5.0  # seconds for connections to end
_WAIT, _GO = "wait", "go"


@dataclass(frozen=True)
class Cluster:
    """Where the processes meet, and which one this is."""

    address: str
    """host:port of process 0."""
    count: int
    process: int

    @property
    def host(self) -> str:
        """The address without its port and brackets."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port of the address."""
        return int(self.address.rpartition(":")[2])


def meet(cluster: Cluster, timeout: float) -> None:
    """Return when all processes of the cluster are here; report at once, and every 30 s, which ones are awaited.

    Raises:
        InputError: Not all came within `timeout` seconds, the port is taken, two processes have the same id, or processes
            disagree about their number.
    """
    asyncio.run(_Host(cluster, timeout).wait() if cluster.process == 0 else _Guest(cluster, timeout).wait())


def _report(text: str) -> None:
    print(escape_control_chars(text), file=sys.stderr, flush=True)


class _Clock:
    """The time that is left, and when to report next."""

    def __init__(self, timeout: float):
        self._timeout, self._begun = timeout, time.monotonic()
        self._next = _REPORT

    @property
    def left(self) -> float:
        return self._begun + self._timeout - time.monotonic()

    def pause(self) -> float:
        """Seconds until the next report or the end."""
        return max(0.0, min(self._begun + self._next - time.monotonic(), self.left))

    def due(self) -> str:
        """`30 of 1,800 s` when a report is due, else empty."""
        passed = time.monotonic() - self._begun
        if passed < self._next:
            return ""
        self._next = (passed // _REPORT + 1) * _REPORT
        return f"{passed:,.0f} of {self._timeout:,.0f} s"


HINT = (
    "Start the same command on every host, with the same JAX_COORDINATOR_ADDRESS (host:port of process 0, open to the others), "
    "the same JAX_NUM_PROCESSES and each its own JAX_PROCESS_ID; on TPU pods and SLURM none of them is needed. "
    "ZEPHYR_JAX_JOIN_TIMEOUT sets the longest wait in seconds."
)
"""What to do about processes that do not meet."""


@dataclass
class _Host:
    """Process 0."""

    cluster: Cluster
    timeout: float
    here: dict[int, asyncio.StreamWriter] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    connections: dict[asyncio.Task[None], asyncio.StreamWriter] = field(default_factory=dict)

    async def wait(self) -> None:
        clock = _Clock(self.timeout)
        try:
            server = await asyncio.start_server(self._greet, None, self.cluster.port, limit=_LINE)
        except OSError as error:
            raise InputError(
                f"Process 0 cannot listen at {self.cluster.address}: {error.strerror or error}. Another run may still hold the "
                "port: end it, or name another port in JAX_COORDINATOR_ADDRESS on every host."
            ) from error
        _report(f"process 0 of {self.cluster.count} at {self.cluster.address}: waiting for {self._missing()}")
        try:
            while len(self.here) < self.cluster.count - 1:
                if clock.left <= 0:
                    raise InputError(
                        f"{self._missing().capitalize()} did not reach process 0 at {self.cluster.address} within "
                        f"{self.timeout:,.0f} s. {HINT}"
                    )
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), clock.pause())
                self.changed.clear()
                if passed := clock.due():
                    _report(f"process 0 of {self.cluster.count}: still waiting for {self._missing()} ({passed})")
        except InputError as error:
            await self._release(f"process 0 ended: {error}")
            raise
        finally:
            server.close()  # before the others are released: JAX's service needs the port
        await self._release(_GO)

    def _missing(self) -> str:
        missing = [process for process in range(1, self.cluster.count) if process not in self.here]
        return f"process{'es' if len(missing) > 1 else ''} {join_items(missing)}"

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until its process is released or goes away."""
        if task := asyncio.current_task():
            self.connections[task] = writer
        process = await _introduced(reader)
        problem = "" if process is None else self._problem(*process)
        if process is None or problem:
            if problem:
                _report(f"process 0 of {self.cluster.count}: refused a process: {problem}")
                await _send(writer, problem)
            writer.close()
            return
        self.here[process[0]] = writer
        self.changed.set()
        await _send(writer, _WAIT)
        with suppress(OSError, ValueError):
            await reader.read(1)  # returns when the other side is gone
        if self.here.get(process[0]) is writer:
            del self.here[process[0]]
        writer.close()

    def _problem(self, process: int, count: int) -> str:
        if count != self.cluster.count:
            return f"JAX_NUM_PROCESSES is {count} in process {process} and {self.cluster.count} in process 0"
        if not 0 < process < count:
            return f"JAX_PROCESS_ID {process} is not one of 1 to {count - 1}; process 0 is here already"
        return f"two processes have JAX_PROCESS_ID {process}" if process in self.here else ""

    async def _release(self, message: str) -> None:
        """Send every process that waits the same message, and end all connections."""
        for writer in list(self.here.values()):
            await _send(writer, message)
        for writer in self.connections.values():
            writer.close()
        if self.connections:
            await asyncio.wait(self.connections, timeout=_PARTING)


async def _introduced(reader: asyncio.StreamReader) -> tuple[int, int] | None:
    """Process and count of a connection that introduces itself as one of ours; None for a stranger."""
    try:
        content = json.loads(await asyncio.wait_for(reader.readline(), _GREETING))
        process, count = content["zephyr-jax process"], content["of"]
    except (OSError, ValueError, KeyError, TypeError, TimeoutError, RecursionError):
        return None
    return (process, count) if type(process) is int and type(count) is int else None


async def _send(writer: asyncio.StreamWriter, message: str) -> None:
    with suppress(OSError):
        writer.write((json.dumps(message) + "\n").encode())
        await writer.drain()


@dataclass
class _Guest:
    """A process other than 0."""

    cluster: Cluster
    timeout: float
    reason: str = "no answer yet"
    """Why it waits."""

    async def wait(self) -> None:
        clock = _Clock(self.timeout)
        who, where = f"process {self.cluster.process} of {self.cluster.count}", self.cluster.address
        _report(f"{who}: waiting for process 0 at {where}")
        attempt = asyncio.ensure_future(self._attempt())
        try:
            while True:
                await asyncio.wait([attempt], timeout=clock.pause())
                if attempt.done() and attempt.result():
                    return
                if attempt.done():
                    await asyncio.sleep(max(0.0, min(_RETRY, clock.left)))
                    attempt = asyncio.ensure_future(self._attempt())
                if clock.left <= 0:
                    raise InputError(
                        f"{who.capitalize()} cannot join the others at {where} within {self.timeout:,.0f} s: {self.reason}. "
                        f"{HINT}"
                    )
                if passed := clock.due():
                    _report(f"{who}: still waiting at {where}: {self.reason} ({passed})")
        finally:
            attempt.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await attempt

    async def _attempt(self) -> bool:
        """Whether process 0 released this one; keeps the reason where it did not. Raises InputError where it refused."""
        try:
            reader, writer = await asyncio.open_connection(self.cluster.host, self.cluster.port, limit=_LINE)
        except OSError as error:  # also names that are not known yet
            self.reason = f"process 0 does not answer ({error.strerror or error})"
            return False
        try:
            greeting = {"zephyr-jax process": self.cluster.process, "of": self.cluster.count}
            writer.write((json.dumps(greeting) + "\n").encode())
            await writer.drain()
            answer = await reader.readline()
            if _message(answer) == _WAIT:
                self.reason = "process 0 is there and waits for others"
                answer = await reader.readline()
        except (OSError, ValueError) as error:  # ValueError: a line without an end
            self.reason = f"the connection broke ({error})"
            return False
        finally:
            writer.close()
        return self._released(answer)

    def _released(self, answer: bytes) -> bool:
        message = _message(answer)
        if message == _GO:
            return True
        if message:
            raise InputError(f"Process 0 at {self.cluster.address} refused process {self.cluster.process}: {message}.")
        stranger = f"another program answers there ({truncate_repr(answer[:40])})"
        self.reason = stranger if answer else "process 0 closed the connection"
        return False


def _message(line: bytes) -> str:
    """What process 0 wrote; empty where the line is not one of its own."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    return message if isinstance(message, str) else ""
