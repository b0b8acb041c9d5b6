"""A checkpoint in this process that is asked as an endpoint is, with a journal of its own."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.clients.remote import Ask, Said
from zephyr_jax.errors import truncate_repr
from zephyr_jax.generate.engine import Engine, Request
from zephyr_jax.generate.load import Found, answers, fitted, say_cut
from zephyr_jax.storage.files import Path
from zephyr_jax.storage.journal import Journal


class OwnModel:
    """Answers by our engine. Its weights are read when they are first needed, and with `keep` they stay. A prompt that leaves too
    little room for an answer loses its beginning with `cut`; without it, one that leaves none is refused."""

    def __init__(
        self, found: Found, tokenizer: ChatTokenizer, context: int, journal: Path, *, keep: bool, cut: bool = False
    ):
        self._found, self._tokenizer, self._context = found.speaking(tokenizer), tokenizer, context
        self._keep, self._cut = keep, cut
        header = {**found.identity, "tokenizer": tokenizer.fingerprint, "context": context}
        self._journal = Journal(journal, header, _problem)
        self._known = {line["request"]: line for line in self._journal.lines}
        self._engine: Engine | None = None

    def ask_all(self, asks: Sequence[Ask], done: Callable[[int], None] = lambda _: None) -> list[Said]:
        """All answers, in order, each written down before it is given; `done` is told how many there are."""
        named = {_name(ask): ask for ask in asks}
        times = Counter(map(_name, asks))
        requests, refused = self._requests({name: ask for name, ask in named.items() if name not in self._known})
        count = sum(times[name] for name in named if name not in requests)
        done(count)
        names = dict(enumerate(requests))
        try:
            for number, tokens in self._answers({number: requests[name] for number, name in names.items()}):
                name = names[number]
                ended = bool(tokens) and tokens[-1] in self._found.stops
                line = {"request": name, "text": self._found.text(tokens), "cut": not ended}
                self._journal.add(line)
                self._known[name] = line
                count += times[name]
                done(count)
        finally:
            self._journal.close()
        return [
            refused[name] if name in refused else Said(self._known[name]["text"], cut=self._known[name]["cut"])
            for name in map(_name, asks)
        ]

    def missing(self, asks: Sequence[Ask]) -> list[Ask]:
        """Those that were never answered, each once."""
        named = {_name(ask): ask for ask in asks}
        return [ask for name, ask in named.items() if name not in self._known]

    def _answers(self, requests: dict[int, Request]) -> Iterator[tuple[int, list[int]]]:
        if not requests:
            return
        if self._engine is None:
            self._engine = self._found.engine(self._context)
        yield from answers(self._engine, requests)
        if not self._keep:
            self._engine = None

    def _requests(self, asks: dict[str, Ask]) -> tuple[dict[str, Request], dict[str, Said]]:
        """What the engine is asked, and what it cannot be asked."""
        requests: dict[str, Request] = {}
        refused: dict[str, Said] = {}
        cut = 0
        for name, ask in asks.items():
            try:
                prompt = self._tokenizer.prompt(list(ask.messages))
            except SkippedRow as error:
                refused[name] = Said("", str(error))
                continue
            kept, most = fitted(prompt, ask.max_tokens, self._context) if self._cut else (prompt, ask.max_tokens)
            room = self._context - len(kept)
            if room < 1:
                refused[name] = Said("", f"a prompt of {len(prompt):,} tokens; the context holds {self._context:,}")
                continue
            cut += len(kept) < len(prompt)
            how = (ask.temperature, ask.top_p)
            seed = int(name[:7], 16) if ask.seed is None else ask.seed
            requests[name] = Request(kept, min(most, room), self._found.stops, *how, seed=(seed,))
        say_cut(cut)
        return requests, refused


def _problem(line: dict[str, Any]) -> str:
    """What is wrong with a line of the journal; empty where nothing is."""
    sound = isinstance(line.get("request"), str) and isinstance(line.get("text"), str) and type(line.get("cut")) is bool
    return (
        "" if sound else f"expected texts in `request` and `text` and true or false in `cut`, got {truncate_repr(line)}"
    )


def _name(ask: Ask) -> str:
    return ask.name("", "")
