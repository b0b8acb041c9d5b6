"""A method as another package would add it: KTO (arXiv 2402.01306), on single answers with a label, in simple form."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zephyr_jax.batch import Array, TokenBatch
from zephyr_jax.chat.tokenizer import ChatTokenizer, Segment
from zephyr_jax.config.sections import DataOptions
from zephyr_jax.config.training import SftConfig
from zephyr_jax.data.row_formats import RowFormat
from zephyr_jax.data.segments import ExampleKind, tokenize_conversation
from zephyr_jax.data.sources import Rows
from zephyr_jax.mean import WeightedMean
from zephyr_jax.methods.base import Curve, Method, Options
from zephyr_jax.objective.example_loss import ExampleLoss
from zephyr_jax.objective.logprob import SegmentLogProb


@dataclass(frozen=True)
class KtoOptions:
    beta: float = 0.1
    undesirable_weight: float = 1.0


@dataclass(frozen=True)
class KtoConfig(SftConfig):
    kto: KtoOptions = field(default_factory=KtoOptions)
    reference: str = ""


class LabeledBatch(NamedTuple):
    rows: TokenBatch
    reference: Array
    """float32 [B, P]."""
    label: Array
    """bool [B, P]."""
    present: Array
    """bool [B, P]."""


def tokenize_labeled(tokenizer: ChatTokenizer, data: DataOptions, row: Mapping[str, Any]) -> list[Segment]:
    return tokenize_conversation(tokenizer, data, {name: row[name] for name in ("prompt", "completion")})


def labels(rows: Rows, row_indices: np.ndarray) -> dict[str, np.ndarray]:
    return {"label": np.array(rows.values("label"), np.bool_)[row_indices]}


LABELED = ExampleKind(
    name="Labeled answers",
    segments=("answer",),
    formats=(RowFormat("`prompt` + `completion` + `label`", ("prompt", "completion", "label"), dict),),
    required=("prompt", "completion", "label"),
    tokenize=tokenize_labeled,
    columns=labels,
    column_types={"label": (np.bool_, 1)},
)


def kto_loss(policy: SegmentLogProb, batch: LabeledBatch, options: KtoOptions) -> ExampleLoss:
    """Equation 8, with the KL term estimated over the microbatch; every metric has its own weight."""
    ratio = policy.sum - batch.reference
    used = batch.present.astype(jnp.float32)
    kl = jax.lax.stop_gradient(jnp.maximum(jnp.sum(ratio * used) / jnp.maximum(jnp.sum(used), 1), 0))
    sign = jnp.where(batch.label, 1.0, -1.0)
    weight = used * jnp.where(batch.label, 1.0, options.undesirable_weight)
    losses = 1 - jax.nn.sigmoid(options.beta * sign * (ratio - kl))

    def over(mask: Array) -> WeightedMean:
        return WeightedMean(jnp.where(mask, options.beta * ratio, 0.0), mask.astype(jnp.float32))

    metrics = {
        "rewards/desirable": over(batch.present & batch.label),
        "rewards/undesirable": over(batch.present & ~batch.label),
    }
    return ExampleLoss(WeightedMean(jnp.where(batch.present, losses, 0.0) * weight, weight), metrics)


def curves(options: Options) -> tuple[Curve, ...]:
    return (
        Curve(title="Loss", unit="KTO", metrics=(("loss", ""),)),
        Curve(
            title="Labeled rewards",
            unit="beta times log-ratio",
            metrics=(("rewards/desirable", "desirable"), ("rewards/undesirable", "undesirable")),
        ),
    )


def reference_free(metrics: dict[str, float], options: KtoOptions) -> dict[str, float]:
    return {"logps/desirable": metrics["rewards/desirable"] / options.beta}


KTO = Method(
    name="kto",
    title="KTO",
    description="Kahneman-Tversky optimization (KTO)",
    config=KtoConfig,
    examples=LABELED,
    row_column="label",
    batch=LabeledBatch,
    loss=kto_loss,
    options="kto",
    uses_reference=True,
    reference_command="reference kto",
    reference_free_metrics=reference_free,
    curves=curves,
    metric_titles={
        "loss": "loss",
        "rewards/desirable": "desirable reward",
        "rewards/undesirable": "undesirable reward",
    },
    headline_metrics=("rewards/desirable", "rewards/undesirable"),
    card_settings=("beta", "undesirable_weight"),
    inherited_settings=("data.max_prompt_length",),
)
