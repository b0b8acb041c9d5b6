"""Dialogues: which side reads what, and when they end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from zephyr_jax.chat.message import check_messages
from zephyr_jax.clients.base import ChatModel, ChatRequest, ChatResponse, Progress, no_progress
from zephyr_jax.config.feedback import ConversationsConfig
from zephyr_jax.feedback.conversations import END_MARK, estimate_dialogues, generate_dialogues
from zephyr_jax.feedback.seed_prompts import SeedPrompt

CONFIG = ConversationsConfig(turns=3, user_max_new_tokens=20, max_new_tokens=50)


@dataclass
class ScriptedClient:
    """A client whose responses a test decides."""

    reply: Callable[[ChatRequest], ChatResponse]
    requests: list[ChatRequest] = field(default_factory=list)

    def complete(self, requests: Sequence[ChatRequest], progress: Progress = no_progress) -> list[ChatResponse]:
        self.requests += requests
        progress(len(requests))
        return [self.reply(request) for request in requests]

    def unanswered(self, requests: Sequence[ChatRequest]) -> list[ChatRequest]:
        return list(requests)


def seeds(*prompts: str) -> list[SeedPrompt]:
    return [SeedPrompt(prompt, f"id {prompt}", "") for prompt in prompts]


def numbered(text: str) -> Callable[[ChatRequest], ChatResponse]:
    return lambda request: ChatResponse(f"{text} {len(request.messages)}")


def test_both_sides_read_the_same_dialogue() -> None:
    """With swapped roles for the user model; rows alternate and end with an answer."""
    user = ScriptedClient(numbered("question"))
    assistant = ScriptedClient(lambda request: ChatResponse(f" answer {len(request.messages)} "))
    counts: list[int] = []
    models = ChatModel("u", user, 0.5), ChatModel("a", assistant, 0.7)
    for dialogue in generate_dialogues(seeds("a?", "b?"), *models, CONFIG, counts.append):
        check_messages(dialogue.messages)
        contents = [message["content"] for message in dialogue.messages[1:]]
        assert contents == ["answer 1", "question 4", "answer 3", "question 6", "answer 5"]
    last = user.requests[-1].messages
    assert [message["role"] for message in last] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert [message["content"] for message in last[2:]] == ["b?", "answer 1", "question 4", "answer 3"]
    assert (user.requests[0].temperature, assistant.requests[0].temperature) == (0.5, 0.7)
    assert len({request.seed for request in (*user.requests, *assistant.requests)}) == 10
    assert counts == sorted(counts)
    assert counts[-1] == 6


def test_the_system_message_is_kept_and_hidden_from_the_user_model() -> None:
    user, assistant = ScriptedClient(numbered("q")), ScriptedClient(lambda _: ChatResponse("a"))
    config = replace(CONFIG, turns=2, system="Be kind.", send_seed=False)
    dialogue = generate_dialogues(seeds("a?"), ChatModel("u", user, 0), ChatModel("a", assistant, 0), config)[0]
    assert dialogue.row()["messages"][0] == {"role": "system", "content": "Be kind."}
    assert assistant.requests[0].messages[0]["content"] == "Be kind."
    assert "Be kind." not in str(user.requests)
    assert {request.seed for request in (*user.requests, *assistant.requests)} == {None}


def test_what_ends_a_dialogue() -> None:
    """The end mark, and refused, truncated or empty messages; other dialogues continue."""

    def user_reply(request: ChatRequest) -> ChatResponse:
        prompt = request.messages[2]["content"]
        ends = {
            "leaves": ChatResponse(END_MARK),
            "cut": ChatResponse("x", truncated=True),
            "mute": ChatResponse(" "),
        }
        return ends.get(prompt, ChatResponse("go on"))

    def assistant_reply(request: ChatRequest) -> ChatResponse:
        prompt, turn = request.messages[0]["content"], len(request.messages)
        if prompt == "refused" or (prompt == "later" and turn > 1):
            return ChatResponse("", "422 no")
        return ChatResponse(f"As they say, {END_MARK}")

    names = ("leaves", "cut", "mute", "refused", "later", "stays")
    models = ChatModel("u", ScriptedClient(user_reply), 0), ChatModel("a", ScriptedClient(assistant_reply), 0)
    dialogues = generate_dialogues(seeds(*names), *models, CONFIG)
    assert {dialogue.seed.prompt: (len(dialogue.messages), dialogue.has_answer) for dialogue in dialogues} == {
        "leaves": (2, True), "cut": (2, True), "mute": (2, True), "refused": (0, False), "later": (2, True), "stays": (6, True)
    }  # fmt: skip
    assert "422 no" in dialogues[3].end_reason
    assert "user_max_new_tokens" in dialogues[1].end_reason


def test_the_estimate_is_an_upper_bound() -> None:
    user = ScriptedClient(lambda _: ChatResponse("q" * 80))
    assistant = ScriptedClient(lambda _: ChatResponse("a" * 200))
    models = ChatModel("u", user, 0, 1.0, 2.0), ChatModel("a", assistant, 0, 1.0, 2.0)
    estimate = estimate_dialogues(seeds("a?", "b?"), *models, CONFIG)
    generate_dialogues(seeds("a?", "b?"), *models, CONFIG)
    requests = [*user.requests, *assistant.requests]
    assert estimate.num_requests == len(requests) == 10
    assert estimate.prompt_tokens >= sum(request.prompt_bytes for request in requests) // 4 - len(requests)
    assert estimate.completion_tokens == sum(request.max_tokens for request in requests)
    assert estimate.cost_usd == (estimate.prompt_tokens + 2 * estimate.completion_tokens) / 1e6
