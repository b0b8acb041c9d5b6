"""Which models answer which prompt: sampled by the prompt, not by its position."""

from collections import Counter
from dataclasses import replace

from tests.feedback.test_conversations import ScriptedClient, seeds
from zephyr_jax.clients.base import ChatModel, ChatResponse
from zephyr_jax.config.feedback import AnswersConfig
from zephyr_jax.feedback.answers import MAX_ANSWER_CHARS, answer_rows, plan_requests
from zephyr_jax.feedback.principles import PRINCIPLES

MODELS = [ChatModel(name, ScriptedClient(lambda _: ChatResponse("")), 1.0) for name in ("a", "b", "c", "d", "e")]
CONFIG = AnswersConfig(num_answers=2, principles=("helpfulness", "honesty"), max_new_tokens=100)


def test_samples_depend_on_the_prompt_only() -> None:
    """Neither on other prompts nor on the order of prompts and models."""
    alone = plan_requests(seeds("p7"), MODELS, CONFIG)
    among = plan_requests(seeds(*(f"p{number}" for number in range(20, 0, -1))), MODELS[::-1], CONFIG)
    assert [(plan.model.name, plan.system, plan.request) for plan in alone] == [
        (plan.model.name, plan.system, plan.request) for plan in among if plan.seed.prompt == "p7"
    ]
    other = plan_requests(seeds("p7"), MODELS, replace(CONFIG, seed=1))
    assert [plan.request for plan in alone] != [plan.request for plan in other]


def test_models_and_principles_are_sampled_uniformly() -> None:
    plans = plan_requests(seeds(*map(str, range(1000))), MODELS, CONFIG)
    models, principles = Counter(plan.model.name for plan in plans), Counter(plan.principle for plan in plans)
    assert all(330 < models[model.name] < 470 for model in MODELS)
    assert all(900 < principles[name] < 1100 for name in CONFIG.principles)
    assert len({plan.system for plan in plans}) == 6
    assert all(plan.system in PRINCIPLES[plan.principle] for plan in plans)
    assert len({plan.request.seed for plan in plans}) == 2000


def test_without_principles_there_is_no_system_message() -> None:
    config = replace(CONFIG, num_answers=1, principles=(), send_seed=False)
    plan = plan_requests(seeds("p"), MODELS, config)[0]
    assert (plan.principle, plan.system, len(plan.request.messages), plan.request.seed) == ("", "", 1, None)


def test_unusable_answers_are_rejected_one_by_one() -> None:
    plans = plan_requests(seeds("p", "q"), MODELS, replace(CONFIG, num_answers=3, principles=()))
    responses = [
        ChatResponse("fine "),
        ChatResponse("", "422 no"),
        ChatResponse(" \n"),
        ChatResponse("x" * (MAX_ANSWER_CHARS + 1)),
        ChatResponse("", "no"),
        ChatResponse(""),
    ]
    rows, rejected = answer_rows(plans, responses)
    assert [(row["instruction"], row["models"], len(row["completions"])) for row in rows] == [
        ("p", [plans[0].model.name], 1)
    ]
    assert rows[0]["completions"][0]["response"] == "fine"
    reasons = [row["reason"] for row in rejected]
    assert (reasons[0], reasons[1], reasons[3], reasons[4]) == ("refused: 422 no", "empty", "refused: no", "empty")
    assert f"{MAX_ANSWER_CHARS + 1:,}" in reasons[2]
    assert max(len(row["response"]) for row in rejected) == 1000
