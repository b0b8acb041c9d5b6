"""Wait for all processes of a cluster before JAX's own startup, which is silent and aborts the process on a timeout.

Process 0 listens at the coordinator's address until every other process has connected, then closes the port and releases
them; JAX's coordination service takes the port over. No secret is sent.
"""

import asyncio
import json
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field

from zephyr_jax.errors import InputError, escape_control_chars, join_items, truncate_repr

logger = logging.getLogger(__name__)

_LOG_INTERVAL = 30.0  # seconds
_RETRY_INTERVAL = 1.0  # seconds between two attempts to connect
_MAX_LINE = 4096  # bytes of a message
_GREETING_TIMEOUT = 10.0  # seconds for a connection to introduce itself
_CLOSE_TIMEOUT = 5.0  # seconds for connections to end
_WAIT, _GO = "wait", "go"

HINT = (
    "Start the same command on every host with the same JAX_COORDINATOR_ADDRESS (host:port of process 0, reachable from the "
    "others), the same JAX_NUM_PROCESSES and a different JAX_PROCESS_ID; TPU pods and SLURM set them for you. "
    "ZEPHYR_JAX_JOIN_TIMEOUT is the timeout in seconds."
)
"""The fix for processes that do not find each other."""


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


def wait_for_cluster(cluster: Cluster, timeout: float) -> None:
    """Return when all processes of the cluster are connected; log at once, and every 30 s, which ones are missing.

    Raises:
        InputError: Some did not connect within `timeout` seconds, the port is taken, two processes have the same id, or
            processes disagree about their number.
    """
    asyncio.run(_Coordinator(cluster, timeout).wait() if cluster.process == 0 else _Worker(cluster, timeout).wait())


class _Deadline:
    """The remaining time, and when to log next."""

    def __init__(self, timeout: float):
        self._timeout, self._start = timeout, time.monotonic()
        self._next_log = _LOG_INTERVAL

    @property
    def remaining(self) -> float:
        return self._start + self._timeout - time.monotonic()

    def wait_seconds(self) -> float:
        """Seconds until the next log line or the deadline."""
        return max(0.0, min(self._start + self._next_log - time.monotonic(), self.remaining))

    def log_text(self) -> str:
        """`30 of 1,800 s` when a log line is due, else empty."""
        elapsed = time.monotonic() - self._start
        if elapsed < self._next_log:
            return ""
        self._next_log = (elapsed // _LOG_INTERVAL + 1) * _LOG_INTERVAL
        return f"{elapsed:,.0f} of {self._timeout:,.0f} s"


@dataclass
class _Coordinator:
    """Process 0."""

    cluster: Cluster
    timeout: float
    connected: dict[int, asyncio.StreamWriter] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    connections: dict[asyncio.Task[None], asyncio.StreamWriter] = field(default_factory=dict)

    async def wait(self) -> None:
        deadline = _Deadline(self.timeout)
        try:
            server = await asyncio.start_server(self._serve, None, self.cluster.port, limit=_MAX_LINE)
        except OSError as error:
            raise InputError(
                f"process 0 could not listen at {self.cluster.address}: {error.strerror or error}. Another run may hold the "
                "port: end it, or choose another port in JAX_COORDINATOR_ADDRESS on every host."
            ) from error
        self._log(f"waiting for {self._missing()} at {self.cluster.address}")
        try:
            while len(self.connected) < self.cluster.count - 1:
                if deadline.remaining <= 0:
                    raise InputError(
                        f"{self._missing()} did not reach process 0 at {self.cluster.address} within {self.timeout:,.0f} s. "
                        f"{HINT}"
                    )
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), deadline.wait_seconds())
                self.changed.clear()
                if elapsed := deadline.log_text():
                    self._log(f"still waiting for {self._missing()} ({elapsed})")
        except InputError as error:
            await self._release(f"process 0 ended: {error}")
            raise
        finally:
            server.close()  # before the others are released: JAX's service needs the port
        await self._release(_GO)

    def _log(self, text: str) -> None:
        logger.info("process 0 of %d: %s", self.cluster.count, escape_control_chars(text))

    def _missing(self) -> str:
        missing = [process for process in range(1, self.cluster.count) if process not in self.connected]
        return f"process{'es' if len(missing) > 1 else ''} {join_items(missing)}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one connection, until its process is released or disconnects."""
        if task := asyncio.current_task():
            self.connections[task] = writer
        greeting = await _read_greeting(reader)
        problem = "" if greeting is None else self._problem(*greeting)
        if greeting is None or problem:
            if problem:
                self._log(f"refused a process: {problem}")
                await _send(writer, problem)
            writer.close()
            return
        process, _ = greeting
        self.connected[process] = writer
        self.changed.set()
        await _send(writer, _WAIT)
        with suppress(OSError, ValueError):
            await reader.read(1)  # returns when the other side disconnects
        if self.connected.get(process) is writer:
            del self.connected[process]
        writer.close()

    def _problem(self, process: int, count: int) -> str:
        if count != self.cluster.count:
            return f"JAX_NUM_PROCESSES is {count} in process {process} and {self.cluster.count} in process 0"
        if not 0 < process < count:
            return f"expected JAX_PROCESS_ID from 1 to {count - 1}, got {process}"
        return f"two processes have JAX_PROCESS_ID {process}" if process in self.connected else ""

    async def _release(self, message: str) -> None:
        """Send every connected process the same message, and end all connections."""
        for writer in list(self.connected.values()):
            await _send(writer, message)
        for writer in self.connections.values():
            writer.close()
        if self.connections:
            await asyncio.wait(self.connections, timeout=_CLOSE_TIMEOUT)


async def _read_greeting(reader: asyncio.StreamReader) -> tuple[int, int] | None:
    """Process and count of a zephyr-jax process; None for any other program."""
    try:
        content = json.loads(await asyncio.wait_for(reader.readline(), _GREETING_TIMEOUT))
        process, count = content["zephyr-jax process"], content["of"]
    except (OSError, ValueError, KeyError, TypeError, TimeoutError, RecursionError):
        return None
    return (process, count) if type(process) is int and type(count) is int else None


async def _send(writer: asyncio.StreamWriter, message: str) -> None:
    with suppress(OSError):
        writer.write((json.dumps(message) + "\n").encode())
        await writer.drain()


@dataclass
class _Worker:
    """A process other than 0."""

    cluster: Cluster
    timeout: float
    reason: str = "no answer yet"
    """Why it waits."""

    async def wait(self) -> None:
        deadline = _Deadline(self.timeout)
        name, address = f"process {self.cluster.process} of {self.cluster.count}", self.cluster.address
        logger.info("%s: waiting for process 0 at %s", name, address)
        attempt = asyncio.ensure_future(self._attempt())
        try:
            while True:
                await asyncio.wait([attempt], timeout=deadline.wait_seconds())
                if attempt.done() and attempt.result():
                    return
                if attempt.done():
                    await asyncio.sleep(max(0.0, min(_RETRY_INTERVAL, deadline.remaining)))
                    attempt = asyncio.ensure_future(self._attempt())
                if deadline.remaining <= 0:
                    raise InputError(
                        f"{name} could not join the cluster at {address} within {self.timeout:,.0f} s: {self.reason}. {HINT}"
                    )
                if elapsed := deadline.log_text():
                    logger.info(
                        "%s: still waiting at %s: %s (%s)", name, address, escape_control_chars(self.reason), elapsed
                    )
        finally:
            attempt.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await attempt

    async def _attempt(self) -> bool:
        """Whether process 0 released this one; sets `reason` otherwise. Raises InputError when it refused."""
        try:
            reader, writer = await asyncio.open_connection(self.cluster.host, self.cluster.port, limit=_MAX_LINE)
        except OSError as error:  # includes names that do not resolve yet
            self.reason = f"process 0 does not answer ({error.strerror or error})"
            return False
        try:
            greeting = {"zephyr-jax process": self.cluster.process, "of": self.cluster.count}
            writer.write((json.dumps(greeting) + "\n").encode())
            await writer.drain()
            answer = await reader.readline()
            if _parse_message(answer) == _WAIT:
                self.reason = "process 0 waits for other processes"
                answer = await reader.readline()
        except (OSError, ValueError) as error:  # ValueError: a line without an end
            self.reason = f"the connection broke ({error})"
            return False
        finally:
            writer.close()
        return self._is_released(answer)

    def _is_released(self, answer: bytes) -> bool:
        message = _parse_message(answer)
        if message == _GO:
            return True
        if message:
            raise InputError(f"process 0 at {self.cluster.address} refused process {self.cluster.process}: {message}.")
        other_program = f"another program answers at this address ({truncate_repr(answer[:40])})"
        self.reason = other_program if answer else "process 0 closed the connection"
        return False


def _parse_message(line: bytes) -> str:
    """The message of process 0; empty when the line is from another program."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    return message if isinstance(message, str) else ""
