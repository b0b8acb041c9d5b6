"""The conversation in the terminal: what is typed, what is answered, what is remembered."""

import io
from pathlib import Path

import pytest

from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.config.models import ChatConfig
from zephyr_jax.config.sections import ModelOptions
from zephyr_jax.generate.engine import GenerationRequest
from zephyr_jax.generate.load import TextModel, open_text_model
from zephyr_jax.serve.chat import ChatSession, chat


@pytest.fixture(scope="module")
def config(tiny_model: Path) -> ChatConfig:
    options = ModelOptions(path=str(tiny_model), compute_dtype="float32")
    return ChatConfig(model=options, chat_template="zephyr", max_new_tokens=8, temperature=0.0, top_p=1.0, top_k=0)


@pytest.fixture(scope="module")
def model(config: ChatConfig) -> TextModel:
    return open_text_model("chat", config.model, config.mesh, 1)


@pytest.fixture(scope="module")
def session(config: ChatConfig, model: TextModel) -> ChatSession:
    return ChatSession(config, model)


def alone(session: ChatSession, model: TextModel, messages: list[dict[str, str]]) -> str:
    """The answer of a fresh prompt with exactly these messages."""
    prompt = model.chat_tokenizer("zephyr").prompt(messages)
    engine = session._engine
    engine.submit(GenerationRequest(prompt, 8, model.stop_ids))
    return model.text([token for output in engine.run() for token in output.tokens])


def answer_of(session: ChatSession, text: str) -> str:
    return "".join(session.answer(text))


def test_what_was_said_is_remembered_until_it_is_reset(session: ChatSession, model: TextModel) -> None:
    """Every answer is that of the whole conversation so far; /reset and /system start over."""
    session.reset()
    first = answer_of(session, "Hello")
    messages = [{"role": "user", "content": "Hello"}]
    assert first == alone(session, model, messages)
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "And then?"}]
    assert answer_of(session, "And then?") == alone(session, model, messages)
    session.set_system("Be brief.")
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert answer_of(session, "Hello") == alone(session, model, system)
    session.set_system("")
    assert answer_of(session, "Hello") == first


def test_an_answer_that_is_cut_before_its_first_word_stops_nothing(session: ChatSession) -> None:
    """An empty answer is part of the session, and the next message is answered."""
    session.reset()
    answer = session.answer("Hello")
    next(answer)
    answer.close()
    session._messages[-1] = {"role": "assistant", "content": ""}
    assert answer_of(session, "Are you there?")
    assert not session._engine.busy


def test_a_conversation_beyond_the_context_is_refused(session: ChatSession) -> None:
    session.reset()
    with pytest.raises(SkippedRow, match="/reset"):
        answer_of(session, "word " * 5000)
    assert answer_of(session, "Hello")


def test_the_terminal(config: ChatConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines in, answers out; commands are obeyed, unknown ones explained, and the end of input ends it."""
    monkeypatch.setattr(
        "sys.stdin", io.StringIO("Hello\n\n/reset\nHello\n/what\n/system Be brief.\nHello\n/quit\nNo\n")
    )
    chat(config)
    out, err = capsys.readouterr()
    answers = out.splitlines()
    assert answers[0] == answers[1]
    assert err.count("/reset clears the conversation") == 2
