"""Chat template -> text and the character spans that the assistant wrote.

A span covers one assistant answer and the end token that closes it: what a model must learn to say. Spans come from
the template's own `{% generation %}` markers, or, where a template has none, from rendering ever longer prefixes of
the conversation and checking that each is a prefix of the next. A template that allows neither is refused.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from zephyr_jax.errors import InputError, listing

type Message = dict[str, str]
type Span = tuple[int, int]

ROLES = ("system", "user", "assistant")
BUILT_IN = {"zephyr": ("empty_system.jinja", "zephyr.jinja"), "zephyr-no-system": ("zephyr.jinja",)}
_ALSO = {"fastchat-zephyr": "zephyr-no-system"}
"""FastChat renders Zephyr's template without the empty system message; published MT-Bench scores were made so."""
_PRIVATE_USE = "\ue000"
_PROBE: list[Message] = [
    {"role": "user", "content": "first question"},
    {"role": "assistant", "content": "first answer"},
    {"role": "user", "content": "second question"},
    {"role": "assistant", "content": "second answer"},
]


class BadRow(ValueError):
    """One row cannot be used; the message is its reason, counted and reported with the row's id."""


class OverLong(BadRow):
    """The one badness that cutting can mend."""


@dataclass(frozen=True)
class RenderedChat:
    """A conversation as text."""

    text: str
    spans: tuple[Span, ...]
    """Character ranges [start, end) of each assistant answer with its end token."""
    special_spans: tuple[Span, ...]
    """Character ranges of the special tokens that the template wrote (never of text that merely looks like one)."""


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja chat template with the special tokens it may write; rendered in transformers' sandbox only."""

    source: str
    special_tokens: tuple[tuple[str, str], ...]
    """Names and strings handed to the template: (("bos_token", "<s>"), ...)."""
    reserved: tuple[str, ...]
    """Every string that the tokenizer would read as a token of the template's or of its own, longest first."""

    @property
    def marks_generation(self) -> bool:
        """Whether the template says itself what the assistant wrote."""
        return "endgeneration" in self.source

    def render(self, messages: list[Message], add_generation_prompt: bool = False) -> RenderedChat:
        """Render checked messages. Raises BadRow with the reason when they cannot be rendered."""
        check_messages(messages, learnt=not add_generation_prompt)
        text, spans = self._render(messages, add_generation_prompt)
        if any(self._reserved.search(message["content"]) for message in messages):
            twin, _ = self._render([self._disarmed(message) for message in messages], add_generation_prompt)
            if len(twin) != len(text):
                raise BadRow("a message holds a special token's text and the template changes it")
            return RenderedChat(text, spans, self.special_spans(twin))
        return RenderedChat(text, spans, self.special_spans(text))

    def special_spans(self, text: str) -> tuple[Span, ...]:
        """Where a text spells special tokens, from left to right, each as long as it can be."""
        return tuple(found.span() for found in self._reserved.finditer(text))

    @cached_property
    def _reserved(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.reserved)))

    def _render(self, messages: list[Message], add_generation_prompt: bool) -> tuple[str, tuple[Span, ...]]:
        if self.marks_generation:
            texts, spans = self._jinja(messages, add_generation_prompt, True)
            return texts[0], tuple((start, end) for start, end in spans[0])
        text = self._jinja(messages, add_generation_prompt, False)[0][0]
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        return text, tuple(self._verified_span(messages, index, text) for index in answers)

    def _jinja(self, messages: list[Message], add_generation_prompt: bool, spans: bool) -> Any:
        specials: dict[str, Any] = dict(self.special_tokens)
        try:
            return render_jinja_template(
                [messages],
                chat_template=self.source,
                add_generation_prompt=add_generation_prompt,
                return_assistant_tokens_mask=spans,
                **specials,
            )
        except Exception as error:  # a template is a program and may fail in every way
            raise BadRow(f"the chat template refuses it: {error}") from error

    def _verified_span(self, messages: list[Message], index: int, text: str) -> Span:
        """Span of message `index` found by rendering prefixes; BadRow when the template is not prefix-stable."""
        before = self._jinja(messages[:index], True, False)[0][0]
        through = self._jinja(messages[: index + 1], False, False)[0][0]
        if not through.startswith(before) or not text.startswith(through):
            raise BadRow("the chat template has no generation markers and rewrites earlier turns")
        content = messages[index]["content"]
        content = content if content in through[len(before) :] else content.strip()  # some templates strip
        start = through.find(content, len(before))
        if start < 0 or through[len(before) : start].strip():
            raise BadRow("the chat template has no generation markers and does not show the answer as it is")
        stop = [special for special in self.special_spans(through) if special[0] >= start + len(content)]
        if not stop:
            raise BadRow("the chat template ends answers with no special token, so a model could never stop")
        return start, stop[0][1]

    def _disarmed(self, message: Message) -> Message:
        disarmed = self._reserved.sub(lambda found: _PRIVATE_USE * len(found[0]), message["content"])
        return {**message, "content": disarmed}


def check_messages(messages: Any, learnt: bool = True) -> None:
    """Raise BadRow unless `messages` is [system,] user, assistant, user, assistant, ... with text everywhere.

    `learnt`: whether the answers are; then none may be empty, which a model's own answers may be.
    """
    if not isinstance(messages, list) or not messages:
        raise BadRow(f"messages is {type(messages).__name__}, not a list with at least one message")
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, dict) else message
            raise BadRow(f"a message has the role {str(role)[:40]!r}; roles are {listing(ROLES)}")
        if not isinstance(message.get("content"), str):
            raise BadRow(f"a {message['role']} message holds {type(message.get('content')).__name__}, not text")
        if not _is_unicode(message["content"]):
            raise BadRow(f"a {message['role']} message holds half a surrogate pair, which is no Unicode text")
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    if turns != [ROLES[1 + index % 2] for index in range(len(turns))] or not turns:
        raise BadRow(f"roles go {' '.join(roles)[:80]}; they must go [system] user assistant user assistant ...")
    if learnt and any(message["role"] == "assistant" and not message["content"].strip() for message in messages):
        raise BadRow("an assistant answer is empty")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def load_template(choice: str, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """The template that `data.template` names.

    Raises InputError when the tokenizer has none, the file cannot be read, or a probe conversation shows that
    answers cannot be told from the rest.
    """
    specials = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    source = _template_source(choice, tokenizer)
    if "eos_token" not in specials:
        raise InputError(
            f"The tokenizer {tokenizer.name_or_path} has no end token. A chat model must learn to stop: set eos_token "
            "in its tokenizer_config.json."
        )
    template = ChatTemplate(source, tuple(specials.items()), _reserved(tokenizer, source))
    _probe(template, choice)
    return template


def without_markers(source: str) -> str:
    """The same template without generation markers, which not every Jinja engine knows; it renders equal text."""
    keep = {"generation": "if true", "endgeneration": "endif"}
    return re.sub(r"({%[-+]?\s*)((?:end)?generation)(\s*[-+]?%})", lambda tag: tag[1] + keep[tag[2]] + tag[3], source)


def _reserved(tokenizer: PreTrainedTokenizerBase, source: str) -> tuple[str, ...]:
    """What nobody may spell: special tokens, named or not, and tokens that were added for the template to write."""
    added = tokenizer.added_tokens_decoder.values()
    found = {token.content for token in added if token.special or (token.content.strip() and token.content in source)}
    found |= {str(token) for token in tokenizer.all_special_tokens}
    return tuple(sorted(found, key=lambda token: (-len(token), token)))


def _template_source(choice: str, tokenizer: PreTrainedTokenizerBase) -> str:
    choice = _ALSO.get(choice, choice)
    if choice in BUILT_IN:
        return "".join(Path(__file__).with_name(name).read_text() for name in BUILT_IN[choice])
    if choice == "tokenizer":
        if not isinstance(tokenizer.chat_template, str):
            raise InputError(
                f"data.template is `tokenizer`, but {tokenizer.name_or_path} has no chat template. Use `zephyr` or "
                "the path of a Jinja file."
            )
        return tokenizer.chat_template
    try:
        return Path(choice).read_text()
    except (OSError, ValueError) as error:
        raise InputError(
            f"data.template is {choice!r}, which cannot be read ({error}). It is {listing(BUILT_IN)}, `tokenizer` or "
            "the path of a Jinja file."
        ) from error


def _probe(template: ChatTemplate, choice: str) -> None:
    try:
        rendered = template.render(_PROBE)
    except BadRow as error:
        raise InputError(
            f"The chat template `{choice}` cannot be used for training: {error}. Mark what the assistant writes with "
            "{% generation %} and {% endgeneration %}, end token included, or use `zephyr`."
        ) from error
    said = [rendered.text[start:end] for start, end in rendered.spans]
    stops = [any(text.endswith(token) for token in template.reserved) for text in said]
    shown = [answer in text for answer, text in zip(("first answer", "second answer"), said, strict=False)]
    if len(said) != 2 or not all(stops + shown):
        raise InputError(
            f"The chat template `{choice}` marks {said!r} as what the assistant wrote in a probe conversation of two "
            "answers. Each span must hold one answer and the special token that ends it: move the generation markers."
        )
