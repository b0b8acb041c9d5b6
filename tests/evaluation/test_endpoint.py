"""Asking: within limits, with patience, never twice for the same, and nothing lost."""

from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.endpoints import judge_at
from zephyr_jax.config import EndpointOptions
from zephyr_jax.errors import InputError
from zephyr_jax.evaluation.endpoint import Ask, Endpoint
from zephyr_jax.storage.journal import Journal

QUICK = EndpointOptions(pause=0.01, retries=3, timeout=5)


def asks(count: int) -> list[Ask]:
    return [Ask(({"role": "user", "content": f"question {index}"},), 0.0, 50) for index in range(count)]


def endpoint(url: str, folder: Path, options: EndpointOptions = QUICK) -> Endpoint:
    return Endpoint(url, options, Journal(folder / "journal", {"what": "test"}))


def echo(body: dict[str, Any], _: int) -> tuple[int, str]:
    return 200, f"re: {body['messages'][0]['content']}"


def test_replies_come_in_order_and_are_asked_for_once(tmp_path: Path) -> None:
    """Also by the next process; another temperature is another request."""
    with judge_at(echo) as (url, asked):
        first = endpoint(url, tmp_path)
        assert [each.text for each in first.ask_all(asks(20))] == [f"re: question {index}" for index in range(20)]
        assert len(asked) == 20
        assert asked[0]["model"] == first.model == "wise"
        again = endpoint(url, tmp_path)
        assert [each.text for each in again.ask_all(asks(21))][19:] == ["re: question 19", "re: question 20"]
        assert len(asked) == 21
        again.ask_all([Ask(asks(1)[0].messages, 0.5, 50)])
        assert len(asked) == 22
        assert again.spent() == "2,420 tokens"


def test_trouble_that_passes_is_waited_for(tmp_path: Path) -> None:
    """Every first two tries fail, by different codes; the third is answered."""
    tries: dict[str, int] = {}

    def moody(body: dict[str, Any], _: int) -> tuple[int, str]:
        name = body["messages"][0]["content"]
        tries[name] = tries.get(name, 0) + 1
        return ((429, "slow down"), (503, "busy"), (200, "fine"))[min(tries[name], 3) - 1]

    with judge_at(moody) as (url, asked):
        assert [each.text for each in endpoint(url, tmp_path).ask_all(asks(5))] == ["fine"] * 5
        assert len(asked) == 15


def test_a_request_that_is_refused_stands_alone(tmp_path: Path) -> None:
    def strict(body: dict[str, Any], _: int) -> tuple[int, str]:
        return (422, "too long") if "3" in body["messages"][0]["content"] else (200, "fine")

    with judge_at(strict) as (url, asked):
        found = endpoint(url, tmp_path).ask_all(asks(5))
        assert [each.text for each in found] == ["fine"] * 3 + ["", "fine"]
        assert found[3].refusal == "422 too long"
        assert len(asked) == 5


@pytest.mark.parametrize(("status", "tries"), [(401, 1), (404, 1), (500, 4)])
def test_an_endpoint_that_never_answers_ends_the_work(tmp_path: Path, status: int, tries: int) -> None:
    """What came before is kept."""
    with judge_at(lambda body, number: (200, "fine") if number == 1 else (status, "no")) as (url, asked):
        one = EndpointOptions(pause=0.01, retries=3, concurrency=1)
        with pytest.raises(InputError, match=f"does not answer: {status} no.*the same command goes on"):
            endpoint(url, tmp_path, one).ask_all(asks(3))
        assert 1 + tries <= len(asked) <= 2 + tries  # one more may be on its way
        assert len(Journal(tmp_path / "journal", {"what": "test"}).lines) == 1


@pytest.mark.parametrize(
    ("limits", "words"),
    [({"most_tokens": 300}, "330 tokens were used, and most_tokens is 300"),
     ({"most_dollars": 0.0005, "price_in": 1.0, "price_out": 10.0}, r"\$0.0006 were spent, and most_dollars is 0.0005")],
)  # fmt: skip
def test_limits_hold_over_processes(tmp_path: Path, limits: dict[str, Any], words: str) -> None:
    options = EndpointOptions(pause=0.01, concurrency=1, **limits)
    with judge_at(echo) as (url, asked):
        for _ in range(2):
            with pytest.raises(InputError, match=words):
                endpoint(url, tmp_path, options).ask_all(asks(9))
        assert len(asked) == 3


def test_keys_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = EndpointOptions(key_variable="MY_KEY")
    with judge_at(echo) as (url, asked):
        with pytest.raises(InputError, match="no such variable"):
            endpoint(url, tmp_path, options)
        monkeypatch.setenv("MY_KEY", "sesame")
        endpoint(url, tmp_path, options).ask_all(asks(1))
        assert asked[0]["key"] == "Bearer sesame"
        assert b"sesame" not in (tmp_path / "journal").read_bytes()


def test_an_address_where_nobody_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be reached: .*it ends in /v1"):
        endpoint("http://127.0.0.1:9/v1", tmp_path)
