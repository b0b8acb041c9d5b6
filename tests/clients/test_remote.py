"""Asking: within limits, with patience, never twice for the same, and nothing lost."""

import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from tests.clients.endpoints import Answer, Reply, judge_at
from zephyr_jax.clients.rate_limit import wait_of
from zephyr_jax.clients.remote import Ask, Endpoint
from zephyr_jax.config.sections import EndpointOptions
from zephyr_jax.errors import InputError
from zephyr_jax.storage.journal import Journal

QUICK = EndpointOptions(backoff=0.01, max_retries=3, timeout=5)


def asks(count: int) -> list[Ask]:
    return [Ask(({"role": "user", "content": f"question {index}"},), 0.0, 50) for index in range(count)]


def endpoint(url: str, folder: Path, options: EndpointOptions = QUICK) -> Endpoint:
    return Endpoint(url, options, Journal(folder / "journal", {"what": "test"}))


def echo(body: dict[str, Any], _: int) -> tuple[int, str]:
    return 200, f"re: {body['messages'][0]['content']}"


def slowly(reply: Reply) -> Reply:
    """The same after a moment, so that requests are under way together."""

    def later(body: dict[str, Any], number: int) -> Answer:
        return Answer(*reply(body, number), wait=0.02)

    return later


def raw(content: str) -> Reply:
    """The same bytes for everybody."""
    return lambda *_: Answer(raw=content)


def lines(folder: Path) -> list[dict[str, Any]]:
    return Journal(folder / "journal", {"what": "test"}).lines


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


def test_trouble_that_passes_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every first two tries fail, by different codes; the third is answered. Each kind is told once."""
    tries: dict[str, int] = {}

    def moody(body: dict[str, Any], _: int) -> tuple[int, str]:
        name = body["messages"][0]["content"]
        tries[name] = tries.get(name, 0) + 1
        return ((429, "slow down"), (503, "busy"), (200, "fine"))[min(tries[name], 3) - 1]

    with judge_at(moody) as (url, asked):
        assert [each.text for each in endpoint(url, tmp_path).ask_all(asks(5))] == ["fine"] * 5
        assert len(asked) == 15
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[2] for line in told] == [
        "429 slow down; it is asked again",
        "503 busy; it is asked again",
    ]


@pytest.mark.parametrize("status", [400, 403, 413, 422])
def test_a_request_that_is_refused_stands_alone(tmp_path: Path, status: int) -> None:
    def strict(body: dict[str, Any], _: int) -> tuple[int, str]:
        return (status, "too long") if "3" in body["messages"][0]["content"] else (200, "fine")

    with judge_at(strict) as (url, asked):
        found = endpoint(url, tmp_path).ask_all(asks(5))
        assert [each.text for each in found] == ["fine"] * 3 + ["", "fine"]
        assert found[3].refusal == f"{status} too long"
        assert len(asked) == 5


def test_what_no_setting_of_ours_can_mend_is_not_tried_for_ever(tmp_path: Path) -> None:
    """A hundred refusals and no answer; where one was answered once, each stands alone."""
    with judge_at(lambda *_: (400, "'max_tokens' is not supported. Use 'max_completion_tokens'.")) as (url, asked):
        with pytest.raises(InputError, match="refused all of the first 100 requests: 400 'max_tokens' is not"):
            endpoint(url, tmp_path).ask_all(asks(500))
        assert 100 <= len(asked) <= 108
    with judge_at(lambda _, number: (200, "fine") if number == 1 else (400, "no")) as (url, asked):
        assert len(endpoint(url, tmp_path, EndpointOptions(max_concurrency=1)).ask_all(asks(150))) == len(asked) == 150


def test_the_longest_reply_by_another_name(tmp_path: Path) -> None:
    """What was answered under one name is not asked for under the other."""
    other = EndpointOptions(max_tokens_param="max_completion_tokens")
    with judge_at(echo) as (url, asked):
        endpoint(url, tmp_path).ask_all(asks(1))
        endpoint(url, tmp_path, other).ask_all(asks(2))
    assert [(each.get("max_tokens"), each.get("max_completion_tokens")) for each in asked] == [(50, None), (None, 50)]


@pytest.mark.parametrize(("status", "tries"), [(401, 1), (404, 1), (500, 4)])
def test_an_endpoint_that_never_answers_ends_the_work(tmp_path: Path, status: int, tries: int) -> None:
    """What came before is kept."""
    with judge_at(lambda body, number: (200, "fine") if number == 1 else (status, "no")) as (url, asked):
        one = EndpointOptions(backoff=0.01, max_retries=3, max_concurrency=1)
        with pytest.raises(InputError, match=f"does not answer: {status} no.*the same command goes on"):
            endpoint(url, tmp_path, one).ask_all(asks(3))
        assert 1 + tries <= len(asked) <= 2 + tries  # one more may be on its way
        assert len(Journal(tmp_path / "journal", {"what": "test"}).lines) == 1


@pytest.mark.parametrize(
    ("limits", "words"),
    [({"max_total_tokens": 300}, r"220 tokens were used, the next request may take 1\d\d, and max_total_tokens is 300"),
     ({"max_cost_usd": 0.0009, "price_per_mtok_in": 1.0, "price_per_mtok_out": 10.0},
      r"\$0.0004 were spent, the next .* \$0.0006, and max_cost_usd is 0.0009")],
)  # fmt: skip
def test_limits_hold_over_processes(tmp_path: Path, limits: dict[str, Any], words: str) -> None:
    options = EndpointOptions(backoff=0.01, max_concurrency=1, **limits)
    with judge_at(echo) as (url, asked):
        for _ in range(2):
            with pytest.raises(InputError, match=words):
                endpoint(url, tmp_path, options).ask_all(asks(9))
        assert len(asked) == 2


def test_keys_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = EndpointOptions(api_key_env="MY_KEY")
    with judge_at(echo) as (url, asked):
        with pytest.raises(InputError, match="no variable of that name"):
            endpoint(url, tmp_path, options)
        with pytest.raises(InputError, match="no name of a variable") as pasted:
            endpoint(url, tmp_path, EndpointOptions(api_key_env="sk-open-sesame"))
        assert "sesame" not in str(pasted.value)
        monkeypatch.setenv("MY_KEY", "sesame")
        endpoint(url, tmp_path, options).ask_all(asks(1))
        assert asked[0]["key"] == "Bearer sesame"
        assert b"sesame" not in (tmp_path / "journal").read_bytes()


def test_the_key_that_was_named_is_the_one_that_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And none where none was named, whatever the client finds in the environment for itself."""
    monkeypatch.setenv("MY_KEY", "sesame")
    monkeypatch.setenv("OPENAI_API_KEY", "not for you")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer neither this")
    with judge_at(echo) as (url, asked):
        endpoint(url, tmp_path, EndpointOptions(api_key_env="MY_KEY")).ask_all(asks(1))
        endpoint(url, tmp_path).ask_all(asks(2))
    assert [each["key"] for each in asked] == ["Bearer sesame", None]


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "nonsense"])
def test_no_proxy_stands_between_us_and_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    """The environment's proxy is for other machines, and there it is used, or said to be of no use."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)
    with judge_at(echo) as (url, _):
        for each in (url, url.replace("127.0.0.1", "localhost")):
            assert endpoint(each, tmp_path).ask_all(asks(1))[0].text == "re: question 0"
    with pytest.raises(InputError, match="cannot be reached|through the proxy that the environment names"):
        endpoint("http://wise.invalid/v1", tmp_path)


def test_an_address_where_nobody_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be reached: .*it ends in /v1"):
        endpoint("http://127.0.0.1:9/v1", tmp_path)


def test_no_limit_is_passed_however_many_are_under_way(tmp_path: Path) -> None:
    """What may come back is held back before a request is sent: the sum stays below, and what is left is less than one more."""
    with judge_at(slowly(echo)) as (url, asked):
        wide = EndpointOptions(max_concurrency=16, max_total_tokens=3000)
        long = [Ask(({"role": "user", "content": f"{index} {'word ' * 20}"},), 0.0, 50) for index in range(100)]
        with pytest.raises(InputError, match="and max_total_tokens is 3,000"):
            endpoint(url, tmp_path, wide).ask_all(long)
        replies = [each for each in lines(tmp_path) if "text" in each]
        used = sum(each["prompt_tokens"] + each["completion_tokens"] for each in replies)
        assert len(asked) == len(replies) == used // 110
        assert 3000 - long[50].most.tokens < used <= 3000


def test_what_was_under_way_when_the_work_was_ended_counts_in_full(tmp_path: Path) -> None:
    """It may have been paid for: a limit is not passed by ending the same command again and again."""

    def ended(_: int) -> None:
        raise KeyboardInterrupt

    options = EndpointOptions(max_concurrency=4, max_total_tokens=1100)
    with judge_at(lambda _, number: Answer(200, "fine", wait=0.1 if number % 4 == 1 else 30.0)) as (url, asked):
        for runs in (1, 2):
            with pytest.raises(KeyboardInterrupt):
                endpoint(url, tmp_path, options).ask_all(asks(40), ended)
            used = runs * 110 + (len(asked) - runs) * asks(1)[0].most.tokens
            assert endpoint(url, tmp_path, options).spent().startswith(f"{used:,} tokens (up to {used - runs * 110}")
        with pytest.raises(InputError, match="and max_total_tokens is 1,100"):
            endpoint(url, tmp_path, options).ask_all(asks(40))
        assert len(asked) == 8


def test_what_was_refused_costs_nothing_in_the_next_run_either(tmp_path: Path) -> None:
    options = EndpointOptions(backoff=0.01, max_retries=2, max_concurrency=1, max_total_tokens=1000)
    replies = [Answer(429, "slow down"), Answer(422, "too long"), Answer(200, "fine")]
    with judge_at(lambda _, number: replies[number - 1]) as (url, _):
        endpoint(url, tmp_path, options).ask_all(asks(2))
        assert endpoint(url, tmp_path, options).spent() == "110 tokens"


def test_an_endpoint_that_counts_nothing_is_counted_in_full(tmp_path: Path) -> None:
    """No usage, and usage that is nonsense: as if all that was allowed had been used."""
    with judge_at(raw('{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": "many"}}')) as (
        url,
        asked,
    ):
        found = endpoint(url, tmp_path, EndpointOptions(max_concurrency=3, max_total_tokens=500))
        with pytest.raises(InputError, match="may take 132"):
            found.ask_all(asks(9))
        assert (len(asked), found.spent()) == (3, "396 tokens")


@pytest.mark.parametrize("name", ["retry-after", "retry-after-ms", "x-ratelimit-reset-requests"])
def test_whoever_asks_for_a_pause_gets_it_from_all(tmp_path: Path, name: str) -> None:
    """The first is told to wait for 1.2 s; nobody sends anything before."""
    told = {"retry-after": "1.2", "retry-after-ms": "1200", "x-ratelimit-reset-requests": "1s200ms"}[name]
    times: list[float] = []

    def early(body: dict[str, Any], number: int) -> Answer:
        times.append(time.monotonic())
        return Answer(429, "slow down", headers={name: told}) if number == 1 else Answer(200, "fine")

    with judge_at(early) as (url, asked):
        one = EndpointOptions(max_concurrency=1, backoff=0.01)
        assert [each.text for each in endpoint(url, tmp_path, one).ask_all(asks(3))] == ["fine"] * 3
    assert len(asked) == 4
    assert 1.15 < times[1] - times[0] < 5


def test_a_pause_of_a_day_ends_the_work(tmp_path: Path) -> None:
    with (
        judge_at(lambda *_: Answer(429, "quota", headers={"Retry-After": "86400"})) as (url, asked),
        pytest.raises(InputError, match="429 quota; it wants 86,400 seconds of pause"),
    ):
        endpoint(url, tmp_path).ask_all(asks(1))
    assert len(asked) == 1


ODD = {
    "cut": Answer(cut=True), "html": Answer(raw="<html>gateway</html>"), "half": Answer(raw='{"choices": [{"mess'),
    "list": Answer(raw="[]"), "nothing": Answer(raw=""), "no choices": Answer(raw='{"choices": []}'),
    "odd choice": Answer(raw='{"choices": ["hi"]}'), "deep": Answer(raw="[" * 100_000), "late": Answer(200, "late", wait=3.0),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_answers_that_are_none_are_asked_for_again(tmp_path: Path, kind: str) -> None:
    """Cut connections, silence, and replies of another form; each counts as if it had cost all that it could."""
    with judge_at(lambda _, number: Answer(200, "fine") if number > 2 else ODD[kind]) as (url, asked):
        options = EndpointOptions(backoff=0.01, max_retries=3, timeout=1, max_concurrency=1)
        found = endpoint(url, tmp_path, options)
        assert found.ask_all(asks(1))[0].text == "fine"
        assert len(asked) == 3
        assert found.spent() == "374 tokens (up to 264 of them for answers that never came)"
        assert endpoint(url, tmp_path, options).spent() == found.spent()


def test_a_reply_without_a_message_is_refused_alone_in_the_end(tmp_path: Path) -> None:
    odd = Answer(raw='{"choices": []}')
    with judge_at(lambda body, _: odd if "1" in body["messages"][0]["content"] else Answer(200, "fine")) as (url, _):
        found = endpoint(url, tmp_path).ask_all(asks(3))
    assert [each.text for each in found] == ["fine", "", "fine"]
    assert "a reply without a message" in found[1].refusal


def test_text_that_no_file_can_hold_and_a_key_that_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half a surrogate pair becomes a question mark; a server that says the key back does not get it into a file or a log."""
    monkeypatch.setenv("MY_KEY", "open-sesame")
    text = json.dumps({"choices": [{"message": {"content": "\ud800 open-sesame \x00"}}]}).replace(
        "sesame", "\\u0073esame"
    )
    replies = [Answer(raw=text), Answer(422, "key open-sesame"), Answer(401, "wrong key open-sesame")]
    with judge_at(lambda _, number: replies[number - 1]) as (url, _):
        one = EndpointOptions(api_key_env="MY_KEY", max_concurrency=1)
        found = endpoint(url, tmp_path, one)
        assert [each.text + each.refusal for each in found.ask_all(asks(2))] == ["? [key] \x00", "422 key [key]"]
        with pytest.raises(InputError, match=r"401 wrong key \[key\]"):
            found.ask_all([Ask(asks(1)[0].messages, 0.9, 5)])
    assert b"sesame" not in (tmp_path / "journal").read_bytes()
    assert "sesame" not in "".join(capsys.readouterr())


def test_a_key_that_everybody_uses_is_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "EMPTY")
    with judge_at(lambda *_: (200, "The set is EMPTY.")) as (url, _):
        assert (
            endpoint(url, tmp_path, EndpointOptions(api_key_env="MY_KEY")).ask_all(asks(1))[0].text
            == "The set is EMPTY."
        )


def test_candidates_of_the_first_token(tmp_path: Path) -> None:
    """Asked for, given, kept; of two that read the same the likelier; none where the endpoint gives none, or nonsense."""
    top = [{"token": "A", "logprob": -0.5}, {"token": "A", "logprob": -3.0}, {"token": "B", "logprob": -1.5}]
    forms = [
        {"content": [{"top_logprobs": top}]},
        None,
        {"content": [{"top_logprobs": [{"token": "A", "logprob": "x"}]}]},
    ]

    def reply(_: dict[str, Any], number: int) -> Answer:
        choice = {"message": {"content": "A"}, "finish_reason": "length", "logprobs": forms[number - 1]}
        return Answer(raw=json.dumps({"choices": [choice]}))

    with judge_at(reply) as (url, asked):
        for _ in range(2):
            one = endpoint(url, tmp_path, EndpointOptions(max_concurrency=1))
            found = one.ask_all([Ask(each.messages, 0.0, 1, top_logprobs=5) for each in asks(3)])
            assert [each.first_token for each in found] == [{"A": -0.5, "B": -1.5}, {}, {}]
            assert all(each.cut for each in found)
    assert len(asked) == 3
    assert (asked[0]["logprobs"], asked[0]["top_logprobs"]) == (True, 5)


def test_the_same_twice_in_one_go_is_one_request(tmp_path: Path) -> None:
    told: list[int] = []
    with judge_at(echo) as (url, asked):
        assert len(endpoint(url, tmp_path).ask_all(asks(2) * 3, told.append)) == 6
    assert (len(asked), told) == (2, [3, 6])


@pytest.mark.parametrize(
    ("url", "words"),
    [("localhost:8000/v1", "is none"), ("ftp://host/v1", "is none"), ("http://", "is none"), ("http://host:x/v1", "is none"),
     ("http://host/ v1", "is none"), ("", "is none"), ("http://me:secret@host/v1", "the key into an environment variable"),
     ("http://host/v1?key=secret", "the key into an environment variable")],
)  # fmt: skip
def test_addresses_that_are_none_or_hold_secrets(tmp_path: Path, url: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        endpoint(url, tmp_path)


def test_what_headers_say() -> None:
    """Seconds of pause: only what is exhausted counts, unless the request was refused."""
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert wait_of({"retry-after": in_a_minute}, refused=True) == pytest.approx(60, abs=3)
    assert wait_of({"retry-after": "5"}, refused=False) == 0
    for odd in ("soon", "-5", "1e9999", "", "Mon, 99 Foo"):
        assert wait_of({"retry-after": odd}, refused=True) == 0
    both = {"x-ratelimit-reset-tokens": "6m0s", "x-ratelimit-reset-requests": "20ms"}
    assert wait_of(both, refused=False) == 0
    assert wait_of(both, refused=True) == pytest.approx(0.02)
    assert wait_of({**both, "x-ratelimit-remaining-tokens": "0"}, refused=False) == 360
    assert wait_of({"x-ratelimit-reset": str(time.time() + 30)}, refused=True) == pytest.approx(30, abs=3)
    assert wait_of({"x-ratelimit-reset": "1h1d"}, refused=True) == 90_000
    assert wait_of({"x-ratelimit-reset": "1x"}, refused=True) == 0
