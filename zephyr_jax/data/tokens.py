"""Text and spans -> token ids and a target mask, from one joint tokenisation.

The mask is read from character offsets of the very tokens it masks: no piece of text is ever tokenised twice. Text
from users is never read as a special token, even where it spells one.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from zephyr_jax.data import formats
from zephyr_jax.data.answer_spans import Span
from zephyr_jax.data.chat import ChatTemplate, RenderedChat
from zephyr_jax.data.dialogue import BadRow, Message, OverLong
from zephyr_jax.data.saved_tokenizer import save_tokenizer
from zephyr_jax.data.template_loader import load_template
from zephyr_jax.data.template_probe import probe_conversations, prompts_of
from zephyr_jax.errors import InputError


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
        self._literal = _literal(self._joint, template.reserved)
        vocabulary = tokenizer.get_vocab()
        self._special_ids = {token: vocabulary[token] for token in template.reserved}
        self.bos = bos_token_id(tokenizer)
        self.stop_ids = tuple(sorted(self._special_ids[token] for token in template.end_tokens))
        """Ids of the tokens that can end an assistant answer under the template, found by rendering a probe."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_literal"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # `encode_special_tokens` does not survive pickling
        self._literal = _literal(self._joint, self.template.reserved)

    @property
    def fingerprint(self) -> str:
        """Identity of tokenizer and template: equal fingerprints give equal tokens for every conversation."""
        parts = (self._joint.to_str(), self.template.source, repr(self.bos))
        return hashlib.blake2b("\x00".join(parts).encode(), digest_size=16).hexdigest()

    def encode(self, rendered: RenderedChat) -> Segment:
        """Tokens of the whole text, BOS once; the targets are the tokens that end inside a span.

        Spans start right after the header and end with a special token, so a token counts as said by the assistant
        when its last character lies in the span.
        """
        ids, ends = self._encode_text(rendered)
        targets = _within(ends, rendered.spans)
        if self.bos is not None and (not len(ids) or ids[0] != self.bos):
            ids, targets = np.r_[np.int32(self.bos), ids], np.r_[False, targets]
        targets[:1] = False
        return Segment(ids.astype(np.int32), targets)

    def prompt(self, messages: list[Message]) -> np.ndarray:
        """int32 tokens of a conversation with the header that asks for an answer; spans play no part."""
        return self.encode(self.template.render(messages, add_generation_prompt=True)).tokens

    def _encode_text(self, rendered: RenderedChat) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and the character offset where each ends."""
        text, specials = rendered.text, rendered.special_spans
        impostors = self.template.special_spans(text) != specials
        if not impostors:
            return self._encode_jointly(text)
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

    def _encode_jointly(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        encoding = self._run(self._joint, text)
        ids, offsets = np.array(encoding.ids, np.int32), encoding.offsets
        ends = np.array([end for _, end in offsets], np.int64)
        for at in np.flatnonzero(np.isin(ids, list(self._special_ids.values()))):
            start, end = offsets[at]
            ends[at] = start + len(text[start:end].rstrip())  # some special tokens swallow the space after them
        return ids, ends


def load_chat_tokenizer(
    choice: str | None, tokenizer: PreTrainedTokenizerBase, day: date | None = None, training: bool = True
) -> ChatTokenizer:
    """A tokenizer with the chat template that `choice` names; arguments and errors as `chat.load_template`.

    Raises InputError, too, where the token ids of a prompt do not begin those of the training text.
    """
    template = load_template(choice, tokenizer, day, training)
    chat = ChatTokenizer(tokenizer, template)
    if training:
        for probe in probe_conversations():
            with suppress(BadRow):  # a template that refuses system messages
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
    place = np.searchsorted(starts, ends, side="left") - 1  # the last span that starts before the offset
    return (place >= 0) & (ends <= stops[place])


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


def conversation(
    tokenizer: ChatTokenizer,
    row: dict[str, Any],
    targets: str,
    max_length: int,
    cut: bool,
    contradictions: bool = False,
) -> list[Segment]:
    """One segment of a row in a format of `formats.CONVERSATIONS`. Raises BadRow with the reason when it cannot be used."""
    chat = formats.conversation(row, contradictions)
    rendered = tokenizer.template.render(chat["messages"], tools=chat["tools"])
    segment = tokenizer.encode(rendered)
    if not segment.targets.any():
        raise BadRow("no assistant answer to learn from")
    if targets == "all":
        segment = Segment(segment.tokens, np.arange(len(segment)) > 0)
        if rendered.muted:
            segment.targets[tokenizer.encode(replace(rendered, spans=rendered.muted)).targets] = False
    if len(segment) > max_length:
        if not cut:
            raise OverLong(f"over-length: more than max_length {max_length} tokens", len(segment))
        segment = segment.head(max_length)
    if not segment.targets.any():
        raise BadRow(f"no target token within the first {max_length} tokens")
    return [segment]


def preference(
    tokenizer: ChatTokenizer,
    row: dict[str, Any],
    max_length: int,
    max_prompt: int,
    cut: bool,
    contradictions: bool = False,
) -> list[Segment]:
    """Chosen and rejected segments of a row; only answers after the messages that both sides share count.

    An over-long pair is cut as the reference DPO code does: first the prompt to its last `max_prompt` tokens (BOS
    stays), then each answer to the tokens that still fit, from its start. Raises BadRow.
    """
    pair = formats.preference(row, contradictions)
    dialogues = (pair["chosen"], pair["rejected"])
    shared = _shared_messages(*dialogues)
    sides = [_answers_after(tokenizer, dialogue, shared, pair["tools"]) for dialogue in dialogues]
    if not all(side.targets.any() for side in sides):
        raise BadRow("no assistant answer to learn from")
    starts = [int(side.targets.argmax()) for side in sides]
    prompt = sides[0].tokens[: starts[0]]
    if not np.array_equal(prompt, sides[1].tokens[: starts[1]]):
        raise BadRow("the prompt becomes different tokens before the chosen and the rejected answer")
    if np.array_equal(sides[0].tokens, sides[1].tokens):
        raise BadRow("chosen and rejected are identical")
    longest = max(len(side) for side in sides)
    if longest <= max_length:
        return sides
    if not cut:
        raise OverLong(f"over-length: more than max_length {max_length} tokens", sum(map(len, sides)))
    sides = [_cut(side, len(prompt), max_length, max_prompt, tokenizer.bos is not None) for side in sides]
    if not all(side.targets.any() for side in sides):
        raise BadRow(f"max_prompt_length {max_prompt} leaves no room for an answer within max_length {max_length}")
    if np.array_equal(sides[0].tokens, sides[1].tokens):
        raise BadRow(f"chosen and rejected are identical within max_length {max_length} tokens")
    return sides


def _cut(side: Segment, prompt: int, max_length: int, max_prompt: int, has_bos: bool) -> Segment:
    kept = np.arange(len(side))
    if prompt > max_prompt:
        first = min(int(has_bos), max_prompt - 1)  # BOS stays, unless it would be the whole prompt
        kept = np.r_[kept[:first], kept[prompt - max_prompt + first :]]
    kept = kept[:max_length]
    return Segment(side.tokens[kept], side.targets[kept])


def _shared_messages(chosen: list[Message], rejected: list[Message]) -> int:
    """How many messages both dialogues begin with; their last messages are not among them.

    Raises:
        BadRow: After these, one of them does not go on with an answer.
    """
    last = len(chosen) - 1
    shared = next((index for index in range(last) if chosen[index : index + 1] != rejected[index : index + 1]), last)
    if len(chosen) != len(rejected) or any(dialogue[shared]["role"] != "assistant" for dialogue in (chosen, rejected)):
        raise BadRow(
            "chosen and rejected do not share one prompt: expected dialogues of one length, equal up to an assistant answer"
        )
    return shared


def _answers_after(tokenizer: ChatTokenizer, dialogue: list[Message], shared: int, tools: list[Any] | None) -> Segment:
    """A dialogue whose answers after the first `shared` messages are targets."""
    before = [{**message, "weight": 0} if message["role"] == "assistant" else message for message in dialogue[:shared]]
    return tokenizer.encode(tokenizer.template.render([*before, *dialogue[shared:]], tools=tools))
