"""The conversation in the terminal: what is typed, what is answered, what is remembered."""

import io
from pathlib import Path

import pytest

from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.config.models import ChatConfig
from zephyr_jax.config.sections import ModelOptions
from zephyr_jax.generate.engine import Request
from zephyr_jax.generate.load import Found, find_speaker
from zephyr_jax.serve.chat import Conversation, chat


@pytest.fixture(scope="module")
def config(tiny_model: Path) -> ChatConfig:
    options = ModelOptions(path=str(tiny_model), compute_dtype="float32")
    return ChatConfig(model=options, chat_template="zephyr", max_new_tokens=8, temperature=0.0, top_p=1.0, top_k=0)


@pytest.fixture(scope="module")
def found(config: ChatConfig) -> Found:
    return find_speaker("chat", config.model, config.mesh, 1)


@pytest.fixture(scope="module")
def conversation(config: ChatConfig, found: Found) -> Conversation:
    return Conversation(config, found)


def alone(conversation: Conversation, found: Found, messages: list[dict[str, str]]) -> str:
    """The answer of a fresh prompt with exactly these messages."""
    prompt = found.chat_tokenizer("zephyr").prompt(messages)
    engine = conversation._engine
    engine.submit(Request(prompt, 8, found.stops))
    return found.text([token for piece in engine.run() for token in piece.tokens])


def say(conversation: Conversation, text: str) -> str:
    return "".join(conversation.answer(text))


def test_what_was_said_is_remembered_until_it_is_reset(conversation: Conversation, found: Found) -> None:
    """Every answer is that of the whole conversation so far; /reset and /system begin anew."""
    conversation.reset()
    first = say(conversation, "Hello")
    said = [{"role": "user", "content": "Hello"}]
    assert first == alone(conversation, found, said)
    said += [{"role": "assistant", "content": first}, {"role": "user", "content": "And then?"}]
    assert say(conversation, "And then?") == alone(conversation, found, said)
    conversation.set_system("Be brief.")
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert say(conversation, "Hello") == alone(conversation, found, system)
    conversation.set_system("")
    assert say(conversation, "Hello") == first


def test_an_answer_that_is_cut_before_its_first_word_stops_nothing(conversation: Conversation) -> None:
    """An empty answer is part of the conversation, and the next message is answered."""
    conversation.reset()
    answer = conversation.answer("Hello")
    next(answer)
    answer.close()
    conversation._said[-1] = {"role": "assistant", "content": ""}
    assert say(conversation, "Are you there?")
    assert not conversation._engine.busy


def test_a_conversation_that_is_too_long_says_so(conversation: Conversation) -> None:
    conversation.reset()
    with pytest.raises(SkippedRow, match="/reset it"):
        say(conversation, "word " * 5000)
    assert say(conversation, "Hello")


def test_the_terminal(config: ChatConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines in, answers out; commands are obeyed, unknown ones explained, and the end of input ends it."""
    monkeypatch.setattr(
        "sys.stdin", io.StringIO("Hello\n\n/reset\nHello\n/what\n/system Be brief.\nHello\n/quit\nNo\n")
    )
    chat(config)
    out, err = capsys.readouterr()
    answers = out.splitlines()
    assert answers[0] == answers[1]
    assert err.count("/reset forgets the conversation") == 2
