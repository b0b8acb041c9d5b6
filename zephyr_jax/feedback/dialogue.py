"""Dialogues of two models: one plays the person who asks, one the assistant who answers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from zephyr_jax.chat.message import Message
from zephyr_jax.clients.base import ChatModel, ChatRequest, ChatResponse
from zephyr_jax.feedback.estimate import Estimate, estimate
from zephyr_jax.feedback.seeds import Seed
from zephyr_jax.seeded_random import draw

LEAVES = "[THAT IS ALL]"
"""What the person says to leave; what the assistant writes ends nothing."""
_PERSON = (
    "In this conversation you are a person who talks to an AI assistant; what you receive are the assistant's messages. Write "
    "the person's next message and nothing else. Stay with what the person is after: ask for more detail, question something, "
    "add a condition, or go on to what follows from the answer. Write as people type: briefly, without thanks, without "
    f"answering yourself. When the person would have no further question, write only {LEAVES}"
)
_OPENING = "Hello! What can I do for you?"


@dataclass(frozen=True)
class Manner:
    """How a dialogue is held."""

    turns: int
    user_max_new_tokens: int
    assistant_max_new_tokens: int
    top_p: float
    seed: int | None
    """None: models get no seed."""
    system: str | None
    """System message of the assistant, kept in the rows."""


@dataclass
class Talk:
    """A dialogue as far as it has come."""

    seed: Seed
    messages: list[Message]
    """What was said, the system message apart."""
    ended: str = ""
    """Why it goes no further, if it does not."""
    last: str = ""
    """What was said then, where that is no part of it."""
    head: list[Message] = field(default_factory=list)
    """The system message, if any."""

    @property
    def whole(self) -> bool:
        """Whether there is an answer to learn from."""
        return len(self.messages) > 1

    def row(self) -> dict[str, object]:
        """As `zephyr-jax sft` reads it."""
        return {
            "prompt": self.seed.prompt, "prompt_id": self.seed.prompt_id, "messages": [*self.head, *self.messages],
        }  # fmt: skip


def play(
    seeds: list[Seed],
    person: ChatModel,
    assistant: ChatModel,
    manner: Manner,
    done: Callable[[int], None] = lambda _: None,
) -> list[Talk]:
    """All dialogues, turn by turn, those of all seeds together; `done` is told how many answers there are or will not be."""
    head: list[Message] = [{"role": "system", "content": manner.system}] if manner.system is not None else []
    talks = [Talk(seed, [{"role": "user", "content": seed.prompt}], head=head) for seed in seeds]
    for turn in range(manner.turns):
        if turn:
            _say(talks, "user", person, partial(person_ask, voice=person, manner=manner, turn=turn))
        answering = partial(assistant_ask, voice=assistant, manner=manner, turn=turn)
        _say(talks, "assistant", assistant, answering, partial(_count, done, turn * len(talks)))
        done((turn + 1) * len(talks))
    return talks


def _count(done: Callable[[int], None], before: int, count: int) -> None:
    done(before + count)


def estimate_play(seeds: list[Seed], person: ChatModel, assistant: ChatModel, manner: Manner) -> Estimate:
    """As if nobody left early and every message were as long as it may be."""
    total = Estimate()
    for turn in range(manner.turns):
        before = turn * (manner.assistant_max_new_tokens + manner.user_max_new_tokens)
        talks = [Talk(seed, [{"role": "user", "content": seed.prompt}]) for seed in seeds]
        if turn:
            asks = [person_ask(talk, person, manner, turn) for talk in talks]
            total += estimate(person, asks, before - manner.user_max_new_tokens)
        total += estimate(assistant, [assistant_ask(talk, assistant, manner, turn) for talk in talks], before)
    return total


def assistant_ask(talk: Talk, voice: ChatModel, manner: Manner, turn: int) -> ChatRequest:
    """The request for the assistant's next message."""
    seed = _seed_of(talk, manner, "assistant", turn)
    return ChatRequest(
        (*talk.head, *talk.messages), voice.temperature, manner.assistant_max_new_tokens, manner.top_p, seed
    )


def person_ask(talk: Talk, voice: ChatModel, manner: Manner, turn: int) -> ChatRequest:
    """The request for the person's next message: the same dialogue from the other side."""
    turned: list[Message] = [
        {"role": "assistant" if message["role"] == "user" else "user", "content": message["content"]}
        for message in talk.messages
    ]
    messages = ({"role": "system", "content": _PERSON}, {"role": "user", "content": _OPENING}, *turned)
    seed = _seed_of(talk, manner, "person", turn)
    return ChatRequest(messages, voice.temperature, manner.user_max_new_tokens, manner.top_p, seed)


def _seed_of(talk: Talk, manner: Manner, who: str, turn: int) -> int | None:
    if manner.seed is None:
        return None
    return draw(manner.seed, who, str(turn), talk.seed.prompt_id) % 2**31


def _say(
    talks: Iterable[Talk],
    role: str,
    voice: ChatModel,
    ask: Callable[[Talk], ChatRequest],
    done: Callable[[int], None] = lambda _: None,
) -> None:
    """Let one side speak in all dialogues that go on."""
    going = [talk for talk in talks if not talk.ended]
    for talk, said in zip(going, voice.client.complete([ask(talk) for talk in going], done), strict=True):
        talk.ended = _end_of(said, role)
        talk.last = said.text if talk.ended else ""
        if not talk.ended:
            talk.messages.append({"role": role, "content": said.text.strip()})
        elif role == "assistant":
            talk.messages.pop()  # a question without an answer


def _end_of(said: ChatResponse, role: str) -> str:
    """Why a dialogue ends here; nothing where it goes on."""
    who = "the person" if role == "user" else "the assistant"
    if said.refusal:
        return f"{who}'s model refused: {said.refusal}"
    if said.truncated:
        return f"{who}'s message was longer than {role}_max_new_tokens allows"
    if not said.text.strip():
        return f"{who} said nothing"
    return "the person left" if role == "user" and LEAVES in said.text else ""
