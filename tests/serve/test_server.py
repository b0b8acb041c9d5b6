"""The server: many clients, rude ones, wrong ones."""

import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from tests.checkpoint.adapters import query_adapter
from zephyr_jax.config.adapter import InferenceOptions
from zephyr_jax.config.models import ServeConfig
from zephyr_jax.config.sections import ModelOptions
from zephyr_jax.config.validation import validate
from zephyr_jax.errors import InputError
from zephyr_jax.serve.app import ServedModel, make_app
from zephyr_jax.serve.serve import open_server

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def served(tiny_model: Path) -> Iterator[ServedModel]:
    options = ModelOptions(path=str(tiny_model), compute_dtype="float32")
    found = open_server(
        ServeConfig(
            model=options,
            name="tiny",
            context_length=256,
            max_concurrency=8,
            max_open_requests=200,
            chat_template="zephyr",
        )
    )
    yield found
    found.worker.close()


def talk(served: ServedModel, doing: Callable[[TestClient], Awaitable[Any]]) -> Any:
    """Run a client against the server."""

    async def run() -> Any:
        server = TestServer(make_app(served))
        async with TestClient(server) as client:
            return await doing(client)

    return asyncio.run(run())


def body(text: str = "Hello", **more: Any) -> dict[str, Any]:
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 12,
        "temperature": 0,
        **more,
    }


async def ask(client: TestClient, **content: Any) -> dict[str, Any]:
    async with client.post(CHAT, json=body(**content)) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def stream(client: TestClient, leave_after: int | None = None, **content: Any) -> list[dict[str, Any]]:
    """The chunks of a stream; the client hangs up after so many."""
    chunks: list[dict[str, Any]] = []
    async with client.post(CHAT, json=body(**content, stream=True)) as answer:
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                return chunks
            chunks.append(json.loads(line[6:]))
            if leave_after is not None and len(chunks) >= leave_after:
                answer.close()
                return chunks
    raise AssertionError("the stream ended without [DONE]")


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices if choice["index"] == index)


def test_an_answer_whole_and_in_pieces_is_the_same(served: ServedModel) -> None:
    async def doing(client: TestClient) -> tuple[Any, Any]:
        return await ask(client), await stream(client, stream_options={"include_usage": True})

    whole, pieces = talk(served, doing)
    assert whole["object"] == "chat.completion"
    assert text_of(pieces) == whole["choices"][0]["message"]["content"]
    assert pieces[-1]["usage"] == whole["usage"]
    assert whole["usage"]["completion_tokens"] == 12
    assert pieces[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"] == "length"
    assert pieces[0]["choices"][0]["delta"]["role"] == "assistant"
    assert len({chunk["id"] for chunk in pieces}) == 1


def test_seeds_several_answers_and_stop_strings(served: ServedModel) -> None:
    """The same seed, the same answers; `n` of them differ; a stop string ends one, and is not in it."""

    async def doing(client: TestClient) -> None:
        first = await ask(client, temperature=1.0, seed=5, n=3)
        again = await ask(client, temperature=1.0, seed=5, n=3)
        texts = [choice["message"]["content"] for choice in first["choices"]]
        assert texts == [choice["message"]["content"] for choice in again["choices"]]
        assert len(set(texts)) == 3
        assert first["usage"]["completion_tokens"] <= 36
        pieces = await stream(client, temperature=1.0, seed=5, n=3)
        assert [text_of(pieces, index) for index in range(3)] == texts
        whole = (await ask(client))["choices"][0]["message"]["content"]
        cut = await ask(client, stop=[whole[5:8]])
        assert cut["choices"][0]["message"]["content"] == whole[: whole.find(whole[5:8])]
        assert cut["choices"][0]["finish_reason"] == "stop"

    talk(served, doing)


def test_64_clients_some_of_whom_leave(served: ServedModel) -> None:
    """Law: anyone who stays gets the answer that he gets alone, and in the end no request is open and no row is taken."""
    draw = random.Random(0)

    async def doing(client: TestClient) -> None:
        prompts = [f"Question {index}: {'why ' * draw.randint(1, 20)}?" for index in range(64)]
        alone = {text: (await ask(client, text=text))["choices"][0]["message"]["content"] for text in prompts[:8]}

        async def one(text: str) -> None:
            await asyncio.sleep(draw.uniform(0, 0.3))
            leaves = draw.randint(1, 4) if draw.random() < 0.4 else None
            chunks = await stream(client, leave_after=leaves, text=text, max_tokens=12)
            if leaves is None and text in alone:
                assert text_of(chunks) == alone[text]

        await asyncio.gather(*(one(text) for text in prompts))
        for _ in range(200):
            await asyncio.sleep(0.05)
            async with client.get("/health") as answer:
                if (await answer.json())["open_requests"] == 0:
                    break
        assert (await (await client.get("/health")).json())["open_requests"] == 0
        for text, answer in alone.items():
            assert (await ask(client, text=text))["choices"][0]["message"]["content"] == answer

    talk(served, doing)
    engine = served.worker._engine
    assert not any(engine._active)
    assert not engine.busy


def malformed() -> dict[str, tuple[Any, int, str]]:
    """Bodies, the status that they deserve, and a word of the message."""
    wrong: dict[str, tuple[Any, int, str]] = {
        "nothing": (b"", 400, "JSON"), "no JSON": (b"{", 400, "JSON"), "a list": (b"[]", 400, "object"),
        "text": (b'"x"', 400, "object"), "null": (b"null", 400, "object"), "half UTF-8": (b'{"model": "\xff"}', 400, "JSON"),
        "empty": ({}, 422, "model"), "no messages": ({"model": "tiny"}, 422, "messages"),
        "another model": (body() | {"model": "gpt-4"}, 404, "`gpt-4`"),
    }  # fmt: skip
    values: dict[str, list[Any]] = {
        "messages": [[], "hi", None, [1], [{}], [{"role": "user"}], [{"content": "x"}], [{"role": "robot", "content": "x"}],
                     [{"role": "user", "content": 5}], [{"role": "user", "content": [{"type": "image_url"}]}],
                     [{"role": "user", "content": "x", "more": 1}], [{"role": "assistant", "content": "x"}],
                     [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]],
        "model": [5, None], "max_tokens": [0, -1, 1.5, "9", 10**9, True], "temperature": [-1, 3, "hot", float("inf")],
        "top_p": [0, 1.1, -1], "top_k": [-1, 0.5, 2**31, 10**30], "seed": [-1, "x", 2**63],
        "stop": ["", ["a"] * 5, [1], [""], "a" * 1001],
        "n": [0, 9, "2"], "stream": ["yes", 1], "stream_options": [{"x": 1}], "logprobs": [True],
        "tools": [[{"type": "function"}]], "tool_choice": ["required"], "top_logprobs": [1], "functions": [[{}]],
        "response_format": [{"type": "json_object"}], "frequency_penalty": [0.5], "presence_penalty": [-1],
        "logit_bias": [{"5": 1}], "metadata": [{"a": 1}], "nonsense": [1],
    }  # fmt: skip
    for name, each in values.items():
        for number, value in enumerate(each):
            wrong[f"{name} {number}"] = (body() | {name: value}, 422, name.split("_")[0])
    wrong["long prompt"] = (body("word " * 400), 422, "context")
    return wrong


def test_malformed_requests_are_answered_and_the_server_lives(served: ServedModel) -> None:
    """More than fifty kinds: each gets a status of its own, OpenAI's form of an error, and the name of what is wrong."""
    wrong = malformed()
    assert len(wrong) > 50

    async def doing(client: TestClient) -> None:
        for name, (content, status, word) in wrong.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            async with client.post(CHAT, data=data) as answer:
                output = await answer.json()
                assert answer.status == status, (name, output)
                assert word in output["error"]["message"], (name, output)
                assert set(output["error"]) == {"message", "type", "param", "code"}
        async with client.post(CHAT, data=b"x" * (5 * 2**20)) as answer:
            assert answer.status == 413
        async with client.get(CHAT) as answer:
            assert answer.status == 405
            assert (await answer.json())["error"]["type"] == "invalid_request_error"
        await ask(client)

    talk(served, doing)


def test_a_key_is_asked_for(served: ServedModel) -> None:
    locked = ServedModel(**{**served.__dict__, "api_key": "sesame"})

    async def doing(client: TestClient) -> list[int]:
        found = []
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer sesame"}):
            async with client.get("/v1/models", headers=headers) as answer:
                found.append(answer.status)
        async with client.get("/health") as answer:
            found.append(answer.status)
        return found

    assert talk(locked, doing) == [401, 401, 200, 200]


def test_too_many_are_refused_and_none_is_lost(tiny_model: Path) -> None:
    options = ModelOptions(path=str(tiny_model), compute_dtype="float32")
    small = open_server(
        ServeConfig(model=options, name="tiny", context_length=128, max_open_requests=3, chat_template="zephyr")
    )

    async def doing(client: TestClient) -> list[int]:
        async def status() -> int:
            async with client.post(CHAT, json=body(max_tokens=30)) as answer:
                await answer.read()
                return answer.status

        return await asyncio.gather(*(status() for _ in range(9)))

    found = talk(small, doing)
    small.worker.close()
    assert set(found) == {200, 429}
    assert found.count(200) >= 3


def test_an_engine_that_breaks_ends_every_request(tiny_model: Path) -> None:
    """Those who wait and those who come later: 500, and no one hangs."""
    options = ModelOptions(path=str(tiny_model), compute_dtype="float32")
    broken = open_server(ServeConfig(model=options, name="tiny", context_length=128, chat_template="zephyr"))
    broken.worker._engine.step = lambda: (_ for _ in ()).throw(RuntimeError("out of memory"))

    async def doing(client: TestClient) -> None:
        for _ in range(2):
            async with client.post(CHAT, json=body()) as answer:
                assert answer.status == 500
                assert (
                    "The engine has stopped: RuntimeError: out of memory" in (await answer.json())["error"]["message"]
                )

    talk(broken, doing)


def test_models_are_listed(served: ServedModel) -> None:
    async def doing(client: TestClient) -> None:
        listed = await (await client.get("/v1/models")).json()
        assert [each["id"] for each in listed["data"]] == ["tiny"]
        assert (await client.get("/v1/models/tiny")).status == 200
        assert (await client.get("/v1/models/other")).status == 404

    talk(served, doing)


def test_an_adapter_beside_its_base_is_served_by_its_name(tiny_model: Path, tmp_path: Path) -> None:
    """Not as the base, which answers otherwise."""
    adapter = query_adapter(tiny_model, tmp_path / "my-adapter")
    served = open_server(ServeConfig(model=InferenceOptions(path=str(tiny_model), adapter=str(adapter))))
    served.worker.close()
    assert served.name == "my-adapter"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"port": 70000}, "`port`: .*got 70000"),
        ({"max_concurrency": 0}, "`max_concurrency`: .*got 0"),
        ({"api_key_env": "NO_SUCH"}, "unset or empty"),
    ],
)
def test_settings_that_cannot_be_are_refused(tiny_model: Path, options: dict[str, Any], words: str) -> None:
    config = ServeConfig(model=ModelOptions(path=str(tiny_model)), **options)
    with pytest.raises(InputError, match=words):
        validate(config)
        open_server(config)


def test_the_official_client_is_content(served: ServedModel) -> None:
    """`openai`, where it is installed: whole and streamed."""
    openai = pytest.importorskip("openai")

    async def doing(client: TestClient) -> None:
        remote = openai.AsyncOpenAI(base_url=str(client.make_url("/v1")), api_key="none", max_retries=0)
        asked = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 12,
            "temperature": 0,
        }
        whole = await remote.chat.completions.create(**asked)
        parts = [chunk async for chunk in await remote.chat.completions.create(**asked, stream=True)]
        text = "".join(part.choices[0].delta.content or "" for part in parts)
        assert text == whole.choices[0].message.content
        with pytest.raises(openai.UnprocessableEntityError):
            await remote.chat.completions.create(**asked, logit_bias={"5": 1})
        await remote.close()

    talk(served, doing)


@pytest.mark.filterwarnings("ignore")
def test_lm_eval_asks_as_local_chat_completions(served: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of texts by lm-eval's own client, in many requests at a time; greedy, so each is what the server says alone."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    folder = Path(__file__).parents[1] / "golden" / "lm_eval"
    monkeypatch.chdir(folder)

    async def doing(client: TestClient) -> None:
        where = {"base_url": str(client.make_url(CHAT)), "model": "tiny", "num_concurrent": 4, "max_retries": 1}
        manager = TaskManager(include_path=str(folder))
        found = await asyncio.to_thread(
            lm_eval.simple_evaluate, "local-chat-completions", where, tasks=["zephyr_text"], task_manager=manager,
            apply_chat_template=True, limit=4, bootstrap_iters=0,
        )  # fmt: skip
        assert len(found["samples"]["zephyr_text"]) == 4
        for row in found["samples"]["zephyr_text"]:
            alone = await ask(client, text=row["doc"]["question"] + "\n", max_tokens=24, stop=["."])
            assert row["resps"] == [[alone["choices"][0]["message"]["content"]]]

    talk(served, doing)


def test_the_command_serves_until_it_is_asked_to_stop(tiny_model: Path) -> None:
    """The process says where it listens, answers, refuses a port that is taken, and ends well with SIGTERM."""
    words = [
        sys.executable,
        "-m",
        "zephyr_jax",
        "serve",
        "--model",
        str(tiny_model),
        "--chat_template",
        "zephyr",
        "--port",
    ]
    first = subprocess.Popen([*words, "0"], stderr=subprocess.PIPE, text=True)
    assert first.stderr is not None
    try:
        address = next(found[1] for line in first.stderr if (found := re.search(r"serving `model` at (\S+)", line)))
        with urllib.request.urlopen(f"{address}/models", timeout=30) as answer:
            assert json.load(answer)["data"][0]["id"] == "model"
        port = address.rsplit(":", 1)[1].split("/")[0]
        second = subprocess.run([*words, port], capture_output=True, text=True, check=False, timeout=120)
        assert second.returncode == 2
        assert f"Cannot listen at 127.0.0.1 port {port}" in second.stderr
        first.send_signal(signal.SIGTERM)
        assert first.wait(timeout=30) == 0
    finally:
        first.kill()
        first.communicate()
