"""Preference statistics from a model's log-probs of pairs: accuracy, margins and calibration, overall and by group.

The reward of an answer is beta times its log-ratio to the reference (arXiv 2305.18290, equation 5), or without a reference beta
times its log-prob; sigmoid of the difference is the chance that chosen is the better one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_BINS = 10


@dataclass(frozen=True)
class Group:
    """The numbers of some pairs."""

    name: str
    pairs: int
    accuracy: float
    """Share of pairs whose chosen answer has the larger reward; ties count half."""
    error: float
    """Standard error of that."""
    margin: float
    """Mean difference of the rewards."""
    calibration: float
    """Expected calibration error: how far stated confidence is from accuracy, weighted over ten bins of confidence."""


def group_of(name: str, margins: np.ndarray) -> Group:
    """The numbers of pairs with these reward margins, float [n]."""
    right = np.where(margins > 0, 1.0, np.where(margins == 0, 0.5, 0.0))
    error = float(np.sqrt(right.var() / len(right)))
    return Group(name, len(margins), float(right.mean()), error, float(margins.mean()), calibration_error(margins))


def calibration_error(margins: np.ndarray) -> float:
    """Expected calibration error of |margin| as confidence that its sign is right (arXiv 1706.04599)."""
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    right = np.where(margins > 0, 1.0, np.where(margins == 0, 0.5, 0.0))
    bins = np.minimum(((confidence - 0.5) * 2 * _BINS).astype(int), _BINS - 1)
    total = 0.0
    for index in range(_BINS):
        inside = bins == index
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return float(total)


def groups_by_length(lengths: np.ndarray, margins: np.ndarray) -> list[Group]:
    """A group for each bucket of the answers' lengths in tokens, the shortest first; bounds are powers of two."""
    top = 2 ** np.ceil(np.log2(np.maximum(lengths, 1))).astype(int)
    names = {size: f"chosen of {size // 2 + 1 if size > 1 else 1} to {size} tokens" for size in np.unique(top).tolist()}
    return [group_of(name, margins[top == size]) for size, name in names.items()]


def groups_by(names: Sequence[str], margins: np.ndarray) -> list[Group]:
    """A group for each name, the largest first."""
    labels = np.array(names)
    groups = [group_of(str(name), margins[labels == name]) for name in np.unique(labels)]
    return sorted(groups, key=lambda group: -group.pairs)


def longer_wins(counts: np.ndarray, margins: np.ndarray) -> float:
    """Share of pairs in which the answer with the larger reward is the longer one; counts int [n, 2], chosen and rejected.

    Near one half for a model that does not judge by length. Pairs of equal length or reward count half.
    """
    longer, preferred = np.sign(counts[:, 0] - counts[:, 1]), np.sign(margins)
    return float(np.mean(0.5 + 0.5 * longer * preferred))
