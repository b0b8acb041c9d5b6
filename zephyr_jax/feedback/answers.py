"""Several models' answers to each prompt, in the form of openbmb/UltraFeedback."""

from collections.abc import Sequence
from dataclasses import dataclass

from zephyr_jax.clients.base import ChatModel, ChatRequest, ChatResponse
from zephyr_jax.feedback.principles import drawn_principle
from zephyr_jax.feedback.seeds import Seed
from zephyr_jax.seeded_random import draw, shuffled

LONGEST = 400_000
"""Characters of an answer; what is longer is no answer."""


@dataclass(frozen=True)
class Wish:
    """One answer that is wanted."""

    seed: Seed
    voice: ChatModel
    principle: str
    system: str
    """The principle's wording; empty where there is none."""
    ask: ChatRequest

    def completion(self, said: ChatResponse) -> dict[str, str]:
        """As the row has it."""
        return {
            "model": self.voice.name, "principle": self.principle, "custom_system_prompt": self.system,
            "response": said.text.strip(),
        }  # fmt: skip


@dataclass(frozen=True)
class Style:
    """How answers are asked for."""

    each: int
    """Models that answer a prompt."""
    principles: tuple[str, ...]
    max_tokens: int
    top_p: float
    seed: int
    send_seed: bool


def wishes(seeds: Sequence[Seed], voices: Sequence[ChatModel], style: Style) -> list[Wish]:
    """All answers that are wanted; a prompt's do not depend on the other prompts, nor on the order of the models."""
    return [
        _wish(seed, voices[place], style)
        for seed in seeds
        for place in shuffled([voice.name for voice in voices], style.seed, "models", seed.prompt_id)[: style.each]
    ]


def _wish(seed: Seed, voice: ChatModel, style: Style) -> Wish:
    principle, wording = drawn_principle(style.principles, style.seed, seed.prompt_id, voice.name)
    system = ({"role": "system", "content": wording},) if wording else ()
    number = draw(style.seed, "answer", seed.prompt_id, voice.name) % 2**31
    messages = (*system, {"role": "user", "content": seed.prompt})
    told, untold = (number, 0) if style.send_seed else (None, number)
    ask = ChatRequest(messages, voice.temperature, style.max_tokens, style.top_p, told, nonce=untold)
    return Wish(seed, voice, principle, wording, ask)


def unusable(said: ChatResponse) -> str:
    """Why an answer cannot be used; nothing where it can. One that was cut is an answer, as UltraFeedback's are."""
    if said.refusal:
        return f"refused: {said.refusal}"
    if not said.text.strip():
        return "empty"
    if len(said.text) > LONGEST:
        return f"{len(said.text):,} characters long; {LONGEST:,} are allowed"
    return ""


def answer_rows(
    wished: Sequence[Wish], said: Sequence[ChatResponse]
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Rows of prompts with at least one answer, and what was set aside, answer by answer, with its reason."""
    rows: dict[str, dict[str, object]] = {}
    aside: list[dict[str, object]] = []
    completions: dict[str, list[dict[str, str]]] = {}
    for wish, one in zip(wished, said, strict=True):
        seed, reason = wish.seed, unusable(one)
        if reason:
            completion = wish.completion(one)
            completion["response"] = completion["response"][:1000]
            aside.append({"prompt_id": seed.prompt_id, "instruction": seed.prompt, "reason": reason, **completion})
            continue
        completions.setdefault(seed.prompt_id, []).append(wish.completion(one))
        rows[seed.prompt_id] = {"source": seed.source, "instruction": seed.prompt, "prompt_id": seed.prompt_id}
    return [
        {**row, "models": [each["model"] for each in completions[name]], "completions": completions[name]}
        for name, row in rows.items()
    ], aside
