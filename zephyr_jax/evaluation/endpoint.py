"""A model behind an OpenAI-compatible address: asked politely, within limits, and never twice for the same.

Every reply is written down before it is used; a request that was answered once is not sent again, in this run or the next.
"""

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import aiohttp

from zephyr_jax.config import EndpointOptions
from zephyr_jax.data.chat import Message
from zephyr_jax.errors import InputError, shown
from zephyr_jax.storage.journal import Journal
from zephyr_jax.storage.secret import secret

_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
_HOPELESS = (401, 403, 404)
_LONGEST_PAUSE = 60.0


@dataclass(frozen=True)
class Ask:
    """One request."""

    messages: tuple[Message, ...]
    temperature: float
    max_tokens: int
    top_p: float = 1.0
    seed: int | None = None

    def body(self, model: str) -> dict[str, Any]:
        """As the endpoint wants it."""
        settings = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        settings |= {"top_p": self.top_p} if self.top_p != 1 else {}
        settings |= {"seed": self.seed} if self.seed is not None else {}
        return {"model": model, "messages": list(self.messages), **settings}


@dataclass(frozen=True)
class Said:
    """What came back: text, or why there is none."""

    text: str
    refusal: str = ""


class _Refused(Exception):
    """This request will never be answered; others may."""


class Endpoint:
    """Asks one model. Raises InputError when it cannot be reached at all, or when the money is spent."""

    def __init__(self, url: str, options: EndpointOptions, journal: Journal):
        self._url, self._options, self._journal = url.rstrip("/"), options, journal
        self._known = {line["request"]: line for line in journal.lines}
        self._key = secret(options.key_variable, "endpoint.key_variable")
        self._tokens = sum(line["prompt_tokens"] + line["completion_tokens"] for line in journal.lines)
        self._dollars = sum(map(self._price, journal.lines))
        self.model = options.model or asyncio.run(self._only_model())

    def ask_all(self, asks: Sequence[Ask], done: Callable[[int], None] = lambda _: None) -> list[Said]:
        """All replies, in order; `done` is told how many there are so far. Whatever ends this, what came is written down."""
        try:
            return asyncio.run(self._ask_all(asks, done))
        finally:
            self._journal.close()

    def spent(self) -> str:
        """Tokens, and money where prices are known, in words."""
        money = f", ${self._dollars:.2f}" if self._options.price_in or self._options.price_out else ""
        return f"{self._tokens:,} tokens{money}"

    async def _ask_all(self, asks: Sequence[Ask], done: Callable[[int], None]) -> list[Said]:
        gate, count = asyncio.Semaphore(self._options.concurrency), 0
        timeout = aiohttp.ClientTimeout(total=self._options.timeout)
        async with aiohttp.ClientSession(timeout=timeout, headers=self._headers()) as session:

            async def one(ask: Ask) -> Said:
                nonlocal count
                async with gate:
                    said = await self._ask(session, ask)
                count += 1
                done(count)
                return said

            tasks = [asyncio.create_task(one(ask)) for ask in asks]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()

    async def _ask(self, session: aiohttp.ClientSession, ask: Ask) -> Said:
        body = ask.body(self.model)
        name = blake2b(json.dumps([self._url, body], sort_keys=True).encode(), digest_size=16).hexdigest()
        if name in self._known:
            return Said(self._known[name]["text"])
        self._check_limits()
        try:
            reply = await self._post(session, body)
        except _Refused as refused:
            return Said("", str(refused))
        usage = reply.get("usage") or {}
        line: dict[str, Any] = {
            "request": name,
            "text": _text_of(reply),
            "prompt_tokens": int(usage.get("prompt_tokens") or 0),
            "completion_tokens": int(usage.get("completion_tokens") or 0),
        }
        self._journal.add(line)
        self._known[name] = line
        self._tokens += line["prompt_tokens"] + line["completion_tokens"]
        self._dollars += self._price(line)
        return Said(line["text"])

    async def _post(self, session: aiohttp.ClientSession, body: dict[str, Any]) -> dict[str, Any]:
        """The reply, after some patience. Raises _Refused, and InputError where no request can be answered."""
        trouble = ""
        for attempt in range(self._options.retries + 1):
            if attempt:
                await asyncio.sleep(min(self._options.pause * 2 ** (attempt - 1), _LONGEST_PAUSE))
            try:
                async with session.post(f"{self._url}/chat/completions", json=body) as answer:
                    content = await answer.text()
                    if answer.status == 200:
                        return _parsed(content, self._url)
                    trouble = f"{answer.status} {_message_of(content)}"
                    status = answer.status
            except (aiohttp.ClientError, TimeoutError) as error:
                trouble, status = f"{type(error).__name__} {error}".strip(), 503
            if status in _HOPELESS:
                break
            if status not in _AGAIN:
                raise _Refused(trouble)
        raise InputError(
            f"{self._url} does not answer: {trouble}. Check the address, the key and the model's name; what was answered "
            "before is kept, and the same command goes on."
        )

    async def _only_model(self) -> str:
        timeout = aiohttp.ClientTimeout(total=self._options.timeout)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, headers=self._headers()) as session,
                session.get(f"{self._url}/models") as answer,
            ):
                status, content = answer.status, await answer.text()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise InputError(f"{self._url} cannot be reached: {error}. Check the address; it ends in /v1.") from error
        if status != 200:
            raise InputError(f"{self._url}/models says {status} {_message_of(content)}. Check the address and the key.")
        names = [str(each.get("id")) for each in _parsed(content, self._url).get("data", []) if isinstance(each, dict)]
        if len(names) != 1:
            raise InputError(f"{self._url} serves {len(names)} models ({shown(names)}). Name one of them.")
        return names[0]

    def _check_limits(self) -> None:
        options = self._options
        if options.most_tokens is not None and self._tokens >= options.most_tokens:
            raise InputError(
                f"{self._tokens:,} tokens were used, and most_tokens is {options.most_tokens:,}. What was answered is kept: "
                "raise the limit, and the same command goes on."
            )
        if options.most_dollars is not None and self._dollars >= options.most_dollars:
            raise InputError(
                f"${self._dollars:.4f} were spent, and most_dollars is {options.most_dollars:g}. What was answered is kept: "
                "raise the limit, and the same command goes on."
            )

    def _price(self, line: dict[str, Any]) -> float:
        """Dollars for a reply."""
        there, back = line["prompt_tokens"], line["completion_tokens"]
        return (there * self._options.price_in + back * self._options.price_out) / 1e6

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}


def _parsed(content: str, url: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(
            f"{url} answers with {shown(content)}, which is no JSON object. Is it an OpenAI-compatible address?"
        )
    return found


def _text_of(reply: dict[str, Any]) -> str:
    """The answer's text; empty where the reply has another form."""
    try:
        return str(reply["choices"][0]["message"]["content"] or "")
    except (KeyError, IndexError, TypeError):
        print(f"a reply without a message: {shown(reply)}", file=sys.stderr)
        return ""


def _message_of(content: str) -> str:
    """The words of an error."""
    try:
        return str(json.loads(content)["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return content.strip()[:200]
