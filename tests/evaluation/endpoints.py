"""A judge on loopback whose replies a test decides."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

type Reply = Callable[[dict[str, Any], int], tuple[int, str]]
"""(body of the request, its number) -> status and text."""


@contextmanager
def judge_at(reply: Reply) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An address, and the requests that came to it."""
    asked: list[dict[str, Any]] = []
    ready, loop = threading.Event(), asyncio.new_event_loop()
    port: list[int] = []

    async def chat(request: web.Request) -> web.Response:
        asked.append({**await request.json(), "key": request.headers.get("Authorization")})
        status, text = reply(asked[-1], len(asked))
        if status != 200:
            return web.json_response({"error": {"message": text}}, status=status)
        message = {"choices": [{"message": {"role": "assistant", "content": text}}]}
        return web.json_response({**message, "usage": {"prompt_tokens": 100, "completion_tokens": 10}})

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "wise"}]})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", models)
    runner = web.AppRunner(app)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port.append(runner.addresses[0][1])
        ready.set()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(start())
        loop.run_forever()
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait()
    try:
        yield f"http://127.0.0.1:{port[0]}/v1", asked
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
