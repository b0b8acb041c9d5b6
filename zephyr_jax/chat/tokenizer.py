"""Text and spans -> token ids and a target mask, from one tokenization.

The mask is read from character offsets of the very tokens it masks, never from another tokenization of a part. Text from users
is never read as a special token, even where it spells one.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from zephyr_jax.chat.answer_spans import Span
from zephyr_jax.chat.message import Message, SkippedRow
from zephyr_jax.chat.saved_tokenizer import save_tokenizer
from zephyr_jax.chat.template import ChatTemplate, RenderedChat
from zephyr_jax.chat.template_loader import Answers, load_template
from zephyr_jax.chat.template_probe import probe_conversations, prompts_of
from zephyr_jax.chat.windows import is_separable, windows
from zephyr_jax.config.sections import TemplateValue
from zephyr_jax.errors import InputError

_CACHED_WINDOWS = 256
"""The prompt of a pair and a system message are met again soon, if at all."""

type _Tokens = tuple[np.ndarray, np.ndarray]
"""int32 ids [n], and int64 [n]: where the characters of each end."""


@dataclass(frozen=True)
class Segment:
    """One sequence: int32 tokens [n] and bool targets [n]; targets[0] is always false."""

    tokens: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def key(self) -> str:
        """Content address: a hash of tokens and targets, the name of this segment in a reference table."""
        digest = hashlib.blake2b(self.tokens.astype("<i4").tobytes(), digest_size=16)
        digest.update(np.packbits(self.targets).tobytes())
        return digest.hexdigest()

    def head(self, length: int) -> "Segment":
        """The first `length` tokens."""
        return Segment(self.tokens[:length], self.targets[:length])


class ChatTokenizer:
    """Encodes rendered chats with a fast tokenizer. Picklable, so that worker processes can hold one each."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate):
        self.template = template
        self.releases_gil = False
        """Whether other threads run while a text is tokenized; not for processes that fork, as the library then has threads."""
        self.saved = save_tokenizer(tokenizer)
        """What this tokenizer's files are made from."""
        self._joint = self.saved.backend
        self._is_separable = is_separable(self._joint, template.reserved)
        self._start()
        vocabulary = tokenizer.get_vocab()
        self._special_ids = {token: vocabulary[token] for token in template.reserved}
        self._reserved_ids = np.array(sorted(self._special_ids.values()), np.int32)
        self.bos = bos_token_id(tokenizer)
        self.stop_ids = tuple(sorted(self._special_ids[token] for token in template.end_tokens))
        """Ids of the tokens that can end an assistant answer under the template, found by rendering a probe."""

    def _start(self) -> None:
        """Make what does not survive pickling: the cache, and `encode_special_tokens`."""
        self._encode_cached = lru_cache(_CACHED_WINDOWS)(self._encode_window)
        self._literal = _literal(self._joint, self.template.reserved)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_literal", "_encode_cached")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    @property
    def fingerprint(self) -> str:
        """Identity of tokenizer and template: equal fingerprints give equal tokens for every conversation."""
        parts = (self._joint.to_str(), self.template.source, repr(self.bos))
        return hashlib.blake2b("\x00".join(parts).encode(), digest_size=16).hexdigest()

    def encode(self, rendered: RenderedChat) -> Segment:
        """Tokens of the whole text, BOS once; the targets are the tokens that end inside a span.

        Spans start right after the header and end with a special token, so a token is the assistant's
        when its last character lies in the span.
        """
        ids, ends = self._encode_text(rendered)
        targets = _within(ends, rendered.spans)
        if self.bos is not None and (not len(ids) or ids[0] != self.bos):
            ids, targets = np.r_[np.int32(self.bos), ids], np.r_[False, targets]
        targets[:1] = False
        return Segment(ids.astype(np.int32), targets)

    def encode_last(self, rendered: RenderedChat) -> Segment:
        """As `encode`, of what `render_last` rendered.

        Raises SkippedRow where the token ids of the generation prompt do not begin those of the text: the model would be asked
        after other tokens than those that come before the targets.
        """
        segment = self.encode(rendered)
        for start, _ in rendered.spans:
            specials = tuple(span for span in rendered.special_spans if span[1] <= start)
            prompt = self.encode(RenderedChat(rendered.text[:start], (), specials)).tokens
            if not np.array_equal(segment.tokens[: len(prompt)], prompt):
                raise SkippedRow("the token ids of the generation prompt do not begin those of the conversation")
        return segment

    def prompt(self, messages: list[Message]) -> np.ndarray:
        """int32 tokens of a conversation with the header that asks for an answer; spans play no part."""
        return self.encode(self.template.render(messages, add_generation_prompt=True)).tokens

    def _encode_text(self, rendered: RenderedChat) -> _Tokens:
        """Token ids and the character offset where each ends."""
        text, specials = rendered.text, rendered.special_spans
        impostors = self.template.special_spans(text) != specials
        if not impostors:
            return self._encode_jointly(text, specials)
        ids, ends = list[int](), list[int]()
        cursor = 0
        for start, end in (*specials, (len(text), len(text))):
            piece = self._run(self._literal, text[cursor:start])
            ids += piece.ids
            ends += [cursor + offset for _, offset in piece.offsets]
            if end > start:
                ids.append(self._special_ids[text[start:end]])
                ends.append(end)
            cursor = end
        return np.array(ids, np.int32), np.array(ends, np.int64)

    def _run(self, tokenizer: Tokenizer, text: str) -> Encoding:
        if self.releases_gil:  # which `encode` does not
            return tokenizer.encode_batch([text], add_special_tokens=False)[0]
        return tokenizer.encode(text, add_special_tokens=False)

    def _encode_jointly(self, text: str, specials: tuple[Span, ...]) -> _Tokens:
        """Ids and ends of a text in which every spelled special token is one."""
        if not self._is_separable or not specials:
            return self._encode_window(text)
        ids, ends = list[np.ndarray](), list[np.ndarray]()
        last = np.zeros(0, np.int32)
        for start, end in windows(specials, len(text)):
            window_ids, window_ends = self._encode_cached(text[start:end])
            if not np.array_equal(window_ids[: len(last)], last):  # the special token that ended the window before
                return self._encode_window(text)
            ids.append(window_ids[len(last) :])
            ends.append(start + window_ends[len(last) :])
            last = window_ids[-1:]
        return np.concatenate(ids), np.concatenate(ends)

    def _encode_window(self, text: str) -> _Tokens:
        encoding = self._run(self._joint, text)
        ids, offsets = np.array(encoding.ids, np.int32), encoding.offsets
        ends = np.array([end for _, end in offsets], np.int64)
        for at in np.flatnonzero(np.isin(ids, self._reserved_ids)):
            start, end = offsets[at]
            ends[at] = start + len(text[start:end].rstrip())  # some special tokens swallow the space after them
        return ids, ends


def load_chat_tokenizer(
    choice: str | None,
    tokenizer: PreTrainedTokenizerBase,
    day: date | None = None,
    training: bool = True,
    args: Mapping[str, TemplateValue] | None = None,
    answers: Answers = "all",
) -> ChatTokenizer:
    """A tokenizer with the chat template that `choice` names; arguments and errors as `chat.load_template`.

    Raises InputError, too, where the token ids of a prompt do not begin those of the training text.
    """
    template = load_template(choice, tokenizer, day, training, args, answers)
    chat = ChatTokenizer(tokenizer, template)
    if training and not template.last_answer_only:  # else `encode_last` checks each row
        for probe in probe_conversations():
            with suppress(SkippedRow):  # a template that refuses system messages
                _check_prompt_ids(chat, probe)
    return chat


def _check_prompt_ids(chat: ChatTokenizer, probe: list[Message]) -> None:
    tokens = chat.encode(chat.template.render(probe)).tokens
    for messages in prompts_of(probe):
        prompt = chat.prompt(messages)
        if not np.array_equal(tokens[: len(prompt)], prompt):
            raise InputError(
                f"The chat template `{chat.template.name}` cannot be used for training with this tokenizer: expected the token "
                f"ids of a prompt to begin those of the training text, got {prompt[-4:].tolist()} at the end of the prompt and "
                f"{tokens[len(prompt) - 4 : len(prompt) + 1].tolist()} there in the text. End the generation prompt with a "
                "special token or a line end, so that no token reaches across."
            )


def _within(ends: np.ndarray, spans: tuple[Span, ...]) -> np.ndarray:
    """bool [n]: whether each offset lies in (start, end] of one of the spans, which are in order and do not overlap."""
    if not spans:
        return np.zeros(len(ends), np.bool_)
    starts, stops = np.array(spans, np.int64).T
    span_index: np.ndarray = (
        np.searchsorted(starts, ends, side="left") - 1
    )  # the last span that starts before the offset
    is_inside: np.ndarray = (span_index >= 0) & (ends <= stops[span_index])
    return is_inside


def _literal(joint: Tokenizer, reserved: tuple[str, ...]) -> Tokenizer:
    """The same tokenizer, for which what is reserved is plain text."""
    content = json.loads(joint.to_str())
    for token in content["added_tokens"]:
        token["special"] |= token["content"] in reserved
    literal = Tokenizer.from_str(json.dumps(content))
    literal.encode_special_tokens = True
    return literal


def bos_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id that starts every sequence, or None for tokenizers that use none."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return None
    return bos if tokenizer("a").input_ids[:1] == [bos] else None
