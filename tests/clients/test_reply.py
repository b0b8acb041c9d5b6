"""Replies: responses, refusals, retries, and the size limit."""

import gzip
import json
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.clients.endpoints import Answer, judge_at
from tests.clients.test_remote import endpoint, lines, requests
from zephyr_jax.clients import decompress
from zephyr_jax.clients.reply import entry_problem, journal_usage
from zephyr_jax.config.sections import EndpointOptions
from zephyr_jax.errors import InputError
from zephyr_jax.serve.loopback import on_loopback

ONE = EndpointOptions(backoff=0.01, max_retries=2, timeout=5, max_concurrency=1)


def framed(message: dict[str, Any], reason: str | None = "stop", **choice: Any) -> Answer:
    content = {
        "choices": [{"message": message, "finish_reason": reason, **choice}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3},
    }
    return Answer(raw=json.dumps(content))


def parts(*given: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(given)}


THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
ANSWERS = {
    "a text part": (framed(parts({"type": "text", "text": "Yes."})), "Yes."),
    "several": (framed(parts({"type": "text", "text": "Ye"}, {"type": "output_text", "text": "s."})), "Yes."),
    "a thought first": (framed(parts(THOUGHT, {"type": "text", "text": "Yes."})), "Yes."),
    "parts of no kind": (framed(parts(3, None, {"type": "text", "text": 5}, {"type": "text", "text": "Yes."})), "Yes."),
    "no reason": (framed({"content": "Yes."}, None), "Yes."),
}
NONE = {
    "null": (framed({"content": None}), "no text"),
    "empty": (framed({"content": " \n"}), "no text"),
    "only a thought": (framed(parts(THOUGHT)), "no text"),
    "a thought to the end": (framed({"content": None, "reasoning_content": "hm"}, "length"), "max_tokens"),
    "content_filter": (framed({"content": "Here is how"}, "content_filter"), "content filter"),
    "a refusal": (framed({"content": None, "refusal": "I cannot."}), "refusal: I cannot."),
    "a refusal alone": (framed({"refusal": "I cannot."}), "refusal: I cannot."),
    "a tool call": (framed({"content": None, "tool_calls": [{"id": "1"}]}, "tool_calls"), "a tool call"),
}
AGAIN = {
    "error": framed({"content": "Half an ans"}, "error", error={"code": 502, "message": "overloaded"}),
    "error alone": framed({"content": "Half an ans"}, "stop", error={"code": 502}),
    "an error instead": Answer(raw='{"error": {"code": 429, "message": "limited upstream"}}'),
    "no message": framed({}),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_text_parts_are_joined(tmp_path: Path, name: str) -> None:
    with judge_at(lambda *_: ANSWERS[name][0]) as (url, _):
        (found,) = endpoint(url, tmp_path, ONE).complete(requests(1))
    assert (found.text, found.refusal) == (ANSWERS[name][1], "")


@pytest.mark.parametrize("name", NONE)
def test_refusals_are_journaled_and_billed_once(tmp_path: Path, name: str) -> None:
    with judge_at(lambda *_: NONE[name][0]) as (url, asked):
        for _ in range(2):
            one = endpoint(url, tmp_path, ONE)
            (found,) = one.complete(requests(1))
            assert found.text == ""
            assert NONE[name][1] in found.refusal
            assert one.usage_summary() == "12 tokens"
    assert len(asked) == 1


@pytest.mark.parametrize("name", AGAIN)
def test_errors_inside_a_reply_are_retried(tmp_path: Path, name: str) -> None:
    with judge_at(lambda _, number: Answer(200, "fine") if number > 2 else AGAIN[name]) as (url, asked):
        assert endpoint(url, tmp_path, ONE).complete(requests(1))[0].text == "fine"
        assert len(asked) == 3
    with judge_at(lambda *_: AGAIN[name]) as (url, asked):
        (tmp_path / "never").mkdir()
        assert endpoint(url, tmp_path / "never", ONE).complete(requests(1))[0].refusal
        assert len(asked) == 3


def test_refusals_from_the_first_on_end_the_run(tmp_path: Path) -> None:
    """Whatever the reason."""
    with judge_at(lambda *_: NONE["content_filter"][0]) as (url, asked):
        with pytest.raises(InputError, match="first 100 requests: .*content filter"):
            endpoint(url, tmp_path, ONE).complete(requests(150))
        assert len(asked) == 100


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 800.0, 3])
def test_invalid_logprobs_are_kept(tmp_path: Path, number: float) -> None:
    """They are not a reason to retry."""
    top = [{"token": "M", "logprob": number}, {"token": "m", "logprob": -1.0}]
    reply = framed({"content": "M"}, "length", logprobs={"content": [{"token": "M", "top_logprobs": top}]})
    with judge_at(lambda *_: reply) as (url, _):
        for _ in range(2):
            first = endpoint(url, tmp_path, ONE).complete(requests(1))[0].first_token_logprobs
            assert first["m"] == -1.0
            assert str(first["M"]) == str(float(number))


def test_logprobs_of_hidden_reasoning_are_ignored(tmp_path: Path) -> None:
    top = [{"token": "Okay", "logprob": -0.01}, {"token": "m", "logprob": -9.0}]
    reply = framed({"content": "M"}, "stop", logprobs={"content": [{"token": "Okay", "top_logprobs": top}]})
    with judge_at(lambda *_: reply) as (url, _):
        assert endpoint(url, tmp_path, ONE).complete(requests(1))[0].first_token_logprobs == {}


def raw_server(body: bytes, encoding: str, status: int = 200) -> web.Application:
    """Answers every request with these bytes."""

    async def chat(_: web.Request) -> web.Response:
        return web.Response(status=status, body=body, headers={"Content-Encoding": encoding})

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "wise"}]})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", models)
    return app


FINE = b'{"choices": [{"message": {"content": "fine"}}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}'
COMPRESSED = {
    "gzip": (gzip.compress(FINE), "gzip"),
    "two members": (gzip.compress(FINE[:9]) + gzip.compress(FINE[9:]) + b"\0" * 9, "x-gzip"),
    "none": (FINE, "identity"),
}


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_replies_are_read(tmp_path: Path, name: str) -> None:
    with on_loopback(raw_server(*COMPRESSED[name])) as url:
        assert endpoint(url, tmp_path, ONE).complete(requests(1))[0].text == "fine"


@pytest.mark.parametrize("status", [200, 400])
def test_decompression_is_bounded(tmp_path: Path, status: int) -> None:
    """512 MiB of spaces in 0.5 MiB of gzip, also as the body of an error."""
    packer = zlib.compressobj(wbits=31)
    bomb = b"".join(packer.compress(b" " * 2**20) for _ in range(512)) + packer.flush()
    with on_loopback(raw_server(bomb, "gzip", status)) as url:
        one = endpoint(url, tmp_path, ONE)
        tracemalloc.start()
        (found,) = one.complete(requests(1))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert f"{decompress.MAX_REPLY_BYTES:,} bytes" in found.refusal
    assert peak < 3 * decompress.MAX_REPLY_BYTES
    assert [line for line in lines(tmp_path) if "lost" in line]


@pytest.mark.parametrize(
    ("body", "encoding", "problem"), [(FINE, "br", "'br'"), (b"\x1f\x8b" + b"x" * 99, "gzip", "damaged")]
)
def test_unsupported_compression_is_refused(tmp_path: Path, body: bytes, encoding: str, problem: str) -> None:
    with on_loopback(raw_server(body, encoding)) as url:
        assert problem in endpoint(url, tmp_path, ONE).complete(requests(1))[0].refusal


# ---- journals that were written before ----

COUNTS = {"request": "x", "prompt_tokens": 9, "completion_tokens": 3}


@pytest.mark.parametrize("state", [{"text": ""}, {"sent": True}, {"lost": True}, {"free": True}])
def test_every_state_of_a_request_is_a_valid_entry(state: dict[str, Any]) -> None:
    assert entry_problem({**COUNTS, **state}) == ""
    assert entry_problem({**COUNTS, "text": "a", "refused": "b", "first_token": {"a": -1.5, "b": -2}}) == ""


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({**COUNTS, "request": 3, "text": ""}, "a string in `request`, got 3"),
        ({**COUNTS, "prompt_tokens": -1, "text": ""}, "a count in `prompt_tokens`, got -1"),
        ({**COUNTS, "completion_tokens": True, "text": ""}, "a count in `completion_tokens`, got True"),
        ({**COUNTS, "completion_tokens": 2**31, "text": ""}, "a count in `completion_tokens`"),
        (COUNTS, "one of `text`, `sent`, `lost` and `free`"),
        ({**COUNTS, "text": None}, "strings in `text` and `refused`"),
        ({**COUNTS, "text": "", "refused": 1}, "strings in `text` and `refused`"),
        ({**COUNTS, "text": "", "first_token": {"a": "b"}}, "numbers in `first_token`"),
        ({**COUNTS, "text": "", "first_token": [1]}, "numbers in `first_token`"),
    ],
)
def test_a_damaged_entry_is_named(entry: dict[str, Any], words: str) -> None:
    assert words in entry_problem(entry)


def test_usage_of_a_journal_counts_what_may_have_been_billed() -> None:
    """Law: a reply counts once, a request that was sent twice also for its first time, one in flight in full."""
    entries = [
        {**COUNTS, "request": "a", "sent": True, "prompt_tokens": 100},
        {**COUNTS, "request": "a", "text": "answer"},
        {**COUNTS, "request": "b", "sent": True},
        {**COUNTS, "request": "b", "sent": True},
        {**COUNTS, "request": "b", "free": True, "prompt_tokens": 0, "completion_tokens": 0},
        {**COUNTS, "request": "c", "sent": True, "prompt_tokens": 50},
        {**COUNTS, "request": "d", "lost": True},
    ]
    usage = [(one.prompt_tokens, lost) for one, lost in journal_usage(entries)]
    assert usage == [(9, False), (9, True), (0, False), (9, True), (50, True)]
