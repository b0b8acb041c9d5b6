"""`zephyr-jax feedback conversations`: dialogues from seed prompts, between a user model and an assistant model."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from zephyr_jax.chat.message import Message
from zephyr_jax.clients.base import ChatModel, ChatRequest, ChatResponse, Progress, no_progress, progress_after
from zephyr_jax.config.feedback import ConversationsConfig
from zephyr_jax.data.row_formats import Row
from zephyr_jax.feedback.seed_prompts import SeedPrompt, read_seed_prompts
from zephyr_jax.feedback.session import Estimate, Session, count_reasons, estimate_requests
from zephyr_jax.progress import progress_bar
from zephyr_jax.seeded_random import draw

logger = logging.getLogger(__name__)

END_MARK = "[THAT IS ALL]"
"""The user model writes it to end the dialogue; in the assistant's messages it has no meaning."""
_USER_SYSTEM = (
    "In this conversation you are a person who talks to an AI assistant; what you receive are the assistant's messages. Write "
    "the person's next message and nothing else. Stay with what the person is after: ask for more detail, question something, "
    "add a condition, or go on to what follows from the answer. Write as people type: briefly, without thanks, without "
    f"answering yourself. When the person would have no further question, write only {END_MARK}"
)
_GREETING = "Hello! What can I do for you?"
_MAX_REJECTED_CHARS = 1000


@dataclass
class Dialogue:
    """A dialogue so far."""

    seed: SeedPrompt
    messages: list[Message]
    """User and assistant messages."""
    system: list[Message] = field(default_factory=list)
    """The assistant's system message, if any."""
    end_reason: str = ""
    """Why it ended; empty if it continues."""
    rejected_text: str = ""
    """The response that ended it, which is not among the messages."""

    @property
    def has_answer(self) -> bool:
        """Whether it has an assistant message."""
        return len(self.messages) > 1

    def row(self) -> Row:
        """The row for `zephyr-jax sft`."""
        return {
            "prompt": self.seed.prompt,
            "prompt_id": self.seed.prompt_id,
            "messages": [*self.system, *self.messages],
        }


def main(config: ConversationsConfig, command: str = "") -> str:
    """Generate the dialogues and write the rows. Rerun after a kill, it continues and requests nothing twice.

    Returns:
        A summary, or with `config.estimate` the estimate.

    Raises:
        InputError: Bad settings or rows, an endpoint that fails, or an exhausted budget.
    """
    seeds = read_seed_prompts(config.data, config.split, config.limit)
    session = Session("feedback conversations", config, config.temperature, keep=True)
    assistant = session.models.open(config.assistant)
    user = session.models.open(config.user) if config.user else assistant
    estimate = estimate_dialogues(seeds.prompts, user, assistant, config)
    if config.estimate:
        return str(estimate)
    logger.info("%s", estimate)
    with progress_bar("answers", len(seeds.prompts) * config.turns) as advance:
        dialogues = generate_dialogues(seeds.prompts, user, assistant, config, advance)
    rejected = [
        {**dialogue.row(), "reason": dialogue.end_reason, "response": dialogue.rejected_text[:_MAX_REJECTED_CHARS]}
        for dialogue in dialogues
        if not dialogue.has_answer
    ]
    summary = session.write_rows([dialogue.row() for dialogue in dialogues if dialogue.has_answer], rejected)
    num_answers = sum(len(dialogue.messages) // 2 for dialogue in dialogues)
    early = count_reasons(
        [dialogue.end_reason for dialogue in dialogues if dialogue.has_answer and dialogue.end_reason]
    )
    ended = f"; ended before turn {config.turns}: {early}" if early else ""
    return f"{summary}; {num_answers:,} answers{ended}{seeds.note()}"


def generate_dialogues(
    seeds: Sequence[SeedPrompt],
    user: ChatModel,
    assistant: ChatModel,
    config: ConversationsConfig,
    progress: Progress = no_progress,
) -> list[Dialogue]:
    """All dialogues, turn by turn, so that the requests of a turn run together.

    Args:
        seeds: First user messages.
        user: Writes the other user messages.
        assistant: Writes the assistant messages.
        config: Turns, lengths, sampling.
        progress: Called with the number of answers that exist, or never will because their dialogue ended.
    """
    system: list[Message] = [] if config.system is None else [{"role": "system", "content": config.system}]
    dialogues = [Dialogue(seed, [{"role": "user", "content": seed.prompt}], system) for seed in seeds]
    for turn in range(config.turns):
        if turn:
            active = [dialogue for dialogue in dialogues if not dialogue.end_reason]
            requests = [user_request(dialogue, user, config, turn) for dialogue in active]
            _extend(active, "user", user.client.complete(requests))
        active = [dialogue for dialogue in dialogues if not dialogue.end_reason]
        requests = [assistant_request(dialogue, assistant, config, turn) for dialogue in active]
        before = turn * len(dialogues)
        _extend(
            active,
            "assistant",
            assistant.client.complete(requests, progress_after(before, progress)),
        )
        progress((turn + 1) * len(dialogues))
    return dialogues


def estimate_dialogues(
    seeds: Sequence[SeedPrompt], user: ChatModel, assistant: ChatModel, config: ConversationsConfig
) -> Estimate:
    """The estimate if no dialogue ends early and every message has its maximum length."""
    total = Estimate()
    dialogues = [Dialogue(seed, [{"role": "user", "content": seed.prompt}]) for seed in seeds]
    for turn in range(config.turns):
        history = turn * (config.max_new_tokens + config.user_max_new_tokens)
        if turn:
            requests = [user_request(dialogue, user, config, turn) for dialogue in dialogues]
            total += estimate_requests(user, requests, history - config.user_max_new_tokens)
        requests = [assistant_request(dialogue, assistant, config, turn) for dialogue in dialogues]
        total += estimate_requests(assistant, requests, history)
    return total


def assistant_request(dialogue: Dialogue, model: ChatModel, config: ConversationsConfig, turn: int) -> ChatRequest:
    """The request for the next assistant message."""
    return ChatRequest(
        (*dialogue.system, *dialogue.messages),
        model.temperature,
        config.max_new_tokens,
        config.top_p,
        _request_seed(dialogue, config, "assistant", turn),
    )


def user_request(dialogue: Dialogue, model: ChatModel, config: ConversationsConfig, turn: int) -> ChatRequest:
    """The request for the next user message: the same dialogue with swapped roles."""
    swapped: list[Message] = [
        {"role": "assistant" if message["role"] == "user" else "user", "content": message["content"]}
        for message in dialogue.messages
    ]
    return ChatRequest(
        ({"role": "system", "content": _USER_SYSTEM}, {"role": "user", "content": _GREETING}, *swapped),
        model.temperature,
        config.user_max_new_tokens,
        config.top_p,
        _request_seed(dialogue, config, "person", turn),
    )


def _request_seed(dialogue: Dialogue, config: ConversationsConfig, role: str, turn: int) -> int | None:
    return draw(config.seed, role, str(turn), dialogue.seed.prompt_id) % 2**31 if config.send_seed else None


def _extend(dialogues: Sequence[Dialogue], role: str, responses: Sequence[ChatResponse]) -> None:
    """Append one message to each dialogue, or end it."""
    for dialogue, response in zip(dialogues, responses, strict=True):
        dialogue.end_reason = _end_reason(response, role)
        if not dialogue.end_reason:
            dialogue.messages.append({"role": role, "content": response.text.strip()})
            continue
        dialogue.rejected_text = response.text
        if role == "assistant":
            dialogue.messages.pop()  # a question without an answer


def _end_reason(response: ChatResponse, role: str) -> str:
    """Why a dialogue ends with this response; empty if it continues."""
    if response.refusal:
        return f"{role} model refused: {response.refusal}"
    if response.truncated:
        limit = "user_max_new_tokens" if role == "user" else "max_new_tokens"
        return f"{role} message longer than {limit}"
    if not response.text.strip():
        return f"empty {role} message"
    return "user had no further question" if role == "user" and END_MARK in response.text else ""
