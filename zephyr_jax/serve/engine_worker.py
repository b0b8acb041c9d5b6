"""The engine in a background thread, with requests from an event loop."""

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from zephyr_jax.errors import escape_control_chars
from zephyr_jax.generate.engine import Engine, GenerationRequest, RequestOutput
from zephyr_jax.serve.protocol import ApiError

_logger = logging.getLogger(__name__)
type _Task = Callable[[], None]


class EngineWorker:
    """Runs an engine in a thread for coroutines of one event loop.

    Args:
        engine: used by the thread alone from here on.
        max_open: answers that may be queued or generated at one time.
    """

    def __init__(self, engine: Engine, max_open: int):
        self._engine, self._max_open = engine, max_open
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._listeners: dict[int, Callable[[RequestOutput | ApiError], None]] = {}
        self._open = 0
        self._failure = ""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def open_requests(self) -> int:
        """Number of unfinished answers."""
        return self._open

    @property
    def failure(self) -> str:
        """The error that stopped the engine for good; empty while it works."""
        return self._failure

    def close(self) -> None:
        """Stop the thread."""
        self._tasks.put(None)
        self._thread.join()

    @contextmanager
    def slots(self, count: int) -> Iterator[None]:
        """Reserve slots for `count` answers during the block: all or none, so that a rejected request holds no slot.

        Raises ApiError: 429 if too many answers are open, 422 if `count` exceeds all slots.
        """
        if count > self._max_open:
            raise ApiError(
                422, f"Expected n of at most {self._max_open}, the answers open at one time; got {count}.", param="n"
            )
        if self._open + count > self._max_open:
            message = f"{self._open} requests are open, and {self._max_open} may be. Try again later."
            raise ApiError(429, message, "rate_limit_error")
        self._open += count
        try:
            yield
        finally:
            self._open -= count

    @asynccontextmanager
    async def submit(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[RequestOutput]]:
        """Outputs of a request whose slot is reserved; leaving the block early cancels the request.

        Iterating raises ApiError if the request fails or the engine has stopped.
        """
        loop, outputs = asyncio.get_running_loop(), asyncio.Queue[RequestOutput | ApiError]()
        request_ids: list[int] = []

        def listen(output: RequestOutput | ApiError) -> None:
            with suppress(RuntimeError):  # the loop is closed, so the client is gone
                loop.call_soon_threadsafe(outputs.put_nowait, output)

        def start() -> None:
            try:
                request_ids.append(self._engine.submit(request))
            except ValueError as error:
                listen(ApiError(422, f"The request does not fit: {error}."))
            except Exception as error:  # of this request only
                listen(ApiError(500, f"This answer failed: {type(error).__name__}: {error}.", "server_error"))
            else:
                self._listeners[request_ids[0]] = listen
                if self._failure:
                    listen(self._stopped_error())

        def cancel() -> None:
            for request_id in request_ids:
                self._engine.cancel(request_id)
                self._listeners.pop(request_id, None)

        self._tasks.put(start)
        try:
            yield self._iterate(outputs)
        finally:
            self._tasks.put(cancel)

    async def _iterate(self, outputs: asyncio.Queue[RequestOutput | ApiError]) -> AsyncIterator[RequestOutput]:
        while True:
            output = await outputs.get()
            if isinstance(output, ApiError):
                raise output
            if output.finish_reason == "error":
                raise ApiError(500, f"This answer failed: {output.error}.", "server_error")
            yield output
            if output.finish_reason:
                return

    def _run(self) -> None:
        try:
            while self._run_tasks():
                for output in self._engine.step():
                    listener = self._listeners.get(output.request_id)
                    if listener is not None:
                        listener(output)
        except BaseException as error:  # current and later clients must get an error instead of waiting forever
            self._failure = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            _logger.error(
                "the engine has stopped: %s; /health answers 503 until the server is restarted",
                escape_control_chars(self._failure),
            )
            for listener in self._listeners.values():
                listener(self._stopped_error())
            while (task := self._tasks.get()) is not None:
                task()

    def _stopped_error(self) -> ApiError:
        return ApiError(500, f"The engine has stopped: {self._failure}", "server_error")

    def _run_tasks(self) -> bool:
        """Run queued tasks, waiting for one while the engine is idle. Returns False after `close`."""
        while True:
            try:
                task = self._tasks.get(block=not self._engine.busy)
            except queue.Empty:
                return True
            if task is None:
                return False
            task()
