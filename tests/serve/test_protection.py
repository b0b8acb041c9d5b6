"""The server under odd and hostile requests: each concerns its own client only."""

import asyncio
import inspect
import json
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from aiohttp.test_utils import TestClient
from openai import AsyncOpenAI
from openai.resources.chat.completions import AsyncCompletions

from tests.serve.http_clients import CHAT, body, post, serve_tiny, talk
from zephyr_jax.serve import app as apps
from zephyr_jax.serve.app import ServedModel
from zephyr_jax.serve.origin import is_loopback


@pytest.fixture(scope="module")
def served(tiny_model: Path) -> Iterator[ServedModel]:
    found = serve_tiny(tiny_model)
    yield found
    found.worker.close()


@pytest.fixture(scope="module")
def own(tiny_model: Path) -> Iterator[ServedModel]:
    """A server whose engine a test may break."""
    found = serve_tiny(tiny_model)
    yield found
    found.worker.close()


async def open_requests(client: TestClient) -> int:
    async with client.get("/health") as answer:
        return (await answer.json())["open_requests"]


async def events(client: TestClient, content: dict[str, Any]) -> list[Any]:
    """The data of a stream's events."""
    async with client.post(CHAT, json={**content, "stream": True}) as answer:
        assert answer.status == 200
        text = (await answer.read()).decode()
    assert "HTTP/1.1" not in text
    return [json.loads(line[6:]) if line != "data: [DONE]" else "[DONE]" for line in text.split("\n") if line]


NUMBERS = {
    "top_k": [2**31, 2**31 - 1, 2**63, 10**400], "seed": [2**63, 2**63 - 1, 2**32], "top_p": [5e-324, 1e-40],
    "temperature": [5e-324, 1e-30, 2.0], "max_tokens": [2**31, 2**63], "n": [9, 10**30],
}  # fmt: skip


def test_no_number_stops_the_engine(served: ServedModel) -> None:
    """Each is answered or refused, and the next client gets what it got before."""

    async def doing(client: TestClient) -> None:
        first = await post(client, body())
        for name, values in NUMBERS.items():
            for value in values:
                content = body(temperature=1, top_k=3) | {name: value}
                status, output = await post(client, json.dumps(content).encode())
                assert status in (200, 400, 422), (name, value, output)
        status, output = await post(client, body())
        assert (status, output["choices"]) == (200, first[1]["choices"])
        assert await open_requests(client) == 0

    talk(served, doing)


def test_large_seeds_differ(served: ServedModel) -> None:
    """Seeds that share their lower 32 bits give different answers."""

    async def doing(client: TestClient) -> None:
        texts = set()
        for seed in (7, 7 + 2**32, 7 + 2**40, 7 + 2**62):
            status, output = await post(client, body(seed=seed, temperature=1.5, max_tokens=24))
            assert status == 200
            texts.add(output["choices"][0]["message"]["content"])
        assert len(texts) == 4

    talk(served, doing)


def test_several_answers_are_admitted_together(served: ServedModel) -> None:
    """Of many clients with n = 3 and room for 8, each gets three answers or 429 at once, and no slot is lost."""

    async def doing(client: TestClient) -> None:
        one = body(n=3, temperature=1, max_tokens=20)
        found = await asyncio.gather(*(post(client, one | {"seed": seed}) for seed in range(12)))
        assert {status for status, _ in found} == {200, 429}
        assert all(len(output["choices"]) == 3 for status, output in found if status == 200)
        streams = [client.post(CHAT, json=one | {"stream": True}) for _ in range(6)]
        answers = await asyncio.gather(*streams)
        texts = await asyncio.gather(*(answer.read() for answer in answers))
        for answer, text in zip(answers, texts, strict=True):
            assert answer.status in (200, 429)
            assert text.count(b'"finish_reason": "') == (3 if answer.status == 200 else 0)
        assert await open_requests(client) == 0

    talk(served, doing)
    assert not served.worker._engine.busy


def test_more_answers_than_slots_are_refused_for_good(own: ServedModel) -> None:
    """Not with 429, which clients would try for ever."""

    async def doing(client: TestClient) -> None:
        own.worker._max_open, before = 2, own.worker._max_open
        status, output = await post(client, body(n=3, temperature=1))
        own.worker._max_open = before
        assert status == 422
        assert "n of at most 2" in output["error"]["message"]

    talk(own, doing)


def test_one_failing_answer_cancels_its_siblings(own: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of n = 3 one fails: 500, no slot and no row stays taken, and the server goes on; a stream ends with an error event."""
    engine = own.worker._engine
    submit, calls = engine.submit, []

    def sometimes(request: Any) -> int:
        calls.append(request)
        if len(calls) % 3 == 2:
            raise RuntimeError("no luck")
        return submit(request)

    monkeypatch.setattr(engine, "submit", sometimes)

    async def doing(client: TestClient) -> None:
        status, output = await post(client, body(n=3, temperature=1, max_tokens=100))
        assert (status, "no luck" in output["error"]["message"]) == (500, True)
        assert await open_requests(client) == 0
        found = await events(client, body(n=3, temperature=1))
        assert found[-1]["error"]["type"] == "server_error"
        monkeypatch.undo()
        assert (await post(client, body()))[0] == 200

    talk(own, doing)
    assert not any(engine._active)


def test_weights_that_are_not_finite_end_one_answer(own: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 with the reason, whole and streamed; the server lives."""
    engine = own.worker._engine
    broken = engine._weights._replace(norm=jnp.full_like(engine._weights.norm, jnp.nan))

    async def doing(client: TestClient) -> None:
        sound = engine._weights
        engine._weights = broken
        status, output = await post(client, body())
        assert status == 500
        assert "NaN or infinite" in output["error"]["message"]
        engine._weights = sound
        assert (await post(client, body()))[0] == 200
        async with client.get("/health") as answer:
            assert answer.status == 200

    talk(own, doing)


def test_a_stream_that_breaks_ends_with_an_error_event(own: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with a second response in the first one's body, and without [DONE]."""
    feed = apps.TextStream.feed

    def breaks(self: Any, tokens: Any, last: bool = False) -> str:
        if len(self._ids) >= 8:
            raise RuntimeError("secret detail")
        return feed(self, tokens, last)

    monkeypatch.setattr(apps.TextStream, "feed", breaks)

    async def doing(client: TestClient) -> None:
        found = await events(client, body(max_tokens=40))
        assert "choices" in found[0]
        assert found[-1]["error"] == {
            "message": "This request failed: RuntimeError.", "type": "server_error", "param": None, "code": None,
        }  # fmt: skip
        assert await open_requests(client) == 0

    talk(own, doing)


def test_a_dead_engine_is_reported(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One log line, /health 503, an error event in open streams, 500 for those who come later."""
    dying = serve_tiny(tiny_model)
    step, calls = dying.worker._engine.step, []

    def dies() -> Any:
        calls.append(1)
        if len(calls) > 2:
            raise MemoryError("no room\n\x1b[31m")
        return step()

    dying.worker._engine.step = dies

    async def doing(client: TestClient) -> None:
        found = await events(client, body(max_tokens=100))
        assert "The engine has stopped: MemoryError" in found[-1]["error"]["message"]
        async with client.get("/health") as answer:
            assert answer.status == 503
            assert "MemoryError" in (await answer.json())["error"]
        assert (await post(client, body()))[0] == 500
        assert await open_requests(client) == 0

    talk(dying, doing)
    dying.worker.close()
    lines = [record.getMessage() for record in caplog.records if "the engine has stopped" in record.getMessage()]
    assert len(lines) == 1
    assert "\x1b" not in lines[0]


EMPTY = [
    {name: None}
    for name in inspect.signature(AsyncCompletions.create).parameters
    if name not in ("self", "messages", "model", "timeout") and not name.startswith("extra_")
] + [
    {"tools": []}, {"logit_bias": {}}, {"metadata": {}}, {"functions": []}, {"stop": []}, {"tool_choice": "none"},
    {"metadata": {"run": "7"}}, {"top_logprobs": 0}, {"parallel_tool_calls": False}, {"service_tier": "auto"},
    {"modalities": ["text"]}, {"prompt_cache_key": "k"}, {"safety_identifier": "s"}, {"stream_options": None}, {"future": None},
]  # fmt: skip


def test_parameters_that_ask_for_nothing_are_accepted(served: ServedModel) -> None:
    """Every parameter of the official client as null, and what it sends back of an earlier answer."""
    assert len(EMPTY) > 45

    async def doing(client: TestClient) -> None:
        plain = (await post(client, body()))[1]["choices"]
        for more in EMPTY:
            status, output = await post(client, body() | more)
            limit = more.keys() & {"max_tokens", "temperature"}
            assert status == 200, (more, output)
            assert limit or output["choices"] == plain, more
        remote = AsyncOpenAI(base_url=str(client.make_url("/v1")), api_key="none", max_retries=0)
        asked: dict[str, Any] = {"model": "tiny", "max_tokens": 6, "temperature": 0}
        user = {"role": "user", "content": "Hi"}
        message = (await remote.chat.completions.create(messages=[user], **asked)).choices[0].message
        for sent in (message, message.model_dump(), message.to_dict(), message.model_dump() | {"tool_calls": []}):
            await remote.chat.completions.create(messages=[user, sent, user], **asked)
        system, developer = [
            (
                await remote.chat.completions.create(messages=[{"role": role, "content": "Be brief."}, user], **asked)
            ).choices
            for role in ("system", "developer")
        ]
        assert system == developer
        await remote.close()

    talk(served, doing)


def test_hosts() -> None:
    """Names and addresses of this machine, and others."""
    local = ("localhost", "LOCALHOST", "localhost.", "127.0.0.1", "127.1.2.3", "::1", "[::1]")
    foreign = (
        "evil.test",
        "localhost.evil.test",
        "127.0.0.1.evil.test",
        "0.0.0.0",
        "10.0.0.1",
        "",
        "127.0.0.1@evil.test",
        "::2",
    )
    assert all(map(is_loopback, local))
    assert not any(map(is_loopback, foreign))


HEADERS: list[tuple[dict[str, str], int]] = [
    ({}, 200), ({"Host": "localhost:1"}, 200), ({"Host": "[::1]:80"}, 200), ({"Origin": "http://localhost:3000"}, 200),
    ({"Host": "evil.test"}, 403), ({"Host": "evil.test:8000"}, 403), ({"Host": "127.0.0.1.evil.test"}, 403),
    ({"Host": "[::"}, 403),
    ({"Origin": "http://evil.test"}, 403), ({"Origin": "null"}, 403), ({"Origin": "file://"}, 403), ({"Origin": "http://["}, 403),
]  # fmt: skip


def test_foreign_hosts_and_origins_are_refused_without_a_key(served: ServedModel) -> None:
    """On loopback; a server with a key, or one that others may reach, answers them."""

    async def statuses(client: TestClient) -> list[int]:
        found = []
        for headers, _ in HEADERS:
            async with client.get("/v1/models", headers={"Authorization": "Bearer k", **headers}) as answer:
                found.append(answer.status)
        return found

    assert talk(served, statuses) == [status for _, status in HEADERS]
    locked, public = (ServedModel(**{**served.__dict__, **more}) for more in ({"api_key": "k"}, {"loopback": False}))
    assert set(talk(locked, statuses)) == set(talk(public, statuses)) == {200}


async def raw(client: TestClient, request: bytes) -> int:
    """The status of the answer to bytes that no client library would send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(request)
    line = await asyncio.wait_for(reader.readline(), 10)
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return int(line.split()[1])


def test_odd_headers_and_encodings_are_client_errors(served: ServedModel) -> None:
    """400, 401, 403 or 415, never 500."""
    content = json.dumps(body()).encode()
    bomb = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = b"".join(bomb.compress(b" " * 2**20) for _ in range(64)) + bomb.flush()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    key = b"Authorization: Bearer k\r\n"

    def length(data: bytes) -> bytes:
        return b"Content-Length: %d\r\n\r\n" % len(data) + data

    requests = {
        "key of bytes": head + b"Authorization: Bearer \xff\xfe\r\n" + length(content),
        "key of umlauts": head + "Authorization: Bearer é\r\n".encode() + length(content),
        "no key": head + length(content),
        "negative length": head + key + b"Content-Length: -1\r\n\r\n" + content,
        "two lengths": head + key + b"Content-Length: 5\r\n" + length(content),
        "length of letters": head + key + b"Content-Length: x\r\n\r\n" + content,
        "broken gzip": head + key + b"Content-Encoding: gzip\r\n" + length(b"abcde"),
        "bomb": head + key + b"Content-Encoding: gzip\r\n" + length(packed),
        "utf-16": head
        + key
        + b"Content-Type: application/json; charset=utf-16\r\n"
        + length(content.decode().encode("utf-16")),
        "unknown charset": head + key + b"Content-Type: application/json; charset=nonsense\r\n" + length(content),
        "unknown encoding": head + key + b"Content-Encoding: foo\r\n" + length(content),
        "garbage": b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
        "bad chunk": head + key + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc",
        "bad type": head + key + b"Content-Type: \xff\xff\r\n" + length(b"{"),
    }

    async def doing(client: TestClient) -> None:
        found = {name: await raw(client, data) for name, data in requests.items()}
        assert {
            name: found.pop(name) for name in ("unknown charset", "unknown encoding")
        }  # the body is JSON all the same
        assert all(400 <= status < 500 for status in found.values()), found
        assert [found[name] for name in ("key of bytes", "key of umlauts", "no key")] == [401] * 3
        assert await raw(client, head + key + length(content)) == 200

    talk(ServedModel(**{**served.__dict__, "api_key": "k"}), doing)


def test_long_conversations_do_not_stop_other_clients(served: ServedModel) -> None:
    """Too many messages or characters are refused before they are rendered; what fits is rendered in a thread."""
    many = [{"role": ("user", "assistant")[place % 2], "content": "a"} for place in range(4001)]
    texts: list[Any] = [
        body() | {"messages": many}, body() | {"messages": many[:251]}, body("word " * 800_000), body("</s>" * 50_000),
        body("a" * 4_000), body("\U0001f999" * 1000), body() | {"messages": many * 5},
    ]  # fmt: skip

    async def doing(client: TestClient) -> None:
        for content in texts:
            begun = time.monotonic()
            sending, waits = asyncio.create_task(post(client, content)), []
            while not sending.done():
                started = time.monotonic()
                await open_requests(client)
                waits.append(time.monotonic() - started)
            status, output = await sending
            assert status in (200, 413, 422), output
            assert max(waits) < 2
            assert time.monotonic() - begun < 10

    talk(served, doing)


def test_a_stop_string_has_a_longest(served: ServedModel) -> None:
    """Comparing the answer with it takes time."""

    async def doing(client: TestClient) -> None:
        assert (await post(client, body(stop="a" * 1001)))[0] == 422
        assert (await post(client, body(stop=["a" * 1000] * 4)))[0] == 200

    talk(served, doing)


def test_clients_that_do_not_read_or_write_are_dropped(own: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that does not come gets 408, and takes no slot."""
    monkeypatch.setattr(apps, "_TIMEOUT", 0.3)

    async def doing(client: TestClient) -> None:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
        assert await raw(client, head) == 408
        assert await open_requests(client) == 0

    talk(own, doing)


def test_bodies_that_failed_once_are_answered(served: ServedModel, shared: Path) -> None:
    """The reproductions that lie beside the project."""
    bodies = sorted((shared / "cases" / "serving").glob("s[0-9]*_*.json"))
    assert bodies

    async def doing(client: TestClient) -> None:
        for path in bodies:
            content = json.loads(path.read_text()) | {"model": "tiny"}
            status, output = await post(client, content)
            assert status in (200, 422), (path.name, output)
            assert (await post(client, body()))[0] == 200
        assert await open_requests(client) == 0

    talk(served, doing)
