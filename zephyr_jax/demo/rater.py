"""The demo's rater: rules behind an OpenAI-compatible address, which `feedback rate` asks as it asks any judge.

It parses the judge's prompt for the instruction and the answers between their marks, and replies with the requested JSON.
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
RULE = (
    "2 points; 6 times the share of the requested nouns that are used; 2 if it ends with one of the closing sentences"
)
"""Rule of the overall score, which makes the pairs: `corpus.rate` on the scale from 1 to 10."""


@contextmanager
def rater() -> Iterator[str]:
    """Serve the rules on loopback; yields the address."""
    app = web.Application()
    app.router.add_get("/v1/models", _models)
    app.router.add_post("/v1/chat/completions", _chat)
    with on_loopback(app) as address:
        yield address


def judgment(messages: Sequence[dict[str, Any]]) -> str:
    """The reply to a judge's prompt. Raises ValueError for anything else."""
    system, task = (str(message["content"]) for message in messages)
    mark = re.search(r"marks that carry the code (\w+);", system)
    if not mark:
        raise ValueError("expected the code of the marks in the first message")
    quoted = re.compile(rf"<((?:instruction|answer (\d+)) {mark[1]})>\n(.*?)\n</\1>", re.DOTALL)
    parts = {number: text for _, number, text in quoted.findall(task)}
    requested = requested_nouns(parts.pop("", ""))
    if not requested or not parts:
        raise ValueError("expected an instruction that names nouns and at least one answer")
    aspect = _aspect(quoted.sub("", task))
    findings = {int(number): Findings.of(requested, text) for number, text in parts.items()}
    entries = [
        {"answer": number, "rationale": finding.rationale, "rating": finding.ratings[aspect]}
        for number, finding in findings.items()
    ]
    return json.dumps({"ratings": entries})


def _aspect(task: str) -> str:
    """Name of the aspect to rate, from the text outside of all marks. Raises ValueError."""
    names = [aspect.name for aspect in (*ASPECTS, OVERALL) if aspect.prompt() in task]
    if len(names) != 1:
        raise ValueError(f"expected one aspect, got {len(names)}")
    return names[0]


@dataclass(frozen=True)
class Findings:
    """What the rules find in an answer."""

    requested: tuple[str, ...]
    nouns: tuple[str, ...]
    """Nouns of the answer, requested or not."""
    ends: bool
    rate: float
    """From 1 to 5, by `corpus.rate`."""

    @classmethod
    def of(cls, requested: tuple[str, ...], text: str) -> "Findings":
        """Findings for the answer `text` to a request for a story about the `requested` nouns."""
        ends = text.rstrip().endswith(CLOSINGS)
        return cls(requested=requested, nouns=requested_nouns(text), ends=ends, rate=rate(requested, text))

    @property
    def used(self) -> list[str]:
        """Requested nouns that occur in the answer."""
        return [noun for noun in self.requested if noun in self.nouns]

    @property
    def ratings(self) -> dict[str, int]:
        """Rating by aspect: requested nouns; unrequested nouns; a missing ending; the overall rate on two scales."""
        return {
            "instruction_following": 1 + 4 * len(self.used) // len(self.requested),
            "truthfulness": max(1, 5 - len(set(self.nouns) - set(self.requested))),
            "honesty": 5 if self.ends else 2,
            "helpfulness": int(self.rate),
            "overall": int(2 * self.rate),
        }

    @property
    def rationale(self) -> str:
        """Reasons as text, such as "uses fox, not kite; ends properly"."""
        missing = [noun for noun in self.requested if noun not in self.nouns]
        used = f"uses {' and '.join(self.used)}" if self.used else "uses nothing that was asked for"
        without = f", not {' or '.join(missing)}" if self.used and missing else ""
        return f"{used}{without}; {'ends properly' if self.ends else 'has no ending'}"


async def _models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": NAME, "object": "model"}]})


async def _chat(request: web.Request) -> web.Response:
    """A chat completion in OpenAI's format; `usage` counts words."""
    try:
        messages = (await request.json())["messages"]
        text = judgment(messages)
        num_prompt, num_completion = sum(len(message["content"].split()) for message in messages), len(text.split())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return web.json_response({"error": {"message": f"The rules cannot rate this: {error}."}}, status=400)
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
    }
    return web.json_response({"object": "chat.completion", "model": NAME, "choices": [choice], "usage": usage})
