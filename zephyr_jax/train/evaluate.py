"""Loss and metrics over a whole split, exact for every batch size."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from zephyr_jax.mean import Metrics
from zephyr_jax.objective.example_loss import Objective
from zephyr_jax.objective.logprob import Parameters

type Evaluate = Callable[[Parameters], dict[str, float]]


def make_evaluation(objective: Objective, batches: Callable[[], Iterable[Any]]) -> Evaluate:
    """A function from weights to {metric: value} over a split.

    Args:
        objective: (weights, microbatch) -> loss and metrics.
        batches: One pass over the split, as global arrays [A, B, ...].
    """

    @jax.jit
    def evaluate_batch(parameters: Parameters, batch: Any) -> Metrics:
        total: Metrics = {}
        for index in range(jax.tree.leaves(batch)[0].shape[0]):
            loss, metrics = objective(parameters, jax.tree.map(lambda leaf, index=index: leaf[index], batch))
            sums = {"loss": loss, **metrics}
            total = jax.tree.map(jnp.add, total, sums) if total else sums
        return total

    def evaluate(parameters: Parameters) -> dict[str, float]:
        total: Metrics = {}
        for batch in batches():
            sums = jax.device_get(evaluate_batch(parameters, batch))
            total = {name: mean.merge(total[name]) if total else mean for name, mean in sums.items()}
        return {name: float(mean.value) for name, mean in total.items()}

    return evaluate
