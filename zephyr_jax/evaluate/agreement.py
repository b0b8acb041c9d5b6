"""How well a judge agrees with what was recorded of another, on the very same answers."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import StatisticsError, correlation, fmean


@dataclass(frozen=True)
class Agreement:
    """Two judges' numbers for the same things, compared."""

    compared: int
    unrated: int
    """Left out: one of the two gave no number."""
    same: float
    """Share of verdicts that are the same, 0 to 1."""
    error: float
    """Standard error of that."""
    distance: float
    """Mean difference of the numbers, without its sign."""
    correlation: float
    """Pearson's; NaN where one of the two always says the same."""

    def written(self) -> str:
        """As JSON, in which NaN has no place."""
        content = {name: None if value != value else value for name, value in asdict(self).items()}
        return json.dumps(content, indent=2) + "\n"

    def report(self) -> str:
        """A table for people."""
        left_out = f" ({self.unrated:,} without a number left out)" if self.unrated else ""
        return "\n".join(
            [
                "| agreement with the recorded judgments | |",
                "|---|---|",
                f"| compared | {self.compared:,}{left_out} |",
                f"| same verdict | {self.same:.1%} ± {self.error:.1%} |",
                f"| mean distance | {self.distance:.3f} |",
                f"| correlation | {self.correlation:.3f} |",
            ]
        )


def agreement(recorded: Sequence[float], anew: Sequence[float], verdicts: Sequence[Sequence[float]] = ()) -> Agreement:
    """Compare two lists of numbers, place by place; NaN where there was none.

    `verdicts`, two lists as long, are what has to be the same; without them the numbers themselves are.
    """
    first, second = verdicts or (recorded, anew)
    rows = [
        row for row in zip(recorded, anew, first, second, strict=True) if not (math.isnan(row[0]) or math.isnan(row[1]))
    ]
    if not rows:
        return Agreement(0, len(recorded), math.nan, math.nan, math.nan, math.nan)
    same = fmean(float(one == other) for *_, one, other in rows)
    try:
        together = correlation([row[0] for row in rows], [row[1] for row in rows])
    except StatisticsError:
        together = math.nan
    return Agreement(
        compared=len(rows),
        unrated=len(recorded) - len(rows),
        same=same,
        error=math.sqrt(same * (1 - same) / len(rows)),
        distance=fmean(abs(row[0] - row[1]) for row in rows),
        correlation=together,
    )
