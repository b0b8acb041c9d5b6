"""What a run will take, told before it begins."""

from collections.abc import Iterable
from dataclasses import dataclass

from zephyr_jax.clients.base import ChatModel, ChatRequest

_BYTES_OF_A_TOKEN = 4  # of English, about


@dataclass(frozen=True)
class Estimate:
    """Requests that were not answered before, and their tokens."""

    requests: int = 0
    there: int = 0
    """About so many tokens that are sent."""
    back: int = 0
    """At most so many that come back."""
    dollars: float = 0.0
    """Of both."""

    def __add__(self, other: "Estimate") -> "Estimate":
        return Estimate(
            self.requests + other.requests,
            self.there + other.there,
            self.back + other.back,
            self.dollars + other.dollars,
        )

    def words(self) -> str:
        """For people."""
        money = f", at most ${self.dollars:,.{2 if self.dollars >= 1 else 4}f}" if self.dollars else ""
        return f"up to {self.requests:,} requests: about {self.there:,} tokens there, at most {self.back:,} back{money}"


def estimate(voice: ChatModel, asks: Iterable[ChatRequest], more: int = 0) -> Estimate:
    """For requests of one model; `more`: tokens that each will hold besides what is known of it yet."""
    total = Estimate()
    for ask in asks:
        letters = sum(len(message["content"].encode(errors="replace")) for message in ask.messages)
        there = letters // _BYTES_OF_A_TOKEN + more
        dollars = (there * voice.price_per_mtok_in + ask.max_tokens * voice.price_per_mtok_out) / 1e6
        total += Estimate(1, there, ask.max_tokens, dollars)
    return total
