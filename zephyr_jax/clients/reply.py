"""What came back from an endpoint: an answer, or why there is none, as journals keep it."""

import math
from dataclasses import dataclass, field
from typing import Any

from zephyr_jax.clients.budget import Cost
from zephyr_jax.clients.connection import Trouble
from zephyr_jax.errors import truncate_repr


@dataclass(frozen=True)
class Said:
    """What came back: text, or why there is none."""

    text: str
    refusal: str = ""
    cut: bool = False
    """Whether it stopped at its longest, not at an end of its own."""
    first_token: dict[str, float] = field(default_factory=dict)
    """Candidates for the first token -> their log-probs, where they were asked for and given."""


def line_of(name: str, reply: dict[str, Any], held: Cost) -> dict[str, Any]:
    """A reply as the journal keeps it; one that counts no tokens has taken all that it could.

    Raises Trouble for one without a message, and for one that the endpoint itself ended with an error.
    """
    try:
        choice = reply["choices"][0]
        message: dict[str, Any] = choice["message"]
        content = message.get("content") if message.keys() & {"refusal", "tool_calls"} else message["content"]
        reason = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Trouble(
            f"a reply without a message: {truncate_repr(reply)}", again=True, alone=True, lost=True
        ) from error
    if reason == "error" or choice.get("error"):
        detail = truncate_repr(choice.get("error") or "no reason is given")
        raise Trouble(f"a reply that ended in an error: {detail}", again=True, alone=True, lost=True)
    text = _unicode(_text_of(content))
    usage: dict[str, Any] = found if isinstance(found := reply.get("usage"), dict) else {}
    line = {
        "request": name,
        "text": text,
        "prompt_tokens": _count(usage.get("prompt_tokens"), held.there),
        "completion_tokens": _count(usage.get("completion_tokens"), held.back),
        "cut": reason == "length",
    }
    if missing := _no_answer(text, reason, message):
        return {**line, "text": "", "refused": missing}
    first = _first_token(choice, text)
    return {**line, "first_token": first} if first else line


def _text_of(content: Any) -> str:
    """The text of a message: as it is, or its parts that are text, joined; thoughts are other parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [
        part.get("text") for part in parts if isinstance(part, dict) and part.get("type") in ("text", "output_text")
    ]
    return "".join(text for text in texts if isinstance(text, str))


def _no_answer(text: str, reason: Any, message: dict[str, Any]) -> str:
    """Why a reply is not an answer; empty where it is one."""
    if reason == "content_filter":
        return "the endpoint's content filter ended the reply"
    if text.strip():
        return ""
    if isinstance(message.get("refusal"), str) and message["refusal"]:
        return f"it refused: {_unicode(message['refusal'])[:300]}"
    if message.get("tool_calls"):
        return "a tool call where text was expected"
    if reason == "length":
        return "no text within the longest reply: the model thought all the time, or wrote only spaces"
    return "no text"


def problem_of(line: dict[str, Any]) -> str:
    """What is wrong with a line of an endpoint's journal; empty where nothing is."""
    if not isinstance(line.get("request"), str):
        return f"expected a text in `request`, got {truncate_repr(line.get('request'))}"
    for name in ("prompt_tokens", "completion_tokens"):
        if _count(line.get(name), -1) < 0:
            return f"expected a count in `{name}`, got {truncate_repr(line.get(name))}"
    if not line.keys() & {"text", "sent", "lost", "free"}:
        return "expected one of `text`, `sent`, `lost` and `free`"
    texts = [line[name] for name in ("text", "refused") if name in line]
    first = line.get("first_token", {})
    chances = first.values() if isinstance(first, dict) else ("?",)
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(each, float | int) for each in chances):
        return "expected texts in `text` and `refused`, and numbers in `first_token`"
    return ""


def said_in(line: dict[str, Any]) -> Said:
    """The reply that a line of the journal holds; one without text is no answer, in lines of earlier versions too."""
    missing = "" if line["text"].strip() else "no text"
    return Said(
        line["text"], line.get("refused") or missing, cut=bool(line.get("cut")), first_token=line.get("first_token", {})
    )


def tokens_of(line: dict[str, Any]) -> Cost:
    """What a line says that its request took."""
    return Cost(line["prompt_tokens"], line["completion_tokens"])


def _count(value: Any, otherwise: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else otherwise


def _first_token(choice: dict[str, Any], text: str = "") -> dict[str, float]:
    """Candidates and log-probs as they are given, the likelier where a text is there twice.

    Empty where there are none, and where the first token is not the text's: a hidden thought's candidates are not the answer's.
    """
    try:
        first = choice["logprobs"]["content"][0]
        pairs = [(_unicode(each["token"]), float(each["logprob"])) for each in first["top_logprobs"]]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return {}
    token = first.get("token")
    if text and isinstance(token, str) and not text.lstrip().startswith(_unicode(token).strip()):
        return {}
    return dict(sorted(pair for pair in pairs if pair[1] != -math.inf))


def _unicode(text: str) -> str:
    """The same without halves of surrogate pairs, which no file can hold."""
    return text.encode(errors="replace").decode()
