"""A real server with our tiny model, and a bad connection to any server."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from aiohttp import ClientSession, web

from tests.clients.endpoints import Answer, answered
from zephyr_jax.config.models import ServeConfig
from zephyr_jax.config.sections import ModelOptions
from zephyr_jax.serve.app import make_app
from zephyr_jax.serve.loopback import on_loopback
from zephyr_jax.serve.serve import open_server


@contextmanager
def our_server(model: Path) -> Iterator[str]:
    """`zephyr-jax serve` in this process."""
    options = ModelOptions(path=str(model), compute_dtype="float32")
    served = open_server(
        ServeConfig(model=options, name="tiny", context_length=512, max_concurrency=8, chat_template="zephyr")
    )
    try:
        with on_loopback(make_app(served)) as url:
            yield url
    finally:
        served.worker.close()


@contextmanager
def bad_connection(there: str, fault: Callable[[int], Answer | None]) -> Iterator[tuple[str, list[bytes]]]:
    """An address that hands on what `fault` lets pass, by the number of the request; and the bodies that were handed on."""
    passed: list[bytes] = []
    count = 0

    async def chat(request: web.Request) -> web.StreamResponse:
        nonlocal count
        body, count = await request.read(), count + 1
        wrong = fault(count)
        if wrong is not None:
            return await answered(request, wrong)
        passed.append(body)
        return await hand_on(request, body)

    async def hand_on(request: web.Request, body: bytes | None = None) -> web.StreamResponse:
        path = request.path.removeprefix("/v1")
        async with ClientSession() as session, session.request(request.method, there + path, data=body) as answer:
            return web.Response(status=answer.status, body=await answer.read(), content_type="application/json")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", hand_on)
    with on_loopback(app) as url:
        yield url, passed
