"""Who answers what: drawn by the prompt, not by its place."""

from collections import Counter

from tests.feedback.test_dialogue import Script, seeds
from zephyr_jax.clients.base import ChatModel, ChatResponse
from zephyr_jax.feedback.answers import LONGEST, Style, answer_rows, wishes
from zephyr_jax.feedback.principles import PRINCIPLES

VOICES = [ChatModel(name, Script(lambda _: ChatResponse("")), 1.0) for name in ("a", "b", "c", "d", "e")]
STYLE = Style(2, ("helpfulness", "honesty"), 100, 1.0, 0, True)


def test_draws_depend_on_the_prompt_alone() -> None:
    """Other prompts, another order of prompts and of models: the same answers are asked for."""
    alone = wishes(seeds("p7"), VOICES, STYLE)
    among = wishes(seeds(*(f"p{number}" for number in range(20, 0, -1))), VOICES[::-1], STYLE)
    assert [(wish.voice.name, wish.system, wish.ask) for wish in alone] == [
        (wish.voice.name, wish.system, wish.ask) for wish in among if wish.seed.prompt == "p7"
    ]
    other = wishes(seeds("p7"), VOICES, Style(2, STYLE.principles, 100, 1.0, 1, True))
    assert [wish.ask for wish in alone] != [wish.ask for wish in other]


def test_all_models_and_principles_get_their_share() -> None:
    many = wishes(seeds(*map(str, range(1000))), VOICES, STYLE)
    models, principles = Counter(wish.voice.name for wish in many), Counter(wish.principle for wish in many)
    assert all(330 < models[voice.name] < 470 for voice in VOICES)
    assert all(900 < principles[name] < 1100 for name in STYLE.principles)
    assert len({wish.system for wish in many}) == 6
    assert all(wish.system in PRINCIPLES[wish.principle] for wish in many)
    assert len({wish.ask.seed for wish in many}) == 2000


def test_without_principles_there_is_no_system_message() -> None:
    wish = wishes(seeds("p"), VOICES, Style(1, (), 100, 1.0, 0, False))[0]
    assert (wish.principle, wish.system, len(wish.ask.messages), wish.ask.seed) == ("", "", 1, None)


def test_what_is_no_answer_is_set_aside_alone() -> None:
    wished = wishes(seeds("p", "q"), VOICES, Style(3, (), 100, 1.0, 0, True))
    said = [
        ChatResponse("fine "),
        ChatResponse("", "422 no"),
        ChatResponse(" \n"),
        ChatResponse("x" * (LONGEST + 1)),
        ChatResponse("", "no"),
        ChatResponse(""),
    ]
    rows, aside = answer_rows(wished, said)
    assert [(row["instruction"], row["models"], len(row["completions"])) for row in rows] == [
        ("p", [wished[0].voice.name], 1)
    ]
    assert rows[0]["completions"][0]["response"] == "fine"
    assert [row["reason"] for row in aside] == [
        "refused: 422 no", "empty", "400,001 characters long; 400,000 are allowed", "refused: no", "empty"
    ]  # fmt: skip
    assert max(len(row["response"]) for row in aside) == 1000
