"""Anomalous steps: detected on the device, where the update can still be skipped; logged and acted upon on the host.

A step is judged by its own loss, gradient norm and reward margin, and by earlier losses, which the host knows. The host reads
the numbers of a step only after it dispatched the next one. An anomaly that stops the run is therefore passed on to that next
step, which then changes nothing either: the host finds the state from right before the anomalous step.
"""

import math
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from zephyr_jax.config.training_sections import AnomalyOptions
from zephyr_jax.mean import WeightedMean

_MIN_LOSSES = 10  # before a loss can be called a spike
_MIN_CHANGED = 0.01  # fraction of weights that an update of a useful size changes, at least


class StepLimits(NamedTuple):
    """Inputs of a step from the host. Scalars."""

    loss: Any
    """float32; a larger loss is a spike."""
    halted: Any
    """bool; the run stops at an earlier step, so nothing may change any more."""


class StepFlags(NamedTuple):
    """What a step detected. Bool scalars, except `changed`."""

    non_finite: Any
    spike: Any
    limits: dict[str, Any]
    """By kind of `AnomalyOptions.LIMITS`."""
    skipped: Any
    """The update was not applied."""
    changed: Any
    """float32: fraction of weights whose value changed."""
    halted: Any
    """The run stops at this step or stopped before it."""


@dataclass(frozen=True)
class Anomaly:
    """One problem of a step."""

    kind: str
    policy: str
    text: str


def policies(options: AnomalyOptions) -> dict[str, str]:
    """Kind of an anomaly that the device detects -> `stop`, `skip` or `continue`."""
    return {kind: getattr(options, kind) for kind in ("non_finite", "spike", *options.LIMITS)}


def detect(options: AnomalyOptions, metrics: dict[str, WeightedMean], limits: StepLimits) -> StepFlags:
    """Flags of a step, on the device; `changed` is not known yet and 0.

    Args:
        options: Policies and thresholds.
        metrics: With `loss`, `grad_norm` and those of `options.LIMITS`.
        limits: Of this step.
    """
    loss, grad_norm = metrics["loss"].value, metrics["grad_norm"].value
    detected: dict[str, Array] = {
        "non_finite": ~(jnp.isfinite(loss) & jnp.isfinite(grad_norm)),
        "spike": loss > limits.loss,
    }
    beyond = {
        kind: jnp.abs(metrics[name].value) > getattr(options, f"{kind}_limit")
        for kind, name in options.LIMITS.items()
        if name in metrics
    }
    detected |= beyond
    halted, skipped = limits.halted, limits.halted
    by_kind = policies(options)
    for kind, flag in detected.items():
        halted |= flag & (by_kind[kind] == "stop")
        skipped |= flag & (by_kind[kind] != "continue")
    return StepFlags(
        non_finite=detected["non_finite"],
        spike=detected["spike"],
        limits=beyond,
        skipped=skipped,
        changed=jnp.float32(0),
        halted=halted,
    )


class AnomalyDetector:
    """The host's part. `state` and `saved` carry it through checkpoints as plain JSON.

    Args:
        options: Policies and thresholds.
        saved: `state` of the detector that is resumed.
        peak_rate: Peak of the learning rate. Below a hundredth of it, weights may stay the same.
    """

    def __init__(self, options: AnomalyOptions, saved: dict[str, Any] | None = None, peak_rate: float = 0.0):
        self._options, self._min_rate = options, peak_rate / 100
        self._losses: list[tuple[int, float]] = [(step, loss) for step, loss in (saved or {}).get("losses", [])]
        self._unchanged: int = (saved or {}).get("unchanged", 0)

    @property
    def state(self) -> dict[str, Any]:
        """Losses of the last steps, and the number of consecutive steps that changed no weights."""
        return {"losses": self._losses, "unchanged": self._unchanged}

    def loss_limit(self, step: int) -> np.float32:
        """The largest loss of step `step + 1` that is not a spike.

        Computed from the losses before `step`: whether that of `step` itself is known depends on when the run was saved, and
        the limit must not.
        """
        past = [loss for number, loss in self._losses if number < step][-self._options.spike_window :]
        if len(past) < _MIN_LOSSES:
            return np.float32(np.inf)
        middle = median(past)
        return np.float32(middle + (self._options.spike_factor - 1) * abs(middle))

    def check(
        self, step: int, metrics: dict[str, WeightedMean], flags: StepFlags, loss_limit: np.float32
    ) -> list[Anomaly]:
        """Anomalies of a step; to be called for every step, in order.

        Args:
            step: Its number, from 1.
            metrics: On the host.
            flags: On the host.
            loss_limit: That the step was given.
        """
        loss = float(metrics["loss"].sum) / max(float(metrics["loss"].weight), 1.0)
        if math.isfinite(loss):
            earlier = [(number, value) for number, value in self._losses if number < step]  # a step may be repeated
            self._losses = [*earlier, (step, loss)][-self._options.spike_window - 1 :]
        rate = float(metrics["learning_rate"].value)
        previous = self._unchanged
        if flags.changed >= _MIN_CHANGED:
            self._unchanged = 0
        elif rate >= self._min_rate:
            self._unchanged += 1
        detected = {"non_finite": flags.non_finite, "spike": flags.spike, **flags.limits}
        by_kind = policies(self._options)
        anomalies = [
            Anomaly(kind, by_kind[kind], self._describe(kind, metrics, loss_limit))
            for kind, flag in detected.items()
            if flag
        ]
        if previous < self._unchanged == self._options.stalled_steps:
            text = (
                f"stalled weights (fewer than {_MIN_CHANGED:.0%} changed in each of {self._unchanged} steps, "
                f"learning_rate={rate:.3g})"
            )
            anomalies.append(Anomaly("stalled", self._options.stalled, text))
        return anomalies

    def _describe(self, kind: str, metrics: dict[str, WeightedMean], loss_limit: np.float32) -> str:
        if not metrics["loss"].weight:
            return "no target tokens in the batch"
        loss, grad_norm = float(metrics["loss"].value), float(metrics["grad_norm"].value)
        if kind == "non_finite":
            name = "gradient" if math.isfinite(loss) else "loss"
            return f"non-finite {name} (loss={loss:g}, grad_norm={grad_norm:g})"
        if kind == "spike":
            factor = self._options.spike_factor
            return f"loss spike (loss={loss:g}, limit={float(loss_limit):g}, {factor:g} x the median of earlier steps)"
        name, limit = self._options.LIMITS[kind], getattr(self._options, f"{kind}_limit")
        return f"{kind} out of range ({name}={float(metrics[name].value):g}, limit={limit:g})"


def not_halted(sharding: Any) -> Array:
    """`StepLimits.halted` of a run's first step."""
    flag: Array = jax.device_put(np.bool_(False), sharding)
    return flag
