"""Supervised fine-tuning: the negative log-likelihood of target tokens (Zephyr, arXiv 2310.16944, equation 1)."""

from zephyr_jax.batch import TokenBatch
from zephyr_jax.mean import WeightedMean
from zephyr_jax.objective.example_loss import ExampleLoss
from zephyr_jax.objective.logprob import SegmentLogProb


def sft_loss(policy: SegmentLogProb, batch: TokenBatch, options: None) -> ExampleLoss:
    """Nats of each conversation, weighted by target tokens, so that all tokens of a step count alike. No further metrics."""
    return ExampleLoss(WeightedMean(-policy.sum, policy.num_targets), {})
