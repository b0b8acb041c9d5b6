"""One line to an OpenAI-compatible address, by the official client: a request at a time, and what its trouble means."""

import asyncio
import json
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from zephyr_jax.clients.decompress import ENCODINGS, UnusableReply, bound_reply
from zephyr_jax.clients.rate_limit import wait_of
from zephyr_jax.config.sections import EndpointOptions
from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.storage.api_key import redact

_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
_HOPELESS = (401, 402, 404)  # not 403: routers of several models say so of a text that was flagged
_EARLY = (429, 503)
_LONGEST_WISH = 600.0  # seconds; whoever wants a longer pause is asked another day
_UNSENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "LocalProtocolError", "UnsupportedProtocol")
"""Errors of httpx before a request is sent: it cost nothing."""
_NEVER = ("LocalProtocolError", "UnsupportedProtocol")
"""Those that come again each time."""


class Trouble(Exception):
    """A request was not answered. `again`: it may be yet; `alone`: others may be; `lost`: it may have cost something."""

    def __init__(self, words: str, *, again: bool = False, alone: bool = False, lost: bool = False):
        super().__init__(words)
        self.again, self.alone, self.lost = again, alone, lost


def check_address(url: str) -> None:
    """Raise InputError unless this can be an address, and holds no secret: addresses are written down."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        sound = False
    if not sound or any(letter.isspace() or not letter.isprintable() for letter in url):
        raise InputError(
            f"The address {truncate_repr(url)} is none: it needs http:// or https://, a host, and mostly /v1 at the end."
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise InputError(
            f"The address of {parts.hostname} holds more than scheme, host and path. Addresses are written into files: put "
            "the key into an environment variable and name that in api_key_env."
        )


def _is_here(url: str) -> bool:
    """Whether an address is on this machine's loopback; a proxy would look for it on a machine of its own."""
    parts = urlsplit(url)
    try:
        return parts.scheme == "http" and (parts.hostname == "localhost" or ip_address(str(parts.hostname)).is_loopback)
    except ValueError:
        return False


class Line:
    """An open client; to be used as an async context, in one event loop."""

    def __init__(self, url: str, options: EndpointOptions, key: str | None):
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Omit

        self._url, self._options, self._key = url, options, key
        try:
            client = DefaultAsyncHttpxClient(trust_env=not _is_here(url), event_hooks={"response": [bound_reply]})
        except Exception as error:  # of many kinds: no scheme, no port, a package that is missing
            raise InputError(
                f"{url} cannot be asked through the proxy that the environment names (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY): "
                f"{error} Unset it, or name another."
            ) from error
        self._client = AsyncOpenAI(
            base_url=url, api_key=key or "none", max_retries=0, timeout=options.timeout, http_client=client
        )
        # whatever else the environment names
        self._headers = {"Authorization": f"Bearer {key}" if key else Omit(), "Accept-Encoding": ENCODINGS}
        self._not_before = 0.0

    async def __aenter__(self) -> "Line":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """The reply to one request, sent when the endpoint lets us. Raises Trouble."""
        while (wait := self._not_before - _now()) > 0:
            await asyncio.sleep(wait)
        return await self._call(self._client.chat.completions.with_raw_response.create, **body)

    async def models(self) -> list[str]:
        """The models that are served. Raises Trouble."""
        listed = (await self._call(self._client.models.with_raw_response.list)).get("data")
        return [str(each.get("id")) for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []

    async def _call(self, call: Any, **arguments: Any) -> dict[str, Any]:
        from openai import APIConnectionError, APIStatusError, OpenAIError

        try:
            async with asyncio.timeout(self._options.timeout):
                answer = (await call(**arguments, extra_headers=self._headers)).http_response
        except UnusableReply as error:
            raise self._failure(error) from error
        except APIStatusError as error:
            raise self._refusal(error.response) from error
        except (APIConnectionError, TimeoutError) as error:
            raise self._failure(error.__cause__ or error) from error
        except (OpenAIError, ValueError, TypeError) as error:
            raise Trouble(self._silent(f"{type(error).__name__} {error}")) from error
        self._heed(wait_of(answer.headers, refused=False))
        return self._parsed(answer.content)

    def _failure(self, cause: BaseException) -> Trouble:
        """A request that was not sent, or whose reply did not come whole."""
        if isinstance(cause, UnusableReply):
            return Trouble(str(cause), alone=True, lost=True)
        kind = type(cause).__name__
        words = "no answer in time" if "Timeout" in kind else f"{kind} {cause}".strip()
        return Trouble(self._silent(words), again=kind not in _NEVER, lost=kind not in _UNSENT)

    def _refusal(self, answer: Any) -> Trouble:
        status = answer.status_code
        words = self._silent(f"{status} {_message_of(answer.text)}".strip())
        wait = wait_of(answer.headers, refused=status in _EARLY)
        if wait > _LONGEST_WISH:
            return Trouble(f"{words}; it wants {wait:,.0f} seconds of pause")
        self._heed(wait)
        return Trouble(words, again=status in _AGAIN, alone=status not in (*_AGAIN, *_HOPELESS))

    def _heed(self, wait: float) -> None:
        """Let nobody send before the time that the endpoint named."""
        self._not_before = max(self._not_before, _now() + min(wait, _LONGEST_WISH))

    def _parsed(self, content: bytes) -> dict[str, Any]:
        text = content.decode(errors="replace")
        try:
            found = json.loads(text)
            found = json.loads(self._silent(json.dumps(found, ensure_ascii=False))) if self._key else found
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            words = f"it says {truncate_repr(self._silent(text))}, which is no JSON object. Is it an OpenAI-compatible address?"
            raise Trouble(words, again=True, lost=True)
        return found

    def _silent(self, text: str) -> str:
        """The same without the key, which some servers repeat."""
        return redact(text, self._key)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _message_of(content: str) -> str:
    """The words of an error."""
    try:
        return str(json.loads(content)["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError, RecursionError):
        return content.strip()[:200]
