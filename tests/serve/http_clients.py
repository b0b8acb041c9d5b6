"""A served tiny model, and clients of it, for the tests of the server."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp.test_utils import TestClient, TestServer

from zephyr_jax.config.models import ServeConfig
from zephyr_jax.config.sections import ModelOptions
from zephyr_jax.serve.app import ServedModel, make_app
from zephyr_jax.serve.serve import open_server

CHAT = "/v1/chat/completions"


def serve_tiny(model: Path, **settings: Any) -> ServedModel:
    """The model in float32 under the name `tiny`."""
    options = ModelOptions(path=str(model), compute_dtype="float32")
    config = {
        "name": "tiny",
        "context_length": 256,
        "max_concurrency": 4,
        "max_open_requests": 8,
        "chat_template": "zephyr",
    } | settings
    return open_server(ServeConfig(model=options, **config))


def talk(served: ServedModel, doing: Callable[[TestClient], Awaitable[Any]]) -> Any:
    """Run a client against the server."""

    async def run() -> Any:
        server = TestServer(make_app(served), handler_cancellation=True)
        async with TestClient(server) as client:
            return await doing(client)

    return asyncio.run(run())


def body(text: str = "Hello", **more: Any) -> dict[str, Any]:
    """A request that is answered."""
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 6, "temperature": 0, **more}


async def post(client: TestClient, content: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON of an answer."""
    data = {"data": content} if isinstance(content, bytes) else {"json": content}
    async with client.post(CHAT, headers=headers, **data) as answer:
        return answer.status, await answer.json()
