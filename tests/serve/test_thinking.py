"""Several turns with a model that thinks, in `chat` and `serve`, under templates that remove the reasoning of earlier turns."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from tests.chat.stock_templates import R1_FILE, stock_path
from tests.serve.http_clients import body, post, serve_tiny, talk
from tests.serve.test_server import stream
from tests.serve.thinking_model import THOUGHT, WORD, write_thinking_model
from zephyr_jax.config.models import ChatConfig
from zephyr_jax.config.sections import ModelOptions
from zephyr_jax.generate.load import open_text_model
from zephyr_jax.serve.app import ServedModel
from zephyr_jax.serve.chat import ChatSession

QWEN3, R1, R1_OWN = stock_path("qwen3"), stock_path("deepseek_r1_distill"), R1_FILE
TEMPLATES = {"qwen3": (QWEN3, False), "r1": (R1, True), "r1-file": (R1_OWN, True)}


@pytest.fixture(scope="module", params=TEMPLATES)
def folder(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with one of the templates."""
    path, opened = TEMPLATES[request.param]
    return write_thinking_model(tiny_model, tmp_path_factory.mktemp("thinking") / "model", path.read_text(), opened)


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[ServedModel]:
    model = serve_tiny(folder, chat_template=None)
    yield model
    model.worker.close()


def test_a_session_has_several_turns(folder: Path) -> None:
    """Law: a session goes on after an answer with reasoning, and the model is asked without the reasoning of earlier turns."""
    options = ModelOptions(path=str(folder), compute_dtype="float32")
    config = ChatConfig(model=options, max_new_tokens=16, temperature=0.0, top_p=1.0, top_k=0)
    session = ChatSession(config, open_text_model("chat", options, config.mesh, 1))
    for turn in range(3):
        text = "".join(session.answer(f"Question {turn}?"))
        assert text.endswith((f"{THOUGHT}</think>{WORD}", f"{THOUGHT}</think> {WORD}"))
    session._config = replace(config, max_new_tokens=1)
    "".join(session.answer("Question 3?"))  # ends inside the reasoning
    session._config = config
    assert "".join(session.answer("Question 4?")) == text
    prompt = session._tokenizer.prompt([*session._messages, {"role": "user", "content": "Question 5?"}])
    written = session._tokenizer.saved.backend.decode(prompt.tolist(), skip_special_tokens=False)
    assert THOUGHT not in written and written.count(WORD) == 4


def test_the_server_takes_back_what_it_returns(served: ServedModel) -> None:
    """Law: reasoning is a field of the answer, in a stream, too; each form of it in the next request gives the same prompt."""

    async def doing(client: TestClient) -> None:
        status, first = await post(client, body(max_tokens=16))
        message = first["choices"][0]["message"]
        assert (status, message) == (200, {"role": "assistant", "content": WORD, "reasoning_content": THOUGHT})
        chunks = await stream(client, max_tokens=16)
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        for field, expected in (("reasoning_content", THOUGHT), ("content", WORD)):
            assert "".join(delta.get(field, "") for delta in deltas) == expected
        asked = [{"role": "user", "content": "Hello"}, message, {"role": "user", "content": "And then?"}]
        usages = []
        for earlier in (message, {"role": "assistant", "content": WORD}, in_content(served)):
            status, second = await post(client, body(messages=[asked[0], earlier, asked[2]], max_tokens=16))
            assert (status, second["choices"][0]["message"]) == (200, message), second
            usages.append(second["usage"]["prompt_tokens"])
        kept = (
            0 if served.tokenizer.template.shows_reasoning else 3
        )  # R1's stock template keeps the empty line after a block
        assert [count - usages[1] for count in usages] == [kept, 0, kept]
        status, cut = await post(client, body(max_tokens=1))
        assert cut["choices"][0]["finish_reason"] == "length"
        assert cut["choices"][0]["message"]["content"] == ""

    talk(served, doing)


def in_content(served: ServedModel) -> dict[str, Any]:
    """The answer as a client has it that was served by a program that returns reasoning in the content."""
    opening = "" if served.tokenizer.template.opens_reasoning else "<think>\n"
    return {"role": "assistant", "content": f"{opening}{THOUGHT}\n</think>\n\n{WORD}"}


def test_reasoning_of_other_roles_is_refused(served: ServedModel) -> None:
    """Law: a field that cannot be honored is refused by name."""
    message = {"role": "user", "content": "Hello", "reasoning_content": "Hm."}

    async def doing(client: TestClient) -> tuple[int, Any]:
        return await post(client, body(messages=[message]))

    status, error = talk(served, doing)
    assert status == 422
    assert "reasoning_content" in error["error"]["message"]
