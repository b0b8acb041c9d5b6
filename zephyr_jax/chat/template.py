"""Chat template -> text and the character spans that the assistant wrote.

A span covers one assistant answer and the end tokens that close it: what a model must learn to write. Spans come from
the template's own `{% generation %}` markers, or, where a template has none, from a twin of the conversation that shows
where the template puts each message (`answer_spans`). A template that allows neither is refused.
"""

import re
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from hashlib import blake2b
from typing import Any

from zephyr_jax.chat.answer_spans import Span, consecutive_end, content_spans, joined_spans, prefix_counts, sentinel
from zephyr_jax.chat.last_answer import (
    REWRITES,
    check_marks,
    content_end,
    joined_after,
    through_reasoning,
    without_reasoning,
)
from zephyr_jax.chat.message import (
    REASONING_FIELDS,
    Message,
    SkippedRow,
    ablations,
    check_messages,
    extra_fields,
    holds_match,
    without_field,
    without_matches,
)
from zephyr_jax.chat.reasoning import (
    CLOSE_TAG,
    MARK,
    changed_reason,
    ends_open,
    split_blocks,
    with_marks,
    without_specials,
)
from zephyr_jax.chat.sandbox import render_sandboxed
from zephyr_jax.chat.template_probe import PROBES


@dataclass(frozen=True)
class RenderedChat:
    """A conversation as text."""

    text: str
    spans: tuple[Span, ...]
    """Character ranges [start, end) of each assistant answer with its end token."""
    special_spans: tuple[Span, ...]
    """Character ranges of the special tokens that the template wrote (never of text that merely looks like one)."""
    muted: tuple[Span, ...] = ()
    """Character ranges of answers with weight 0."""


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja chat template with the special tokens it may write; rendered in a sandbox with limits only."""

    source: str
    special_tokens: tuple[tuple[str, str], ...]
    """Names and strings handed to the template: (("bos_token", "<s>"), ...)."""
    reserved: tuple[str, ...]
    """Every string that the tokenizer would read as a token of the template or as an added token, longest first."""
    name: str = ""
    """As `data.chat_template` names it."""
    day: date | None = None
    """The day that the source prints, for a template that printed the date when it was read."""
    last_answer_only: bool = False
    """Whether only the last answer of a conversation can be a target: the template rewrites earlier turns."""

    @property
    def marks_generation(self) -> bool:
        """Whether the template has generation markers, which mark what the assistant wrote."""
        return "endgeneration" in self.source

    @property
    def short_hash(self) -> str:
        """Eight hex digits of a hash of the source."""
        return blake2b(self.source.encode(), digest_size=4).hexdigest()

    def text(
        self, messages: list[Message], add_generation_prompt: bool = False, tools: list[Any] | None = None
    ) -> RenderedChat:
        """Render checked messages without looking for the answers' spans. Raises SkippedRow with the reason."""
        messages = self._checked(messages, learnt=not add_generation_prompt)
        text = self._text(messages, add_generation_prompt, tools)
        if add_generation_prompt:
            self._check_reasoning(text, messages, True, tools)
        else:
            self._check_nothing_ignored(text, messages, False, tools)
        return RenderedChat(text, (), self._special_spans_of(messages, text, add_generation_prompt, tools))

    def render(
        self, messages: list[Message], add_generation_prompt: bool = False, tools: list[Any] | None = None
    ) -> RenderedChat:
        """Render checked messages; a prompt has no spans.

        Args:
            messages: A conversation. Answers with `weight` 0 have no span.
            add_generation_prompt: Whether the header that asks for an answer comes last.
            tools: Tools that the conversation may call.

        Raises:
            SkippedRow: The messages cannot be rendered, or the template ignores a part of them.
        """
        if add_generation_prompt:
            return self.text(messages, add_generation_prompt, tools)
        messages = self._checked(messages)
        text, spans = self._render_spans(messages, tools)
        self._check_nothing_ignored(text, messages, add_generation_prompt, tools)
        self._check_targets(text, messages, 0, tools)
        specials = self._special_spans_of(messages, text, False, tools)
        spans = {index: _through_last_special(text, span, specials) for index, span in spans.items()}
        muted = [index for index in spans if index < len(messages) and messages[index].get("weight") == 0]
        counted = tuple(span for index, span in spans.items() if index not in muted)
        return RenderedChat(text, counted, specials, tuple(spans[index] for index in muted))

    def render_last(self, messages: list[Message], tools: list[Any] | None = None) -> RenderedChat:
        """Render a conversation whose last message, an answer, is the only target; the template may rewrite earlier turns.

        The target is what a model has to write after the generation prompt: the text between that prompt, rendered for the
        messages before, and the end of the last turn. So reasoning that the template shows there is a part of it.

        Args:
            messages: A conversation that ends with an answer. With `weight` 0 it has no span.
            tools: Tools that the conversation may call.

        Raises:
            SkippedRow: The messages cannot be rendered, the text does not begin with the generation prompt, or the template
                ignores a part of the last turn.
        """
        messages = self._checked(messages)
        last = messages[-1]
        if last["role"] != "assistant":
            raise SkippedRow(f"the last message has the role {last['role']}, expected an assistant answer")
        text, marked = self._jinja(messages, False, tools)
        self._check_reasoning(text, messages, False, tools)
        self._check_targets(text, messages, len(messages) - 1, tools)
        specials = self._special_spans_of(messages, text, False, tools)
        if not self.marks_generation and last.get("tool_calls"):
            return RenderedChat(text, (), specials)  # context, as in `render`
        prompt = self._text(messages[:-1], True, tools)
        if not text.startswith(prompt):
            raise SkippedRow(
                "the rendered conversation does not begin with the generation prompt of its last answer "
                "(see data.template_args)"
            )
        if self.marks_generation:
            spans = joined_after(text, len(prompt), marked)
        else:
            twin = self._text([*messages[:-1], {**last, "content": sentinel(0)}], False, tools)
            cursor = content_end(text, len(prompt), twin, last["content"])
            spans = ((len(prompt), cursor + len(self._answer_end(text, cursor))),)
        spans = tuple(_through_last_special(text, span, specials) for span in spans)
        return (
            RenderedChat(text, (), specials, spans) if last.get("weight") == 0 else RenderedChat(text, spans, specials)
        )

    def _checked(self, messages: list[Message], learnt: bool = True) -> list[Message]:
        """Checked messages, with `<think>...</think>` of contents in `reasoning_content` where the template shows that field."""
        check_messages(messages, learnt)
        if not any(CLOSE_TAG in message["content"] for message in messages) or not self.shows_reasoning:
            return messages
        messages = split_blocks(messages, self.opens_reasoning)
        check_messages(messages, learnt)
        return messages

    def _check_targets(self, text: str, messages: list[Message], first: int, tools: list[Any] | None) -> None:
        """Raise SkippedRow unless the reasoning of every target from message `first` on is in the text."""
        marked, count = with_marks(messages[first:], self.opens_reasoning)
        if count:
            check_marks(self._text([*messages[:first], *marked], False, tools).count(MARK) - text.count(MARK), count)

    def _check_reasoning(
        self, text: str, messages: list[Message], add_generation_prompt: bool, tools: list[Any] | None
    ) -> None:
        """As `_check_nothing_ignored`; reasoning of an earlier answer may be missing if it is shown where that answer is last."""
        prefix = through_reasoning(messages)
        if len(prefix) in (0, len(messages)):
            self._check_nothing_ignored(text, messages, add_generation_prompt, tools)
            return
        self._check_nothing_ignored(self._text(prefix, False, tools), prefix, False, tools)
        others = without_reasoning(messages)
        self._check_nothing_ignored(
            self._text(others, add_generation_prompt, tools), others, add_generation_prompt, tools
        )

    def _check_nothing_ignored(
        self, text: str, messages: list[Message], add_generation_prompt: bool, tools: list[Any] | None
    ) -> None:
        """Raise SkippedRow for a field, a role or tools that leave no trace in the text."""
        for part, (others, other_tools) in ablations(messages, tools).items():
            try:
                rendered = self._text(others, add_generation_prompt, other_tools)
            except SkippedRow:
                continue  # the template needs it
            if rendered == text:
                raise SkippedRow(f"the chat template does not render {part}")

    def _special_spans_of(
        self, messages: list[Message], text: str, add_generation_prompt: bool, tools: list[Any] | None
    ) -> tuple[Span, ...]:
        """Special tokens that the template wrote: those of a twin in which no message spells one."""
        if not holds_match(self._reserved, [messages, tools]):
            return self.special_spans(text)
        disarmed = without_specials(self._reserved, messages, self.opens_reasoning)
        twin = self._text(disarmed, add_generation_prompt, without_matches(self._reserved, tools))
        if len(twin) != len(text):
            raise SkippedRow(changed_reason(messages))
        return self.special_spans(twin)

    @cached_property
    def shows_reasoning(self) -> bool:
        """Whether the template renders `reasoning_content` of an answer."""
        question, answer = PROBES[0]
        try:
            return sentinel(0) in self._text([question, {**answer, "reasoning_content": sentinel(0)}])
        except SkippedRow:
            return False

    @cached_property
    def opens_reasoning(self) -> bool:
        """Whether the generation prompt ends with `<think>`, so that a model begins inside its reasoning."""
        try:
            return ends_open(self._text(PROBES[0][:1], True))
        except SkippedRow:
            return False

    @cached_property
    def end_tokens(self) -> tuple[str, ...]:
        """Special tokens that end an assistant answer in probe conversations, sorted; () where none does."""
        try:
            chats = [self.render(probe) for probe in PROBES]
        except SkippedRow:  # unfit for training, but good enough to generate with
            chats = []
        tokens = self._tokens_at({(chat.text, end) for chat in chats for _, end in chat.spans})
        return tuple(sorted(tokens or self._tokens_at(self._unmarked_end())))

    def _tokens_at(self, ends: set[tuple[str, int]]) -> set[str]:
        """The special tokens that end at the given places of texts."""
        return {text[start:stop] for text, end in ends for start, stop in self.special_spans(text) if stop == end}

    def _unmarked_end(self) -> set[tuple[str, int]]:
        """The text of a probe conversation of one answer, and where the special tokens behind the answer end."""
        answer = PROBES[0][1]["content"]
        try:
            text = self._text(PROBES[0])
        except SkippedRow:
            return set()
        cursor = text.rfind(answer) + len(answer)
        return {(text, cursor + len(self._answer_end(text, cursor)))} if self.special_spans(text[cursor:]) else set()

    def may_write(self, token: str) -> bool:
        """Whether the template's source holds a special token, or a name that stands for it."""
        names = {name for name, text in self.special_tokens if text == token}
        return token in self.source or any(name in self.source for name in names)

    def special_spans(self, text: str) -> tuple[Span, ...]:
        """Where a text spells special tokens, from left to right, each as long as it can be."""
        return tuple(match.span() for match in self._reserved.finditer(text))

    @cached_property
    def _reserved(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.reserved)))

    def _render_spans(self, messages: list[Message], tools: list[Any] | None) -> tuple[str, dict[int, Span]]:
        """The text, and message -> span of the answers that can be located."""
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if not self.marks_generation:
            text = self._text(messages, False, tools)
            others = [set(extra_fields([message])) - set(REASONING_FIELDS) for message in messages]
            plain = [index for index in answers if not others[index]]
            return text, self._answer_spans(messages, plain, text, tools)
        text, marked = self._jinja(messages, False, tools)
        spans = joined_spans(text, marked, len(answers))
        if len(spans) == len(answers):
            return text, dict(zip(answers, spans, strict=True))
        if any("weight" in message for message in messages):
            raise SkippedRow(
                "the chat template does not mark every answer once, so that message weights cannot be applied"
            )
        return text, dict(enumerate(spans, len(messages)))

    def _text(
        self, messages: list[Message], add_generation_prompt: bool = False, tools: list[Any] | None = None
    ) -> str:
        return self._jinja(messages, add_generation_prompt, tools)[0]

    def _jinja(
        self, messages: list[Message], add_generation_prompt: bool, tools: list[Any] | None
    ) -> tuple[str, list[Span]]:
        specials: dict[str, Any] = dict(self.special_tokens)
        try:
            return render_sandboxed(
                self.source,
                without_field(messages, "weight"),
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                **specials,
            )
        except Exception as error:  # a template is a program and may fail in every way
            raise SkippedRow(f"the chat template refuses it: {error}") from error

    def _answer_spans(
        self, messages: list[Message], answers: list[int], text: str, tools: list[Any] | None
    ) -> dict[int, Span]:
        """Spans without markers; renderings grow with the logarithm of the conversation, and with its answers with reasoning."""
        if not answers:
            return {}
        thoughts = {index for index in answers if extra_fields(messages[index : index + 1])}
        prompts = {index: self._text(messages[:index], True, tools) for index in {*prefix_counts(answers), *thoughts}}
        last = answers[-1]
        through = text if last == len(messages) - 1 else self._text(messages[: last + 1], False, tools)
        if not all(text.startswith(prefix) for prefix in (through, *prompts.values())):
            raise SkippedRow(REWRITES)
        contents = [message["content"] for message in messages]
        twin = [{**m, "content": sentinel(i)} if m["content"].strip() else m for i, m in enumerate(messages)]
        spans = content_spans(text, self._text(twin, False, tools), contents) or {}
        hidden = [index for index in answers if index not in spans]
        begins = {index: len(prompt) for index, prompt in prompts.items() if index not in thoughts}
        if hidden or any(text[begin : spans[index][0]].strip() for index, begin in begins.items()):
            raise SkippedRow("the chat template has no generation markers and does not show the answer as it is")
        end = self._answer_end(through, spans[last][1])
        if not all(text.startswith(end, spans[index][1]) for index in answers):
            raise SkippedRow(REWRITES)
        starts = {index: len(prompts[index]) if index in thoughts else spans[index][0] for index in answers}
        return {index: (starts[index], spans[index][1] + len(end)) for index in answers}

    def _answer_end(self, through: str, cursor: int) -> str:
        """What follows the last answer in a text that ends with its turn, through its last special token."""
        stops = [(cursor + start, cursor + end) for start, end in self.special_spans(through[cursor:])]
        if not stops:
            raise SkippedRow("the chat template ends answers with no special token, so a model could never stop")
        return through[cursor : consecutive_end(through, stops)]


def _through_last_special(text: str, span: Span, specials: tuple[Span, ...]) -> Span:
    """The span without the whitespace that follows its last special token; other spans stay."""
    start, end = span
    last = max((stop for begin, stop in specials if start <= begin and stop <= end), default=end)
    return (start, end) if text[last:end].strip() else (start, last)
