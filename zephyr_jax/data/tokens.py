"""Text and spans -> token ids and a target mask, from one joint tokenisation.

The mask is read from character offsets of the very tokens it masks: no piece of text is ever tokenised twice. Text
from users is never read as a special token, even where it spells one.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from zephyr_jax.data.chat import BadRow, ChatTemplate, Message, OverLong, RenderedChat
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
        self._joint = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._joint.no_truncation()
        self._joint.no_padding()
        self._literal = _literal(self._joint, template.reserved)
        vocabulary = tokenizer.get_vocab()
        self._special_ids = {token: vocabulary[token] for token in template.reserved}
        self.bos = bos_token_id(tokenizer)

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
        targets = np.zeros(len(ids), np.bool_)
        for start, end in rendered.spans:
            targets |= (ends > start) & (ends <= end)
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
            piece = self._literal.encode(text[cursor:start], add_special_tokens=False)
            ids += piece.ids
            ends += [cursor + offset for _, offset in piece.offsets]
            if end > start:
                ids.append(self._special_ids[text[start:end]])
                ends.append(end)
            cursor = end
        return np.array(ids, np.int32), np.array(ends, np.int64)

    def _encode_jointly(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        encoding = self._joint.encode(text, add_special_tokens=False)
        ids, offsets = np.array(encoding.ids, np.int32), encoding.offsets
        ends = np.array([end for _, end in offsets], np.int64)
        for at in np.flatnonzero(np.isin(ids, list(self._special_ids.values()))):
            start, end = offsets[at]
            ends[at] = start + len(text[start:end].rstrip())  # some special tokens swallow the space after them
        return ids, ends


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


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """A fast tokenizer from a folder or hub id. Raises InputError when there is none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    except Exception as error:  # transformers raises many kinds here; all mean the same to the user
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"No tokenizer could be loaded from {path!r}: {reason} Give a folder with tokenizer.json and "
            "tokenizer_config.json, or a hub id that you can reach."
        ) from error
    if not tokenizer.is_fast:
        raise InputError(
            f"The tokenizer of {path!r} is a slow one. Character offsets need a fast tokenizer: save a tokenizer.json "
            "beside it."
        )
    return tokenizer


def conversation(
    tokenizer: ChatTokenizer, row: dict[str, Any], targets: str, max_length: int, cut: bool
) -> list[Segment]:
    """One segment of a row with `messages`. Raises BadRow with the reason when it cannot be used."""
    segment = tokenizer.encode(tokenizer.template.render(_messages(row, "messages")))
    if not segment.targets.any():
        raise BadRow("no assistant answer to learn from")
    if targets == "all":
        segment = Segment(segment.tokens, np.arange(len(segment)) > 0)
    if len(segment) > max_length:
        if not cut:
            raise OverLong(f"over-length: more than max_length {max_length} tokens")
        segment = segment.head(max_length)
    if not segment.targets.any():
        raise BadRow(f"no target token within the first {max_length} tokens")
    return [segment]


def preference(
    tokenizer: ChatTokenizer, row: dict[str, Any], max_length: int, max_prompt: int, cut: bool
) -> list[Segment]:
    """Chosen and rejected segments of a row; only the last answer of each counts.

    An over-long pair is cut as the reference DPO code does: first the prompt to its last `max_prompt` tokens (BOS
    stays), then each answer to the tokens that still fit, from its start. Raises BadRow.
    """
    chosen, rejected = (_dialogue(row, side) for side in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise BadRow("chosen and rejected do not share one prompt: all messages but the last must be equal")
    sides = [_last_answer_only(tokenizer, dialogue) for dialogue in (chosen, rejected)]
    starts = [int(side.targets.argmax()) for side in sides]
    prompt = sides[0].tokens[: starts[0]]
    if not np.array_equal(prompt, sides[1].tokens[: starts[1]]):
        raise BadRow("the prompt becomes different tokens before the chosen and the rejected answer")
    longest = max(len(side) for side in sides)
    if longest <= max_length:
        return sides
    if not cut:
        raise OverLong(f"over-length: more than max_length {max_length} tokens")
    sides = [_cut(side, len(prompt), max_length, max_prompt, tokenizer.bos is not None) for side in sides]
    if not all(side.targets.any() for side in sides):
        raise BadRow(f"max_prompt_length {max_prompt} leaves no room for an answer within max_length {max_length}")
    return sides


def _cut(side: Segment, prompt: int, max_length: int, max_prompt: int, has_bos: bool) -> Segment:
    kept = np.arange(len(side))
    if prompt > max_prompt:
        first = min(int(has_bos), max_prompt - 1)  # BOS stays, unless it would be the whole prompt
        kept = np.r_[kept[:first], kept[prompt - max_prompt + first :]]
    kept = kept[:max_length]
    return Segment(side.tokens[kept], side.targets[kept])


def _last_answer_only(tokenizer: ChatTokenizer, dialogue: list[Message]) -> Segment:
    rendered = tokenizer.template.render(dialogue)
    return tokenizer.encode(RenderedChat(rendered.text, rendered.spans[-1:], rendered.special_spans))


def _messages(row: dict[str, Any], column: str) -> Any:
    messages = row.get(column)
    if not isinstance(messages, list):
        return messages  # type-checked, with its reason, by `chat.check_messages`
    return [
        {"role": message.get("role"), "content": message.get("content")} if isinstance(message, dict) else message
        for message in messages
    ]


def _dialogue(row: dict[str, Any], side: str) -> Any:
    """Full dialogue of one side; a plain string answers the plain string or the messages in `prompt`."""
    answer, prompt = row.get(side), row.get("prompt")
    if isinstance(answer, str):
        before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _messages(row, "prompt")
        if not isinstance(before, list):
            raise BadRow(f"{side} is a plain text but `prompt` is {type(prompt).__name__}, neither text nor messages")
        dialogue = [*before, {"role": "assistant", "content": answer}]
    else:
        dialogue = _messages(row, side)
    last = dialogue[-1] if isinstance(dialogue, list) and dialogue else None
    if not isinstance(last, dict) or last.get("role") != "assistant":
        raise BadRow(f"{side} does not end with an assistant answer")
    if len(dialogue) == 1 and isinstance(prompt, str):
        return [{"role": "user", "content": prompt}, *dialogue]
    if len(dialogue) == 1 and isinstance(prompt, list):
        return [*_messages(row, "prompt"), *dialogue]
    return dialogue
