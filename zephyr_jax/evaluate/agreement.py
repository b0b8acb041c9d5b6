"""Agreement of a judge with recorded judgments of the same answers."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import StatisticsError, correlation, fmean


@dataclass(frozen=True)
class Agreement:
    """Scores of two judges for the same items, compared."""

    compared: int
    unrated: int
    """Items without a score from one of the two; not compared."""
    same: float
    """Share of equal verdicts, 0 to 1."""
    error: float
    """Standard error of `same`."""
    distance: float
    """Mean absolute difference of the scores."""
    correlation: float
    """Pearson correlation; NaN where the scores of one judge are all equal."""

    def to_json(self) -> str:
        """JSON text with null for NaN."""
        content = {name: None if value != value else value for name, value in asdict(self).items()}
        return json.dumps(content, indent=2) + "\n"

    def report(self) -> str:
        """A Markdown table."""
        skipped = f" ({self.unrated:,} without a score skipped)" if self.unrated else ""
        return "\n".join(
            [
                "| agreement with the recorded judgments | |",
                "|---|---|",
                f"| compared | {self.compared:,}{skipped} |",
                f"| same verdict | {self.same:.1%} ± {self.error:.1%} |",
                f"| mean distance | {self.distance:.3f} |",
                f"| correlation | {self.correlation:.3f} |",
            ]
        )


def agreement(
    recorded: Sequence[float], repeated: Sequence[float], verdicts: Sequence[Sequence[float]] = ()
) -> Agreement:
    """Compare two lists of scores item by item.

    Args:
        recorded: One score per item; NaN for none.
        repeated: Scores of the same items by the other judge.
        verdicts: Two lists, one verdict per item each, whose equality is counted; default: the scores.
    """
    first, second = verdicts or (recorded, repeated)
    rows = [
        row
        for row in zip(recorded, repeated, first, second, strict=True)
        if not (math.isnan(row[0]) or math.isnan(row[1]))
    ]
    if not rows:
        return Agreement(
            compared=0, unrated=len(recorded), same=math.nan, error=math.nan, distance=math.nan, correlation=math.nan
        )
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
