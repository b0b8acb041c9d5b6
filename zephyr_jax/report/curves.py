"""The curves of a run, from the lines of its metrics: which there are, what they are called, and what they are measured in."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zephyr_jax.report.chart import Level, Series, line_chart
from zephyr_jax.report.markup import Markup

type Line = dict[str, float]

LN2 = Level("ln 2", math.log(2))


@dataclass(frozen=True)
class Curve:
    """One picture."""

    title: str
    unit: str
    names: tuple[tuple[str, str], ...]
    """Metric -> what it is called where there are several."""
    share: bool = False
    whole: bool = False
    level: Level | None = None
    colour: int = 0


def curves_of(verb: str, objective: str | None = None) -> list[Curve]:
    """What can be drawn of a run of `sft` or `dpo` (with the loss `objective`); what a run has not measured is left out later."""
    per = "nats per target token" if verb == "sft" else ("nats per pair" if objective == "sigmoid" else "per pair")
    level = LN2 if verb == "dpo" and objective == "sigmoid" else None
    sides = (("chosen", "chosen"), ("rejected", "rejected"))
    return [
        Curve("Loss", per, (("loss", ""),), level=level),
        Curve("Accuracy", "chosen preferred, share of pairs", (("rewards/accuracies", ""),), share=True, whole=True),
        Curve("Margin", "chosen minus rejected reward", (("rewards/margins", ""),)),
        Curve("Rewards", "beta times log-ratio to the reference", _named("rewards", sides), colour=2),
        Curve("Log-probs", "nats per answer", _named("logps", sides), colour=2),
        Curve("Learning rate", "", (("learning_rate", ""),)),
        Curve("Gradient norm", "before clipping", (("grad_norm", ""),)),
        Curve("Padding", "share of a step's token slots", (("padding", ""),), share=True),
        Curve("Throughput", "per second", (("tokens_per_second", "tokens"), ("targets_per_second", "targets")), colour=4),
    ]  # fmt: skip


def curves(lines: Sequence[Line], wanted: Iterable[Curve]) -> list[Markup]:
    """The pictures of those curves that have at least one point."""
    return [found for curve in wanted if (found := _picture(curve, lines)) is not None]


def metric_lines(text: str) -> list[Line]:
    """The numbers in the lines of a metrics file, by step; what is no number of a step is left out."""
    found = [line for each in text.splitlines() if (line := _numbers(each))]
    return sorted(found, key=lambda line: line["step"])


def _numbers(text: str) -> Line:
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError):
        return {}  # a line that a kill cut
    if not isinstance(content, dict):
        return {}
    line = {name: _number(value) for name, value in content.items() if type(value) in (int, float)}
    return line if math.isfinite(line.get("step", math.nan)) else {}


def _number(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _picture(curve: Curve, lines: Sequence[Line]) -> Markup | None:
    single = len(curve.names) == 1
    series = []
    for number, (name, called) in enumerate(curve.names):
        training, held_out = (f"{called} " if called else "") + "training", f"{called} held out".strip()
        alone = not single and not any(f"eval/{each}" in line for each, _ in curve.names for line in lines)
        colour = curve.colour + number
        series.append(_series(lines, name, called if alone else training, colour, dots=False))
        series.append(_series(lines, f"eval/{name}", held_out, curve.colour + 1 if single else colour, dots=True))
    drawn = [each for each in series if len(each.steps)]
    if not drawn:
        return None
    return line_chart(curve.title, curve.unit, drawn, curve.share, curve.whole, curve.level)


def _series(lines: Sequence[Line], metric: str, name: str, colour: int, dots: bool) -> Series:
    points = [(line["step"], line[metric]) for line in lines if metric in line]
    steps, values = np.array(points, np.float64).reshape(-1, 2).T
    return Series(name, steps, values, colour, dots)


def _named(section: str, sides: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple((f"{section}/{side}", called) for side, called in sides)
