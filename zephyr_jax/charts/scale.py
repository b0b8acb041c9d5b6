"""Axes: a range of numbers mapped to a range of the picture, with round ticks; and numbers as text."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SMALLEST = 1e-300
_PREFIXES = ((1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k"))
"""A tick of at least the first number is shown in units of the second."""

type Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scale:
    """Maps numbers from `low` to `high` to positions from `start` to `end`, in SVG units."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def position(self, values: Floats) -> Floats:
        """Positions of the same shape; NaN for numbers that have none."""
        values, low, high = np.asarray(values, np.float64), self.low, self.high
        if self.logarithmic:
            with np.errstate(all="ignore"):
                values, low, high = np.log10(values), math.log10(low), math.log10(high)
        return np.asarray(self.start + (values - low) / (high - low) * (self.end - self.start))


def step_scale(steps: Floats, start: float, end: float, max_ticks: int = 5) -> Scale:
    """A scale that ends exactly at the first and the last step; its ticks are whole numbers."""
    low, high = _range(steps)
    if low == high:
        return Scale(low - 1, high + 1, start, end, (low,))
    return Scale(low, high, start, end, _multiples(low, high, max(1.0, _round_step((high - low) / max_ticks))))


def value_scale(values: Floats, start: float, end: float, max_ticks: int = 4) -> Scale:
    """A scale that ends at round numbers around finite `values`; logarithmic if the largest dwarfs the median."""
    low, high = _range(values)
    if low > 0 and high > 50 * float(np.median(values)):
        return _log_scale(low, high, start, end)
    if high - low <= max(1e-9 * max(abs(low), abs(high)), _SMALLEST):  # constant up to rounding
        low, high = low - (abs(low) * 0.1 or 1), high + (abs(high) * 0.1 or 1)
    step = _round_step((high - low) / max_ticks)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return Scale(low, high, start, end, _multiples(low, high, step))


def fixed_scale(low: float, high: float, start: float, end: float, max_ticks: int = 5) -> Scale:
    """A scale with given ends."""
    return Scale(low, high, start, end, _multiples(low, high, _round_step((high - low) / max_ticks)))


def _range(values: Floats) -> tuple[float, float]:
    return (float(np.min(values)), float(np.max(values))) if len(values) else (0.0, 1.0)


def _log_scale(low: float, high: float, start: float, end: float) -> Scale:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, -(-(last - first) // 5))
    ticks = tuple(10.0**power for power in range(first, last + 1, stride))
    return Scale(10.0**first, 10.0**last, start, end, ticks, logarithmic=True)


def _round_step(minimum: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is at least `minimum`, up to rounding."""
    power = 10.0 ** math.floor(math.log10(minimum))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= minimum * (1 - 1e-9))


def _multiples(low: float, high: float, step: float) -> tuple[float, ...]:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(number * step for number in range(first, last + 1))


def format_number(value: float, percent: bool = False) -> str:
    """Four significant digits with thousands separators, or a percentage."""
    if not math.isfinite(value):
        return {math.inf: "infinite", -math.inf: "-infinite"}.get(value, "NaN")
    if percent:
        return f"{value:.1%}"
    if value and not 1e-3 <= abs(value) < 1e9:
        return _short_exponent(f"{value:.3g}")
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def format_ticks(ticks: tuple[float, ...], percent: bool = False) -> list[str]:
    """Short labels in one unit for all ticks: percent, or k, M, G and T for large numbers."""
    if percent:
        return [f"{100 * tick:.4g}%" for tick in ticks]
    largest = max((abs(tick) for tick in ticks), default=0)
    smallest = min((abs(tick) for tick in ticks if tick), default=0)
    for minimum, unit, letter in _PREFIXES:
        if minimum <= largest < 1e15 and unit / 10 <= smallest:
            return [f"{tick / unit:.4g}{letter}" if tick else "0" for tick in ticks]
    if 1e-2 <= largest < 1e15 or not largest:
        return [_short_exponent(f"{tick:.6g}") for tick in ticks]
    if smallest < largest / 100:  # powers of ten
        return [_short_exponent(f"{tick:.3g}") for tick in ticks]
    power = math.floor(math.log10(largest) + 1e-9)
    return [f"{tick / 10.0**power:.3g}e{power}" if tick else "0" for tick in ticks]


def _short_exponent(text: str) -> str:
    digits, _, power = text.partition("e")
    return f"{digits}e{int(power)}" if power else digits
