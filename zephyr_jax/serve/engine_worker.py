"""The engine in a thread of its own, and requests that come to it from an event loop."""

import asyncio
import queue
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from zephyr_jax.errors import escape_control_chars
from zephyr_jax.generate.engine import Engine, Piece, Request
from zephyr_jax.serve.protocol import Refusal

type _Order = Callable[[], None]


class Desk:
    """Takes requests from coroutines and gives them what the engine makes; `most` may wait or be at work at one time."""

    def __init__(self, engine: Engine, most: int):
        self._engine, self._most = engine, most
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._listeners: dict[int, Callable[[Piece | Refusal], None]] = {}
        self._open = 0
        self._failure = ""
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def open_requests(self) -> int:
        """Answers that have not ended."""
        return self._open

    @property
    def failure(self) -> str:
        """Why the engine has stopped for good; empty while it works."""
        return self._failure

    def close(self) -> None:
        """Let the thread end."""
        self._orders.put(None)
        self._thread.join()

    @contextmanager
    def slots(self, count: int) -> Iterator[None]:
        """Room for `count` answers: all of them or none, so that no part of a refused request holds a slot.

        Raises Refusal: 429 when too many are open, 422 when so many can never be.
        """
        if count > self._most:
            raise Refusal(
                422, f"Expected n of at most {self._most}, the answers open at one time; got {count}.", param="n"
            )
        if self._open + count > self._most:
            raise Refusal(
                429, f"{self._open} requests are open, and {self._most} may be. Try again later.", "rate_limit_error"
            )
        self._open += count
        try:
            yield
        finally:
            self._open -= count

    @asynccontextmanager
    async def ask(self, request: Request) -> AsyncIterator[AsyncIterator[Piece]]:
        """The pieces of an answer, whose slot is held; leaving the block early cancels the request.

        The pieces raise Refusal when the request fails or the engine has stopped.
        """
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Piece | Refusal]()
        number: list[int] = []

        def listen(piece: Piece | Refusal) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def submit() -> None:
            try:
                number.append(self._engine.submit(request))
            except ValueError as error:  # this one does not fit; others do
                listen(Refusal(422, f"The request does not fit: {error}."))
            except Exception as error:  # whatever it is, it concerns this request only
                listen(_failed(error))
            else:
                self._listeners[number[0]] = listen
                if self._failure:
                    listen(self._stopped())

        def forget() -> None:
            for each in number:
                self._engine.cancel(each)
                self._listeners.pop(each, None)

        self._orders.put(submit)
        try:
            yield self._pieces(pieces)
        finally:
            self._orders.put(forget)

    async def _pieces(self, pieces: asyncio.Queue[Piece | Refusal]) -> AsyncIterator[Piece]:
        while True:
            piece = await pieces.get()
            if isinstance(piece, Refusal):
                raise piece
            if piece.end == "error":
                raise Refusal(500, f"This answer failed: {piece.error}.", "server_error")
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
        except BaseException as error:  # whatever it is, clients that wait must get it, and those that come later
            self._failure = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            print(
                f"the engine has stopped: {escape_control_chars(self._failure)}; /health answers 503 until the server is "
                "started again",
                file=sys.stderr,
                flush=True,
            )
            for listener in self._listeners.values():
                listener(self._stopped())
            while (order := self._orders.get()) is not None:
                order()

    def _stopped(self) -> Refusal:
        return Refusal(500, f"The engine has stopped: {self._failure}", "server_error")

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


def _failed(error: Exception) -> Refusal:
    return Refusal(500, f"This answer failed: {type(error).__name__}: {error}.", "server_error")
