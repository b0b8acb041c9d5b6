"""What the server takes and says: the part of OpenAI's chat completions that a model with its own template can keep.

Whatever would change the answer and is not done here is refused by name, never passed over. Parameters that ask for nothing
(null, an empty list or object) are accepted, as the official client sends them.
"""

import time
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from zephyr_jax.chat.message import Message
from zephyr_jax.config.sampling import MAX_NEW_TOKENS, MAX_SEED, MAX_TOP_K

_MAX_MESSAGES = 8192
_MAX_PARTS = 1024
_MAX_STOP = 1000  # characters of a stop string
_SHOWN = 200  # characters of a name that a refusal repeats


class Refusal(Exception):
    """An answer that is an error. `status` is HTTP's."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error", param: str | None = None):
        super().__init__(message)
        self.status, self.kind, self.param = status, kind, param

    def body(self) -> dict[str, Any]:
        """OpenAI's form of an error."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": None}}


_NOTHING: tuple[Any, ...] = (None, [], {})


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_empty_extras(cls, content: Any) -> Any:
        """The object without unknown parameters that ask for nothing."""
        if not isinstance(content, dict):
            return content
        return {name: value for name, value in content.items() if name in cls.model_fields or value not in _NOTHING}


class TextPart(_Strict):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(_Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(max_length=_MAX_PARTS)]
    name: None = None

    @property
    def plain(self) -> Message:
        """Role and text; `developer` is the newer name of `system`."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(_Strict):
    """What a stream has besides text."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class TextFormat(_Strict):
    """Plain text, the only form there is."""

    type: Literal["text"] = "text"


type _Stop = Annotated[str, Field(min_length=1, max_length=_MAX_STOP)]
type _Tokens = Annotated[int, Field(ge=1, le=MAX_NEW_TOKENS)]


class ChatRequest(_Strict):
    """The body of `POST /v1/chat/completions`. What is typed as one value only cannot be asked for otherwise.

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
    def most(self) -> int | None:
        """Tokens to make at most; None: as many as the context holds."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> list[str]:
        """Strings that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else (self.stop or [])


def parse_chat(body: bytes) -> ChatRequest:
    """A request from its JSON. Raises Refusal with status 400 for what is no JSON object, 422 for values that cannot be."""
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid" or not first["loc"]:
            raise Refusal(400, f"The body is no JSON object: {first['msg']}.") from error
        where = ".".join(str(each) for each in first["loc"] if not str(each).startswith(("function-", "constrained-")))
        where = where[:_SHOWN]
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        unknown = first["type"] == "extra_forbidden"
        what = f"`{where}` is nothing this server knows" if unknown else f"`{where}`: {first['msg']}"
        raise Refusal(422, f"{what}{more}.", param=str(first["loc"][0])[:_SHOWN]) from error


class Reply:
    """The frame of one completion: its id, its time, its model."""

    def __init__(self, model: str):
        self._head = {"id": f"chatcmpl-{uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": usage}

    def chunk(self, index: int, delta: dict[str, str], end: str | None = None) -> dict[str, Any]:
        """A piece of a stream."""
        choice = {"index": index, "delta": delta, "finish_reason": end, "logprobs": None}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def usage_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        """The last piece of a stream that was asked to count."""
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage}


def usage_of(prompt: int, made: int) -> dict[str, int]:
    """Token counts."""
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
