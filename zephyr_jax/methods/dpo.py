"""dDPO: direct preference optimization against a frozen reference (arXiv 2305.18290; arXiv 2310.16944, section 3)."""

import math

from zephyr_jax.batch import PairBatch
from zephyr_jax.config.training import DpoConfig
from zephyr_jax.config.training_sections import DpoOptions
from zephyr_jax.data.segments import PREFERENCE
from zephyr_jax.methods.base import Curve, Method, Options
from zephyr_jax.objective.dpo import dpo_loss


def _curves(options: Options) -> tuple[Curve, ...]:
    """A policy that equals its reference has the sigmoid loss -log sigmoid(0) = ln 2; other losses are not in nats."""
    sigmoid = options.get("loss") == "sigmoid"
    return (
        Curve(
            title="Loss",
            unit="nats per pair" if sigmoid else "per pair",
            metrics=(("loss", ""),),
            level=("ln 2", math.log(2)) if sigmoid else None,
        ),
        Curve(
            title="Accuracy",
            unit="chosen above rejected, share of pairs",
            metrics=(("rewards/accuracies", ""),),
            percent=True,
            unit_range=True,
        ),
        Curve(title="Margin", unit="chosen minus rejected reward", metrics=(("rewards/margins", ""),)),
        Curve(
            title="Rewards",
            unit="beta times log-ratio to the reference",
            metrics=tuple((f"rewards/{side}", side) for side in PREFERENCE.segments),
            color=2,
        ),
        Curve(
            title="Log-probs",
            unit="nats per answer",
            metrics=tuple((f"logps/{side}", side) for side in PREFERENCE.segments),
            color=2,
        ),
    )


def _reference_free_metrics(metrics: dict[str, float], options: DpoOptions) -> dict[str, float]:
    """Which answer the model itself finds likelier, and by how many nats."""
    return {
        "accuracy": metrics["rewards/accuracies"],
        "margin": metrics["rewards/margins"] / options.beta,
        "logps/chosen": metrics["logps/chosen"],
        "logps/rejected": metrics["logps/rejected"],
    }


DPO = Method(
    name="dpo",
    title="dDPO",
    description="direct preference optimization (dDPO)",
    config=DpoConfig,
    examples=PREFERENCE,
    row_column="chosen",
    batch=PairBatch,
    loss=dpo_loss,
    options="dpo",
    uses_reference=True,
    reference_free_metrics=_reference_free_metrics,
    curves=_curves,
    metric_titles={
        "loss": "loss",
        "rewards/accuracies": "accuracy",
        "rewards/margins": "margin",
        "rewards/chosen": "chosen reward",
        "rewards/rejected": "rejected reward",
        "logps/chosen": "log-prob of chosen",
        "logps/rejected": "log-prob of rejected",
    },
    headline_metrics=("rewards/accuracies", "rewards/margins"),
    card_settings=("loss", "beta"),
    inherited_settings=("data.max_prompt_length",),
)
