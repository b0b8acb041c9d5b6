"""Scores by category as a radar picture."""

import io
import math
from collections.abc import Mapping

from matplotlib.figure import Figure

_HIGHEST = 10


def radar(scores: Mapping[str, Mapping[str, float | None]]) -> bytes:
    """A PNG: one closed line for each model, its mean rating of every category on a spoke of its own; gaps count as 0."""
    names = list(dict.fromkeys(name for each in scores.values() for name in each))
    angles = [2 * math.pi * place / len(names) for place in range(len(names))]
    figure = Figure(figsize=(7, 6))
    axes = figure.add_subplot(projection="polar")
    for model, each in scores.items():
        values = [each.get(name) or 0.0 for name in names]
        axes.plot([*angles, angles[0]], [*values, values[0]], label=model, linewidth=1.5)
        axes.fill(angles, values, alpha=0.1)
    axes.set_xticks(angles, names)
    axes.set_ylim(0, _HIGHEST)
    axes.set_title("MT-Bench, mean rating by category", pad=20)
    figure.legend(loc="lower right", frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120, bbox_inches="tight")
    return content.getvalue()
