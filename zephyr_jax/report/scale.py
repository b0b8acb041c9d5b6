"""A stretch of numbers laid along a stretch of a picture, with round numbers to mark it by."""

import math
from dataclasses import dataclass

import numpy as np

_ROUND = (1, 2, 5, 10)
_SMALLEST = 1e-300
_LETTERS = ((1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k"))


@dataclass(frozen=True)
class Scale:
    """Numbers from `low` to `high` lie between `start` and `end` of the picture."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    """Round numbers inside."""
    logarithmic: bool = False

    def place(self, values: np.ndarray) -> np.ndarray:
        """Where numbers lie in the picture: float64 of the same shape; NaN where they have no place."""
        values = np.asarray(values, np.float64)
        low, high = self.low, self.high
        if self.logarithmic:
            with np.errstate(all="ignore"):
                values, low, high = np.log10(values), math.log10(low), math.log10(high)
        return self.start + (values - low) / (high - low) * (self.end - self.start)


def across(values: np.ndarray, start: float, end: float, most: int = 5) -> Scale:
    """A scale that ends where the whole numbers `values` end."""
    low, high = (float(np.min(values)), float(np.max(values))) if len(values) else (0.0, 1.0)
    if low == high:
        return Scale(low - 1, high + 1, start, end, (low,))
    step = max(1.0, _round_step((high - low) / most))
    return Scale(low, high, start, end, tuple(_multiples(low, high, step)))


def upwards(values: np.ndarray, start: float, end: float, most: int = 4) -> Scale:
    """A scale that ends at round numbers around finite `values`; by powers of ten where a few dwarf all others."""
    low, high = (float(np.min(values)), float(np.max(values))) if len(values) else (0.0, 1.0)
    if low > 0 and high > 50 * float(np.median(values)):
        return _powers(low, high, start, end)
    if high - low <= max(1e-9 * max(abs(low), abs(high)), _SMALLEST):  # as good as constant
        low, high = low - (abs(low) * 0.1 or 1), high + (abs(high) * 0.1 or 1)
    step = _round_step((high - low) / most)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return Scale(low, high, start, end, tuple(_multiples(low, high, step)))


def fixed(low: float, high: float, start: float, end: float, most: int = 5) -> Scale:
    """A scale whose ends are known."""
    return Scale(low, high, start, end, tuple(_multiples(low, high, _round_step((high - low) / most))))


def _powers(low: float, high: float, start: float, end: float) -> Scale:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, -(-(last - first) // 5))
    ticks = tuple(10.0**power for power in range(first, last + 1, every))
    return Scale(10.0**first, 10.0**last, start, end, ticks, logarithmic=True)


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is no smaller."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * each for each in _ROUND if power * each >= least * (1 - 1e-9))


def _multiples(low: float, high: float, step: float) -> list[float]:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def spelt(value: float, share: bool = False) -> str:
    """A number for people: four digits, thousands apart, shares in percent."""
    if not math.isfinite(value):
        return {math.inf: "infinite", -math.inf: "-infinite"}.get(value, "NaN")
    if share:
        return f"{value:.1%}"
    if value and not 1e-3 <= abs(value) < 1e9:
        return _power(f"{value:.3g}")
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def spelt_ticks(ticks: tuple[float, ...], share: bool = False) -> list[str]:
    """Ticks, short: shares in percent, thousands as k, millions as M."""
    if share:
        return [f"{100 * each:.4g}%" for each in ticks]
    largest = max((abs(each) for each in ticks), default=0)
    for least, unit, letter in _LETTERS:
        if least <= largest < 1e15:
            return [f"{each / unit:.4g}{letter}" if each else "0" for each in ticks]
    if 1e-2 <= largest < 1e15 or not largest:
        return [f"{each:.6g}" for each in ticks]
    if min(abs(each) for each in ticks if each) < largest / 100:  # powers of ten
        return [_power(f"{each:.3g}") for each in ticks]
    power = math.floor(math.log10(largest) + 1e-9)
    return [f"{each / 10.0**power:.3g}e{power}" if each else "0" for each in ticks]


def _power(text: str) -> str:
    digits, _, power = text.partition("e")
    return f"{digits}e{int(power)}" if power else digits
