"""Supervised fine-tuning: the negative log-likelihood of target tokens (Zephyr, arXiv 2310.16944, equation 1)."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx

from zephyr_jax.batch import TokenBatch
from zephyr_jax.mean import WeightedMean
from zephyr_jax.objective.logprob import Parameters, sequence_logprob

type Metrics = dict[str, WeightedMean]


def sft_objective(
    definition: nnx.GraphDef, segments: int, chunk: int
) -> Callable[[Parameters, TokenBatch], tuple[WeightedMean, Metrics]]:
    """Loss over a microbatch: its sum in nats, weighted by target tokens. No further metrics."""

    def objective(parameters: Parameters, batch: TokenBatch) -> tuple[WeightedMean, Metrics]:
        logprob = sequence_logprob(definition, parameters, batch, segments=segments, chunk=chunk)
        return WeightedMean(-jnp.sum(logprob.sum), jnp.sum(logprob.num_targets)), {}

    return objective
