"""The remote client: order, retries, limits, rate limits, journal, secrets."""

import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from tests.clients.endpoints import Answer, Reply, judge_at
from zephyr_jax.clients.base import ChatRequest
from zephyr_jax.clients.rate_limit import retry_delay
from zephyr_jax.clients.remote import RemoteClient
from zephyr_jax.config.sections import EndpointOptions
from zephyr_jax.errors import InputError
from zephyr_jax.storage.journal import Journal

QUICK = EndpointOptions(backoff=0.01, max_retries=3, timeout=5)


def requests(count: int) -> list[ChatRequest]:
    return [ChatRequest(({"role": "user", "content": f"question {index}"},), 0.0, 50) for index in range(count)]


def endpoint(url: str, folder: Path, options: EndpointOptions = QUICK) -> RemoteClient:
    return RemoteClient(url, options, Journal(folder / "journal", {"what": "test"}))


def echo(body: dict[str, Any], _: int) -> tuple[int, str]:
    return 200, f"re: {body['messages'][0]['content']}"


def slowly(reply: Reply) -> Reply:
    """The same reply after a moment, so that requests overlap."""

    def later(body: dict[str, Any], number: int) -> Answer:
        return Answer(*reply(body, number), wait=0.02)

    return later


def raw(content: str) -> Reply:
    """The same bytes for every request."""
    return lambda *_: Answer(raw=content)


def lines(folder: Path) -> list[dict[str, Any]]:
    return Journal(folder / "journal", {"what": "test"}).lines


def test_responses_are_in_order_and_requested_once(tmp_path: Path) -> None:
    """Also across processes; another temperature is another request."""
    with judge_at(echo) as (url, asked):
        first = endpoint(url, tmp_path)
        assert [each.text for each in first.complete(requests(20))] == [f"re: question {index}" for index in range(20)]
        assert len(asked) == 20
        assert asked[0]["model"] == first.model == "wise"
        again = endpoint(url, tmp_path)
        assert [each.text for each in again.complete(requests(21))][19:] == ["re: question 19", "re: question 20"]
        assert len(asked) == 21
        again.complete([ChatRequest(requests(1)[0].messages, 0.5, 50)])
        assert len(asked) == 22
        assert again.usage_summary() == "2,420 tokens"


def test_retryable_errors_are_retried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first two attempts of each fail with different codes; the third succeeds. Each error is logged once."""
    tries: dict[str, int] = {}

    def moody(body: dict[str, Any], _: int) -> tuple[int, str]:
        name = body["messages"][0]["content"]
        tries[name] = tries.get(name, 0) + 1
        return ((429, "slow down"), (503, "busy"), (200, "fine"))[min(tries[name], 3) - 1]

    with judge_at(moody) as (url, asked):
        assert [each.text for each in endpoint(url, tmp_path).complete(requests(5))] == ["fine"] * 5
        assert len(asked) == 15
    warnings = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[2] for line in warnings] == [
        "429 slow down; retrying",
        "503 busy; retrying",
    ]


@pytest.mark.parametrize("status", [400, 403, 413, 422])
def test_a_refused_request_fails_alone(tmp_path: Path, status: int) -> None:
    def strict(body: dict[str, Any], _: int) -> tuple[int, str]:
        return (status, "too long") if "3" in body["messages"][0]["content"] else (200, "fine")

    with judge_at(strict) as (url, asked):
        found = endpoint(url, tmp_path).complete(requests(5))
        assert [each.text for each in found] == ["fine"] * 3 + ["", "fine"]
        assert found[3].refusal == f"{status} too long"
        assert len(asked) == 5


def test_a_hundred_refusals_without_a_response_end_the_run(tmp_path: Path) -> None:
    """After one response, each refusal fails its own request only."""
    with judge_at(lambda *_: (400, "'max_tokens' is not supported. Use 'max_completion_tokens'.")) as (url, asked):
        with pytest.raises(InputError, match="first 100 requests: 400 'max_tokens' is not"):
            endpoint(url, tmp_path).complete(requests(500))
        assert 100 <= len(asked) <= 108
    with judge_at(lambda _, number: (200, "fine") if number == 1 else (400, "no")) as (url, asked):
        assert (
            len(endpoint(url, tmp_path, EndpointOptions(max_concurrency=1)).complete(requests(150)))
            == len(asked)
            == 150
        )


def test_max_tokens_param_names_the_field(tmp_path: Path) -> None:
    """The journal does not depend on it."""
    other = EndpointOptions(max_tokens_param="max_completion_tokens")
    with judge_at(echo) as (url, asked):
        endpoint(url, tmp_path).complete(requests(1))
        endpoint(url, tmp_path, other).complete(requests(2))
    assert [(each.get("max_tokens"), each.get("max_completion_tokens")) for each in asked] == [(50, None), (None, 50)]


@pytest.mark.parametrize(("status", "tries"), [(401, 1), (404, 1), (500, 4)])
def test_an_endpoint_that_only_fails_ends_the_run(tmp_path: Path, status: int, tries: int) -> None:
    """Earlier responses stay in the journal."""
    with judge_at(lambda body, number: (200, "fine") if number == 1 else (status, "no")) as (url, asked):
        one = EndpointOptions(backoff=0.01, max_retries=3, max_concurrency=1)
        with pytest.raises(InputError, match=f"{url} failed: {status} no"):
            endpoint(url, tmp_path, one).complete(requests(3))
        assert 1 + tries <= len(asked) <= 2 + tries  # one more may be on its way
        assert len(Journal(tmp_path / "journal", {"what": "test"}).lines) == 1


@pytest.mark.parametrize(
    ("limits", "words"),
    [({"max_total_tokens": 300}, r"max_total_tokens=300, 220 tokens used, .* 1\d\d\."),
     ({"max_cost_usd": 0.0009, "price_per_mtok_in": 1.0, "price_per_mtok_out": 10.0},
      r"max_cost_usd=0.0009, \$0.0004 spent, .* \$0.0006\.")],
)  # fmt: skip
def test_limits_hold_across_processes(tmp_path: Path, limits: dict[str, Any], words: str) -> None:
    options = EndpointOptions(backoff=0.01, max_concurrency=1, **limits)
    with judge_at(echo) as (url, asked):
        for _ in range(2):
            with pytest.raises(InputError, match=words):
                endpoint(url, tmp_path, options).complete(requests(9))
        assert len(asked) == 2


def test_keys_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = EndpointOptions(api_key_env="MY_KEY")
    with judge_at(echo) as (url, asked):
        with pytest.raises(InputError, match="endpoint.api_key_env is 'MY_KEY'"):
            endpoint(url, tmp_path, options)
        with pytest.raises(InputError, match="expected the name of an environment variable") as pasted:
            endpoint(url, tmp_path, EndpointOptions(api_key_env="sk-open-sesame"))
        assert "sesame" not in str(pasted.value)
        monkeypatch.setenv("MY_KEY", "sesame")
        endpoint(url, tmp_path, options).complete(requests(1))
        assert asked[0]["key"] == "Bearer sesame"
        assert b"sesame" not in (tmp_path / "journal").read_bytes()


def test_only_the_named_key_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OPENAI_* variables of the environment are not used."""
    monkeypatch.setenv("MY_KEY", "sesame")
    monkeypatch.setenv("OPENAI_API_KEY", "not for you")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer neither this")
    with judge_at(echo) as (url, asked):
        endpoint(url, tmp_path, EndpointOptions(api_key_env="MY_KEY")).complete(requests(1))
        endpoint(url, tmp_path).complete(requests(2))
    assert [each["key"] for each in asked] == ["Bearer sesame", None]


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "nonsense"])
def test_loopback_bypasses_the_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    """For other hosts it is used, and an unusable one is an error."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)
    with judge_at(echo) as (url, _):
        for each in (url, url.replace("127.0.0.1", "localhost")):
            assert endpoint(each, tmp_path).complete(requests(1))[0].text == "re: question 0"
    with pytest.raises(InputError, match="wise.invalid|HTTP_PROXY"):
        endpoint("http://wise.invalid/v1", tmp_path)


def test_an_unreachable_url(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="127.0.0.1:9/v1: "):
        endpoint("http://127.0.0.1:9/v1", tmp_path)


def test_the_budget_holds_with_many_requests_in_flight(tmp_path: Path) -> None:
    """Usage stays below the limit, and what is left is less than one more request."""
    with judge_at(slowly(echo)) as (url, asked):
        wide = EndpointOptions(max_concurrency=16, max_total_tokens=3000)
        long = [ChatRequest(({"role": "user", "content": f"{index} {'word ' * 20}"},), 0.0, 50) for index in range(100)]
        with pytest.raises(InputError, match="max_total_tokens=3,000"):
            endpoint(url, tmp_path, wide).complete(long)
        replies = [each for each in lines(tmp_path) if "text" in each]
        used = sum(each["prompt_tokens"] + each["completion_tokens"] for each in replies)
        assert len(asked) == len(replies) == used // 110
        assert 3000 - long[50].max_usage.total_tokens < used <= 3000


def test_requests_in_flight_at_an_interrupt_count_in_full(tmp_path: Path) -> None:
    """They may be billed, so repeated interrupts cannot exceed the limit."""

    def ended(_: int) -> None:
        raise KeyboardInterrupt

    options = EndpointOptions(max_concurrency=4, max_total_tokens=1100)
    with judge_at(lambda _, number: Answer(200, "fine", wait=0.1 if number % 4 == 1 else 30.0)) as (url, asked):
        for runs in (1, 2):
            with pytest.raises(KeyboardInterrupt):
                endpoint(url, tmp_path, options).complete(requests(40), ended)
            used = runs * 110 + (len(asked) - runs) * requests(1)[0].max_usage.total_tokens
            assert (
                endpoint(url, tmp_path, options)
                .usage_summary()
                .startswith(f"{used:,} tokens (including up to {used - runs * 110} ")
            )
        with pytest.raises(InputError, match="max_total_tokens=1,100"):
            endpoint(url, tmp_path, options).complete(requests(40))
        assert len(asked) == 8


def test_refused_requests_stay_free_in_the_next_run(tmp_path: Path) -> None:
    options = EndpointOptions(backoff=0.01, max_retries=2, max_concurrency=1, max_total_tokens=1000)
    replies = [Answer(429, "slow down"), Answer(422, "too long"), Answer(200, "fine")]
    with judge_at(lambda _, number: replies[number - 1]) as (url, _):
        endpoint(url, tmp_path, options).complete(requests(2))
        assert endpoint(url, tmp_path, options).usage_summary() == "110 tokens"


def test_replies_without_usage_count_in_full(tmp_path: Path) -> None:
    """Also for malformed counts."""
    with judge_at(raw('{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": "many"}}')) as (
        url,
        asked,
    ):
        found = endpoint(url, tmp_path, EndpointOptions(max_concurrency=3, max_total_tokens=500))
        with pytest.raises(InputError, match="may use 132"):
            found.complete(requests(9))
        assert (len(asked), found.usage_summary()) == (3, "396 tokens")


@pytest.mark.parametrize("name", ["retry-after", "retry-after-ms", "x-ratelimit-reset-requests"])
def test_retry_after_delays_all_requests(tmp_path: Path, name: str) -> None:
    """The first reply asks for 1.2 s."""
    warnings = {"retry-after": "1.2", "retry-after-ms": "1200", "x-ratelimit-reset-requests": "1s200ms"}[name]
    times: list[float] = []

    def early(body: dict[str, Any], number: int) -> Answer:
        times.append(time.monotonic())
        return Answer(429, "slow down", headers={name: warnings}) if number == 1 else Answer(200, "fine")

    with judge_at(early) as (url, asked):
        one = EndpointOptions(max_concurrency=1, backoff=0.01)
        assert [each.text for each in endpoint(url, tmp_path, one).complete(requests(3))] == ["fine"] * 3
    assert len(asked) == 4
    assert 1.15 < times[1] - times[0] < 5


def test_a_retry_after_of_a_day_ends_the_run(tmp_path: Path) -> None:
    with (
        judge_at(lambda *_: Answer(429, "quota", headers={"Retry-After": "86400"})) as (url, asked),
        pytest.raises(InputError, match="429 quota; .* 86,400 s"),
    ):
        endpoint(url, tmp_path).complete(requests(1))
    assert len(asked) == 1


ODD = {
    "cut": Answer(cut=True), "html": Answer(raw="<html>gateway</html>"), "half": Answer(raw='{"choices": [{"mess'),
    "list": Answer(raw="[]"), "nothing": Answer(raw=""), "no choices": Answer(raw='{"choices": []}'),
    "malformed choice": Answer(raw='{"choices": ["hi"]}'), "deep": Answer(raw="[" * 100_000), 
    "late": Answer(200, "late", wait=3.0),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_malformed_replies_are_retried(tmp_path: Path, kind: str) -> None:
    """Cut connections, timeouts, and bodies of another form; each counts in full."""
    with judge_at(lambda _, number: Answer(200, "fine") if number > 2 else ODD[kind]) as (url, asked):
        options = EndpointOptions(backoff=0.01, max_retries=3, timeout=1, max_concurrency=1)
        found = endpoint(url, tmp_path, options)
        assert found.complete(requests(1))[0].text == "fine"
        assert len(asked) == 3
        assert found.usage_summary() == "374 tokens (including up to 264 for lost responses)"
        assert endpoint(url, tmp_path, options).usage_summary() == found.usage_summary()


def test_a_reply_without_a_message_fails_one_request(tmp_path: Path) -> None:
    malformed = Answer(raw='{"choices": []}')
    with judge_at(lambda body, _: malformed if "1" in body["messages"][0]["content"] else Answer(200, "fine")) as (
        url,
        _,
    ):
        found = endpoint(url, tmp_path).complete(requests(3))
    assert [each.text for each in found] == ["fine", "", "fine"]
    assert "without a message" in found[1].refusal


def test_surrogates_are_replaced_and_an_echoed_key_is_redacted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In responses, journal, errors and logs."""
    monkeypatch.setenv("MY_KEY", "open-sesame")
    text = json.dumps({"choices": [{"message": {"content": "\ud800 open-sesame \x00"}}]}).replace(
        "sesame", "\\u0073esame"
    )
    replies = [Answer(raw=text), Answer(422, "key open-sesame"), Answer(401, "wrong key open-sesame")]
    with judge_at(lambda _, number: replies[number - 1]) as (url, _):
        one = EndpointOptions(api_key_env="MY_KEY", max_concurrency=1)
        found = endpoint(url, tmp_path, one)
        assert [each.text + each.refusal for each in found.complete(requests(2))] == ["? [key] \x00", "422 key [key]"]
        with pytest.raises(InputError, match=r"401 wrong key \[key\]"):
            found.complete([ChatRequest(requests(1)[0].messages, 0.9, 5)])
    assert b"sesame" not in (tmp_path / "journal").read_bytes()
    assert "sesame" not in "".join(capsys.readouterr())


def test_a_short_key_is_not_redacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "EMPTY")
    with judge_at(lambda *_: (200, "The set is EMPTY.")) as (url, _):
        assert (
            endpoint(url, tmp_path, EndpointOptions(api_key_env="MY_KEY")).complete(requests(1))[0].text
            == "The set is EMPTY."
        )


def test_first_token_logprobs(tmp_path: Path) -> None:
    """Requested and journaled; of duplicates the likelier; none if missing or malformed."""
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
            found = one.complete([ChatRequest(each.messages, 0.0, 1, top_logprobs=5) for each in requests(3)])
            assert [each.first_token_logprobs for each in found] == [{"A": -0.5, "B": -1.5}, {}, {}]
            assert all(each.truncated for each in found)
    assert len(asked) == 3
    assert (asked[0]["logprobs"], asked[0]["top_logprobs"]) == (True, 5)


def test_duplicate_requests_are_sent_once(tmp_path: Path) -> None:
    warnings: list[int] = []
    with judge_at(echo) as (url, asked):
        assert len(endpoint(url, tmp_path).complete(requests(2) * 3, warnings.append)) == 6
    assert (len(asked), warnings) == (2, [3, 6])


NO_URL, SECRET = "OpenAI-compatible", "api_key_env"


@pytest.mark.parametrize(
    ("url", "words"),
    [("localhost:8000/v1", NO_URL), ("ftp://host/v1", NO_URL), ("http://", NO_URL), ("http://host:x/v1", NO_URL),
     ("http://host/ v1", NO_URL), ("", NO_URL), ("http://me:secret@host/v1", SECRET), ("http://host/v1?key=secret", SECRET)],
)  # fmt: skip
def test_malformed_urls_and_urls_with_secrets(tmp_path: Path, url: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        endpoint(url, tmp_path)


def test_rate_limit_headers() -> None:
    """Only exhausted limits count, unless the request was rejected."""
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert retry_delay({"retry-after": in_a_minute}, rejected=True) == pytest.approx(60, abs=3)
    assert retry_delay({"retry-after": "5"}, rejected=False) == 0
    for malformed in ("soon", "-5", "1e9999", "", "Mon, 99 Foo"):
        assert retry_delay({"retry-after": malformed}, rejected=True) == 0
    both = {"x-ratelimit-reset-tokens": "6m0s", "x-ratelimit-reset-requests": "20ms"}
    assert retry_delay(both, rejected=False) == 0
    assert retry_delay(both, rejected=True) == pytest.approx(0.02)
    assert retry_delay({**both, "x-ratelimit-remaining-tokens": "0"}, rejected=False) == 360
    assert retry_delay({"x-ratelimit-reset": str(time.time() + 30)}, rejected=True) == pytest.approx(30, abs=3)
    assert retry_delay({"x-ratelimit-reset": "1h1d"}, rejected=True) == 90_000
    assert retry_delay({"x-ratelimit-reset": "1x"}, rejected=True) == 0
