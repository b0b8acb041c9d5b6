"""What each stage answers to the same prompts, side by side; below each other on a phone."""

from collections.abc import Sequence
from dataclasses import dataclass

from zephyr_jax.report.markup import Markup, element


@dataclass(frozen=True)
class Said:
    """One stage's answer to a prompt."""

    stage: str
    text: str
    ended: bool = True
    """Whether it ended by itself."""


@dataclass(frozen=True)
class Prompt:
    """A prompt with its answers, in the order of the stages."""

    text: str
    answers: tuple[Said, ...]


def side_by_side(prompts: Sequence[Prompt]) -> Markup:
    """All prompts, each with its answers; each text is cut where it is very long, and says so."""
    return element("div", *[_prompt(number, each) for number, each in enumerate(prompts, 1)], class_="prompts")


def _prompt(number: int, prompt: Prompt) -> Markup:
    asked = element("h3", prompt.text, class_="asked", dir="auto")
    answers = element("div", *[_said(each) for each in prompt.answers], class_="answers")
    return element("article", element("span", number, class_="number"), asked, answers)


def _said(said: Said) -> Markup:
    text = said.text if said.text.strip() else element("i", "nothing")
    end = None if said.ended else element("p", "did not end by itself", class_="note")
    return element("section", element("h4", said.stage), element("div", text, class_="said", dir="auto"), end)
