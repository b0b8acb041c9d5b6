"""The demo's rater: rules behind an OpenAI-compatible address, asked by `feedback rate` as any judge is.

It gets a judge's prompt and nothing else, finds the instruction and the answers between their marks, and replies with the JSON
that is asked for.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from zephyr_jax.demo.corpus import rate, requested_nouns
from zephyr_jax.demo.words import CLOSINGS
from zephyr_jax.feedback.aspects import ASPECTS, OVERALL
from zephyr_jax.serve.loopback import on_loopback

NAME = "rater-by-rule"
RULE = "2 points; 6 for the share of the requested nouns that are used; 2 if it ends with one of the closing sentences"
"""Of the overall score, which makes the pairs; `corpus.rate` on the scale from 1 to 10."""


@contextmanager
def rater() -> Iterator[str]:
    """The address at which the rules answer."""
    app = web.Application()
    app.router.add_get("/v1/models", _models)
    app.router.add_post("/v1/chat/completions", _chat)
    with on_loopback(app) as address:
        yield address


def judgment(messages: Sequence[dict[str, Any]]) -> str:
    """The reply to a judge's prompt. Raises ValueError for anything else."""
    frame, asked = (str(message["content"]) for message in messages)
    mark = re.search(r"marks that carry the code (\w+);", frame)
    if not mark:
        raise ValueError("the first message names no marks")
    quoted = re.compile(rf"<((?:instruction|answer (\d+)) {mark[1]})>\n(.*?)\n</\1>", re.DOTALL)
    parts = {number: text for _, number, text in quoted.findall(asked)}
    wanted = requested_nouns(parts.pop("", ""))
    if not wanted or not parts:
        raise ValueError("there is no instruction that names nouns, or no answer")
    aspect = _aspect(quoted.sub("", asked))
    seen = {int(number): Seen.of(wanted, text) for number, text in parts.items()}
    entries = [
        {"answer": number, "rationale": each.words, "rating": each.ratings[aspect]} for number, each in seen.items()
    ]
    return json.dumps({"ratings": entries})


def _aspect(asked: str) -> str:
    """What is to be rated, by the words outside of all marks. Raises ValueError."""
    names = [aspect.name for aspect in (*ASPECTS, OVERALL) if aspect.words() in asked]
    if len(names) != 1:
        raise ValueError(f"{len(names)} aspects are asked for")
    return names[0]


@dataclass(frozen=True)
class Seen:
    """What the rules see in an answer."""

    wanted: tuple[str, ...]
    said: tuple[str, ...]
    """Nouns of the stories, requested or not."""
    ends: bool
    rate: float
    """From 1 to 5, by `corpus.rate`."""

    @classmethod
    def of(cls, wanted: tuple[str, ...], text: str) -> "Seen":
        """An answer to a request for a story about some nouns."""
        return cls(wanted, requested_nouns(text), text.rstrip().endswith(CLOSINGS), rate(wanted, text))

    @property
    def used(self) -> list[str]:
        """Requested nouns that are there."""
        return [noun for noun in self.wanted if noun in self.said]

    @property
    def ratings(self) -> dict[str, int]:
        """By aspect: what was asked for; nouns from nowhere; breaking off without a word; both and the whole, by the rate."""
        return {
            "instruction_following": 1 + 4 * len(self.used) // len(self.wanted),
            "truthfulness": max(1, 5 - len(set(self.said) - set(self.wanted))),
            "honesty": 5 if self.ends else 2,
            "helpfulness": int(self.rate),
            "overall": int(2 * self.rate),
        }

    @property
    def words(self) -> str:
        """For people: "uses fox, not kite; ends properly"."""
        missing = [noun for noun in self.wanted if noun not in self.said]
        used = f"uses {' and '.join(self.used)}" if self.used else "uses nothing that was asked for"
        without = f", not {' or '.join(missing)}" if self.used and missing else ""
        return f"{used}{without}; {'ends properly' if self.ends else 'has no ending'}"


async def _models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": NAME, "object": "model"}]})


async def _chat(request: web.Request) -> web.Response:
    """A completion in OpenAI's form; tokens are words here."""
    try:
        messages = (await request.json())["messages"]
        text = judgment(messages)
        there, back = sum(len(message["content"].split()) for message in messages), len(text.split())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return web.json_response({"error": {"message": f"The rules cannot rate this: {error}."}}, status=400)
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": there, "completion_tokens": back, "total_tokens": there + back}
    return web.json_response({"object": "chat.completion", "model": NAME, "choices": [choice], "usage": usage})
