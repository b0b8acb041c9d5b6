"""A judge on loopback whose replies a test decides."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from zephyr_jax.serve.loopback import on_loopback


@dataclass(frozen=True)
class Answer:
    """What a request gets: text in the usual frame, or an error, or bytes of any kind, or half of them."""

    status: int = 200
    text: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    raw: str | None = None
    """Instead of the usual frame."""
    wait: float = 0.0
    """Seconds of silence before."""
    cut: bool = False
    """The connection ends in the middle of the body."""


type Reply = Callable[[dict[str, Any], int], Answer | tuple[int, str]]
"""(body of the request, its number) -> what it gets; a pair is status and text."""


@contextmanager
def judge_at(reply: Reply) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An address, and the requests that came to it."""
    asked: list[dict[str, Any]] = []

    async def chat(request: web.Request) -> web.Response:
        asked.append({**await request.json(), "key": request.headers.get("Authorization")})
        given = reply(asked[-1], len(asked))
        return await answered(request, given if isinstance(given, Answer) else Answer(*given))

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "wise"}]})

    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", models)
    with on_loopback(app) as url:
        yield url, asked


async def answered(request: web.Request, answer: Answer) -> web.Response:
    """What goes over the wire."""
    await asyncio.sleep(answer.wait)
    if answer.cut:
        assert request.transport
        request.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{")
        request.transport.close()
    if answer.raw is not None:
        return web.Response(status=answer.status, text=answer.raw, headers=answer.headers)
    if answer.status != 200:
        error = {"error": {"message": answer.text}}
        return web.json_response(error, status=answer.status, headers=answer.headers)
    choice = {"message": {"role": "assistant", "content": answer.text}, "finish_reason": "stop"}
    content = {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 10}}
    return web.json_response(content, headers=answer.headers)
