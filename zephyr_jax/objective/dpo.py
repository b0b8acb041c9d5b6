"""Direct preference optimisation (arXiv 2305.18290) and its family, on log-prob sums of pairs.

Letters: B rows, P pairs of a row. Losses are per pair; callers sum and divide.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from zephyr_jax.batch import PairBatch
from zephyr_jax.config.sections import DpoOptions
from zephyr_jax.mean import WeightedMean
from zephyr_jax.objective.logprob import Parameters, SegmentLogProb, sequence_logprob

type Metrics = dict[str, WeightedMean]


class PairLogRatio(NamedTuple):
    """log policy - log reference of each answer, and the answers' target counts; all float32 [B, P]."""

    chosen: Array
    rejected: Array
    chosen_count: Array
    rejected_count: Array

    @property
    def margin(self) -> Array:
        """How much further the policy moved towards chosen than towards rejected, in nats."""
        return self.chosen - self.rejected


def sigmoid(ratio: PairLogRatio, beta: float, smoothing: float) -> Array:
    """-log sigmoid(beta h), equation 7 of the paper; with smoothing, conservative DPO: labels flip with that chance."""
    right, wrong = _right_and_wrong(ratio, beta)
    return (1 - smoothing) * right + smoothing * wrong


def robust(ratio: PairLogRatio, beta: float, smoothing: float) -> Array:
    """Unbiased under labels that flip with chance `smoothing` (arXiv 2403.00409, equation 13)."""
    right, wrong = _right_and_wrong(ratio, beta)
    return ((1 - smoothing) * right - smoothing * wrong) / (1 - 2 * smoothing)


def ipo(ratio: PairLogRatio, beta: float, smoothing: float) -> Array:
    """(h - 1 / 2 beta)^2 (arXiv 2310.12036, equation 17) with h per token, as its authors advised TRL."""
    h = ratio.chosen / ratio.chosen_count - ratio.rejected / ratio.rejected_count
    return jnp.square(h - 1 / (2 * beta))


def ipo_sum(ratio: PairLogRatio, beta: float, smoothing: float) -> Array:
    """(h - 1 / 2 beta)^2 with h of whole sequences, as the paper and the reference code write it."""
    return jnp.square(ratio.margin - 1 / (2 * beta))


def hinge(ratio: PairLogRatio, beta: float, smoothing: float) -> Array:
    """max(0, 1 - beta h) (SLiC, arXiv 2305.10425, on log-ratios)."""
    return jax.nn.relu(1 - beta * ratio.margin)


def _right_and_wrong(ratio: PairLogRatio, beta: float) -> tuple[Array, Array]:
    return -jax.nn.log_sigmoid(beta * ratio.margin), -jax.nn.log_sigmoid(-beta * ratio.margin)


LOSSES: dict[str, Callable[[PairLogRatio, float, float], Array]] = {
    "sigmoid": sigmoid,
    "ipo": ipo,
    "ipo_sum": ipo_sum,
    "hinge": hinge,
    "robust": robust,
}


def dpo_objective(
    definition: nnx.GraphDef, options: DpoOptions, segments: int, chunk: int
) -> Callable[[Parameters, PairBatch], tuple[WeightedMean, Metrics]]:
    """Loss over a microbatch of pairs, weighted by pairs, with the metrics that TRL's users know.

    `rewards/*` are beta times the log-ratios; accuracy counts strictly larger chosen rewards, so it is 0 at step 0.
    """
    loss_of = LOSSES[options.loss]

    def objective(parameters: Parameters, batch: PairBatch) -> tuple[WeightedMean, Metrics]:
        policy = sequence_logprob(definition, parameters, batch.rows, segments=segments, chunk=chunk)
        ratio = log_ratio(policy, batch)
        losses = loss_of(ratio, options.beta, options.label_smoothing)
        chosen_logp, rejected_logp = policy.sum[:, 0::2], policy.sum[:, 1::2]
        if options.sft_weight:
            losses += options.sft_weight * -chosen_logp / ratio.chosen_count
        values = {
            "rewards/chosen": options.beta * ratio.chosen,
            "rewards/rejected": options.beta * ratio.rejected,
            "rewards/accuracies": (ratio.margin > 0).astype(jnp.float32),
            "rewards/margins": options.beta * ratio.margin,
            "logps/chosen": chosen_logp,
            "logps/rejected": rejected_logp,
        }
        return over_pairs(losses, batch.present), {k: over_pairs(v, batch.present) for k, v in values.items()}

    return objective


def log_ratio(policy: SegmentLogProb, batch: PairBatch) -> PairLogRatio:
    """Ratios of every pair slot; empty slots hold zeros with counts of one, so that nothing divides by zero."""
    ratio = policy.sum - batch.reference
    count = jnp.maximum(policy.num_targets, 1.0)
    return PairLogRatio(ratio[:, 0::2], ratio[:, 1::2], count[:, 0::2], count[:, 1::2])


def over_pairs(values: Array, present: Array) -> WeightedMean:
    """Sum over the pairs that are there, with their number."""
    return WeightedMean(jnp.sum(jnp.where(present, values, 0.0)), jnp.sum(present, dtype=jnp.float32))
