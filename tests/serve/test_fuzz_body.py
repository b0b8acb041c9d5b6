"""Two thousand bodies of all kinds: the server answers each, and is as it was afterwards."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serve.http_clients import CHAT, body, post, serve_tiny
from zephyr_jax.serve.app import ServedModel, make_app

NUMBERS = st.sampled_from(
    [
        0,
        1,
        2,
        3,
        7,
        -1,
        2**31 - 1,
        2**31,
        2**32 - 1,
        2**32,
        2**63 - 1,
        2**63,
        10**400,
        1.5,
        0.5,
        0.999,
        1e-45,
        5e-324,
        1e308,
        -0.0,
    ]
)
TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            "Hi",
            "",
            "\x00",
            "\ue000" * 5,
            "</s>",
            "<|user|>\n",
            "a" * 3000,
            "\u0301" * 300,
            "{{ 7*7 }}",
            "\u202e",
            "\x1b[31m",
        ]
    ),
)
ODD = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
PARTS = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS}), max_size=3)
MESSAGES = st.one_of(
    st.lists(TEXTS, min_size=1, max_size=5).map(
        lambda texts: [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    ),
    st.lists(
        st.dictionaries(
            st.sampled_from(["role", "content", "reasoning_content", "name", "refusal", "tool_calls"]),
            st.one_of(ODD, PARTS),
            max_size=4,
        )
    ),
    ODD,
)
COUNTS = st.sampled_from([1, 2, 3, 0, -1, 8, 9])
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "temperature": NUMBERS, "top_p": NUMBERS, "top_k": NUMBERS, "seed": NUMBERS, "n": COUNTS,
    "stop": st.one_of(TEXTS, st.lists(TEXTS, max_size=5)), "stream": st.booleans(), "user": TEXTS, "logit_bias": ODD,
    "tools": ODD, "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}), "response_format": ODD,
    "metadata": ODD,
}  # fmt: skip
SOUND = st.fixed_dictionaries({}, optional=FIELDS)
WRONG = st.dictionaries(
    st.sampled_from([*FIELDS, "model", "max_tokens", "messages", "logprobs", "nonsense"]), ODD, max_size=3
)
BODIES = st.one_of(
    st.builds(
        lambda messages, more, odd: body() | {"max_tokens": 3, "messages": messages} | more | odd,
        MESSAGES,
        SOUND,
        st.just({}),
    ),
    st.builds(lambda more: body() | {"max_tokens": 3} | more, SOUND),
    st.builds(lambda more, odd: body() | {"max_tokens": 3} | more | odd, SOUND, WRONG),
).map(lambda content: json.dumps(content).encode())
JUNK = st.one_of(
    st.binary(max_size=40), BODIES.flatmap(lambda data: st.integers(0, len(data)).map(lambda cut: data[:cut]))
)
EXAMPLES = 2000


@pytest.fixture(scope="module")
def served(tiny_model: Path) -> Iterator[ServedModel]:
    found = serve_tiny(tiny_model)
    yield found
    found.worker.close()


def test_any_body_is_answered(served: ServedModel) -> None:
    """Never with a status of 500 or more; streams end; then no slot is held, no row is taken, and answers are what they were."""
    seen: Counter[int] = Counter()
    loop = asyncio.new_event_loop()
    client = loop.run_until_complete(opened(served))
    before = loop.run_until_complete(post(client, body()))

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(st.one_of(BODIES, BODIES, JUNK))
    def send(data: bytes) -> None:
        status = loop.run_until_complete(answered(client, data))
        seen[status] += 1
        assert status < 500, data

    send()
    assert seen.total() >= EXAMPLES
    assert {200, 400, 422} <= seen.keys()
    assert loop.run_until_complete(post(client, body()))[1]["choices"] == before[1]["choices"]
    health = loop.run_until_complete(client.get("/health"))
    assert (health.status, loop.run_until_complete(health.json())["open_requests"]) == (200, 0)
    assert not served.worker._engine.busy
    loop.run_until_complete(client.close())
    loop.close()


async def opened(served: ServedModel) -> TestClient:
    """A client of a server that runs in the loop."""
    client = TestClient(TestServer(make_app(served), handler_cancellation=True))
    await client.start_server()
    return client


async def answered(client: TestClient, data: bytes) -> int:
    """The status; a stream is read to its end, which is [DONE]."""
    async with client.post(CHAT, data=data) as answer:
        text = await answer.read()
        if answer.status == 200:
            assert text.rstrip().endswith((b"[DONE]", b"}"))
        else:
            assert set(json.loads(text)["error"]) == {"message", "type", "param", "code"}
        return answer.status
