"""Random conversations: whatever people write, it stays text, and what counts is what the assistant wrote."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from tests.tokenizers import tokenized
from zephyr_jax.chat.message import Message, SkippedRow
from zephyr_jax.chat.template import ChatTemplate
from zephyr_jax.chat.template_loader import load_template
from zephyr_jax.chat.template_source import without_markers
from zephyr_jax.chat.tokenizer import ChatTokenizer, Segment
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.config.sections import DataOptions
from zephyr_jax.data.segments import CONVERSATION, PREFERENCE


def conversation(
    tokenizer: ChatTokenizer, row: dict[str, Any], targets: Any, max_length: int, cut: bool
) -> list[Segment]:
    data = DataOptions(targets=targets, max_length=max_length)
    return tokenized(CONVERSATION, tokenizer, data, row, cut)


def preference(
    tokenizer: ChatTokenizer, row: dict[str, Any], max_length: int, max_prompt: int, cut: bool
) -> list[Segment]:
    data = DataOptions(max_length=max_length, max_prompt_length=max_prompt)
    return tokenized(PREFERENCE, tokenizer, data, row, cut)


BOS, EOS = 1, 2
UNNAMED, PLAIN = "<|header|>", "<|im_start|>"
"""A special token that has no name among eos_token and the like, and one that is not special but the template's own."""
SPELLINGS = (
    "</s>", "<s>", "<unk>", "<|assistant|>\n", "<|user|>\n", "<|system|>\n", UNNAMED, PLAIN, "<", "/s>", "</s", "s>",
    "<|", "|>", "<|header", "im_start|>", "<0x41>", "<0x", "▁", "\ue000", "\ue000" * 4, "{{ eos_token }}",
    "{% generation %}", "{% endgeneration %}", "{#", "[INST]",
)  # fmt: skip
SPACES = (" ", "  ", "\n", "\n\n", "\t", "\r\n", "\x00", "\x1b[31m", "\u00a0", "\u200b", "\u2028", "\ufeff", "\u3000")
MARKS = (
    "e\u0301\u0300\u0323",
    "\u0301",
    "각",
    "\u1100\u1161\u11a8",
    "👩\u200d👩\u200d👧",
    "🇳🇴",
    "ﬁ",
    "ß",
    "\u202eabc",
    "नमस्ते",
)
any_character = st.characters(exclude_categories=["Cs"])
piece = st.one_of(st.sampled_from(SPELLINGS), st.sampled_from(SPACES), st.sampled_from(MARKS), st.text(any_character))
content = st.lists(piece, max_size=8).map("".join)
answer = content.filter(lambda text: bool(text.strip()))
systems = st.one_of(st.none(), content)
turns = st.lists(st.tuples(content, answer), min_size=1, max_size=5)
CI = settings(max_examples=50, deadline=None, derandomize=True)


def chat(system: str | None, exchanges: list[tuple[str, str]]) -> list[Message]:
    """Messages of a conversation."""
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [
        {"role": role, "content": text}
        for exchange in exchanges
        for role, text in zip(("user", "assistant"), exchange, strict=True)
    ]


conversations = st.builds(chat, systems, turns)


def extended(tiny_model: Path, folder: Path, *more: AddedToken) -> Path:
    """The tiny tokenizer with further tokens."""
    backend = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    backend.add_tokens(list(more))
    backend.save(str(folder / "tokenizer.json"))
    shutil.copy(tiny_model / "tokenizer_config.json", folder)
    return folder


def built(folder: Path, source: str) -> ChatTokenizer:
    tokenizer = load_tokenizer(str(folder))
    (folder / "own.jinja").write_text(source)
    return ChatTokenizer(tokenizer, load_template(str(folder / "own.jinja"), tokenizer))


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with a special token that has no name."""
    unnamed = AddedToken(UNNAMED, normalized=False, special=True)
    return extended(tiny_model, tmp_path_factory.mktemp("unnamed"), unnamed)


@pytest.fixture(scope="module")
def zephyr(folder: Path) -> ChatTokenizer:
    tokenizer = load_tokenizer(str(folder))
    return ChatTokenizer(tokenizer, load_template("zephyr", tokenizer))


@pytest.fixture(scope="module")
def unmarked(folder: Path, zephyr: ChatTokenizer) -> ChatTokenizer:
    """Zephyr's template without generation markers."""
    return built(folder, without_markers(zephyr.template.source))


@pytest.fixture(scope="module")
def headers(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    """A template whose headers are an unnamed special token and one that is not even special."""
    tokens = AddedToken(UNNAMED, normalized=False, special=True), AddedToken(PLAIN, normalized=False)
    return built(
        extended(tiny_model, tmp_path_factory.mktemp("headers"), *tokens),
        "{% for m in messages %}{{ '<|header|>' + m['role'] + '<|im_start|>' }}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}{% else %}{{ m['content'] + eos_token }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|header|>assistant<|im_start|>' }}{% endif %}",
    )


def spelled(tokenizer: ChatTokenizer, tokens: np.ndarray) -> str:
    """Text of tokens, byte for byte: a decoder would drop the space before the first word."""
    pieces = [tokenizer._joint.id_to_token(int(token)).replace("▁", " ") for token in tokens]
    raw = [
        bytes([int(byte[1], 16)]) if (byte := re.fullmatch(r"<0x([0-9A-F]{2})>", each)) else each.encode()
        for each in pieces
    ]
    return b"".join(raw).decode()


def as_read(text: str) -> str:
    """Text as this kind of tokenizer can tell it: `▁` is its space."""
    return text.replace("▁", " ")


def stretches(segment: Segment) -> list[tuple[int, int]]:
    """Where the targets begin and end, each run of them."""
    edges = np.flatnonzero(np.diff(np.r_[False, segment.targets, False].astype(int)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def special(tokenizer: ChatTokenizer, tokens: np.ndarray) -> np.ndarray:
    """Which tokens no one but the template may write."""
    ids = [tokenizer._joint.token_to_id(name) for name in ("<unk>", "<s>", "</s>", UNNAMED, PLAIN)]
    return np.isin(tokens, [each for each in ids if each is not None])


def skeleton(tokenizer: ChatTokenizer, segment: Segment) -> list[int]:
    """Every special id, in order."""
    return segment.tokens[special(tokenizer, segment.tokens)].tolist()


def words(messages: list[Message]) -> list[Message]:
    """The same conversation with nothing in it but words."""
    return [{**message, "content": "word"} for message in messages]


def encoded(tokenizer: ChatTokenizer, messages: list[Message]) -> Segment:
    return tokenizer.encode(tokenizer.template.render(messages))


# ---- text stays text ----


@CI
@given(conversations)
@pytest.mark.parametrize("which", ["zephyr", "headers"])
def test_people_never_write_a_special_token(
    which: str, request: pytest.FixtureRequest, messages: list[Message]
) -> None:
    """Law: reserved ids are those that the template writes around plain words, in number and order, BOS once and first."""
    tokenizer: ChatTokenizer = request.getfixturevalue(which)
    segment = encoded(tokenizer, messages)
    assert skeleton(tokenizer, segment) == skeleton(tokenizer, encoded(tokenizer, words(messages)))
    assert segment.tokens[0] == BOS
    assert int((segment.tokens == BOS).sum()) == 1
    assert int((segment.tokens == EOS).sum()) >= len(messages)


@CI
@given(conversations)
@pytest.mark.parametrize("which", ["zephyr", "headers"])
def test_nothing_is_lost_and_nothing_is_added(
    which: str, request: pytest.FixtureRequest, messages: list[Message]
) -> None:
    """Law: the tokens spell the rendered text, byte for byte; only the spaces before pieces are the tokenizer's own."""
    tokenizer: ChatTokenizer = request.getfixturevalue(which)
    rendered = tokenizer.template.render(messages)
    found = spelled(tokenizer, tokenizer.encode(rendered).tokens[1:])
    assert found.replace(" ", "") == as_read(rendered.text).replace(" ", "")
    for message in messages:
        assert as_read(message["content"]) in found


# ---- targets ----


@CI
@given(conversations)
@pytest.mark.parametrize("which", ["zephyr", "headers"])
def test_targets_are_the_answers_with_their_ends(
    which: str, request: pytest.FixtureRequest, messages: list[Message]
) -> None:
    """Law: one run of targets an answer, spelling that answer and one end token, and nothing that others wrote."""
    tokenizer: ChatTokenizer = request.getfixturevalue(which)
    segment = encoded(tokenizer, messages)
    said = [message["content"] for message in messages if message["role"] == "assistant"]
    runs = stretches(segment)
    assert len(runs) == len(said)
    for (start, end), text in zip(runs, said, strict=True):
        assert segment.tokens[end - 1] == EOS
        assert not special(tokenizer, segment.tokens[start : end - 1]).any()
        own = spelled(tokenizer, segment.tokens[start : end - 1])
        assert own == as_read(text) or own == f" {as_read(text)}", "a space of the tokenizer's after a special token"
    assert not segment.targets[0]


@CI
@given(conversations)
def test_markers_and_prefixes_give_equal_masks(
    zephyr: ChatTokenizer, unmarked: ChatTokenizer, messages: list[Message]
) -> None:
    """Law: spans found by rendering prefixes are the marked ones, whatever is in the messages."""
    one, other = encoded(zephyr, messages), encoded(unmarked, messages)
    assert one.tokens.tolist() == other.tokens.tolist()
    assert one.targets.tolist() == other.targets.tolist()


@CI
@given(st.sampled_from((True, False)), st.sampled_from((True, False)), conversations)
def test_special_tokens_that_swallow_spaces_still_end_answers(
    tmp_path_factory: pytest.TempPathFactory, folder: Path, left: bool, right: bool, messages: list[Message]
) -> None:
    """Law: an end token that takes the space beside it, as some tokenizer.json say, is a target all the same."""
    home = tmp_path_factory.mktemp("greedy")
    content = json.loads((folder / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        token |= {"lstrip": left, "rstrip": right}
    (home / "tokenizer.json").write_text(json.dumps(content))
    shutil.copy(folder / "tokenizer_config.json", home)
    tokenizer = load_tokenizer(str(home))
    segment = encoded(ChatTokenizer(tokenizer, load_template("zephyr", tokenizer)), messages)
    answers = sum(message["role"] == "assistant" for message in messages)
    runs = stretches(segment)
    assert len(runs) == answers
    assert all(segment.tokens[end - 1] == EOS for _, end in runs)


@CI
@given(conversations)
def test_the_prompt_is_the_start_of_its_conversation(zephyr: ChatTokenizer, messages: list[Message]) -> None:
    """Law: what `generate` asks with is what training saw before the answer, token for token."""
    prompt, segment = zephyr.prompt(messages[:-1]), encoded(zephyr, messages)
    start = stretches(segment)[-1][0]
    assert segment.tokens[:start].tolist() == prompt.tolist()


# ---- over-long rows ----


@CI
@given(conversations, st.data())
def test_an_over_long_conversation_is_its_own_start(
    zephyr: ChatTokenizer, messages: list[Message], data: st.DataObject
) -> None:
    """Law: cut to n tokens a conversation is the first n, tokens and targets; without targets it is refused."""
    whole = encoded(zephyr, messages)
    limit = data.draw(st.integers(1, len(whole) - 1))
    row = {"messages": messages}
    with pytest.raises(SkippedRow, match="over-length"):
        conversation(zephyr, row, "assistant", limit, cut=False)
    if not whole.targets[:limit].any():
        with pytest.raises(SkippedRow, match="no target token within"):
            conversation(zephyr, row, "assistant", limit, cut=True)
        return
    (cut,) = conversation(zephyr, row, "assistant", limit, cut=True)
    assert cut.tokens.tolist() == whole.tokens[:limit].tolist()
    assert cut.targets.tolist() == whole.targets[:limit].tolist()


# ---- pairs ----


@CI
@given(systems, turns, content, answer, answer)
def test_the_sides_of_a_pair_share_their_prompt(
    zephyr: ChatTokenizer, system: str | None, before: list[tuple[str, str]], question: str, good: str, bad: str
) -> None:
    """Law: equal tokens up to the last answer, and targets in it alone, one run each."""
    assume(good != bad)
    chosen, rejected = (chat(system, [*before, (question, text)]) for text in (good, bad))
    sides = preference(zephyr, {"chosen": chosen, "rejected": rejected}, 10**6, 10**5, cut=False)
    start = stretches(sides[0])[0][0]
    for side, text in zip(sides, (good, bad), strict=True):
        assert stretches(side)[0][0] == start
        assert len(stretches(side)) == 1
        assert side.tokens[:start].tolist() == sides[0].tokens[:start].tolist()
        assert spelled(zephyr, side.tokens[start:][side.targets[start:]][:-1]) == as_read(text)


# ---- sizes ----


@pytest.mark.parametrize("text", ["word " * 20_000, "</s>" * 20_000, "👩\u200d👧" * 5_000, "e" + "\u0301" * 20_000])
def test_very_long_messages(zephyr: ChatTokenizer, text: str) -> None:
    """Law: length changes nothing: the answer's targets spell it, however long it and the question are."""
    segment = encoded(zephyr, chat(None, [(text, text)]))
    ((start, end),) = stretches(segment)
    assert spelled(zephyr, segment.tokens[start : end - 1]) == text
    assert skeleton(zephyr, segment) == [BOS, EOS, EOS, EOS]


def test_very_many_turns(zephyr: ChatTokenizer) -> None:
    """Law: each of 500 answers is a run of targets of its own."""
    segment = encoded(zephyr, chat("</s>", [(f"<s>{number}", f"</s>{number}") for number in range(500)]))
    assert len(stretches(segment)) == 500
    assert int((segment.tokens == EOS).sum()) == 1001


# ---- templates and text that are none ----


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_half_a_surrogate_pair_is_a_bad_row(zephyr: ChatTokenizer, role: str) -> None:
    """Law: what no UTF-8 can hold (JSON's escapes can) is refused with its reason."""
    messages = [{**each, "content": "a\ud800" if each["role"] == role else "a"} for each in chat("a", [("a", "a")])]
    with pytest.raises(SkippedRow, match=f"a {role} message has a lone surrogate"):
        zephyr.template.render(messages)


def test_the_longest_of_two_special_tokens_is_the_one_that_is_kept() -> None:
    """Law: special tokens inside special tokens are counted once, as tokenizers read them."""
    template = ChatTemplate("", (), ("<|end|><|x|>", "<|end|>", "<|x|>"))
    assert template.special_spans("<|x|><|end|><|x|><|end|>") == ((0, 5), (5, 17), (17, 24))
