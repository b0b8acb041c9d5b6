"""A chat client for one model behind an OpenAI-compatible URL, with retries, rate limits, a hard budget and a journal."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from zephyr_jax.clients.base import ChatRequest, ChatResponse, Progress, Usage, no_progress
from zephyr_jax.clients.budget import CostBudget
from zephyr_jax.clients.connection import Connection, RequestError, check_url
from zephyr_jax.clients.reply import entry_response, entry_usage, journal_usage, reply_entry
from zephyr_jax.config.sections import EndpointOptions
from zephyr_jax.errors import InputError, escape_control_chars, truncate_repr
from zephyr_jax.storage.api_key import read_api_key
from zephyr_jax.storage.journal import Journal

logger = logging.getLogger(__name__)

_MAX_BACKOFF = 60.0  # seconds
_MAX_REFUSALS = 100  # without a single response: a setting or the endpoint is wrong, not one request
_MAX_WARNINGS = 8  # kinds of retried errors that are logged


class RemoteClient:
    """Sends requests to one model. A reply is journaled before it is used; an answered request is never sent again.

    Args:
        url: Base URL, ending in /v1.
        options: Concurrency, retries, limits and prices.
        journal: Replies of earlier runs, and where new ones are added.
        budget: Shared by several clients; default: one with the limits of `options`.
        model: Name of the model at the endpoint; default: the only one that is served.

    Raises:
        InputError: The URL or the API key is invalid, or the endpoint does not serve exactly one model and `model` is missing.
    """

    def __init__(
        self,
        url: str,
        options: EndpointOptions,
        journal: Journal,
        budget: CostBudget | None = None,
        model: str | None = None,
    ):
        check_url(url)
        self._url, self._options, self._journal = url.rstrip("/"), options, journal
        self._entries = {entry["request"]: entry for entry in journal.lines if "text" in entry}
        self._api_key = read_api_key(options.api_key_env, "endpoint.api_key_env")
        self._budget = budget or CostBudget(options)
        self._excess = Usage()
        """Most tokens that the endpoint has counted above our upper bound of a request."""
        self._warned: set[str] = set()
        self._refused, self._answered = 0, any("refused" not in entry for entry in self._entries.values())
        for usage, lost in journal_usage(journal.lines):
            self._budget.add(usage.priced(options), lost)
        self.model = model or asyncio.run(self._only_model())

    def complete(self, requests: Sequence[ChatRequest], progress: Progress = no_progress) -> list[ChatResponse]:
        """All responses, in order.

        Raises:
            InputError: The endpoint fails for every request, or the budget does not allow the next one. Requests in flight are
                waited for, and everything received so far stays in the journal.
        """
        try:
            return asyncio.run(self._complete(requests, progress))
        finally:
            self._journal.close()

    def unanswered(self, requests: Sequence[ChatRequest]) -> list[ChatRequest]:
        """The distinct requests without a journaled response."""
        return [request for key, request in self._keyed(requests).items() if key not in self._entries]

    def usage_summary(self) -> str:
        """Tokens and cost of the budget so far."""
        return self._budget.summary()

    def _keyed(self, requests: Sequence[ChatRequest]) -> dict[str, ChatRequest]:
        return {request.key(self._url, self.model): request for request in requests}

    async def _complete(self, requests: Sequence[ChatRequest], progress: Progress) -> list[ChatResponse]:
        keys = [request.key(self._url, self.model) for request in requests]
        copies = Counter(keys)
        responses = {key: entry_response(self._entries[key]) for key in copies if key in self._entries}
        pending = {key: request for key, request in zip(keys, requests, strict=True) if key not in responses}
        queue, failures, budget_changed = iter(pending.items()), list[Exception](), asyncio.Condition()
        count = sum(copies[key] for key in responses)
        if not pending:
            progress(count)
            return [responses[key] for key in keys]

        async def worker(connection: Connection) -> None:
            """Send one request after another. After a failure others finish their request in flight, which may be billed."""
            nonlocal count
            for key, request in _until(queue, lambda: bool(failures)):
                try:
                    responses[key] = await self._answer(connection, budget_changed, key, request)
                except Exception as error:  # raised below, when nothing is in flight
                    failures.append(error)
                    return
                count += copies[key]
                progress(count)

        async with Connection(self._url, self._options, self._api_key) as connection, asyncio.TaskGroup() as group:
            for _ in range(min(self._options.max_concurrency, len(pending))):
                group.create_task(worker(connection))
        if failures:
            raise failures[0]
        return [responses[key] for key in keys]

    async def _answer(
        self, connection: Connection, budget_changed: asyncio.Condition, key: str, request: ChatRequest
    ) -> ChatResponse:
        """The response, after retries. Raises InputError where no other request can succeed either."""
        error = RequestError("")
        for attempt in range(self._options.max_retries + 1):
            if attempt:
                await asyncio.sleep(min(self._options.backoff * 2 ** (attempt - 1), _MAX_BACKOFF))
            reserved, used = await self._reserve(budget_changed, request), Usage()
            try:
                self._record(key, "sent", reserved)
                entry = reply_entry(key, await connection.chat(self._body(request)), reserved)
                used = entry_usage(entry).priced(self._options)
                self._entries[key] = entry
                self._journal.add(entry)
                return self._checked(entry_response(entry))
            except RequestError as failure:
                error, used = failure, reserved if failure.lost else Usage()
                self._record(key, "lost" if failure.lost else "free", used)
                if not failure.retryable:
                    break
                self._warn(failure)
            finally:
                self._commit(request, reserved, used, lost=key not in self._entries)
                async with budget_changed:
                    budget_changed.notify_all()
        if error.isolated:
            return self._checked(ChatResponse("", refusal=str(error)))
        raise InputError(
            f"{self._url} failed: {_clause(error)}. Check the URL, the API key and the model name; responses so far are saved, "
            "rerun the same command to continue."
        )

    def _checked(self, response: ChatResponse) -> ChatResponse:
        """The same response. Raises InputError after many refusals without a single response."""
        self._answered = self._answered or not response.refusal
        self._refused += bool(response.refusal)
        if self._refused >= _MAX_REFUSALS and not self._answered:
            raise InputError(
                f"{self._url} refused all of the first {_MAX_REFUSALS} requests: {response.refusal.rstrip('. ')}."
            )
        return response

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        body = request.body(self.model)
        return {self._options.max_tokens_param: body.pop("max_tokens"), **body}

    def _record(self, key: str, state: str, usage: Usage) -> None:
        """Journal the state of a request; without a limit only lost ones matter."""
        if self._budget.limited or state == "lost":
            tokens = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
            self._journal.add({"request": key, state: True, **tokens})

    async def _reserve(self, budget_changed: asyncio.Condition, request: ChatRequest) -> Usage:
        """Reserve the maximum usage of a request, as soon as requests in flight leave room. Raises InputError."""
        async with budget_changed:
            while not self._budget.reserve(usage := (request.max_usage + self._excess).priced(self._options)):
                if not self._budget.in_flight:
                    raise self._budget.limit_error(usage)
                await budget_changed.wait()
        return usage

    def _commit(self, request: ChatRequest, reserved: Usage, used: Usage, lost: bool) -> None:
        """Commit the usage. An endpoint that counts above our upper bound is expected to do so again."""
        self._budget.commit(reserved, used, lost)
        excess, before = used - request.max_usage, self._excess
        self._excess = Usage(
            max(excess.prompt_tokens, before.prompt_tokens), max(excess.completion_tokens, before.completion_tokens)
        )

    def _warn(self, error: RequestError) -> None:
        """Log a retried error, once per message."""
        if str(error) not in self._warned and len(self._warned) < _MAX_WARNINGS:
            self._warned.add(str(error))
            logger.warning("%s: %s; retrying", self._url, escape_control_chars(str(error)))

    async def _only_model(self) -> str:
        try:
            async with Connection(self._url, self._options, self._api_key) as connection:
                names = await connection.models()
        except RequestError as error:
            raise InputError(
                f"Cannot reach {self._url}: {_clause(error)}. Check the URL (it usually ends in /v1) and the API key."
            ) from error
        if len(names) != 1:
            raise InputError(
                f"{self._url} serves {len(names)} models ({truncate_repr(names)}). Name one of them: MODEL@{self._url}."
            )
        return names[0]


def _clause(error: RequestError) -> str:
    """An error message without its final period."""
    return str(error).rstrip(". ")


def _until[T](items: Iterator[T], stopped: Callable[[], bool]) -> Iterator[T]:
    """Items of an iterator that several tasks share, until `stopped`."""
    while not stopped():
        try:
            yield next(items)
        except StopIteration:
            return
