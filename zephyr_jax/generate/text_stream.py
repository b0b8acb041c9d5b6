"""Tokens in, text out, as early as it is sure: whole characters, and nothing that may be the beginning of a stop string."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_BROKEN = "\ufffd"


class TextStream:
    """One answer on its way. Text that was given out is never taken back."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int] = (), stops: Sequence[str] = ()):
        self._tokenizer, self._end_ids, self._stops = tokenizer, frozenset(end_ids), tuple(stops)
        self._ids: list[int] = []
        self._shown = self._read = 0  # ids whose text is out, and ids before which decoding need not begin
        self._held = ""
        self.stopped = False
        """A stop string was met: the answer has ended there."""

    def feed(self, tokens: Sequence[int], last: bool = False) -> str:
        """The text that is sure with these tokens; `last`: no more will come, so everything is."""
        if self.stopped:
            return ""
        self._ids += [token for token in tokens if token not in self._end_ids]
        self._held += self._new_text(last)
        return self._sure(last)

    def _new_text(self, last: bool) -> str:
        """What the ids that are not shown add to the text; decoding begins a little before, as words join to their left."""
        before = self._decode(self._ids[self._shown : self._read])
        now = self._decode(self._ids[self._shown :])
        if len(now) <= len(before) or (now.endswith(_BROKEN) and not last):
            return ""
        self._shown, self._read = self._read, len(self._ids)
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids)) if ids else ""

    def _sure(self, last: bool) -> str:
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._held[: min(found)]
        keep = 0 if last else max((_overlap(self._held, stop) for stop in self._stops), default=0)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out


def _overlap(text: str, stop: str) -> int:
    """The longest end of a text that is a beginning of `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
