"""Requests and responses of the server: the subset of OpenAI's chat completions that a local model supports.

A parameter that would change the answer but is not supported is rejected by name, never ignored. Unknown parameters without
content (null, an empty list or object) are accepted, because the official client sends them.
"""

import time
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from zephyr_jax.chat.message import Message
from zephyr_jax.config.sampling import MAX_NEW_TOKENS, MAX_SEED, MAX_TOP_K

_MAX_MESSAGES = 8192
_MAX_PARTS = 1024
_MAX_STOP_LENGTH = 1000  # characters of a stop string
MAX_ECHO = 200
"""Characters of a client's text that an error repeats."""


class ApiError(Exception):
    """An error response in OpenAI's format.

    Args:
        status: HTTP status.
        message: text for the client.
        kind: OpenAI's `type` of the error.
        param: request parameter that caused it.
    """

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error", param: str | None = None):
        super().__init__(message)
        self.status, self.kind, self.param = status, kind, param

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": None}}


_EMPTY: tuple[Any, ...] = (None, [], {})


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_extras(cls, content: Any) -> Any:
        """Drop unknown parameters without content."""
        if not isinstance(content, dict):
            return content
        return {name: value for name, value in content.items() if name in cls.model_fields or value not in _EMPTY}


class TextPart(_Strict):
    """A text part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(_Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(max_length=_MAX_PARTS)]
    reasoning_content: str | None = None
    name: None = None

    @property
    def plain(self) -> Message:
        """Role, text and reasoning; `developer` is OpenAI's newer name of `system`."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": text, **reasoning_field(self.reasoning_content)}

    @property
    def num_characters(self) -> int:
        """Length of text and reasoning."""
        return len(self.plain["content"]) + len(self.reasoning_content or "")


class StreamOptions(_Strict):
    """Options of a streamed response."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class TextFormat(_Strict):
    """Plain text, the only supported response format."""

    type: Literal["text"] = "text"


type _Stop = Annotated[str, Field(min_length=1, max_length=_MAX_STOP_LENGTH)]
type _Tokens = Annotated[int, Field(ge=1, le=MAX_NEW_TOKENS)]


class ChatCompletionRequest(_Strict):
    """The body of `POST /v1/chat/completions`. Parameters typed as a single value are accepted with this value only.

    Bounds of sampling parameters are those of `SamplingParams`, or OpenAI's where these are narrower.
    """

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=_MAX_MESSAGES)]
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2, strict=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, strict=False)] | None = None
    top_k: Annotated[int, Field(ge=0, le=MAX_TOP_K)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=4)] | None = None
    n: Annotated[int, Field(ge=1, le=8)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0, strict=False)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0, strict=False)] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    response_format: TextFormat | None = None
    modalities: list[Literal["text"]] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    function_call: Literal["none", "auto"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def max_new_tokens(self) -> int | None:
        """Maximum tokens of an answer; None: as many as fit into the context."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> list[str]:
        """Stop strings."""
        return [self.stop] if isinstance(self.stop, str) else (self.stop or [])


def reasoning_field(text: str | None) -> dict[str, str]:
    """The field of a message, or of a streamed delta, with what the model thinks before its answer; none without text."""
    return {"reasoning_content": text} if text else {}


def parse_chat(body: bytes) -> ChatCompletionRequest:
    """Parse a request body. Raises ApiError: 400 unless it is a JSON object, 422 for invalid parameters."""
    try:
        return ChatCompletionRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid" or not first["loc"]:
            raise ApiError(400, f"Expected a JSON object as body: {first['msg']}.") from error
        parts = [str(part) for part in first["loc"]]
        name = ".".join(part for part in parts if not part.startswith(("function-", "constrained-")))[:MAX_ECHO]
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        unknown = first["type"] == "extra_forbidden"
        problem = f"`{name}` is not supported by this server" if unknown else f"`{name}`: {first['msg']}"
        raise ApiError(422, f"{problem}{more}.", param=parts[0][:MAX_ECHO]) from error


class Completion:
    """Response bodies of one completion, with its id, creation time and model name."""

    def __init__(self, model: str):
        self._head = {"id": f"chatcmpl-{uuid4().hex}", "created": int(time.time()), "model": model}

    def body(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        """The body of a response that is not streamed."""
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": usage}

    def chunk(self, index: int, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        """One event of a streamed response."""
        choice = {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def usage_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        """The last event of a stream with `include_usage`."""
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage}


def usage_of(num_prompt: int, num_completion: int) -> dict[str, int]:
    """Token counts in OpenAI's format."""
    total = num_prompt + num_completion
    return {"prompt_tokens": num_prompt, "completion_tokens": num_completion, "total_tokens": total}
