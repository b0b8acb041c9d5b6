"""The engine in a thread of its own, and requests that come to it from an event loop."""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from zephyr_jax.generation.engine import Engine, Piece, Request
from zephyr_jax.serving.protocol import Refusal

type _Order = Callable[[], None]


class Desk:
    """Takes requests from coroutines and gives them what the engine makes; `most` may wait or be at work at one time."""

    def __init__(self, engine: Engine, most: int):
        self._engine, self._most = engine, most
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._listeners: dict[int, Callable[[Piece | Exception], None]] = {}
        self._open = 0
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def open_requests(self) -> int:
        """Requests that have not ended."""
        return self._open

    def close(self) -> None:
        """Let the thread end."""
        self._orders.put(None)
        self._thread.join()

    @asynccontextmanager
    async def ask(self, request: Request) -> AsyncIterator[AsyncIterator[Piece]]:
        """The pieces of an answer; leaving the block early forgets the request. Raises Refusal when too many wait."""
        if self._open >= self._most:
            raise Refusal(
                429, f"{self._open} requests are open, and {self._most} may be. Try again later.", "rate_limit_error"
            )
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Piece | Exception]()
        number: list[int] = []

        def listen(piece: Piece | Exception) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def submit() -> None:
            try:
                number.append(self._engine.submit(request))
            except ValueError as error:  # this one does not fit; others do
                listen(error)
                return
            self._listeners[number[0]] = listen

        def forget() -> None:
            for each in number:
                self._engine.cancel(each)
                self._listeners.pop(each, None)

        self._open += 1
        self._orders.put(submit)
        try:
            yield self._pieces(pieces)
        finally:
            self._open -= 1
            self._orders.put(forget)

    async def _pieces(self, pieces: asyncio.Queue[Piece | Exception]) -> AsyncIterator[Piece]:
        while True:
            piece = await pieces.get()
            if isinstance(piece, Exception):
                raise Refusal(500, f"The engine has stopped: {piece}", "server_error")
            yield piece
            if piece.end:
                return

    def _work(self) -> None:
        try:
            while self._take_orders():
                for piece in self._engine.step():
                    listener = self._listeners.get(piece.number)
                    if listener is not None:
                        listener(piece)
        except Exception as error:  # whatever it is, those who wait must hear of it, and those who come later
            self._tell_all(error)
            while (order := self._orders.get()) is not None:
                order()
                self._tell_all(error)

    def _tell_all(self, error: Exception) -> None:
        for listener in self._listeners.values():
            listener(error)

    def _take_orders(self) -> bool:
        """Do what has been ordered; wait for orders where there is nothing else to do. False: the end."""
        while True:
            try:
                order = self._orders.get(block=not self._engine.busy)
            except queue.Empty:
                return True
            if order is None:
                return False
            order()
