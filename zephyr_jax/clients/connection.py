"""One HTTP client session with an OpenAI-compatible endpoint: single requests and the classification of their failures."""

import asyncio
import json
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from zephyr_jax.clients.decompress import ENCODINGS, UnusableReply, limit_reply_size
from zephyr_jax.clients.rate_limit import retry_delay
from zephyr_jax.config.sections import EndpointOptions
from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.storage.api_key import redact

_RETRYABLE = (408, 409, 425, 429, 500, 502, 503, 504)
_FATAL = (401, 402, 404)  # not 403: routers of several models return it for a single flagged prompt
_RATE_LIMITED = (429, 503)
_MAX_DELAY = 600.0  # seconds; an endpoint that asks for more has an exhausted quota
_NOT_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "LocalProtocolError", "UnsupportedProtocol")
"""Errors of httpx before a request is sent, so that it cannot be billed."""
_PERMANENT = ("LocalProtocolError", "UnsupportedProtocol")


class RequestError(Exception):
    """A request without a response.

    Args:
        message: What went wrong.
        retryable: The same request may succeed later.
        isolated: Only this request fails; others may succeed.
        lost: The request may have been billed.
    """

    def __init__(self, message: str, *, retryable: bool = False, isolated: bool = False, lost: bool = False):
        super().__init__(message)
        self.retryable, self.isolated, self.lost = retryable, isolated, lost


def check_url(url: str) -> None:
    """Raise InputError unless `url` is an HTTP URL of scheme, host and path only: URLs are written to files."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid or any(char.isspace() or not char.isprintable() for char in url):
        raise InputError(
            f"Expected the URL of an OpenAI-compatible endpoint (http://HOST:PORT/v1), got {truncate_repr(url)}."
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise InputError(
            f"The URL of {parts.hostname} has credentials, a query or a fragment; expected only scheme, host and path, because "
            "URLs are written to files. Put the API key into an environment variable and name that variable in api_key_env."
        )


def _is_loopback(url: str) -> bool:
    """Whether a URL is on this machine's loopback interface, which no proxy can reach."""
    parts = urlsplit(url)
    try:
        return parts.scheme == "http" and (parts.hostname == "localhost" or ip_address(str(parts.hostname)).is_loopback)
    except ValueError:
        return False


class Connection:
    """An async context manager around the OpenAI client, for use in one event loop."""

    def __init__(self, url: str, options: EndpointOptions, api_key: str | None):
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Omit

        self._options, self._api_key = options, api_key
        try:
            http = DefaultAsyncHttpxClient(
                trust_env=not _is_loopback(url), event_hooks={"response": [limit_reply_size]}
            )
        except Exception as error:  # several kinds: no scheme, no port, a missing package
            raise InputError(
                f"Cannot connect to {url} through the proxy set in the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY): "
                f"{error}. Unset or correct it."
            ) from error
        # max_retries=0: every attempt is journaled and reserves budget, so retries happen in RemoteClient
        self._client = AsyncOpenAI(
            base_url=url, api_key=api_key or "none", max_retries=0, timeout=options.timeout, http_client=http
        )
        # overrides whatever OPENAI_* variables hold
        self._headers = {"Authorization": f"Bearer {api_key}" if api_key else Omit(), "Accept-Encoding": ENCODINGS}
        self._not_before = 0.0

    async def __aenter__(self) -> "Connection":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON reply to one chat completion request, sent as soon as the rate limit allows. Raises RequestError."""
        while (delay := self._not_before - _now()) > 0:
            await asyncio.sleep(delay)
        return await self._call(self._client.chat.completions.with_raw_response.create, **body)

    async def models(self) -> list[str]:
        """Names of the served models. Raises RequestError."""
        models = (await self._call(self._client.models.with_raw_response.list)).get("data")
        return [str(model.get("id")) for model in models if isinstance(model, dict)] if isinstance(models, list) else []

    async def _call(self, call: Any, **arguments: Any) -> dict[str, Any]:
        from openai import APIConnectionError, APIStatusError, OpenAIError

        try:
            async with asyncio.timeout(self._options.timeout):
                reply = (await call(**arguments, extra_headers=self._headers)).http_response
        except UnusableReply as error:
            raise self._no_reply(error) from error
        except APIStatusError as error:
            raise self._status_error(error.response) from error
        except (APIConnectionError, TimeoutError) as error:
            raise self._no_reply(error.__cause__ or error) from error
        except (OpenAIError, ValueError, TypeError) as error:
            raise RequestError(self._redacted(f"{type(error).__name__} {error}")) from error
        self._delay(retry_delay(reply.headers, rejected=False))
        return self._parsed(reply.content)

    def _no_reply(self, cause: BaseException) -> RequestError:
        """The error for a request that was not sent, or whose reply is incomplete."""
        if isinstance(cause, UnusableReply):
            return RequestError(str(cause), isolated=True, lost=True)
        kind = type(cause).__name__
        message = f"timeout after {self._options.timeout:g} s" if "Timeout" in kind else f"{kind} {cause}".strip()
        return RequestError(self._redacted(message), retryable=kind not in _PERMANENT, lost=kind not in _NOT_SENT)

    def _status_error(self, reply: Any) -> RequestError:
        status = reply.status_code
        message = self._redacted(f"{status} {_error_message(reply.text)}".strip())
        delay = retry_delay(reply.headers, rejected=status in _RATE_LIMITED)
        if delay > _MAX_DELAY:
            return RequestError(f"{message}; the endpoint asks to retry after {delay:,.0f} s (limit: {_MAX_DELAY:g} s)")
        self._delay(delay)
        return RequestError(message, retryable=status in _RETRYABLE, isolated=status not in (*_RETRYABLE, *_FATAL))

    def _delay(self, seconds: float) -> None:
        """Hold all requests of this connection back."""
        self._not_before = max(self._not_before, _now() + min(seconds, _MAX_DELAY))

    def _parsed(self, content: bytes) -> dict[str, Any]:
        text = content.decode(errors="replace")
        try:
            reply = json.loads(text)
            # redacted after parsing: \u escapes could hide the key in the raw text
            reply = json.loads(self._redacted(json.dumps(reply, ensure_ascii=False))) if self._api_key else reply
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            message = (
                f"expected a JSON object, got {truncate_repr(self._redacted(text))}; is this an OpenAI-compatible URL?"
            )
            raise RequestError(message, retryable=True, lost=True)
        return reply

    def _redacted(self, text: str) -> str:
        """Text without the API key, which some servers echo."""
        return redact(text, self._api_key)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _error_message(content: str) -> str:
    """The message in the body of an error reply."""
    try:
        return str(json.loads(content)["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError, RecursionError):
        return content.strip()[:200]
