"""How well a judge agrees with recorded judgments of the same answers."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import StatisticsError, correlation, fmean


@dataclass(frozen=True)
class Agreement:
    """Statistics of two judges' scores of the same items."""

    compared: int
    unrated: int
    """Excluded: one of the two has no score."""
    same: float
    """Fraction of equal verdicts."""
    error: float
    """Standard error of `same`."""
    distance: float
    """Mean absolute difference of the scores."""
    correlation: float
    """Pearson's; NaN if one of the two is constant."""

    def to_json(self) -> str:
        """As JSON, with null for NaN."""
        content = {name: None if value != value else value for name, value in asdict(self).items()}
        return json.dumps(content, indent=2) + "\n"

    def report(self) -> str:
        """As a Markdown table."""
        excluded = f" ({self.unrated:,} without a score excluded)" if self.unrated else ""
        return "\n".join(
            [
                "| agreement with the recorded judgments | |",
                "|---|---|",
                f"| compared | {self.compared:,}{excluded} |",
                f"| same verdict | {self.same:.1%} ± {self.error:.1%} |",
                f"| mean distance | {self.distance:.3f} |",
                f"| correlation | {self.correlation:.3f} |",
            ]
        )


def agreement(recorded: Sequence[float], new: Sequence[float], verdicts: Sequence[Sequence[float]] = ()) -> Agreement:
    """Compare two lists of scores.

    Args:
        recorded: Scores of the recorded judge; NaN without one.
        new: Scores of the new judge for the same items.
        verdicts: Two lists of verdicts for `Agreement.same`; default: the scores.
    """
    first, second = verdicts or (recorded, new)
    rows = [row for row in zip(recorded, new, first, second, strict=True) if not math.isnan(row[0] + row[1])]
    if not rows:
        return Agreement(0, len(recorded), math.nan, math.nan, math.nan, math.nan)
    same = fmean(float(one == other) for *_, one, other in rows)
    try:
        pearson = correlation([row[0] for row in rows], [row[1] for row in rows])
    except StatisticsError:
        pearson = math.nan
    return Agreement(
        compared=len(rows),
        unrated=len(recorded) - len(rows),
        same=same,
        error=math.sqrt(same * (1 - same) / len(rows)),
        distance=fmean(abs(row[0] - row[1]) for row in rows),
        correlation=pearson,
    )
