"""How many there are of each size: counted once into a few numbers that a file can hold, and drawn from those."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from zephyr_jax.report.frame import BOTTOM, LEFT, RIGHT, TOP, Hint, Key, axes, figure
from zephyr_jax.report.markup import Markup, element, joined
from zephyr_jax.report.scale import Scale, spelt, upwards

_BARS = 32
_PRECISE = 1e15  # halves beyond are lost in rounding


@dataclass(frozen=True)
class Counts:
    """Several groups of values over the same bars."""

    edges: tuple[float, ...]
    """One more than there are bars."""
    groups: dict[str, tuple[int, ...]]
    """How many values of each group lie in each bar."""
    medians: dict[str, float]


def counted(groups: Mapping[str, np.ndarray]) -> Counts | None:
    """Finite values of each group, counted; None where there are none at all."""
    good = {name: values[np.isfinite(values)].astype(np.float64) for name, values in groups.items()}
    good = {name: values for name, values in good.items() if len(values)}
    if not good:
        return None
    every = np.concatenate(list(good.values()))
    low, high = float(every.min()), float(every.max())
    whole = bool((every == np.round(every)).all()) and max(abs(low), abs(high)) < _PRECISE
    if whole:  # a bar holds equally many whole numbers
        width = max(1, -(-int(high - low + 1) // _BARS))
        edges = low - 0.5 + width * np.arange(int(high - low) // width + 2)
    else:
        edges = np.linspace(low, high if high > low else low + max(1, abs(low) / 1000), _BARS + 1)
    counts = {name: tuple(np.histogram(values, edges)[0].tolist()) for name, values in good.items()}
    return Counts(tuple(edges.tolist()), counts, {name: float(np.median(values)) for name, values in good.items()})


def counts_from(content: Any) -> Counts:
    """The same from what `asdict` and JSON made of it. Raises ValueError where it is something else."""
    try:
        edges = tuple(float(edge) for edge in content["edges"])
        groups = {str(name): tuple(int(each) for each in counts) for name, counts in content["groups"].items()}
        medians = {name: float(content["medians"][name]) for name in groups}
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"it holds no counts ({error})") from error
    if any(len(counts) + 1 != len(edges) for counts in groups.values()) or sorted(set(edges)) != list(edges):
        raise ValueError("its bars and edges do not fit")
    return Counts(edges, groups, medians)


def histogram(title: str, unit: str, counts: Counts) -> Markup:
    """Bars from zero, those of all groups beside each other."""
    edges = np.array(counts.edges)
    most = max((max(group, default=0) for group in counts.groups.values()), default=0)
    x = _along(edges)
    y = upwards(np.array([0.0, max(most, 1)]), BOTTOM, TOP)
    places = x.place(edges)
    bars = [
        _bar(places[bar], places[bar + 1], float(y.place(np.array(group[bar]))), each, len(counts.groups))
        for each, group in enumerate(counts.groups.values())
        for bar in range(len(edges) - 1)
        if group[bar]
    ]
    keys = [
        Key(name, _colour(each, len(counts.groups)), f"median {spelt(counts.medians[name])} of {sum(group):,}", "bar")
        for each, (name, group) in enumerate(counts.groups.items())
    ]
    hints = [Hint(places[bar], places[bar + 1], _told(counts, bar)) for bar in range(len(edges) - 1)]
    summary = f"{title}: " + "; ".join(f"{key.name} {key.value}" for key in keys)
    return figure(title, unit, keys, summary, joined(axes(x, y), *bars), hints)


def _along(edges: np.ndarray) -> Scale:
    rounded = upwards(edges, LEFT, RIGHT, most=5)
    inside = tuple(tick for tick in rounded.ticks if edges[0] <= tick <= edges[-1])
    return Scale(float(edges[0]), float(edges[-1]), LEFT, RIGHT, inside)


def _bar(left: float, right: float, top: float, each: int, groups: int) -> Markup:
    """The bar of the group `each` of so many, which share the room from left to right."""
    room = (right - left) * 0.9
    return element(
        "rect", x=f"{left + (right - left) * 0.05 + room * each / groups:.2f}", y=f"{top:.1f}",
        width=f"{room / groups:.2f}", height=f"{BOTTOM - top:.1f}", class_=f"bar c{_colour(each, groups)}",
    )  # fmt: skip


def _colour(each: int, groups: int) -> int:
    """Chosen and rejected have the colours that their curves have."""
    return each + 2 if groups == 2 else each


def _told(counts: Counts, bar: int) -> str:
    low, high = counts.edges[bar], counts.edges[bar + 1]
    if low % 1 == 0.5 and high % 1 == 0.5:  # around whole numbers
        first, last = f"{low + 0.5:,.0f}", f"{high - 0.5:,.0f}"
        where = first if first == last else f"{first} to {last}"
    else:
        where = f"{spelt(low)} to {spelt(high)}"
    return "\n".join([where, *(f"{name} {group[bar]:,}" for name, group in counts.groups.items())])
