"""Messages as data sets write them (ShareGPT, OpenAI, hh-rlhf, ...) -> messages as chat templates read them."""

import json
import re
from typing import Any

from zephyr_jax.chat.message import REASONING_FIELDS, Message, SkippedRow, text_message

_ROLES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "bot", "model"), "assistant"),
    "developer": "system",
    "observation": "tool",
}
"""Role in a data set -> role in a template. Other roles are kept."""
WEIGHT_FIELDS = ("weight", "train", "trainable", "loss")
"""Fields that state whether an answer is a target."""
_TEMPLATE_FIELDS = ("tool_calls", "tool_call_id", "name", *REASONING_FIELDS)
"""Fields that are passed to the template."""
MEDIA_FIELDS = ("images", "image", "audios", "audio", "videos", "video")
_UNSUPPORTED = ("function_call", "prefix", *MEDIA_FIELDS)
MESSAGE_FIELDS = frozenset({"role", "from", "content", "value", *WEIGHT_FIELDS, *_TEMPLATE_FIELDS, *_UNSUPPORTED})
"""Every field of a message that is used or refused."""
_HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}


def parse_messages(value: Any, column: str) -> list[Message]:
    """Messages from a list, a struct of lists, one message, or the JSON text of one of these.

    Args:
        value: What the column holds.
        column: Its name, for messages.

    Raises:
        SkippedRow: It holds something else, or a message has a field or a part of its content that cannot be honored.
    """
    if isinstance(value, str):
        value = parse_json_column(value, column)
    if isinstance(value, dict) and isinstance(value.get("role", value.get("from")), list):
        value = _transpose(value, column)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value:
        raise SkippedRow(f"{column} is {type(value).__name__}, not a list with at least one message")
    return [_message(raw, column) for raw in value]


def parse_json_column(text: str, column: str) -> Any:
    """The value of a column that holds JSON text, as CSV files do. Raises SkippedRow for text that is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise SkippedRow(f"{column} is str, not a list with at least one message") from None


def is_transcript(value: Any) -> bool:
    """Whether a value is a transcript in the form of Anthropic's hh-rlhf: `\\n\\nHuman: ...\\n\\nAssistant: ...`."""
    if not isinstance(value, str) or not value.lstrip().startswith("Human:"):
        return False
    return value.startswith("\n\n") or "\n\nAssistant:" in value


def parse_transcript(text: str) -> list[Message]:
    """Messages of an hh-rlhf transcript; an empty last turn, which asks for an answer, is dropped."""
    _, *pieces = _HH_TURN.split(text.strip())
    turns = [text_message(_HH_ROLES[role], text.strip()) for role, text in zip(*[iter(pieces)] * 2, strict=True)]
    return turns[:-1] if turns and not turns[-1]["content"] else turns


def _transpose(columns: dict[str, Any], column: str) -> list[dict[str, Any]]:
    """The messages of a struct of lists, which is how some libraries store a list of structs."""
    lists = {name: values for name, values in columns.items() if values is not None}
    if not all(isinstance(values, list) for values in lists.values()) or len(set(map(len, lists.values()))) != 1:
        raise SkippedRow(f"{column} holds lists of unequal lengths, not messages")
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _message(raw: Any, column: str) -> Message:
    if not isinstance(raw, dict):
        raise SkippedRow(f"{column} holds {type(raw).__name__}, not messages with role and content")
    role = raw.get("role") if raw.get("role") is not None else raw.get("from")
    role = _ROLES.get(role, role) if isinstance(role, str) else role
    for name in _UNSUPPORTED:
        if raw.get(name):
            raise SkippedRow(f"a message has the field `{name}`, which is not supported")
    kept = {name: raw[name] for name in _TEMPLATE_FIELDS if raw.get(name)}
    first, *others = [name for name in REASONING_FIELDS if name in kept] or [""]
    for name in others:
        if kept.pop(name) != kept[first]:
            raise SkippedRow(f"a message has contradicting `{first}` and `{name}`")
    if "name" in kept and kept["name"] in (role, raw.get("role"), raw.get("from")):
        del kept["name"]
    if "tool_calls" in kept:
        kept["tool_calls"] = [_tool_call(call) for call in _tool_calls(kept["tool_calls"])]
    content = raw.get("content") if raw.get("content") is not None else raw.get("value")
    content = "" if content is None and "tool_calls" in kept else _text(content, role)
    message = {"role": role, "content": content, **kept}
    return message if _is_target(raw, role) else {**message, "weight": 0}


def _is_target(raw: dict[str, Any], role: Any) -> bool:
    """Whether an answer is a target. Raises SkippedRow for weights other than 0 and 1, and for weights of other roles."""
    weights = {name: raw[name] for name in WEIGHT_FIELDS if raw.get(name) is not None}
    for name, weight in weights.items():
        if weight not in (0, 1):
            raise SkippedRow(f"a message has a `{name}` other than 0 and 1")
    if len({bool(weight) for weight in weights.values()}) > 1:
        raise SkippedRow(f"a message has contradicting {' and '.join(f'`{name}`' for name in weights)}")
    if role != "assistant":
        if any(weights.values()):
            raise SkippedRow(
                f"a {str(role)[:40]} message has `{next(iter(weights))}` 1; only assistant answers are targets"
            )
        return True
    return all(weights.values())


def _text(content: Any, role: Any) -> Any:
    """The text of a content, joined where it is a list of text parts; other values stay and are refused later."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
        if not isinstance(part, dict) or kind != "text" or not isinstance(part.get("text"), str):
            raise SkippedRow(f"a {str(role)[:40]} message has a content part of the type {str(kind)[:40]!r}, not text")
        texts.append(part["text"])
    return "".join(texts) if texts else content


def _tool_calls(value: Any) -> list[Any]:
    value = parse_json_column(value, "tool_calls") if isinstance(value, str) else value
    if not isinstance(value, list):
        raise SkippedRow(f"tool_calls is {type(value).__name__}, not a list")
    return value


def _tool_call(call: Any) -> Any:
    """A call whose arguments are an object, as templates expect; OpenAI's form has them as JSON text."""
    if not isinstance(call, dict):
        raise SkippedRow(f"tool_calls holds {type(call).__name__}, not objects")
    function = call.get("function")
    inner = function if isinstance(function, dict) else call
    arguments = inner.get("arguments")
    if isinstance(arguments, str):
        arguments = parse_json_column(arguments, "the arguments of a tool call") if arguments.strip() else {}
    changed = {**inner, "arguments": arguments} if "arguments" in inner else inner
    return {**call, "function": changed} if inner is not call else changed
