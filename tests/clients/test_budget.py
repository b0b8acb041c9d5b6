"""What a request may cost: bounds, budgets that hold in every order of replies, and prices."""

import random

import pytest

from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.checkpoint.inheritance import training_tokenizer
from zephyr_jax.clients.base import ChatRequest, Usage, progress_after
from zephyr_jax.clients.budget import CostBudget
from zephyr_jax.config.sections import DataOptions, EndpointOptions
from zephyr_jax.errors import InputError


def request(text: str = "A colour?", **settings: object) -> ChatRequest:
    return ChatRequest(({"role": "user", "content": text},), **{"temperature": 0.0, "max_tokens": 50, **settings})


@pytest.fixture(scope="module")
def tokenizer(tiny_model: object) -> ChatTokenizer:
    return training_tokenizer("tiny", load_tokenizer(str(tiny_model)), DataOptions())


@pytest.mark.parametrize("text", ["", "Blue.", "Straße 東京 🙂", "a" * 700, "</s><|user|>", "\x00\ufffd\n\n  "])
def test_no_prompt_has_more_tokens_than_are_reserved(tokenizer: ChatTokenizer, text: str) -> None:
    """Law: the bound holds for a tokenizer that falls back to single bytes, with the template's own tokens."""
    asked = request(text or " ", max_tokens=7)
    assert len(tokenizer.prompt(list(asked.messages))) <= asked.max_usage.prompt_tokens
    assert asked.max_usage.completion_tokens == 7


def test_the_bound_grows_with_every_message() -> None:
    """A template writes roles and end tokens for each of them."""
    turns = tuple({"role": "user", "content": ""} for _ in range(100))
    assert ChatRequest(turns, 0.0, 1).max_usage.prompt_tokens >= 64 + 8 * len(turns)


def test_usage_adds_and_subtracts() -> None:
    one, other = Usage(3, 4, 0.5), Usage(10, 20, 0.25)
    assert one + other == Usage(13, 24, 0.75) and (one + other) - other == one
    assert (one.total_tokens, Usage().total_tokens) == (7, 0)


def test_prices_are_per_million_tokens_and_per_direction() -> None:
    options = EndpointOptions(price_per_mtok_in=2.0, price_per_mtok_out=10.0)
    assert Usage(1_000_000, 0).priced(options).cost_usd == 2.0
    assert Usage(0, 500_000).priced(options).cost_usd == 5.0
    assert Usage(7, 9, 123.0).priced(EndpointOptions()) == Usage(7, 9, 0.0), "an earlier cost does not stay"


def test_a_body_holds_only_what_differs_from_the_endpoint_s_defaults() -> None:
    plain = request().body("m")
    assert plain.keys() == {"model", "messages", "temperature", "max_tokens"}
    full = request(top_p=0.5, seed=0, top_logprobs=5).body("m")
    assert (full["top_p"], full["seed"], full["logprobs"], full["top_logprobs"]) == (0.5, 0, True, 5)


def test_everything_that_changes_a_reply_changes_the_key() -> None:
    """Law: a journaled reply is reused for an equal request alone."""
    others = [
        request("Another?"), request(temperature=0.1), request(max_tokens=51), request(top_p=0.9), request(seed=1),
        request(seed=0), request(top_logprobs=1), request(nonce=1),
    ]  # fmt: skip
    keys = [one.key("url", "model") for one in (request(), *others)]
    keys += [request().key("url", "other"), request().key("other", "model")]
    assert len(set(keys)) == len(keys)
    assert request().key("url", "model") == request().key("url", "model")


def test_progress_of_a_part_counts_the_others() -> None:
    seen: list[int] = []
    progress_after(10, seen.append)(3)
    assert seen == [13]


@pytest.mark.parametrize("seed", range(5))
def test_the_limits_hold_whatever_the_order_of_replies(seed: int) -> None:
    """Law: what is used never exceeds a limit, as each reply uses at most what was reserved for it; all is released."""
    rng = random.Random(seed)
    options = EndpointOptions(max_total_tokens=5000, max_cost_usd=0.01, price_per_mtok_in=1.0, price_per_mtok_out=4.0)
    budget, open_requests, used = CostBudget(options), list[Usage](), Usage()
    assert budget.limited
    for _ in range(400):
        usage = Usage(rng.randrange(1, 300), rng.randrange(1, 300)).priced(options)
        fits = (sum(open_requests, used) + usage).total_tokens <= 5000
        fits &= (sum(open_requests, used) + usage).cost_usd <= 0.01 + 1e-12
        if rng.random() < 0.6 and open_requests:
            reserved = open_requests.pop(rng.randrange(len(open_requests)))
            actual = Usage(rng.randrange(reserved.prompt_tokens + 1), reserved.completion_tokens // 2).priced(options)
            budget.commit(reserved, actual)
            used += actual
        else:
            assert budget.reserve(usage) == fits
            open_requests += [usage] if fits else []
        assert budget.in_flight == len(open_requests)
        assert used.total_tokens <= 5000 and used.cost_usd <= 0.01
    for reserved in open_requests:
        budget.commit(reserved, Usage())
    rest = 5000 - used.total_tokens
    if used.cost_usd < 0.009:
        assert budget.reserve(Usage(rest, 0)) and not budget.reserve(Usage(1, 0))


def test_without_limits_everything_fits() -> None:
    budget = CostBudget(EndpointOptions())
    assert not budget.limited and budget.reserve(Usage(10**12, 10**12, 10**9))


def test_the_summary_names_lost_replies_and_a_cost() -> None:
    budget = CostBudget(EndpointOptions())
    assert budget.summary() == "0 tokens"
    budget.add(Usage(1000, 200))
    assert budget.summary() == "1,200 tokens"
    budget.add(Usage(300, 0, 0.5), lost=True)
    assert budget.summary() == "1,500 tokens (including up to 300 for lost responses), $0.50"


@pytest.mark.parametrize(
    ("options", "usage", "words"),
    [
        (
            {"max_total_tokens": 100},
            Usage(90, 20),
            r"max_total_tokens=100, 0 tokens used, the next request may use 110",
        ),
        ({"max_cost_usd": 0.5}, Usage(1, 1, 0.75), r"max_cost_usd=0\.5, \$0\.0000 spent, .* may cost \$0\.7500"),
        ({"max_total_tokens": 100, "max_cost_usd": 0.5}, Usage(1, 1, 0.75), r"max_cost_usd=0\.5"),
    ],
)
def test_the_error_names_the_limit_that_does_not_hold(options: dict[str, float], usage: Usage, words: str) -> None:
    budget = CostBudget(EndpointOptions(**options))
    assert not budget.reserve(usage) and not budget.in_flight
    with pytest.raises(InputError, match=words):
        raise budget.limit_error(usage)
