"""Replies of an endpoint as journal entries, and journal entries as responses.

An entry of an endpoint's journal is a response (`text`) or a state of a request: `sent`, `lost` (maybe billed) or `free`.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from zephyr_jax.clients.base import ChatResponse, Usage
from zephyr_jax.clients.connection import RequestError
from zephyr_jax.errors import truncate_repr


def reply_entry(key: str, reply: dict[str, Any], reserved: Usage) -> dict[str, Any]:
    """The journal entry of a reply. A reply without token counts is charged everything that was reserved for it.

    Args:
        key: The request's key.
        reply: JSON body of the reply.
        reserved: Maximum usage of the request.

    Raises:
        RequestError: The reply has no message, or the endpoint reports an error inside it.
    """
    try:
        choice = reply["choices"][0]
        message: dict[str, Any] = choice["message"]
        content = message.get("content") if message.keys() & {"refusal", "tool_calls"} else message["content"]
        reason = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise RequestError(
            f"reply without a message: {truncate_repr(reply)}", retryable=True, isolated=True, lost=True
        ) from error
    if reason == "error" or choice.get("error"):
        detail = truncate_repr(choice.get("error") or "no details")
        raise RequestError(f"reply with an error: {detail}", retryable=True, isolated=True, lost=True)
    text = _valid_unicode(_content_text(content))
    usage = reply["usage"] if isinstance(reply.get("usage"), dict) else {}
    entry = {
        "request": key,
        "text": text,
        "prompt_tokens": _count(usage.get("prompt_tokens"), reserved.prompt_tokens),
        "completion_tokens": _count(usage.get("completion_tokens"), reserved.completion_tokens),
        "cut": reason == "length",
    }
    if refusal := _refusal(text, reason, message):
        return {**entry, "text": "", "refused": refusal}
    logprobs = _first_token_logprobs(choice, text)
    return {**entry, "first_token": logprobs} if logprobs else entry


def _content_text(content: Any) -> str:
    """The text of a message: a string, or the text parts of a list (reasoning has other part types)."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [
        part.get("text") for part in parts if isinstance(part, dict) and part.get("type") in ("text", "output_text")
    ]
    return "".join(text for text in texts if isinstance(text, str))


def _refusal(text: str, reason: Any, message: dict[str, Any]) -> str:
    """Why a reply is not a response; empty if it is one."""
    if reason == "content_filter":
        return "stopped by the endpoint's content filter"
    if text.strip():
        return ""
    if isinstance(message.get("refusal"), str) and message["refusal"]:
        return f"refusal: {_valid_unicode(message['refusal'])[:300]}"
    if message.get("tool_calls"):
        return "expected text, got a tool call"
    if reason == "length":
        return "no text within max_tokens: only reasoning or whitespace"
    return "no text"


def entry_problem(entry: dict[str, Any]) -> str:
    """Why an entry of an endpoint's journal is invalid; empty if it is valid."""
    if not isinstance(entry.get("request"), str):
        return f"expected a string in `request`, got {truncate_repr(entry.get('request'))}"
    for name in ("prompt_tokens", "completion_tokens"):
        if _count(entry.get(name), -1) < 0:
            return f"expected a count in `{name}`, got {truncate_repr(entry.get(name))}"
    if not entry.keys() & {"text", "sent", "lost", "free"}:
        return "expected one of `text`, `sent`, `lost` and `free`"
    texts = [entry[name] for name in ("text", "refused") if name in entry]
    logprobs = entry.get("first_token", {})
    numbers = logprobs.values() if isinstance(logprobs, dict) else ("?",)
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(n, float | int) for n in numbers):
        return "expected strings in `text` and `refused`, and numbers in `first_token`"
    return ""


def entry_response(entry: dict[str, Any]) -> ChatResponse:
    """The response in a journal entry."""
    missing = "" if entry["text"].strip() else "no text"
    return ChatResponse(
        entry["text"],
        refusal=entry.get("refused") or missing,
        truncated=bool(entry.get("cut")),
        first_token_logprobs=entry.get("first_token", {}),
    )


def entry_usage(entry: dict[str, Any]) -> Usage:
    """Tokens of a journal entry."""
    return Usage(entry["prompt_tokens"], entry["completion_tokens"])


def journal_usage(entries: Sequence[dict[str, Any]]) -> Iterator[tuple[Usage, bool]]:
    """Usage of all requests in a journal, and whether the response was lost. Requests in flight at a kill count in full."""
    in_flight: dict[str, Usage] = {}
    for entry in entries:
        before = in_flight.pop(entry.get("request", ""), None)
        if "sent" in entry:
            in_flight[entry["request"]] = entry_usage(entry)
            if before is not None:
                yield before, True
        else:
            yield entry_usage(entry), "lost" in entry
    for usage in in_flight.values():
        yield usage, True


def _count(value: Any, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else default


def _first_token_logprobs(choice: dict[str, Any], text: str) -> dict[str, float]:
    """Log-probs of the first token's candidates as returned; the higher one if a candidate occurs twice.

    Empty if they are missing, and if the first token is not the text's first token: then they belong to hidden reasoning.
    """
    try:
        first = choice["logprobs"]["content"][0]
        pairs = [(_valid_unicode(top["token"]), float(top["logprob"])) for top in first["top_logprobs"]]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return {}
    token = first.get("token")
    if text and isinstance(token, str) and not text.lstrip().startswith(_valid_unicode(token).strip()):
        return {}
    return dict(sorted(pair for pair in pairs if pair[1] != -math.inf))


def _valid_unicode(text: str) -> str:
    """Text with unpaired surrogates replaced: no UTF-8 file can hold them."""
    return text.encode(errors="replace").decode()
