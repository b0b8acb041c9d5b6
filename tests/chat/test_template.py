"""Chat templates: the text they give, and which of it the assistant wrote."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from zephyr_jax.chat.message import Message, SkippedRow, check_messages
from zephyr_jax.chat.sandbox import render_sandboxed
from zephyr_jax.chat.template import ChatTemplate, RenderedChat
from zephyr_jax.chat.template_loader import load_template
from zephyr_jax.chat.template_source import without_markers
from zephyr_jax.chat.tokenizer import ChatTokenizer, Segment, load_chat_tokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.errors import InputError

CHAT: list[Message] = [
    {"role": "system", "content": "Be terse."},
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Blue"},
    {"role": "user", "content": "Another?"},
    {"role": "assistant", "content": " Red, or\n\ngreen. "},
]
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MARKED_CHATML = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ALL_MARKED = "{% for m in messages %}{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}{% endfor %}"
END_UNMARKED = MARKED_CHATML.replace(" + '<|im_end|>' }}{% endgeneration %}", " }}{% endgeneration %}<|im_end|>")
COUNTS = "{{ messages | length }}{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
FORGETS = "{% for m in messages %}{{ m['content'] if loop.last else 'then' }}{{ eos_token }}{% endfor %}"
IMPOSTORS = ("</s>", "<s>", "<unk>", "<|assistant|>\n", "<|user|>\n")


@pytest.fixture(scope="session")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny tokenizer, which puts BOS first as Mistral's does."""
    folder = tmp_path_factory.mktemp("tokenizer")
    backend = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text((tiny_model / "tokenizer_config.json").read_text())
    return folder


@pytest.fixture
def tiny(folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(folder))


@pytest.fixture
def chatml(folder: Path) -> PreTrainedTokenizerBase:
    """A tokenizer of ChatML's kind: its answers end with `<|im_end|>`."""
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "extra_special_tokens": ["<|im_start|>"]})
    return tokenizer


@pytest.fixture(scope="session")
def mistral(shared: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(shared / "tokenizers" / "mistral-v0.1"))


@pytest.fixture(scope="session")
def conversations(golden: Path) -> list[dict[str, Any]]:
    return json.loads((golden / "zephyr_chat.json").read_text())


def written(tokenizer: PreTrainedTokenizerBase, tmp_path: Path, source: str) -> ChatTemplate:
    path = tmp_path / "own.jinja"
    path.write_text(source)
    return load_template(str(path), tokenizer)


def said(rendered: RenderedChat) -> list[str]:
    return [rendered.text[start:end] for start, end in rendered.spans]


span_texts = said


def targets_text(tokenizer: PreTrainedTokenizerBase, segment: Segment) -> str:
    return str(tokenizer.decode(segment.tokens[segment.targets]))


def answers(messages: list[Message]) -> list[str]:
    return [message["content"] for message in messages if message["role"] == "assistant"]


# ---- golden ----


@pytest.mark.shared
def test_zephyr_gives_the_golden_text_ids_and_spans(
    mistral: PreTrainedTokenizerBase, conversations: list[dict[str, Any]]
) -> None:
    """Law: text, token ids and spans equal what torch's side computed for the real Mistral tokenizer."""
    tokenizer = ChatTokenizer(mistral, load_template("zephyr", mistral))
    for expected in conversations:
        rendered = tokenizer.template.render(expected["messages"])
        assert rendered.text == expected["text"]
        assert tokenizer.encode(rendered).tokens.tolist() == expected["ids"]
        assert [list(span) for span in rendered.spans] == expected["assistant_spans"]


@pytest.mark.shared
def test_decoded_targets_are_what_the_assistant_said(
    mistral: PreTrainedTokenizerBase, conversations: list[dict[str, Any]]
) -> None:
    """Law: the targets of each answer decode to its very text with its `</s>`, and there is nothing else."""
    tokenizer = ChatTokenizer(mistral, load_template("zephyr", mistral))
    for expected in conversations:
        segment = tokenizer.encode(tokenizer.template.render(expected["messages"]))
        assert targets_text(mistral, segment) == "".join(f"{answer}</s>" for answer in answers(expected["messages"]))


@pytest.mark.shared
def test_the_first_token_of_an_answer_is_that_of_the_whole_text(mistral: PreTrainedTokenizerBase) -> None:
    """Law: an answer starts with the token that the whole text has there, `It`; alone it would be `▁It`."""
    tokenizer = ChatTokenizer(mistral, load_template("zephyr", mistral))
    chat = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "It is"}]
    segment = tokenizer.encode(tokenizer.template.render(chat))
    alone = mistral("It is", add_special_tokens=False).input_ids
    assert mistral.convert_ids_to_tokens(segment.tokens[segment.targets].tolist()) == ["It", "▁is", "</s>"]
    assert mistral.convert_ids_to_tokens(alone) == ["▁It", "▁is"]


# ---- the two built-in templates ----


@pytest.mark.parametrize(
    ("choice", "start"), [("zephyr", "<|system|>\n</s>\n<|user|>\n"), ("zephyr-no-system", "<|user|>\n")]
)
def test_an_empty_system_message_comes_first_for_zephyr_only(
    tiny: PreTrainedTokenizerBase, choice: str, start: str
) -> None:
    """Law: without a system message `zephyr` begins with an empty one, `zephyr-no-system` with the user."""
    text = load_template(choice, tiny).render(CHAT[1:3]).text
    assert text == f"{start}Name a colour.</s>\n<|assistant|>\nBlue</s>\n"


def test_a_system_message_that_is_there_stays(tiny: PreTrainedTokenizerBase) -> None:
    """Law: both built-in templates render a conversation with a system message alike."""
    texts = {load_template(choice, tiny).render(CHAT).text for choice in ("zephyr", "zephyr-no-system")}
    assert [text.startswith("<|system|>\nBe terse.</s>\n") for text in texts] == [True]


@pytest.mark.parametrize("choice", ["zephyr", "zephyr-no-system"])
def test_the_generation_prompt_is_the_assistant_header(tiny: PreTrainedTokenizerBase, choice: str) -> None:
    """Law: the prompt for an answer is the conversation so far, `<|assistant|>` and a newline, no more."""
    template = load_template(choice, tiny)
    plain, asking = (template.render(CHAT[:2], add_generation_prompt=asks).text for asks in (False, True))
    assert asking == f"{plain}<|assistant|>\n"
    assert template.render(CHAT[:3]).text.startswith(asking)


# ---- spans with and without markers ----


def test_zephyr_without_its_markers_has_the_same_spans(tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Law: a prefix-stable template gives the same text and spans without generation markers as with them."""
    marked = load_template("zephyr", tiny)
    bare = written(tiny, tmp_path, without_markers(marked.source))
    assert not bare.marks_generation
    assert bare.render(CHAT) == marked.render(CHAT)
    assert said(bare.render(CHAT)) == ["Blue</s>", " Red, or\n\ngreen. </s>"]


def test_chatml_has_the_same_spans_with_and_without_markers(chatml: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Law: for ChatML too, spans found by rendering prefixes equal the marked ones."""
    bare, marked = written(chatml, tmp_path, CHATML), written(chatml, tmp_path, MARKED_CHATML)
    assert marked.marks_generation
    assert not bare.marks_generation
    assert bare.render(CHAT) == marked.render(CHAT)
    assert said(bare.render(CHAT)) == ["Blue<|im_end|>", " Red, or\n\ngreen. <|im_end|>"]
    segment = ChatTokenizer(chatml, bare).encode(bare.render(CHAT))
    assert targets_text(chatml, segment) == "Blue<|im_end|> Red, or\n\ngreen. <|im_end|>"


@pytest.mark.parametrize(
    "source",
    [
        "{% generation %}{{ 'x' }}{% endgeneration %}",
        "a {%- generation -%} b {%- endgeneration -%} c",
        "a\n{% generation %}\nb\n{% endgeneration %}\nc",
        "a\n  {% generation %}  \n  b\n  {%- endgeneration %}\nc",
    ],
    ids=["inline", "dashes", "own lines", "indented"],
)
def test_a_template_without_its_markers_renders_equal_text(source: str) -> None:
    """Law: taking the markers out changes no character, even where they stand alone or strip space."""
    bare = without_markers(source)
    assert "generation" not in bare
    marked_text, bare_text = (render_jinja_template([CHAT], chat_template=each)[0] for each in (source, bare))
    assert bare_text == marked_text


def test_an_answer_that_repeats_the_header_keeps_its_span(tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Law: an answer is found where it stands, not where its text occurs first."""
    chat = [{"role": "user", "content": "user"}, {"role": "assistant", "content": "user"}]
    bare = written(tiny, tmp_path, without_markers(load_template("zephyr", tiny).source))
    assert bare.render(chat).spans == load_template("zephyr", tiny).render(chat).spans


# ---- the tokens that end an answer ----

TWO_ENDS = MARKED_CHATML.replace("'<|im_end|>' }}{% endgen", "'</s><|im_end|>' }}{% endgen")
NEWLINE_INSIDE = MARKED_CHATML.replace("'<|im_end|>' }}{% endgen", "'<|im_end|>\\n' }}{% endgen")
ENDS = {
    "one token, marked": (MARKED_CHATML, "<|im_end|>"),
    "one token, unmarked": (CHATML, "<|im_end|>"),
    "two tokens, marked": (TWO_ENDS, "</s><|im_end|>"),
    "two tokens, unmarked": (CHATML.replace("<|im_end|>", "</s><|im_end|>"), "</s><|im_end|>"),
    "two tokens with a newline between": (CHATML.replace("<|im_end|>", "</s>\\n<|im_end|>"), "</s>\n<|im_end|>"),
    "whitespace inside the markers": (NEWLINE_INSIDE, "<|im_end|>"),
}


@pytest.mark.parametrize(("source", "end"), ENDS.values(), ids=ENDS)
def test_answers_are_targets_through_their_last_end_token(
    chatml: PreTrainedTokenizerBase, tmp_path: Path, source: str, end: str
) -> None:
    """Law: a span covers the answer and every special token that ends it, and no whitespace after the last."""
    chatml.eos_token = "</s>"
    template = written(chatml, tmp_path, source)
    assert span_texts(template.render(CHAT)) == [f"{answer}{end}" for answer in answers(CHAT)]


@pytest.mark.parametrize(("source", "end"), ENDS.values(), ids=ENDS)
def test_the_last_end_token_stops_generation(
    chatml: PreTrainedTokenizerBase, tmp_path: Path, source: str, end: str
) -> None:
    """Law: `stop_ids` holds the token that ends answers, whatever the tokenizer's eos token is."""
    chatml.eos_token = "</s>"
    tokenizer = ChatTokenizer(chatml, written(chatml, tmp_path, source))
    assert tokenizer.stop_ids == (chatml.convert_tokens_to_ids("<|im_end|>"),)
    assert pickle.loads(pickle.dumps(tokenizer)).stop_ids == tokenizer.stop_ids


def test_zephyr_stops_at_eos(tiny: PreTrainedTokenizerBase) -> None:
    """Law: under `zephyr` the tokenizer's eos token is the one stop token."""
    assert ChatTokenizer(tiny, load_template("zephyr", tiny)).stop_ids == (tiny.eos_token_id,)


def test_a_template_with_two_kinds_of_end_has_two_stop_tokens(chatml: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Law: where the last answer ends otherwise than the ones before it, both end tokens are stop tokens."""
    chatml.eos_token = "</s>"
    kinds = MARKED_CHATML.replace("+ '<|im_end|>' }}{% endgen", "+ ('</s>' if loop.last else '<|im_end|>') }}{% endgen")
    tokenizer = ChatTokenizer(chatml, written(chatml, tmp_path, kinds))
    assert tokenizer.stop_ids == tuple(sorted(chatml.convert_tokens_to_ids(["</s>", "<|im_end|>"])))


@pytest.mark.parametrize("source", [FORGETS, END_UNMARKED], ids=["forgets earlier turns", "leaves the end unmarked"])
def test_a_template_that_is_unfit_for_training_has_stop_tokens(
    chatml: PreTrainedTokenizerBase, tmp_path: Path, source: str
) -> None:
    """Law: generation stops at the token behind an answer, also where the template does not show where answers start."""
    path = tmp_path / "own.jinja"
    path.write_text(source)
    tokenizer = load_chat_tokenizer(str(path), chatml, training=False)
    assert tokenizer.stop_ids == (chatml.convert_tokens_to_ids("<|im_end|>"),)


# ---- refused templates ----


REFUSED = {
    "counts messages": (COUNTS, "rewrites earlier turns"),
    "forgets earlier turns": (FORGETS, "rewrites earlier turns"),
    "hides the answer": (
        CHATML.replace("message['content']", "message['content'][:1]"),
        "does not show the answer",
    ),
    "has no end": (CHATML.replace("<|im_end|>", ""), "ends answers with no special token"),
    "has a plain end": (CHATML.replace("<|im_end|>", "[END]"), "ends answers with no special token"),
    "marks everybody": (ALL_MARKED, "marks .* as what the assistant wrote"),
    "leaves the end unmarked": (END_UNMARKED, "the special token that ends it"),
    "raises": ("{{ raise_exception('no chats today') }}", "no chats today"),
    "is no Jinja": ("{% for m in messages %}", "refuses it"),
}


@pytest.mark.parametrize(("source", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_template_that_does_not_show_answers_is_refused(
    chatml: PreTrainedTokenizerBase, tmp_path: Path, source: str, reason: str
) -> None:
    """Law: a template whose answers and their ends cannot be reported is refused with the reason."""
    with pytest.raises(InputError, match=reason) as refused:
        written(chatml, tmp_path, source)
    assert "own.jinja" in str(refused.value)
    assert "generation" in str(refused.value)


def test_a_template_that_rewrites_one_row_loses_that_row_only(tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Law: prefixes are checked for every conversation, not for the probe alone."""
    source = without_markers(load_template("zephyr", tiny).source)
    shy = written(tiny, tmp_path, "{% if messages | length > 4 %}{{ 'long' }}{% endif %}" + source)
    assert said(shy.render(CHAT[:3])) == ["Blue</s>"]
    with pytest.raises(SkippedRow, match="rewrites earlier turns"):
        shy.render(CHAT)


NO_PREFIX = MARKED_CHATML.replace(
    "{{ '<|im_start|>assistant\\n' }}{% endif %}", "{{ '<|im_start|>assistant\\n<think>' }}{% endif %}"
)
OTHER_PROMPTS = {
    "the prompt goes on": NO_PREFIX,
    "the prompt has another header": MARKED_CHATML.replace(
        "{{ '<|im_start|>assistant\\n' }}{% endif", "{{ '<|im_start|>bot\\n' }}{% endif"
    ),
    "only with a system message": MARKED_CHATML.replace(
        "{% if add_generation_prompt %}",
        "{% if messages[0]['role'] == 'system' and add_generation_prompt %}{{ '!' }}{% endif %}{% if add_generation_prompt %}",
    ),
    "only at the second answer": MARKED_CHATML.replace(
        "{% if add_generation_prompt %}",
        "{% if messages | length > 2 and add_generation_prompt %}{{ '!' }}{% endif %}{% if add_generation_prompt %}",
    ),
    "earlier answers are rewritten": MARKED_CHATML.replace(
        "{{ '<|im_start|>assistant\\n' }}{% gen", "{{ '<|im_start|>assistant\\n' + ('' if loop.last else '!') }}{% gen"
    ),
}


@pytest.mark.parametrize("source", OTHER_PROMPTS.values(), ids=OTHER_PROMPTS)
def test_a_prompt_that_does_not_begin_the_training_text_is_refused(
    chatml: PreTrainedTokenizerBase, tmp_path: Path, source: str
) -> None:
    """Law: what the model is asked with must be what it was trained on, with and without system, at each answer."""
    assert source != MARKED_CHATML
    with pytest.raises(InputError, match="a prompt that it never saw.*begin the training text"):
        written(chatml, tmp_path, source)
    path = str(tmp_path / "own.jinja")
    assert load_chat_tokenizer(path, chatml, training=False).prompt(CHAT[1:2])[-1] > 0  # enough to generate with


def test_a_prompt_whose_last_token_reaches_into_the_answer_is_refused(
    chatml: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Law: token ids count, not text: a space at the end of a prompt is no token where an answer follows it."""
    path = tmp_path / "own.jinja"
    path.write_text(MARKED_CHATML.replace("assistant\\n", "assistant "))
    assert load_template(str(path), chatml).end_tokens == ("<|im_end|>",)  # its text begins the training text
    with pytest.raises(InputError, match="token ids of a prompt to begin"):
        load_chat_tokenizer(str(path), chatml)


@pytest.mark.shared
def test_shared_templates_are_judged(shared: Path, tiny: PreTrainedTokenizerBase) -> None:
    """Law: a newline after the stop token inside the markers is cut off; a prompt that does not begin it is refused."""
    folder = shared / "cases" / "data" / "18-template-marks"
    template = load_template(str(folder / "newline-in-span.jinja"), tiny)
    assert span_texts(template.render(CHAT)) == [f"{answer}</s>" for answer in answers(CHAT)]
    with pytest.raises(InputError, match="a prompt that it never saw"):
        load_template(str(folder / "prompt-is-no-prefix.jinja"), tiny)


@pytest.mark.shared
def test_the_shared_chatml_checkpoint_stops_at_its_end_token(shared: Path) -> None:
    """Law: SmolLM2's base with ChatML stops at `<|im_end|>`, which is not its eos token."""
    tokenizer = load_tokenizer(str(shared / "cases" / "checkpoints" / "02-03-smollm2-base-chatml"))
    chat = load_chat_tokenizer(str(shared / "cases" / "checkpoints" / "chatml.jinja"), tokenizer)
    assert tokenizer.convert_ids_to_tokens(list(chat.stop_ids)) == ["<|im_end|>"]
    assert tokenizer.eos_token_id not in chat.stop_ids


def test_an_answer_marked_in_pieces_is_one_span(chatml: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Law: markers around the answer and, apart from it, around its end make one span."""
    pieces = MARKED_CHATML.replace(
        "+ '<|im_end|>' }}{% endgeneration %}",
        "}}{% endgeneration %}{% generation %}{{ '<|im_end|>' }}{% endgeneration %}",
    )
    assert span_texts(written(chatml, tmp_path, pieces).render(CHAT)) == [
        f"{answer}<|im_end|>" for answer in answers(CHAT)
    ]


# ---- the cost of rendering ----


@pytest.mark.parametrize("turns", [1, 4, 64, 250])
def test_a_template_without_markers_costs_a_number_of_messages_that_grows_linearly(
    chatml: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    """Law: a conversation is rendered as at most five times its messages, and a prompt once, however long they are."""
    bare, marked = written(chatml, tmp_path, CHATML), MARKED_CHATML
    rendered = list[int]()

    def count(source: str, messages: list[Message], **options: Any) -> Any:
        rendered.append(len(messages))
        return render_sandboxed(source, messages, **options)

    monkeypatch.setattr("zephyr_jax.chat.template.render_sandboxed", count)
    conversation = [CHAT[0], *(CHAT[1 + index % 2] for index in range(2 * turns))]
    spans = bare.render(conversation).spans
    assert sum(rendered) <= 5 * len(conversation)
    assert len(spans) == turns
    rendered.clear()
    bare.render(conversation[:-1], add_generation_prompt=True)
    assert rendered == [len(conversation) - 1]
    assert written(chatml, tmp_path, marked).render(conversation).spans == spans


# ---- text that spells special tokens ----


SPELLINGS = ("</s>", "<s>", "<", "/s>", "s>", "</", "a", " ", "\n", "<|user|>")


def specials(segment: Segment) -> list[int]:
    """The special ids of a segment, in order."""
    return segment.tokens[np.isin(segment.tokens, [0, 1, 2])].tolist()


@pytest.mark.parametrize("impostor", IMPOSTORS)
@pytest.mark.parametrize("bare", [False, True], ids=["marked", "unmarked"])
def test_text_that_spells_a_special_token_stays_text(
    tiny: PreTrainedTokenizerBase, tmp_path: Path, impostor: str, bare: bool
) -> None:
    """Law: `</s>`, `<s>`, `<|assistant|>` in a message become neither special ids nor further targets."""
    source = load_template("zephyr", tiny).source
    template = written(tiny, tmp_path, without_markers(source) if bare else source)
    tokenizer = ChatTokenizer(tiny, template)
    plain = tokenizer.encode(template.render(CHAT))
    for index in range(len(CHAT)):
        chat = [dict(message) for message in CHAT]
        chat[index]["content"] = f"{impostor}Say {impostor}{impostor} twice{impostor}"
        rendered = template.render(chat)
        segment = tokenizer.encode(rendered)
        assert specials(segment) == specials(plain)
        assert said(rendered) == [f"{answer}</s>" for answer in answers(chat)]
        assert targets_text(tiny, segment) == "".join(f"{answer}</s>" for answer in answers(chat))
        ends = segment.tokens == 2
        assert int((ends & segment.targets).sum()) == 2, "one end for each answer"


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(SPELLINGS), min_size=1, max_size=8))
def test_no_text_makes_special_tokens(tiny: PreTrainedTokenizerBase, parts: list[str]) -> None:
    """Law: whatever a message spells, the special ids are those of the template, in number and order."""
    tokenizer = ChatTokenizer(tiny, load_template("zephyr", tiny))
    text = "".join(parts)
    chat = [{"role": "user", "content": text}, {"role": "assistant", "content": f"x{text}"}]
    segment = tokenizer.encode(tokenizer.template.render(chat))
    assert specials(segment) == [1, 2, 2, 2]
    assert targets_text(tiny, segment) == f"x{text}</s>"


def test_text_that_spells_a_special_token_stays_text_in_worker_processes(
    tiny: PreTrainedTokenizerBase,
) -> None:
    """Law: a tokenizer that was sent to another process gives the same tokens, also for such text."""
    tokenizer = ChatTokenizer(tiny, load_template("zephyr", tiny))
    sent = pickle.loads(pickle.dumps(tokenizer))
    chat = [{"role": "user", "content": "Say </s>."}, {"role": "assistant", "content": "<s>, </s>"}]
    rendered = tokenizer.template.render(chat)
    assert sent.encode(rendered).tokens.tolist() == tokenizer.encode(rendered).tokens.tolist()
    assert sent.fingerprint == tokenizer.fingerprint


def test_rows_that_spell_special_tokens_differ_from_others_in_nothing_else(
    tiny: PreTrainedTokenizerBase,
) -> None:
    """Law: the way around special tokens tokenises what is between them just as the joint way does."""
    tokenizer = ChatTokenizer(tiny, load_template("zephyr", tiny))
    rendered = tokenizer.template.render(CHAT)
    joint = tokenizer.encode(rendered)
    warned = [*CHAT, {"role": "user", "content": "</s>"}]
    around = tokenizer.encode(tokenizer.template.render(warned))
    assert around.tokens[: len(joint)].tolist() == joint.tokens.tolist()
    assert around.targets[: len(joint)].tolist() == joint.targets.tolist()


def test_a_tokenizer_file_that_truncates_or_pads_does_not(folder: Path, tmp_path: Path) -> None:
    """Law: truncation and padding in tokenizer.json (training scripts leave them there) change no token."""
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(8)
    backend.enable_padding(length=96, pad_id=0, pad_token="<unk>")
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text((folder / "tokenizer_config.json").read_text())
    for content in ("A sentence of more than eight tokens.", "One that spells </s> and goes on for a while."):
        chat = [{"role": "user", "content": content}, CHAT[2]]
        plain, changed = (load_tokenizer(str(each)) for each in (folder, tmp_path))
        first, second = (ChatTokenizer(each, load_template("zephyr", each)) for each in (plain, changed))
        rendered = first.template.render(chat)
        assert second.encode(rendered).tokens.tolist() == first.encode(rendered).tokens.tolist()


# ---- BOS and the end token ----


@pytest.mark.parametrize("prefix", ["", "{{ bos_token }}"], ids=["template writes none", "template writes it"])
def test_bos_comes_exactly_once(tiny: PreTrainedTokenizerBase, tmp_path: Path, prefix: str) -> None:
    """Law: every sequence starts with BOS, once, whether or not the template writes it; BOS is no target."""
    template = written(tiny, tmp_path, prefix + load_template("zephyr", tiny).source)
    tokenizer = ChatTokenizer(tiny, template)
    segment, prompt = tokenizer.encode(template.render(CHAT)), tokenizer.prompt(CHAT[:2])
    for tokens in (segment.tokens, prompt):
        assert tokens[0] == 1
        assert int((tokens == 1).sum()) == 1
    assert not segment.targets[0]
    assert segment.tokens[: len(prompt)].tolist() == prompt.tolist()


def test_a_tokenizer_that_uses_no_bos_gets_none(folder: Path, tmp_path: Path) -> None:
    """Law: BOS is put first only by tokenizers that do so themselves."""
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    backend.save(str(tmp_path / "tokenizer.json"))
    content = json.loads((folder / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**content, "add_bos_token": False}))
    bare = load_tokenizer(str(tmp_path))
    tokenizer = ChatTokenizer(bare, load_template("zephyr", bare))
    assert 1 not in tokenizer.encode(tokenizer.template.render(CHAT)).tokens


def test_the_demo_model_puts_bos_first(tiny_model: Path) -> None:
    """Law: the shipped tokenizer, which declares BOS, gives it to every sequence."""
    tokenizer = load_tokenizer(str(tiny_model))
    chat_tokenizer = ChatTokenizer(tokenizer, load_template("zephyr", tokenizer))
    assert chat_tokenizer.prompt(CHAT[:2])[0] == tokenizer.bos_token_id


def test_a_pad_token_equal_to_the_end_token_is_harmless(tiny: PreTrainedTokenizerBase) -> None:
    """Law: with pad = eos, as in many Mistral checkpoints, every answer's end token still is a target."""
    tokenizer = ChatTokenizer(tiny, load_template("zephyr", tiny))
    before = tokenizer.encode(tokenizer.template.render(CHAT))
    tiny.pad_token = tiny.eos_token
    padded = ChatTokenizer(tiny, load_template("zephyr", tiny))
    after = padded.encode(padded.template.render(CHAT))
    assert after.targets.tolist() == before.targets.tolist()
    assert int(after.targets[after.tokens == 2].sum()) == 2
    assert padded.fingerprint == tokenizer.fingerprint


def test_a_tokenizer_without_an_end_is_refused(tiny: PreTrainedTokenizerBase) -> None:
    """Law: without an end token a model could never stop, so the tokenizer is refused."""
    tiny.eos_token = None
    with pytest.raises(InputError, match="no end token"):
        load_template("zephyr", tiny)


# ---- rows ----


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "NoneType, not a list"),
        ([], "at least one message"),
        ("Hello.", "str, not a list"),
        (["Hello."], "role 'Hello.'"),
        ([{"content": "Hi"}], "role 'None'"),
        ([{"role": "tool", "content": "3"}], "roles go tool;"),
        ([{"role": "user", "content": None}], "user message holds NoneType"),
        ([{"role": "user", "content": [{"type": "text"}]}], "user message holds list"),
        (CHAT[:1], "roles go system;"),
        (CHAT[2:3], "roles go assistant;"),
        ([CHAT[1], CHAT[3]], "roles go user user;"),
        ([CHAT[1], CHAT[0]], "roles go user system;"),
        ([CHAT[1], {"role": "assistant", "content": "\n "}], "answer is empty"),
    ],
)
def test_a_malformed_conversation_is_refused_with_its_reason(messages: Any, reason: str) -> None:
    """Law: messages are [system] user assistant ..., all text, no answer empty; else a reason is given."""
    with pytest.raises(SkippedRow, match=reason.replace("[", r"\[")):
        check_messages(messages)


def test_an_empty_answer_may_be_read_but_not_learnt(tiny: PreTrainedTokenizerBase) -> None:
    """Law: a model that said nothing can be asked again; as something to learn, silence is refused."""
    chat = [CHAT[1], {"role": "assistant", "content": ""}, {"role": "user", "content": "Well?"}]
    template = load_template("zephyr", tiny)
    assert template.render(chat, add_generation_prompt=True).text.endswith("Well?</s>\n<|assistant|>\n")
    with pytest.raises(SkippedRow, match="an assistant answer is empty"):
        template.render(chat)


def test_empty_users_and_systems_are_fine(tiny: PreTrainedTokenizerBase) -> None:
    """Law: only the assistant must have something to say."""
    chat = [{"role": "system", "content": ""}, {"role": "user", "content": ""}, CHAT[2]]
    assert said(load_template("zephyr", tiny).render(chat)) == ["Blue</s>"]
