"""Incremental detokenization: emits whole characters only, and no text that may be the beginning of a stop string."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\ufffd"


class TextStream:
    """Text of one answer while its tokens arrive; emitted text never changes later.

    Args:
        tokenizer: decodes token ids.
        end_ids: ids that end an answer and have no text.
        stops: strings that end the answer; they are not part of the text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int] = (), stops: Sequence[str] = ()):
        self._tokenizer, self._end_ids, self._stops = tokenizer, frozenset(end_ids), tuple(stops)
        self._ids: list[int] = []
        self._context = self._decoded = 0  # ids[context:decoded] are decoded again as context of the new ones
        self._pending = ""
        self.stopped = False
        """Whether a stop string was found; the answer ends before it."""

    def feed(self, tokens: Sequence[int], last: bool = False) -> str:
        """Add token ids; returns the text that can be emitted. `last`: no more tokens follow, so emit everything."""
        if self.stopped:
            return ""
        self._ids += [token for token in tokens if token not in self._end_ids]
        self._pending += self._new_text(last)
        return self._emit(last)

    def _new_text(self, last: bool) -> str:
        """Text of the new ids. They are decoded after a few earlier ones, as a token's text depends on its left neighbor."""
        before = self._decode(self._ids[self._context : self._decoded])
        text = self._decode(self._ids[self._context :])
        if len(text) <= len(before) or (text.endswith(_REPLACEMENT) and not last):
            return ""  # an incomplete character: wait for its other bytes
        self._context, self._decoded = self._decoded, len(self._ids)
        return text[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids)) if ids else ""

    def _emit(self, last: bool) -> str:
        starts = [start for stop in self._stops if (start := self._pending.find(stop)) >= 0]
        if starts:
            self.stopped = True
            return self._pending[: min(starts)]
        keep = 0 if last else max((overlap(self._pending, stop) for stop in self._stops), default=0)
        size = len(self._pending) - keep
        text, self._pending = self._pending[:size], self._pending[size:]
        return text


def overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
