"""From the loss of each example to the objective over a microbatch: a method defines the first, the second is always its sum."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from zephyr_jax.batch import Batch
from zephyr_jax.mean import Metrics, WeightedMean
from zephyr_jax.objective.logprob import Parameters, SegmentLogProb, sequence_logprob

type Objective = Callable[[Parameters, Any], tuple[WeightedMean, Metrics]]
"""(weights, microbatch [B, ...]) -> the loss, and further metrics, each with its own weight."""


class ExampleLoss(NamedTuple):
    """What every example of a microbatch adds. Arrays are float32 [B, P]: P example slots in each of B rows.

    An unused slot has weight 0 and sum 0, and so has an example that a metric does not count.
    """

    loss: WeightedMean
    metrics: Metrics


type LossFunction = Callable[[SegmentLogProb, Any, Any], ExampleLoss]
"""(policy log-probs [B, S], batch, options) -> the losses. It sees the whole microbatch, so it may use statistics over it."""


def make_objective(
    loss_function: LossFunction, definition: nnx.GraphDef[Any], options: Any, *, segments: int, chunk: int
) -> Objective:
    """The sums of `loss_function` over a microbatch.

    Args:
        loss_function: Loss and metrics of each example.
        definition: The decoder's graph.
        options: The loss's settings, passed on.
        segments: Segment slots of a row (S).
        chunk: Target tokens of a device whose logits exist at one time.
    """

    def objective(parameters: Parameters, batch: Batch) -> tuple[WeightedMean, Metrics]:
        policy = sequence_logprob(definition, parameters, batch.rows, segments=segments, chunk=chunk)
        losses = loss_function(policy, batch, options)
        return jax.tree.map(jnp.sum, losses.loss), jax.tree.map(jnp.sum, losses.metrics)

    return objective
