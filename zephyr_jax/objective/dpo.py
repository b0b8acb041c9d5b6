"""Direct preference optimization (arXiv 2305.18290) and its family, on log-prob sums of pairs.

Losses are per pair; callers sum and divide.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from zephyr_jax.batch import PairBatch
from zephyr_jax.config.training_sections import DpoOptions
from zephyr_jax.mean import WeightedMean
from zephyr_jax.objective.example_loss import ExampleLoss
from zephyr_jax.objective.logprob import SegmentLogProb


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


def dpo_loss(policy: SegmentLogProb, batch: PairBatch, options: DpoOptions) -> ExampleLoss:
    """Loss of each pair, all with weight 1, and the metrics that TRL's users know.

    `rewards/*` are beta times the log-ratios; accuracy counts strictly larger chosen rewards, so it is 0 at step 0.
    """
    ratio = log_ratio(policy, batch)
    losses = LOSSES[options.loss](ratio, options.beta, options.label_smoothing)
    chosen_logp, rejected_logp = batch.split(policy.sum)
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
    weight = batch.present.astype(jnp.float32)

    def over_pairs(values: Array) -> WeightedMean:
        return WeightedMean(jnp.where(batch.present, values, 0.0), weight)

    return ExampleLoss(over_pairs(losses), {name: over_pairs(value) for name, value in values.items()})


def log_ratio(policy: SegmentLogProb, batch: PairBatch) -> PairLogRatio:
    """Ratios of every pair slot; empty slots hold zeros with counts of one, so that nothing divides by zero."""
    ratio = batch.split(policy.sum - batch.reference)
    return PairLogRatio(*ratio, *batch.split(jnp.maximum(policy.num_targets, 1.0)))
