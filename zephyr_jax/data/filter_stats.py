"""What rows were skipped or truncated on the way to examples: counts by reason with shares of rows and tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zephyr_jax.errors import InputError

_REASONS = 20
_ROUNDING = 1e-9
OTHER = "other reasons"
"""Stands for all reasons beyond the most frequent ones."""


@dataclass(frozen=True)
class ReasonCount:
    """Rows that share a reason."""

    rows: int
    row_share: float
    """Of all rows of the source."""
    token_share: float
    """Tokens that are lost with them, of all tokens of the source."""


@dataclass(frozen=True)
class FilterStats:
    """All skipped and truncated rows of a source."""

    rows: int = 0
    """Rows of the source."""
    skipped: Mapping[str, ReasonCount] = field(default_factory=dict)
    """Reason -> rows that cannot be used; the most frequent reason first."""
    truncated: Mapping[str, ReasonCount] = field(default_factory=dict)
    """Reason -> rows that were cut to fit; their token shares are of the tokens that were cut off."""

    @property
    def skipped_rows(self) -> float:
        """Share of rows that were skipped."""
        return sum(count.row_share for count in self.skipped.values())

    @property
    def lost_tokens(self) -> float:
        """Share of tokens that were skipped or cut off."""
        return sum(count.token_share for count in (*self.skipped.values(), *self.truncated.values()))

    def exceeds(self, limit: float) -> bool:
        """Whether more than `limit` of the rows were skipped, or of the tokens skipped or cut off."""
        return max(self.skipped_rows, self.lost_tokens) > limit + _ROUNDING

    def check(self, name: str, limit: float) -> None:
        """Raise InputError with the reasons and their counts where `exceeds(limit)`; `name` is the source's."""
        if self.exceeds(limit):
            raise InputError(
                f"{name}: {self.describe()}. That is more than data.max_skipped_fraction {limit:g}. Fix the rows or the settings "
                "that skip and cut them (data.max_length, data.max_prompt_length, data.chat_template), or raise "
                "data.max_skipped_fraction. To look at the rows: zephyr-jax preview."
            )

    def warning(self, limit: float) -> str:
        """A sentence if training would stop, see `exceeds`; else empty."""
        return f"{self.describe()}. Above {limit:g}, training stops." if self.exceeds(limit) else ""

    def describe(self) -> str:
        """One sentence with shares, counts and reasons."""
        parts = [
            f"{count.rows:,} {outcome} ({count.token_share:.1%} of the tokens): {reason}"
            for outcome, reasons in (("skipped", self.skipped), ("cut", self.truncated))
            for reason, count in reasons.items()
        ]
        skipped = sum(count.rows for count in self.skipped.values())
        return (
            f"{skipped:,} of {self.rows:,} rows ({self.skipped_rows:.1%}) are skipped, and {self.lost_tokens:.1%} of the "
            f"tokens are skipped or cut off: {'; '.join(parts)}"
        )

    def record(self) -> dict[str, Any]:
        """As JSON: `skipped` and `truncated`, each a mapping reason -> rows, row_share, token_share."""
        return {
            name: {reason: vars(count) for reason, count in reasons.items()}
            for name, reasons in (("skipped", self.skipped), ("truncated", self.truncated))
        }


def filter_stats(
    problems: Sequence[str], overlong: Sequence[str], characters: np.ndarray, tokens: np.ndarray, kept: np.ndarray
) -> FilterStats:
    """Counts and shares of a source.

    Rows that could not be tokenized count by their characters, at as many tokens per character as the others have.

    Args:
        problems: Why each row cannot be used; empty where it can.
        overlong: Why each row was cut; empty where it was not.
        characters: int64 [N]: characters of each row's texts.
        tokens: int64 [N]: tokens of each row before anything was cut off; 0 where it could not be tokenized.
        kept: int64 [N]: tokens of each row that are left.
    """
    known = tokens > 0
    rate = tokens[known].sum() / max(characters[known].sum(), 1)
    sizes = np.where(known, tokens, np.maximum(characters * rate, 1))
    bad = np.array([bool(problem) for problem in problems], bool)
    lost = np.where(bad, sizes, sizes - kept)
    total = float(sizes.sum())
    return FilterStats(
        len(problems),
        _by_reason(problems, lost, total),
        _by_reason(
            ["" if problem else cut for problem, cut in zip(problems, overlong, strict=True)], lost, sizes.sum()
        ),
    )


def _by_reason(reasons: Sequence[str], lost: np.ndarray, total: float) -> dict[str, ReasonCount]:
    counts: dict[str, tuple[int, float]] = {}
    for reason, size in zip(reasons, lost.tolist(), strict=True):
        if reason:
            rows, tokens = counts.get(reason, (0, 0.0))
            counts[reason] = rows + 1, tokens + size
    ranked = sorted(counts.items(), key=lambda item: -item[1][0])
    first, rest = dict(ranked[:_REASONS]), [count for _, count in ranked[_REASONS:]]
    if rest:
        first[OTHER] = sum(rows for rows, _ in rest), sum(tokens for _, tokens in rest)
    return {
        reason: ReasonCount(rows, rows / len(reasons), float(tokens / max(total, 1)))
        for reason, (rows, tokens) in first.items()
    }
