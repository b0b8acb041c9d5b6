"""The chat interface that remote endpoints and local checkpoints share: requests, responses, token usage, clients."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Protocol

from zephyr_jax.chat.message import Message
from zephyr_jax.config.sections import EndpointOptions

_TEMPLATE_TOKENS = 64
"""Upper bound of the tokens that a chat template adds to a request; each message may add an eighth of it again."""

type Progress = Callable[[int], None]
"""Called with the number of requests answered so far."""


def no_progress(_: int) -> None:
    """The default `Progress`."""


def progress_after(count: int, progress: Progress) -> Progress:
    """Progress of a part of the requests, where `count` others are already answered."""
    return lambda completed: progress(count + completed)


@dataclass(frozen=True)
class Usage:
    """Tokens of one request or several, and their cost."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cost_usd + other.cost_usd,
        )

    def __sub__(self, other: "Usage") -> "Usage":
        return self + Usage(-other.prompt_tokens, -other.completion_tokens, -other.cost_usd)

    @property
    def total_tokens(self) -> int:
        """Prompt and completion tokens."""
        return self.prompt_tokens + self.completion_tokens

    def priced(self, options: EndpointOptions) -> "Usage":
        """The same tokens at the endpoint's prices."""
        cost = (
            self.prompt_tokens * options.price_per_mtok_in + self.completion_tokens * options.price_per_mtok_out
        ) / 1e6
        return Usage(self.prompt_tokens, self.completion_tokens, cost)


@dataclass(frozen=True)
class ChatRequest:
    """One chat completion request."""

    messages: tuple[Message, ...]
    temperature: float
    max_tokens: int
    top_p: float = 1.0
    seed: int | tuple[int, ...] | None = None
    """None: a remote endpoint gets no seed, a local checkpoint derives one from the request. Several integers: local only."""
    top_logprobs: int = 0
    """Number of candidates per token whose log-probs the endpoint should return."""
    nonce: int = 0
    """Not sent; distinguishes requests with the same content that need separate responses."""

    def body(self, model: str) -> dict[str, Any]:
        """The JSON body of a chat completion request."""
        settings: dict[str, Any] = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        settings |= {"top_p": self.top_p} if self.top_p != 1 else {}
        settings |= {"seed": self.seed} if self.seed is not None else {}
        settings |= {"logprobs": True, "top_logprobs": self.top_logprobs} if self.top_logprobs else {}
        return {"model": model, "messages": list(self.messages), **settings}

    def key(self, url: str, model: str) -> str:
        """Digest that identifies the request in a journal."""
        content = [url, self.body(model), *([self.nonce] if self.nonce else [])]
        return blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()

    @property
    def prompt_bytes(self) -> int:
        """UTF-8 bytes of all messages."""
        return sum(len(message["content"].encode(errors="replace")) for message in self.messages)

    @property
    def max_usage(self) -> Usage:
        """Upper bound of the tokens it can use: no token is shorter than a byte."""
        template = _TEMPLATE_TOKENS + len(self.messages) * _TEMPLATE_TOKENS // 8
        return Usage(self.prompt_bytes + template, self.max_tokens)


@dataclass(frozen=True)
class ChatResponse:
    """The response to one request: text, or the reason why it is missing."""

    text: str
    refusal: str = ""
    truncated: bool = False
    """The response ended at `max_tokens`, not at an end token."""
    first_token_logprobs: dict[str, float] = field(default_factory=dict)
    """Candidates of the first token with their log-probs, if requested and returned."""


class ChatClient(Protocol):
    """Answers chat requests: a remote endpoint or a checkpoint in this process."""

    def complete(self, requests: Sequence[ChatRequest], progress: Progress = ...) -> list[ChatResponse]:
        """All responses, in order. Each is journaled before it is returned, and journaled responses are reused."""

    def unanswered(self, requests: Sequence[ChatRequest]) -> list[ChatRequest]:
        """The distinct requests without a journaled response."""


@dataclass(frozen=True)
class ChatModel:
    """A client with the name, temperature and prices that a command uses for it."""

    name: str
    client: ChatClient
    temperature: float
    price_per_mtok_in: float = 0.0
    """USD per million prompt tokens."""
    price_per_mtok_out: float = 0.0
    """USD per million completion tokens."""
