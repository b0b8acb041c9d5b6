"""The HTTP application: `/v1/chat/completions` (streamed or not), `/v1/models`, `/health`."""

import asyncio
import hmac
import json
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Middleware
from transformers import PreTrainedTokenizerBase

from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.chat.reasoning import join_blocks
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.config.sampling import SamplingParams
from zephyr_jax.errors import escape_control_chars
from zephyr_jax.generate.engine import GenerationRequest, RequestOutput
from zephyr_jax.generate.reasoning_stream import AnswerText, ReasoningStream
from zephyr_jax.generate.text_stream import TextStream
from zephyr_jax.serve.engine_worker import EngineWorker
from zephyr_jax.serve.origin import check_local
from zephyr_jax.serve.protocol import (
    MAX_ECHO,
    ApiError,
    ChatCompletionRequest,
    Completion,
    parse_chat,
    reasoning_field,
    usage_of,
)

_logger = logging.getLogger(__name__)
_MAX_BODY_BYTES = 4 * 2**20
_TIMEOUT = 60.0  # seconds for a client to send a body, or to read what is written to it
_NUM_RENDER_THREADS = 2  # they render and tokenize conversations
type _Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class ServedModel:
    """A loaded model with the settings of its server."""

    name: str
    tokenizer: ChatTokenizer
    """Conversations to tokens."""
    decoder: PreTrainedTokenizerBase
    """Tokens to text."""
    stop_ids: tuple[int, ...]
    """Ids that end an answer."""
    context: int
    """Tokens of prompt and answer together."""
    worker: EngineWorker
    api_key: str | None = None
    """Key that clients must send, if any."""
    loopback: bool = False
    """Whether it listens on loopback only; without a key, requests with a foreign `Host` or `Origin` are then rejected."""


@dataclass(frozen=True)
class _Delta:
    """New text of one answer."""

    text: AnswerText
    finish_reason: str
    num_tokens: int


def make_app(model: ServedModel) -> web.Application:
    """The application. Run it with `handler_cancellation`, so that a client that disconnects cancels its request."""
    app = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[_guard(model)])
    handlers = _Handlers(model)
    app.router.add_post("/v1/chat/completions", handlers.chat)
    app.router.add_get("/v1/models", handlers.models)
    app.router.add_get("/v1/models/{name:.+}", handlers.model)
    app.router.add_get("/health", handlers.health)
    app.on_cleanup.append(handlers.close)
    return app


def _guard(model: ServedModel) -> Middleware:
    """Middleware: errors in OpenAI's format; checks the API key, or without one that the client is local."""

    @web.middleware
    async def guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            if model.api_key is not None and request.path != "/health":
                _check_key(request, model.api_key)
            elif model.api_key is None and model.loopback:
                check_local(request.headers.getall("Host", []), request.headers.getall("Origin", []))
            return await handler(request)
        except ApiError as error:
            return web.json_response(error.body(), status=error.status)
        except web.HTTPException as error:
            return web.json_response(ApiError(error.status, error.reason).body(), status=error.status)
        except OSError:  # the client disconnected
            raise
        except Exception as error:  # a bug must fail one request only
            return web.json_response(_internal_error(error).body(), status=500)

    return guard


def _check_key(request: web.Request, api_key: str) -> None:
    token = request.headers.get("Authorization", "").removeprefix("Bearer ")
    if not hmac.compare_digest(token.encode(errors="surrogateescape"), api_key.encode()):
        raise ApiError(401, "Expected this server's API key as `Authorization: Bearer KEY`.", "authentication_error")


def _internal_error(error: Exception) -> ApiError:
    """Log an unexpected error; returns the error for the client, without details."""
    _logger.error("a request failed: %s", escape_control_chars(f"{type(error).__name__}: {error}")[:500])
    return ApiError(500, f"This request failed: {type(error).__name__}.", "server_error")


class _Handlers:
    def __init__(self, model: ServedModel):
        self._model = model
        self._max_characters = model.context * max(map(len, model.decoder.get_vocab()))
        self._renderers = ThreadPoolExecutor(_NUM_RENDER_THREADS, "render")

    async def close(self, _: web.Application) -> None:
        """Stop the render threads; queued work is dropped."""
        self._renderers.shutdown(wait=False, cancel_futures=True)

    async def health(self, _: web.Request) -> web.Response:
        """State of the engine (503 after it has stopped for good) and the number of open answers."""
        worker = self._model.worker
        if worker.failure:
            content = {"status": "error", "error": worker.failure, "open_requests": worker.open_requests}
            return web.json_response(content, status=503)
        return web.json_response({"status": "ok", "open_requests": worker.open_requests})

    async def models(self, _: web.Request) -> web.Response:
        """The list of models: one."""
        return web.json_response({"object": "list", "data": [self._card()]})

    async def model(self, request: web.Request) -> web.Response:
        """One model, by name."""
        self._check_name(request.match_info["name"])
        return web.json_response(self._card())

    def _card(self) -> dict[str, object]:
        return {"id": self._model.name, "object": "model", "created": 0, "owned_by": "zephyr-jax"}

    def _check_name(self, name: str) -> None:
        if name != self._model.name:
            raise ApiError(404, f"Expected the model `{self._model.name}`, got `{name[:MAX_ECHO]}`.", param="model")

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """One or several completions, streamed or not."""
        body = parse_chat(await _read_body(request))
        self._check_name(body.model)
        self._check_size(body)
        with self._model.worker.slots(body.n or 1):
            loop = asyncio.get_running_loop()
            requests = await loop.run_in_executor(self._renderers, self._requests, body)
            return await (self._stream(request, body, requests) if body.stream else self._complete(body, requests))

    def _check_size(self, body: ChatCompletionRequest) -> None:
        """Reject a conversation that cannot fit before it is rendered. Raises ApiError."""
        size, context = sum(message.num_characters for message in body.messages), self._model.context
        if size > self._max_characters or len(body.messages) > context:
            raise ApiError(
                422,
                f"Expected at most {context:,} messages with {self._max_characters:,} characters in the context of {context:,} "
                f"tokens, got {len(body.messages):,} messages with {size:,} characters. Shorten the conversation.",
                param="messages",
            )

    def _requests(self, body: ChatCompletionRequest) -> list[GenerationRequest]:
        """One engine request per answer. Runs in a render thread. Raises ApiError."""
        model = self._model
        try:
            messages = [message.plain for message in body.messages]
            shows_reasoning = model.tokenizer.template.shows_reasoning
            prompt = model.tokenizer.prompt(messages if shows_reasoning else join_blocks(messages))
        except SkippedRow as error:
            raise ApiError(422, f"`messages` cannot be rendered: {str(error)[:500]}.", param="messages") from error
        room = model.context - len(prompt)
        if room < (body.max_new_tokens or 1):
            raise ApiError(
                422,
                f"Expected prompt and answer within the context of {model.context} tokens, got a prompt of {len(prompt)} and "
                f"{body.max_new_tokens or 1} new ones. Shorten the conversation or lower `max_tokens`.",
                param="messages",
            )
        temperature = 1.0 if body.temperature is None else body.temperature
        top_p, top_k = 1.0 if body.top_p is None else body.top_p, body.top_k or 0
        seed = secrets.randbits(62) if body.seed is None else body.seed
        max_new_tokens = body.max_new_tokens or room
        return [
            GenerationRequest(
                prompt, max_new_tokens, model.stop_ids, SamplingParams(temperature, top_p, top_k, seed=(seed, index))
            )
            for index in range(body.n or 1)
        ]

    async def _complete(self, body: ChatCompletionRequest, requests: list[GenerationRequest]) -> web.Response:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._collect(body, request)) for request in requests]
        except ExceptionGroup as errors:  # the first failure; the other answers were canceled
            raise errors.exceptions[0] from None
        answers = [task.result() for task in tasks]
        choices = [
            {
                "index": index,
                "message": {
                    "role": "assistant",
                    "content": answer.text.content,
                    **reasoning_field(answer.text.reasoning),
                },
                "finish_reason": answer.finish_reason,
                "logprobs": None,
            }
            for index, answer in enumerate(answers)
        ]
        usage = usage_of(len(requests[0].prompt), sum(answer.num_tokens for answer in answers))
        return web.json_response(Completion(self._model.name).body(choices, usage))

    async def _collect(self, body: ChatCompletionRequest, request: GenerationRequest) -> _Delta:
        """One whole answer."""
        async with self._model.worker.submit(request) as outputs, aclosing(self._deltas(body, outputs)) as stream:
            deltas = [delta async for delta in stream]
        text = AnswerText(*("".join(parts) for parts in zip(*(delta.text for delta in deltas), strict=True)))
        return _Delta(text, deltas[-1].finish_reason, sum(delta.num_tokens for delta in deltas))

    async def _deltas(
        self, body: ChatCompletionRequest, outputs: AsyncIterator[RequestOutput]
    ) -> AsyncGenerator[_Delta]:
        """Outputs as text, up to a stop string or the end of the answer."""
        stream = TextStream(self._model.decoder, self._model.stop_ids, body.stops)
        answer = ReasoningStream(self._model.tokenizer.template.opens_reasoning)
        async for output in outputs:
            text = stream.feed(output.tokens, last=bool(output.finish_reason))
            finish_reason = "stop" if stream.stopped else output.finish_reason
            yield _Delta(answer.feed(text, last=bool(finish_reason)), finish_reason, len(output.tokens))
            if finish_reason:
                return

    async def _stream(
        self, request: web.Request, body: ChatCompletionRequest, requests: list[GenerationRequest]
    ) -> web.StreamResponse:
        """Server-sent events. An error after the first event is an event, too, as the status has been sent."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        try:
            async with aclosing(self._events(body, requests)) as events:
                async for event in events:
                    if not response.prepared:  # not earlier: an error before the first event has its own status
                        await response.prepare(request)
                    await _send(request, response, json.dumps(event, ensure_ascii=False))
            await _send(request, response, "[DONE]")
        except OSError:  # the client disconnected or does not read
            return response
        except Exception as error:  # once this response has begun, a second one must not follow into its body
            if not response.prepared:
                raise
            api_error = error if isinstance(error, ApiError) else _internal_error(error)
            await _send(request, response, json.dumps(api_error.body(), ensure_ascii=False))
        await response.write_eof()
        return response

    async def _events(
        self, body: ChatCompletionRequest, requests: list[GenerationRequest]
    ) -> AsyncGenerator[dict[str, object]]:
        """The events of a stream. All answers are generated together and sent one after the other."""
        completion, num_tokens = Completion(self._model.name), 0
        async with AsyncExitStack() as stack:
            answers = [await stack.enter_async_context(self._model.worker.submit(request)) for request in requests]
            for index, outputs in enumerate(answers):
                started = False
                async for delta in self._deltas(body, outputs):
                    if not started:
                        yield completion.chunk(index, {"role": "assistant", "content": ""})
                    started = True
                    num_tokens += delta.num_tokens
                    if delta.text.reasoning:
                        yield completion.chunk(index, reasoning_field(delta.text.reasoning))
                    if delta.text.content:
                        yield completion.chunk(index, {"content": delta.text.content})
                    if delta.finish_reason:
                        yield completion.chunk(index, {}, delta.finish_reason)
        if body.stream_options and body.stream_options.include_usage:
            yield completion.usage_chunk(usage_of(len(requests[0].prompt), num_tokens))


async def _read_body(request: web.Request) -> bytes:
    """Read a request body. Raises ApiError if it takes too long or has another encoding than declared."""
    try:
        async with asyncio.timeout(_TIMEOUT):
            return await request.read()
    except TimeoutError as error:
        raise ApiError(408, f"The body did not arrive within {_TIMEOUT:.0f} seconds.") from error
    except (web.RequestPayloadError, ValueError) as error:
        raise ApiError(400, f"The body cannot be read: {error}.") from error


async def _send(request: web.Request, response: web.StreamResponse, data: str) -> None:
    """Write one event. Raises OSError if the client has disconnected or stalls, in which case it is disconnected."""
    try:
        async with asyncio.timeout(_TIMEOUT):
            await response.write(f"data: {data}\n\n".encode())
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise
