"""The HTTP side: `/v1/chat/completions` (whole or streamed), `/v1/models`, `/health`."""

import asyncio
import hmac
import json
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Middleware
from transformers import PreTrainedTokenizerBase

from zephyr_jax.data.chat import BadRow
from zephyr_jax.data.tokens import ChatTokenizer
from zephyr_jax.generation.engine import Request
from zephyr_jax.generation.text_stream import TextStream
from zephyr_jax.serving.desk import Desk
from zephyr_jax.serving.protocol import ChatRequest, Refusal, Reply, parse_chat, usage_of

_LARGEST = 4 * 2**20  # bytes of a body
type _Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Served:
    """A model as the server knows it."""

    name: str
    tokenizer: ChatTokenizer
    """Conversations to tokens."""
    decoder: PreTrainedTokenizerBase
    """Tokens to text."""
    stops: tuple[int, ...]
    """Ids that end an answer."""
    context: int
    """Tokens of prompt and answer together."""
    desk: Desk
    key: str | None = None
    """What a client must show, if anything."""


def make_app(served: Served) -> web.Application:
    """The application; to be run with `handler_cancellation`, so that a client that leaves ends its request."""
    app = web.Application(client_max_size=_LARGEST, middlewares=[_guard(served.key)])
    server = _Server(served)
    app.router.add_post("/v1/chat/completions", server.chat)
    app.router.add_get("/v1/models", server.models)
    app.router.add_get("/v1/models/{name:.+}", server.model)
    app.router.add_get("/health", server.health)
    return app


def _guard(key: str | None) -> Middleware:
    """Errors in OpenAI's form, and the key where there is one."""

    @web.middleware
    async def guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            shown = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if key is not None and request.path != "/health" and not hmac.compare_digest(shown.encode(), key.encode()):
                raise Refusal(
                    401, "This server wants its API key as `Authorization: Bearer KEY`.", "authentication_error"
                )
            return await handler(request)
        except Refusal as refusal:
            return web.json_response(refusal.body(), status=refusal.status)
        except web.HTTPException as error:
            return web.json_response(Refusal(error.status, error.reason).body(), status=error.status)

    return guard


class _Server:
    def __init__(self, served: Served):
        self._served = served

    async def health(self, _: web.Request) -> web.Response:
        """Alive, and how much is going on."""
        return web.json_response({"status": "ok", "open_requests": self._served.desk.open_requests})

    async def models(self, _: web.Request) -> web.Response:
        """The one model there is."""
        return web.json_response({"object": "list", "data": [self._card()]})

    async def model(self, request: web.Request) -> web.Response:
        """One model by name."""
        self._check_name(request.match_info["name"])
        return web.json_response(self._card())

    def _card(self) -> dict[str, object]:
        return {"id": self._served.name, "object": "model", "created": 0, "owned_by": "zephyr-jax"}

    def _check_name(self, name: str) -> None:
        if name != self._served.name:
            raise Refusal(404, f"There is no model `{name}` here; there is `{self._served.name}`.", param="model")

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """A completion, or several, whole or in pieces."""
        asked = parse_chat(await request.read())
        self._check_name(asked.model)
        requests = self._requests(asked)
        return await (self._stream(request, asked, requests) if asked.stream else self._whole(asked, requests))

    def _requests(self, asked: ChatRequest) -> list[Request]:
        """One engine's request for each answer that is asked for. Raises Refusal."""
        try:
            prompt = self._served.tokenizer.prompt([message.plain for message in asked.messages])
        except BadRow as error:
            raise Refusal(422, f"`messages` cannot be rendered: {error}.", param="messages") from error
        room = self._served.context - len(prompt)
        if room < (asked.most or 1):
            raise Refusal(
                422,
                f"The prompt has {len(prompt)} tokens and {asked.most or 1} are to be made at least; this server's context is "
                f"{self._served.context}. Shorten the conversation or lower `max_tokens`.",
                param="messages",
            )
        temperature = 1.0 if asked.temperature is None else asked.temperature
        seed = secrets.randbits(62) if asked.seed is None else asked.seed
        return [
            Request(
                prompt,
                asked.most or room,
                self._served.stops,
                temperature,
                1.0 if asked.top_p is None else asked.top_p,
                asked.top_k or 0,
                (seed, index),
            )
            for index in range(asked.n or 1)
        ]

    async def _whole(self, asked: ChatRequest, requests: list[Request]) -> web.Response:
        answers = await asyncio.gather(*(self._collect(asked, request) for request in requests))
        choices = [
            {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": end, "logprobs": None}
            for index, (text, end, _) in enumerate(answers)
        ]
        usage = usage_of(len(requests[0].prompt), sum(count for _, _, count in answers))
        return web.json_response(Reply(self._served.name).whole(choices, usage))

    async def _collect(self, asked: ChatRequest, request: Request) -> tuple[str, str, int]:
        """Text, the reason of its end, and how many tokens it took."""
        pieces = [each async for each in self._texts(asked, request)]
        return "".join(text for text, _, _ in pieces), pieces[-1][1], sum(count for _, _, count in pieces)

    async def _texts(self, asked: ChatRequest, request: Request) -> AsyncGenerator[tuple[str, str, int]]:
        """Pieces of text, the reason of the end with the last, and how many tokens came with each."""
        stream = TextStream(self._served.decoder, self._served.stops, asked.stops)
        async with self._served.desk.ask(request) as pieces:
            async for piece in pieces:
                text = stream.feed(piece.tokens, last=bool(piece.end))
                end = "stop" if stream.stopped else piece.end
                yield text, end, len(piece.tokens)
                if end:
                    return

    async def _stream(self, request: web.Request, asked: ChatRequest, requests: list[Request]) -> web.StreamResponse:
        """Server-sent events; an answer after the other where several are asked for."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        reply, made = Reply(self._served.name), 0
        async with AsyncExitStack() as stack:
            for index, each in enumerate(requests):
                texts = self._texts(asked, each)
                stack.push_async_callback(texts.aclose)
                async for text, end, count in texts:
                    if not response.prepared:  # only now: a refusal would have a status of its own
                        await response.prepare(request)
                        await _send(response, reply.chunk(index, {"role": "assistant", "content": ""}))
                    made += count
                    if text:
                        await _send(response, reply.chunk(index, {"content": text}))
                    if end:
                        await _send(response, reply.chunk(index, {}, end))
        if asked.stream_options and asked.stream_options.include_usage:
            await _send(response, reply.usage_chunk(usage_of(len(requests[0].prompt), made)))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


async def _send(response: web.StreamResponse, content: dict[str, object]) -> None:
    await response.write(f"data: {json.dumps(content, ensure_ascii=False)}\n\n".encode())
