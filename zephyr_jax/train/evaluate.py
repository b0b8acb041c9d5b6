"""Loss and metrics over a whole split, joined exactly whatever the batch size."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from zephyr_jax.mean import Metrics
from zephyr_jax.objective.example_loss import Objective
from zephyr_jax.objective.logprob import Parameters

type Evaluate = Callable[[Parameters], dict[str, float]]


def make_evaluation(objective: Objective, batches: Callable[[], Iterable[Any]]) -> Evaluate:
    """A function from weights to {name: value} over all of `batches()`, each [A, B, ...] of global arrays."""

    @jax.jit
    def measure(parameters: Parameters, batch: Any) -> Metrics:
        def one(total: Metrics | None, microbatch: Any) -> Metrics:
            loss, metrics = objective(parameters, microbatch)
            found = {"loss": loss, **metrics}
            return found if total is None else jax.tree.map(jnp.add, total, found)

        total = None
        for index in range(jax.tree.leaves(batch)[0].shape[0]):
            total = one(total, jax.tree.map(lambda leaf, index=index: leaf[index], batch))
        return total or {}

    def evaluate(parameters: Parameters) -> dict[str, float]:
        total: Metrics = {}
        for batch in batches():
            found = jax.device_get(measure(parameters, batch))
            total = {name: mean.merge(total[name]) if total else mean for name, mean in found.items()}
        return {name: float(mean.value) for name, mean in total.items()}

    return evaluate
