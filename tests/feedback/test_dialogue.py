"""Dialogues: who says what to whom, and when they end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from zephyr_jax.chat.message import check_messages
from zephyr_jax.clients.base import ChatModel, ChatRequest, ChatResponse
from zephyr_jax.feedback.dialogue import LEAVES, Manner, estimate_play, play
from zephyr_jax.feedback.seeds import Seed

MANNER = Manner(3, 20, 50, 1.0, 0, None)


@dataclass
class Script:
    """A speaker whose words a test decides."""

    says: Callable[[ChatRequest], ChatResponse]
    heard: list[ChatRequest] = field(default_factory=list)

    def complete(self, asks: Sequence[ChatRequest], done: Callable[[int], None] = lambda _: None) -> list[ChatResponse]:
        self.heard += asks
        done(len(asks))
        return [self.says(ask) for ask in asks]

    def unanswered(self, asks: Sequence[ChatRequest]) -> list[ChatRequest]:
        return list(asks)


def seeds(*prompts: str) -> list[Seed]:
    return [Seed(prompt, f"id {prompt}", "") for prompt in prompts]


def person_says(text: str) -> Callable[[ChatRequest], ChatResponse]:
    return lambda ask: ChatResponse(f"{text} {len(ask.messages)}")


def test_both_sides_hear_the_same_dialogue() -> None:
    """The assistant's words are the user's to the model that plays the person; rows alternate and end with an answer."""
    person, assistant = (
        Script(person_says("question")),
        Script(lambda ask: ChatResponse(f" answer {len(ask.messages)} ")),
    )
    counts: list[int] = []
    talks = play(seeds("a?", "b?"), ChatModel("p", person, 0.5), ChatModel("a", assistant, 0.7), MANNER, counts.append)
    for talk in talks:
        check_messages(talk.messages)
        assert [each["content"] for each in talk.messages[1:]] == [
            "answer 1", "question 4", "answer 3", "question 6", "answer 5"
        ]  # fmt: skip
    last = person.heard[-1].messages
    assert [each["role"] for each in last] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert [each["content"] for each in last[2:]] == ["b?", "answer 1", "question 4", "answer 3"]
    assert (person.heard[0].temperature, assistant.heard[0].temperature) == (0.5, 0.7)
    assert len({ask.seed for ask in (*person.heard, *assistant.heard)}) == 10
    assert counts == sorted(counts)
    assert counts[-1] == 6


def test_the_system_message_is_kept_and_the_person_does_not_see_it() -> None:
    person, assistant = Script(person_says("q")), Script(lambda _: ChatResponse("a"))
    talk = play(
        seeds("a?"), ChatModel("p", person, 0), ChatModel("a", assistant, 0), Manner(2, 9, 9, 1, None, "Be kind.")
    )[0]
    assert talk.row()["messages"][0] == {"role": "system", "content": "Be kind."}
    assert assistant.heard[0].messages[0]["content"] == "Be kind."
    assert "Be kind." not in str(person.heard)
    assert {ask.seed for ask in (*person.heard, *assistant.heard)} == {None}


def test_ends() -> None:
    """A person who leaves, and messages that are refused, cut or empty, end a dialogue before them; others go on."""

    def person_does(ask: ChatRequest) -> ChatResponse:
        prompt = ask.messages[2]["content"]
        ends = {"leaves": ChatResponse(LEAVES), "cut": ChatResponse("x", truncated=True), "mute": ChatResponse(" ")}
        return ends.get(prompt, ChatResponse("go on"))

    def assistant_does(ask: ChatRequest) -> ChatResponse:
        prompt, turn = ask.messages[0]["content"], len(ask.messages)
        if prompt == "refused" or (prompt == "later" and turn > 1):
            return ChatResponse("", "422 no")
        return ChatResponse(f"As they say, {LEAVES}")

    names = ("leaves", "cut", "mute", "refused", "later", "stays")
    talks = play(
        seeds(*names), ChatModel("p", Script(person_does), 0), ChatModel("a", Script(assistant_does), 0), MANNER
    )
    found = {talk.seed.prompt: (len(talk.messages), talk.whole) for talk in talks}
    assert found == {
        "leaves": (2, True), "cut": (2, True), "mute": (2, True), "refused": (0, False), "later": (2, True), "stays": (6, True)
    }  # fmt: skip
    assert talks[3].ended == "the assistant's model refused: 422 no"


def test_the_estimate_is_no_less_than_what_it_takes() -> None:
    person, assistant = Script(lambda _: ChatResponse("q" * 80)), Script(lambda _: ChatResponse("a" * 200))
    voices = ChatModel("p", person, 0, 1.0, 2.0), ChatModel("a", assistant, 0, 1.0, 2.0)
    ahead = estimate_play(seeds("a?", "b?"), *voices, MANNER)
    play(seeds("a?", "b?"), *voices, MANNER)
    heard = [*person.heard, *assistant.heard]
    assert ahead.requests == len(heard) == 10
    assert ahead.there >= sum(len(message["content"]) for ask in heard for message in ask.messages) // 4 - len(heard)
    assert ahead.back == sum(ask.max_tokens for ask in heard)
    assert ahead.dollars == (ahead.there + 2 * ahead.back) / 1e6
