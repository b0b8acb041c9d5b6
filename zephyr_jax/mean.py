"""The (sum, weight) pair that every loss and metric is until it is printed: parts add, and one division ends it."""

from typing import Any, NamedTuple

type Array = Any


class WeightedMean(NamedTuple):
    """A mean that has not been divided yet. Both fields are float32 scalars (numpy or JAX), or
    arrays of one shape while the parts of a sum are still apart.

    Microbatches, hosts and evaluation batches are joined by adding fields (`merge`, or any tree-wise addition), so
    the mean over all of them is exact whatever their sizes. `value` is the only division.
    """

    sum: Array
    weight: Array

    def merge(self, other: "WeightedMean") -> "WeightedMean":
        """The mean over both parts."""
        return WeightedMean(self.sum + other.sum, self.weight + other.weight)

    @property
    def value(self) -> Array:
        """sum / weight; not a number where nothing was counted, so that an empty mean is never read as a zero."""
        return self.sum / self.weight


type Metrics = dict[str, WeightedMean]
"""Metrics by name."""
