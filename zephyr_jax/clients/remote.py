"""A model behind an OpenAI-compatible address: asked politely, within limits, and never twice for the same.

Every reply is written down before it is used; a request that was answered once is not sent again, in this run or the next.
"""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from zephyr_jax.chat.message import Message
from zephyr_jax.clients.budget import Budget, Cost
from zephyr_jax.clients.connection import Line, Trouble, check_address
from zephyr_jax.clients.reply import Said, line_of, problem_of, said_in, tokens_of
from zephyr_jax.config.sections import EndpointOptions
from zephyr_jax.errors import InputError, escape_control_chars, truncate_repr
from zephyr_jax.storage.api_key import read_api_key
from zephyr_jax.storage.journal import Journal

__all__ = ["Ask", "Endpoint", "Said", "problem_of"]

_LONGEST_PAUSE = 60.0
_HOPELESS = 100  # requests that are refused, and none answered: no setting of ours will do
_KINDS = 8  # of trouble that are told
_FRAME = 64  # tokens that a chat template may add to a request, and for each message again an eighth of that


@dataclass(frozen=True)
class Ask:
    """One request."""

    messages: tuple[Message, ...]
    temperature: float
    max_tokens: int
    top_p: float = 1.0
    seed: int | None = None
    top_logprobs: int = 0
    """Also ask for the log-probs of so many candidates for each token."""
    draw: int = 0
    """Not sent: tells apart requests that read the same and are to be answered one by one."""

    def body(self, model: str) -> dict[str, Any]:
        """As the endpoint wants it."""
        settings: dict[str, Any] = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        settings |= {"top_p": self.top_p} if self.top_p != 1 else {}
        settings |= {"seed": self.seed} if self.seed is not None else {}
        settings |= {"logprobs": True, "top_logprobs": self.top_logprobs} if self.top_logprobs else {}
        return {"model": model, "messages": list(self.messages), **settings}

    def name(self, address: str, model: str) -> str:
        """What tells this request from all others, in journals."""
        told = [address, self.body(model), *([self.draw] if self.draw else [])]
        return blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=16).hexdigest()

    @property
    def most(self) -> Cost:
        """The most tokens that it can take: none is shorter than a byte."""
        letters = sum(len(message["content"].encode(errors="replace")) for message in self.messages)
        return Cost(letters + _FRAME + len(self.messages) * _FRAME // 8, self.max_tokens)


class Endpoint:
    """Asks one model. Raises InputError when it cannot be reached at all, or when the next request may pass a limit.

    `budget`: one that several endpoints share; default: one of its own, with the limits of `options`.
    """

    def __init__(self, url: str, options: EndpointOptions, journal: Journal, budget: Budget | None = None):
        check_address(url)
        self._url, self._options, self._journal = url.rstrip("/"), options, journal
        self._known = {line["request"]: line for line in journal.lines if "text" in line}
        self._key = read_api_key(options.api_key_env, "endpoint.api_key_env")
        self._budget, self._surplus, self._told = budget or Budget(options), Cost(), set[str]()
        self._refused, self._answered = 0, any("refused" not in line for line in self._known.values())
        for cost, lost in _paid(journal.lines):
            self._budget.spend(cost.priced(options), lost)
        self.model = options.model or asyncio.run(self._only_model())

    def ask_all(self, asks: Sequence[Ask], done: Callable[[int], None] = lambda _: None) -> list[Said]:
        """All replies, in order; `done` is told how many there are so far. Whatever ends this, what came is written down."""
        try:
            return asyncio.run(self._ask_all(asks, done))
        finally:
            self._journal.close()

    def missing(self, asks: Sequence[Ask]) -> list[Ask]:
        """Those that have no reply yet, each once."""
        named = {self._name(ask): ask for ask in asks}
        return [ask for name, ask in named.items() if name not in self._known]

    def spent(self) -> str:
        """Tokens, and money where prices are known, in words."""
        return self._budget.spent()

    async def _ask_all(self, asks: Sequence[Ask], done: Callable[[int], None]) -> list[Said]:
        names = [self._name(ask) for ask in asks]
        said = {name: said_in(self._known[name]) for name in names if name in self._known}
        times, failed, changed = Counter(names), list[Exception](), asyncio.Condition()
        waiting = iter({name: ask for name, ask in zip(names, asks, strict=True) if name not in said}.items())
        came = sum(times[name] for name in said)
        if len(said) == len(times):
            done(came)
            return [said[name] for name in names]

        async def work(line: Line) -> None:
            """Ask for one after the other; what is under way when another fails is still waited for, as it is paid for."""
            nonlocal came
            for name, ask in _until(waiting, lambda: bool(failed)):
                try:
                    said[name] = await self._ask(line, changed, name, ask)
                except Exception as error:  # a full disk, say; it is raised below, when nobody is under way any more
                    failed.append(error)
                    return
                came += times[name]
                done(came)

        async with Line(self._url, self._options, self._key) as line, asyncio.TaskGroup() as group:
            for _ in range(min(self._options.max_concurrency, len(times) - len(said))):
                group.create_task(work(line))
        if failed:
            raise failed[0]
        return [said[name] for name in names]

    async def _ask(self, line: Line, changed: asyncio.Condition, name: str, ask: Ask) -> Said:
        """The reply, after some patience. Raises InputError where no request can be answered."""
        body, trouble = self._body(ask), Trouble("")
        for attempt in range(self._options.max_retries + 1):
            if attempt:
                await asyncio.sleep(min(self._options.backoff * 2 ** (attempt - 1), _LONGEST_PAUSE))
            held, used = await self._held(changed, ask), Cost()
            try:
                self._note(name, "sent", held)
                self._known[name] = line_of(name, await line.chat(body), held)
                used = tokens_of(self._known[name]).priced(self._options)
                self._journal.add(self._known[name])
                return self._heard(said_in(self._known[name]))
            except Trouble as this:
                trouble, used = this, held if this.lost else Cost()
                self._note(name, "lost" if this.lost else "free", used)
                if not this.again:
                    break
                self._tell(trouble)
            finally:
                self._settle(ask, held, used, lost=name not in self._known)
                async with changed:
                    changed.notify_all()
        if trouble.alone:
            return self._heard(Said("", str(trouble)))
        raise InputError(
            f"{self._url} does not answer: {_told(trouble)}. Check the address, the key and the model's name; what was answered "
            "before is kept, and the same command goes on."
        )

    def _heard(self, said: Said) -> Said:
        """The same reply. Raises InputError where nothing but refusals has come so far."""
        self._answered = self._answered or not said.refusal
        self._refused += bool(said.refusal)
        if self._refused >= _HOPELESS and not self._answered:
            raise InputError(f"{self._url} refused all of the first {_HOPELESS} requests: {said.refusal.rstrip('. ')}.")
        return said

    def _body(self, ask: Ask) -> dict[str, Any]:
        body = ask.body(self.model)
        longest = body.pop("max_tokens")
        return {**body, self._options.max_tokens_param: longest}

    def _note(self, name: str, what: str, cost: Cost) -> None:
        """Write down what becomes of a request; where there is no limit, only what was lost."""
        if self._budget.limited or what == "lost":
            self._journal.add({
                "request": name, what: True, "prompt_tokens": cost.there, "completion_tokens": cost.back
            })  # fmt: skip

    async def _held(self, changed: asyncio.Condition, ask: Ask) -> Cost:
        """What a request may cost, held back; waits for room while others are under way. Raises InputError."""
        async with changed:
            while not self._budget.hold(most := (ask.most + self._surplus).priced(self._options)):
                if not self._budget.under_way:
                    raise self._budget.exhausted(most)
                await changed.wait()
        return most

    def _settle(self, ask: Ask, held: Cost, used: Cost, lost: bool) -> None:
        """Count what was used. An endpoint that counts more than we expect is expected to do so again."""
        self._budget.settle(held, used, lost)
        over, known = used - ask.most, self._surplus
        self._surplus = Cost(max(over.there, known.there), max(over.back, known.back))

    def _tell(self, trouble: Trouble) -> None:
        """Say why nothing moves, once for each kind of trouble."""
        if str(trouble) not in self._told and len(self._told) < _KINDS:
            self._told.add(str(trouble))
            print(f"{self._url}: {escape_control_chars(str(trouble))}; it is asked again", file=sys.stderr, flush=True)

    async def _only_model(self) -> str:
        try:
            async with Line(self._url, self._options, self._key) as line:
                names = await line.models()
        except Trouble as trouble:
            raise InputError(
                f"{self._url} cannot be reached: {_told(trouble)}. Check the address (it ends in /v1) and the key."
            ) from trouble
        if len(names) != 1:
            raise InputError(f"{self._url} serves {len(names)} models ({truncate_repr(names)}). Name one of them.")
        return names[0]

    def _name(self, ask: Ask) -> str:
        return ask.name(self._url, self.model)


def _told(trouble: Trouble) -> str:
    """Words in the middle of a sentence."""
    return str(trouble).rstrip(". ")


def _until[T](items: Iterator[T], stopped: Callable[[], bool]) -> Iterator[T]:
    """Items of an iterator that others take from, too."""
    while not stopped():
        try:
            yield next(items)
        except StopIteration:
            return


def _paid(lines: Sequence[dict[str, Any]]) -> Iterator[tuple[Cost, bool]]:
    """What requests took, and whether for nothing. One that was sent, and killed before its end, counts in full."""
    under_way: dict[str, Cost] = {}
    for line in lines:
        before = under_way.pop(line.get("request", ""), None)
        if "sent" in line:
            under_way[line["request"]] = tokens_of(line)
            if before is not None:
                yield before, True
        else:
            yield tokens_of(line), "lost" in line
    for cost in under_way.values():
        yield cost, True
