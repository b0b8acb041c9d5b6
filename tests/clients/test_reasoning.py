"""Thoughts before an answer are taken away, with and without their tags; an answer that quotes a tag stays whole."""

import time

import pytest

from zephyr_jax.clients.reasoning import starts_reasoning, strip_reasoning

TEXTS = {
    "no thought [[7]]": "no thought [[7]]",
    "<think>maybe [[2]]</think>[[9]]": "[[9]]",
    " \n<think>\nmaybe [[2]]\n</think>\n\n[[9]]": "\n\n[[9]]",
    "<thinking>maybe</thinking>[[9]]": "[[9]]",
    "<Think>maybe</THINK>[[9]]": "[[9]]",
    "maybe [[2]]</think>\n[[9]]": "\n[[9]]",
    "</think>[[9]]": "[[9]]",
    "<think>quotes </think>[[10]] and goes on</think>[[3]]": "[[3]]",
    "<think>cut in the middle, [[2]] or": "",
    "<think>": "",
    "It left <think> in its answer: [[4]]": "It left <think> in its answer: [[4]]",
    '{"rationale": "it left </think> there"}': '{"rationale": "it left </think> there"}',
    "[{'model': 'model_1', 'rank': 1}] </think>": "[{'model': 'model_1', 'rank': 1}] </think>",
    '<think>hm</think>{"ratings": []}': '{"ratings": []}',
    "": "",
}


@pytest.mark.parametrize("text", TEXTS)
def test_answers_without_their_thoughts(text: str) -> None:
    assert strip_reasoning(text) == TEXTS[text]


def test_the_first_token_of_a_thought() -> None:
    assert [starts_reasoning(token) for token in ("<think>", " <think>", "<thinking>", "M", "m", "<", "")] == [
        True, True, True, False, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("piece", ["<think>", "</think>", " ", "<", "[", "\n<think>x</think>", "{", "`"])
def test_long_texts_take_linear_time(piece: str) -> None:
    begun = time.perf_counter()
    strip_reasoning(piece * (400_000 // len(piece)))
    assert time.perf_counter() - begun < 1
