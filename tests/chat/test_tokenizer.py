"""Conversations and pairs as tokens and targets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors

from tests.tokenizers import tokenized
from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.chat.template_loader import load_template
from zephyr_jax.chat.tokenizer import ChatTokenizer, Segment
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.config.sections import DataOptions
from zephyr_jax.data.segments import CONVERSATION, PREFERENCE
from zephyr_jax.errors import InputError


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


QUESTION = {"role": "user", "content": "Name three colours that a clear sky can have, and say when."}
LONG = "Blue at noon, red in the evening, and black at night when there is no moon to be seen."
SHORT = "Blue."
BOS, EOS = 1, 2


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    """Zephyr's template on the tiny tokenizer, which puts BOS first as Mistral's does."""
    folder = tmp_path_factory.mktemp("tokenizer")
    backend = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text((tiny_model / "tokenizer_config.json").read_text())
    tokenizer = load_tokenizer(str(folder))
    return ChatTokenizer(tokenizer, load_template("zephyr", tokenizer))


def said(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def chat(*answers: str) -> dict[str, Any]:
    return {"messages": [message for answer in answers for message in (QUESTION, said(answer))]}


def pair(chosen: str, rejected: str) -> dict[str, Any]:
    return {"chosen": [QUESTION, said(chosen)], "rejected": [QUESTION, said(rejected)]}


def lists(segments: list[Segment]) -> list[tuple[list[int], list[bool]]]:
    return [(segment.tokens.tolist(), segment.targets.tolist()) for segment in segments]


# ---- conversations ----


def test_every_answer_of_a_conversation_counts(tokenizer: ChatTokenizer) -> None:
    """Law: each answer and its end are targets; questions and headers are not."""
    (segment,) = conversation(tokenizer, chat(SHORT, LONG), "assistant", 1000, cut=True)
    assert int((segment.tokens[segment.targets] == EOS).sum()) == 2
    one, two = (conversation(tokenizer, chat(each), "assistant", 1000, cut=True)[0] for each in (SHORT, LONG))
    assert segment.tokens[segment.targets].tolist() == [
        *one.tokens[one.targets].tolist(),
        *two.tokens[two.targets].tolist(),
    ]
    assert segment.tokens.dtype == np.int32
    assert segment.targets.dtype == np.bool_


def test_all_targets_are_all_tokens_but_the_first(tokenizer: ChatTokenizer) -> None:
    """Law: `targets: all` counts every token that can be predicted; the tokens themselves do not change."""
    (some,) = conversation(tokenizer, chat(SHORT), "assistant", 1000, cut=True)
    (every,) = conversation(tokenizer, chat(SHORT), "all", 1000, cut=True)
    assert every.tokens.tolist() == some.tokens.tolist()
    assert every.targets.tolist() == [False] + [True] * (len(every) - 1)


def test_an_over_long_conversation_keeps_its_start(tokenizer: ChatTokenizer) -> None:
    """Law: a conversation that may be cut keeps its first max_length tokens; otherwise it is refused."""
    (whole,) = conversation(tokenizer, chat(LONG), "assistant", 1000, cut=True)
    limit = len(whole) - 5
    (cut,) = conversation(tokenizer, chat(LONG), "assistant", limit, cut=True)
    assert lists([cut]) == lists([whole.head(limit)])
    with pytest.raises(SkippedRow, match=f"over-length.*more than max_length {limit}"):
        conversation(tokenizer, chat(LONG), "assistant", limit, cut=False)
    assert lists(conversation(tokenizer, chat(LONG), "assistant", len(whole), cut=False)) == lists([whole])


def test_a_conversation_whose_answer_is_cut_off_is_refused(tokenizer: ChatTokenizer) -> None:
    """Law: a row without a single target teaches nothing and is refused, with the length it was cut to."""
    with pytest.raises(SkippedRow, match="no target token within the first 10 tokens"):
        conversation(tokenizer, chat(LONG), "assistant", 10, cut=True)


@pytest.mark.parametrize("row", [{}, {"messages": None}, {"messages": "Hello."}, {"messages": ["Hello."]}])
def test_rows_without_messages_are_refused_each(tokenizer: ChatTokenizer, row: dict[str, Any]) -> None:
    """Law: whatever is in the column, a row that is no conversation is a bad row and nothing worse."""
    with pytest.raises(SkippedRow):
        conversation(tokenizer, row, "assistant", 1000, cut=True)


def test_columns_beside_role_and_content_change_nothing(tokenizer: ChatTokenizer) -> None:
    """Law: fields of a message that no template reads, or that are null (as Arrow fills them), are not rendered."""
    plain = chat(SHORT)
    richer = {"messages": [{**message, "tool_calls": None, "id": "A"} for message in plain["messages"]]}
    both = [conversation(tokenizer, row, "assistant", 1000, cut=True) for row in (plain, richer)]
    assert lists(both[0]) == lists(both[1])


# ---- pairs ----


def test_chosen_and_rejected_share_their_prompt(tokenizer: ChatTokenizer) -> None:
    """Law: both sides start with one and the same prompt, and only their last answers are targets."""
    chosen, rejected = preference(tokenizer, pair(LONG, SHORT), 1000, 500, cut=True)
    start = int(chosen.targets.argmax())
    assert int(rejected.targets.argmax()) == start
    assert chosen.tokens[:start].tolist() == rejected.tokens[:start].tolist()
    assert chosen.tokens[:start].tolist() == tokenizer.prompt([QUESTION]).tolist()
    for side in (chosen, rejected):
        count = int(side.targets.sum())
        assert side.targets[start : start + count].all(), "the targets are one stretch"
        assert side.tokens[start + count - 1] == EOS


def test_only_the_last_answer_of_a_dialogue_counts(tokenizer: ChatTokenizer) -> None:
    """Law: answers inside the prompt are part of the prompt."""
    before = [QUESTION, said("An earlier answer."), QUESTION]
    row = {"chosen": [*before, said(LONG)], "rejected": [*before, said(SHORT)]}
    (whole,) = preference(tokenizer, pair(LONG, SHORT), 1000, 500, cut=True)[:1]
    chosen, rejected = preference(tokenizer, row, 1000, 500, cut=True)
    assert chosen.tokens[chosen.targets].tolist() == whole.tokens[whole.targets].tolist()
    assert int((rejected.tokens[rejected.targets] == EOS).sum()) == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"chosen": [QUESTION, said("A")], "rejected": [{"role": "user", "content": "?"}, said("B")]},
            "share one prompt",
        ),
        (
            {"chosen": [QUESTION, said("A"), QUESTION, said("A")], "rejected": [QUESTION, said("B")]},
            "share one prompt",
        ),
        ({"chosen": [QUESTION], "rejected": [QUESTION]}, "chosen does not end with an assistant answer"),
        ({"chosen": [QUESTION, said("A")], "rejected": []}, "rejected does not end with an assistant answer"),
        (
            {"chosen": [QUESTION, said("A")], "rejected": None},
            "rejected does not end with an assistant answer",
        ),
        ({"chosen": "A", "rejected": "B"}, "answers without a question"),
        ({"chosen": [QUESTION, said("")], "rejected": [QUESTION, said("B")]}, "answer is empty"),
        ({"prompt": "Q", "chosen": "", "rejected": "B"}, "answer is empty"),
        ({"chosen": ["A"], "rejected": ["B"]}, "chosen"),
    ],
    ids=["prompts", "lengths", "question", "nothing", "null", "no prompt", "empty", "empty text", "texts"],
)
def test_a_pair_that_is_none_is_refused_with_its_reason(
    tokenizer: ChatTokenizer, row: dict[str, Any], reason: str
) -> None:
    """Law: a malformed pair is a bad row whose reason says which side or what is wrong with it."""
    with pytest.raises(SkippedRow, match=reason):
        preference(tokenizer, row, 1000, 500, cut=True)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": QUESTION["content"], "chosen": LONG, "rejected": SHORT},
        {"prompt": [QUESTION], "chosen": LONG, "rejected": SHORT},
        {"prompt": QUESTION["content"], "chosen": [said(LONG)], "rejected": [said(SHORT)]},
        {"prompt": [QUESTION], "chosen": [said(LONG)], "rejected": [said(SHORT)]},
        {"prompt": QUESTION["content"], **pair(LONG, SHORT)},
    ],
    ids=["texts", "text answers", "text prompt", "answers only", "whole dialogues with a prompt beside"],
)
def test_every_style_of_preference_row_gives_equal_segments(tokenizer: ChatTokenizer, row: dict[str, Any]) -> None:
    """Law: plain texts, messages, and mixtures of them mean the same pair."""
    expected = preference(tokenizer, pair(LONG, SHORT), 1000, 500, cut=True)
    assert lists(preference(tokenizer, row, 1000, 500, cut=True)) == lists(expected)


# ---- truncation of pairs ----


def test_a_pair_that_fits_is_not_cut(tokenizer: ChatTokenizer) -> None:
    """Law: max_prompt_length cuts over-long pairs only."""
    whole = preference(tokenizer, pair(LONG, SHORT), 1000, 500, cut=True)
    longest = max(map(len, whole))
    assert lists(preference(tokenizer, pair(LONG, SHORT), longest, 5, cut=True)) == lists(whole)


def test_an_over_long_pair_is_refused_unless_it_may_be_cut(tokenizer: ChatTokenizer) -> None:
    """Law: under `drop` and `error` the reason names the limit."""
    longest = max(map(len, preference(tokenizer, pair(LONG, SHORT), 1000, 500, cut=True)))
    with pytest.raises(SkippedRow, match=f"over-length.*more than max_length {longest - 1}"):
        preference(tokenizer, pair(LONG, SHORT), longest - 1, 20, cut=False)


@settings(max_examples=60, deadline=None)
@given(
    st.data(),
    st.text("ab ", min_size=1, max_size=150),
    st.text("cd ", max_size=150),
    st.text("ef ", max_size=60),
)
def test_the_rule_of_truncation(
    tokenizer: ChatTokenizer, data: st.DataObject, question: str, chosen: str, rejected: str
) -> None:
    """Law: a cut prompt is BOS and its end, one for both sides; answers keep their start; limits hold."""
    row = {"prompt": question, "chosen": f"x{chosen}", "rejected": f"y{rejected}"}
    whole = preference(tokenizer, row, 10_000, 5_000, cut=True)
    longest = max(map(len, whole))
    max_length = data.draw(st.integers(3, longest - 1))
    max_prompt = data.draw(st.integers(2, max_length - 1))
    cut = preference(tokenizer, row, max_length, max_prompt, cut=True)
    prompt = tokenizer.prompt([{"role": "user", "content": question}])
    kept = prompt if len(prompt) <= max_prompt else np.r_[prompt[0], prompt[len(prompt) - max_prompt + 1 :]]
    for before, after in zip(whole, cut, strict=True):
        answer = before.tokens[len(prompt) :]
        assert len(after) == min(len(kept) + len(answer), max_length)
        assert after.tokens.tolist() == [*kept.tolist(), *answer.tolist()][:max_length]
        assert after.targets[len(kept) :].tolist() == before.targets[len(prompt) :][: max_length - len(kept)].tolist()
        assert not after.targets[: len(kept)].any()
        assert after.tokens[0] == BOS
        assert after.targets.any()


@pytest.mark.parametrize("max_prompt", [1, 2, 3])
def test_the_shortest_prompts_still_leave_the_first_token_alone(tokenizer: ChatTokenizer, max_prompt: int) -> None:
    """Law: however short the prompt is cut, it has max_prompt_length tokens and index 0 is no target."""
    for side in preference(tokenizer, pair(LONG, SHORT), 12, max_prompt, cut=True):
        assert int(side.targets.argmax()) == max_prompt
        assert not side.targets[0]


# ---- index 0, keys, tokenizers ----


def test_the_first_token_is_never_a_target(tokenizer: ChatTokenizer, tmp_path: Path, tiny_model: Path) -> None:
    """Law: nothing comes before index 0, so it is no target, even where an answer opens without BOS."""
    path = tmp_path / "bare.jinja"
    path.write_text(
        "{% for m in messages %}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] + eos_token }}"
        "{% endgeneration %}{% endif %}{% endfor %}"
    )
    without_bos = load_tokenizer(str(tiny_model))
    without_bos.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    bare = ChatTokenizer(without_bos, load_template(str(path), without_bos))
    for each, targets in ((tokenizer, "all"), (tokenizer, "assistant"), (bare, "all"), (bare, "assistant")):
        (segment,) = conversation(each, chat(SHORT), targets, 1000, cut=True)
        assert not segment.targets[0]
        assert segment.targets[-1] or targets == "assistant"


def segment(tokens: list[int], targets: list[int]) -> Segment:
    return Segment(np.array(tokens, np.int32), np.array(targets, np.bool_))


def test_a_key_changes_with_every_token_and_every_target() -> None:
    """Law: two segments have one key exactly when their tokens and their targets are equal."""
    base = segment([1, 5, 6, 7, 2, 9, 9, 9, 4], [0, 0, 1, 1, 1, 0, 0, 0, 1])
    changed = [base]
    for index in range(len(base)):
        tokens, targets = base.tokens.copy(), base.targets.copy()
        tokens[index] += 1
        targets[index] = ~targets[index]
        changed += [Segment(tokens, base.targets), Segment(base.tokens, targets)]
    changed += [
        base.head(8),
        segment([*base.tokens, 0], [*base.targets, 0]),
        segment([5, 1], [0, 1]),
        segment([1, 5], [0, 1]),
    ]
    keys = [each.key for each in changed]
    assert len(set(keys)) == len(keys)


def test_a_key_depends_on_nothing_but_content() -> None:
    """Law: dtype, byte order and memory layout of the arrays play no part in a key, nor does the process."""
    plain = segment([1, 70_000, 3, 2], [0, 0, 1, 1])
    wide = np.array([[1, 70_000, 3, 2], [0, 0, 0, 0]], np.int64)
    strided = np.stack([plain.tokens, plain.tokens], axis=1)[:, 0]
    swapped = plain.tokens.astype(">i4")
    assert {Segment(tokens, plain.targets).key for tokens in (plain.tokens, wide[0], strided, swapped)} == {plain.key}
    assert plain.key == "2515c32249aa993f71e3e74c243f2a7b", "tables on disk are found by such keys"


def test_equal_rows_have_equal_keys(tokenizer: ChatTokenizer) -> None:
    """Law: the same conversation has the same keys, whatever it is tokenised beside or for."""
    first, second = (preference(tokenizer, pair(LONG, SHORT), 1000, limit, cut=True) for limit in (500, 400))
    other = preference(tokenizer, pair(LONG, "Red."), 1000, 500, cut=True)
    assert [each.key for each in first] == [each.key for each in second]
    assert other[0].key == first[0].key
    assert other[1].key != first[1].key


def test_the_fingerprint_distinguishes_templates_and_vocabularies(tokenizer: ChatTokenizer, tiny_model: Path) -> None:
    """Law: another template, another BOS rule or another vocabulary is another fingerprint."""
    plain = load_tokenizer(str(tiny_model))
    larger = load_tokenizer(str(tiny_model))
    larger.add_tokens(["<new>"])
    plain.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    prints = [
        tokenizer.fingerprint,
        ChatTokenizer(plain, load_template("zephyr", plain)).fingerprint,
        ChatTokenizer(plain, load_template("zephyr-no-system", plain)).fingerprint,
        ChatTokenizer(larger, load_template("zephyr", larger)).fingerprint,
    ]
    assert len(set(prints)) == 4


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    """Law: the refusal names the folder and the files that it needs."""
    with pytest.raises(InputError, match="No tokenizer could be loaded from .*tokenizer.json"):
        load_tokenizer(str(tmp_path))
