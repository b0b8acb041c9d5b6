"""The HTTP side: `/v1/chat/completions` (whole or streamed), `/v1/models`, `/health`."""

import asyncio
import hmac
import json
import secrets
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Middleware
from transformers import PreTrainedTokenizerBase

from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.errors import escape_control_chars
from zephyr_jax.generate.engine import Piece, Request
from zephyr_jax.generate.text_stream import TextStream
from zephyr_jax.serve.engine_worker import Desk
from zephyr_jax.serve.origin import check_local
from zephyr_jax.serve.protocol import ChatRequest, Refusal, Reply, parse_chat, usage_of

_LARGEST = 4 * 2**20  # bytes of a body
_PATIENCE = 60.0  # seconds that a client may take to send a body, or to read what is written to it
_RENDERERS = 2  # threads that render and tokenize
_SHOWN = 200  # characters of a name that a refusal repeats
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
    loopback: bool = False
    """Whether it listens on this machine's loopback only; without a key, foreign `Host` and `Origin` are refused then."""


def make_app(served: Served) -> web.Application:
    """The application; to be run with `handler_cancellation`, so that a client that leaves ends its request."""
    app = web.Application(client_max_size=_LARGEST, middlewares=[_guard(served)])
    server = _Server(served)
    app.router.add_post("/v1/chat/completions", server.chat)
    app.router.add_get("/v1/models", server.models)
    app.router.add_get("/v1/models/{name:.+}", server.model)
    app.router.add_get("/health", server.health)
    app.on_cleanup.append(server.close)
    return app


def _guard(served: Served) -> Middleware:
    """Errors in OpenAI's form, the key where there is one, and this machine's clients only where there is none."""

    @web.middleware
    async def guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            if served.key is not None and request.path != "/health":
                _check_key(request, served.key)
            elif served.key is None and served.loopback:
                check_local(request.headers.getall("Host", []), request.headers.getall("Origin", []))
            return await handler(request)
        except Refusal as refusal:
            return web.json_response(refusal.body(), status=refusal.status)
        except web.HTTPException as error:
            return web.json_response(Refusal(error.status, error.reason).body(), status=error.status)
        except OSError:  # the client has gone
            raise
        except Exception as error:  # a fault of this program: of one request, whatever it is
            return web.json_response(_fault(error).body(), status=500)

    return guard


def _check_key(request: web.Request, key: str) -> None:
    shown = request.headers.get("Authorization", "").removeprefix("Bearer ")
    if not hmac.compare_digest(shown.encode(errors="surrogateescape"), key.encode()):
        raise Refusal(401, "This server wants its API key as `Authorization: Bearer KEY`.", "authentication_error")


def _fault(error: Exception) -> Refusal:
    """What a client gets for an error that this program should not make, which is logged."""
    print(
        f"a request failed: {escape_control_chars(f'{type(error).__name__}: {error}')[:500]}",
        file=sys.stderr,
        flush=True,
    )
    return Refusal(500, f"This request failed: {type(error).__name__}.", "server_error")


class _Server:
    def __init__(self, served: Served):
        self._served = served
        self._max_characters = served.context * max(map(len, served.decoder.get_vocab()))
        self._renderers = ThreadPoolExecutor(_RENDERERS, "render")

    async def close(self, _: web.Application) -> None:
        """End the threads; what they have not begun is dropped."""
        self._renderers.shutdown(wait=False, cancel_futures=True)

    async def health(self, _: web.Request) -> web.Response:
        """Whether the engine works (503 where it has stopped for good), and how many answers are open."""
        desk = self._served.desk
        if desk.failure:
            content = {"status": "error", "error": desk.failure, "open_requests": desk.open_requests}
            return web.json_response(content, status=503)
        return web.json_response({"status": "ok", "open_requests": desk.open_requests})

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
            raise Refusal(
                404, f"There is no model `{name[:_SHOWN]}` here; there is `{self._served.name}`.", param="model"
            )

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """A completion, or several, whole or in pieces."""
        asked = parse_chat(await _body(request))
        self._check_name(asked.model)
        self._check_size(asked)
        with self._served.desk.slots(asked.n or 1):
            loop = asyncio.get_running_loop()
            requests = await loop.run_in_executor(self._renderers, self._requests, asked)
            return await (self._stream(request, asked, requests) if asked.stream else self._whole(asked, requests))

    def _check_size(self, asked: ChatRequest) -> None:
        """Refuse what cannot fit before it is rendered. Raises Refusal."""
        size, served = sum(len(message.plain["content"]) for message in asked.messages), self._served
        if size > self._max_characters or len(asked.messages) > served.context:
            raise Refusal(
                422,
                f"{len(asked.messages):,} messages have {size:,} characters; this server's context of {served.context:,} tokens "
                f"holds at most {served.context:,} messages and {self._max_characters:,} characters. Shorten the conversation.",
                param="messages",
            )

    def _requests(self, asked: ChatRequest) -> list[Request]:
        """One engine's request for each answer that is asked for; runs in a thread. Raises Refusal."""
        try:
            prompt = self._served.tokenizer.prompt([message.plain for message in asked.messages])
        except SkippedRow as error:
            raise Refusal(422, f"`messages` cannot be rendered: {str(error)[:500]}.", param="messages") from error
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
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._collect(asked, request)) for request in requests]
        except ExceptionGroup as group:  # the first failure; the other answers were canceled
            raise group.exceptions[0] from None
        answers = [task.result() for task in tasks]
        choices = [
            {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": end, "logprobs": None}
            for index, (text, end, _) in enumerate(answers)
        ]
        usage = usage_of(len(requests[0].prompt), sum(count for _, _, count in answers))
        return web.json_response(Reply(self._served.name).whole(choices, usage))

    async def _collect(self, asked: ChatRequest, request: Request) -> tuple[str, str, int]:
        """Text, the reason of its end, and how many tokens it took."""
        async with self._served.desk.ask(request) as pieces, aclosing(self._texts(asked, pieces)) as texts:
            parts = [each async for each in texts]
        return "".join(text for text, _, _ in parts), parts[-1][1], sum(count for _, _, count in parts)

    async def _texts(self, asked: ChatRequest, pieces: AsyncIterator[Piece]) -> AsyncGenerator[tuple[str, str, int]]:
        """Pieces of text, the reason of the end with the last, and how many tokens came with each."""
        stream = TextStream(self._served.decoder, self._served.stops, asked.stops)
        async for piece in pieces:
            text = stream.feed(piece.tokens, last=bool(piece.end))
            end = "stop" if stream.stopped else piece.end
            yield text, end, len(piece.tokens)
            if end:
                return

    async def _stream(self, request: web.Request, asked: ChatRequest, requests: list[Request]) -> web.StreamResponse:
        """Server-sent events; after the first one an error is an event too, as the status is on its way."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        try:
            async with aclosing(self._chunks(asked, requests)) as chunks:
                async for chunk in chunks:
                    if not response.prepared:  # only now: a refusal would have a status of its own
                        await response.prepare(request)
                    await _send(request, response, json.dumps(chunk, ensure_ascii=False))
            await _send(request, response, "[DONE]")
        except OSError:  # the client has gone, or reads nothing
            return response
        except Exception as error:  # whatever it is, no second response may follow into this one's body
            if not response.prepared:
                raise
            refusal = error if isinstance(error, Refusal) else _fault(error)
            await _send(request, response, json.dumps(refusal.body(), ensure_ascii=False))
        await response.write_eof()
        return response

    async def _chunks(self, asked: ChatRequest, requests: list[Request]) -> AsyncGenerator[dict[str, object]]:
        """The events of a stream; the answers are made together and given one after the other."""
        reply, made = Reply(self._served.name), 0
        async with AsyncExitStack() as stack:
            answers = [await stack.enter_async_context(self._served.desk.ask(each)) for each in requests]
            for index, pieces in enumerate(answers):
                begun = False
                async for text, end, count in self._texts(asked, pieces):
                    if not begun:
                        yield reply.chunk(index, {"role": "assistant", "content": ""})
                    begun = True
                    made += count
                    if text:
                        yield reply.chunk(index, {"content": text})
                    if end:
                        yield reply.chunk(index, {}, end)
        if asked.stream_options and asked.stream_options.include_usage:
            yield reply.usage_chunk(usage_of(len(requests[0].prompt), made))


async def _body(request: web.Request) -> bytes:
    """The bytes of a body. Raises Refusal where they do not come in time, or not in the encoding that is named."""
    try:
        async with asyncio.timeout(_PATIENCE):
            return await request.read()
    except TimeoutError as error:
        raise Refusal(408, f"The body did not come within {_PATIENCE:.0f} seconds.") from error
    except (web.RequestPayloadError, ValueError) as error:
        raise Refusal(400, f"The body cannot be read: {error}.") from error


async def _send(request: web.Request, response: web.StreamResponse, data: str) -> None:
    """Write one event. Raises OSError where the client has gone or reads nothing for a minute; its connection is closed."""
    try:
        async with asyncio.timeout(_PATIENCE):
            await response.write(f"data: {data}\n\n".encode())
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise
