"""Sick steps: seen on the device, where the update can still be left out; told, and acted upon, on the host.

A step is judged by its own loss, gradient norm and reward margin, and by losses that the host has seen. The host reads a
step's numbers only when the next step is on its way, so a sickness that is to stop the run is handed to that next step,
which then changes nothing either: the host finds the state from right before the sick step.
"""

import math
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from zephyr_jax.config.training_sections import AnomalyOptions, PairAnomalyOptions
from zephyr_jax.mean import WeightedMean

_LEAST = 10  # losses before one can be called a spike
_ALIVE = 0.01  # share of weights that an update of a sound size changes, at least
_MARGIN = "rewards/margins"


class Limits(NamedTuple):
    """What a step is told. Scalars."""

    loss: Any
    """float32; a larger loss is a spike."""
    halted: Any
    """bool; the run stops at a step before, so nothing may change any more."""


class Signs(NamedTuple):
    """What a step shows of itself. Bool scalars, but for `changed`."""

    non_finite: Any
    spike: Any
    margin: Any
    left_out: Any
    """Its update was not applied."""
    changed: Any
    """float32: the share of weights that have another value than before."""
    halted: Any
    """The run stops at this step or stopped before it."""


@dataclass(frozen=True)
class Sickness:
    """One thing that is wrong with a step."""

    kind: str
    policy: str
    words: str


def policies(options: AnomalyOptions) -> dict[str, str]:
    """What to do, by kind of sickness that a step shows of itself."""
    found: dict[str, str] = {"non_finite": options.non_finite, "spike": options.spike}
    return found | ({"margin": options.margin} if isinstance(options, PairAnomalyOptions) else {})


def look(options: AnomalyOptions, metrics: dict[str, WeightedMean], limits: Limits) -> Signs:
    """The signs of a step with these metrics, on the device; `changed` is not known yet and 0."""
    loss, norm = metrics["loss"].value, metrics["grad_norm"].value
    seen: dict[str, Array] = {
        "non_finite": ~(jnp.isfinite(loss) & jnp.isfinite(norm)),
        "spike": loss > limits.loss,
        "margin": jnp.bool_(False),
    }
    if isinstance(options, PairAnomalyOptions) and _MARGIN in metrics:
        seen["margin"] = jnp.abs(metrics[_MARGIN].value) > options.margin_limit
    halted, left_out = limits.halted, limits.halted
    for kind, policy in policies(options).items():
        halted |= seen[kind] & (policy == "stop")
        left_out |= seen[kind] & (policy != "continue")
    return Signs(**seen, left_out=left_out, changed=jnp.float32(0), halted=halted)


class Health:
    """What the host remembers of a run's steps. `state` and `saved` carry it through checkpoints as plain JSON."""

    def __init__(self, options: AnomalyOptions, saved: dict[str, Any] | None = None, peak: float = 0.0):
        """`peak` is the schedule's: near its ends, below a hundredth of it, nothing is expected to change."""
        self._options, self._least_rate = options, peak / 100
        self._losses: list[tuple[int, float]] = [(step, loss) for step, loss in (saved or {}).get("losses", [])]
        self._unchanged: int = (saved or {}).get("unchanged", 0)

    @property
    def state(self) -> dict[str, Any]:
        """Losses of the last steps, and for how many of them no weight has changed."""
        return {"losses": self._losses, "unchanged": self._unchanged}

    def most(self, done: int) -> np.float32:
        """The largest loss of step `done + 1` that is no spike.

        Step `done` itself does not count: whether its loss is known already depends on when the run was saved.
        """
        past = [loss for step, loss in self._losses if step < done][-self._options.spike_window :]
        if len(past) < _LEAST:
            return np.float32(np.inf)
        middle = median(past)
        return np.float32(middle + (self._options.spike_factor - 1) * abs(middle))

    def examine(self, step: int, metrics: dict[str, WeightedMean], signs: Signs, most: np.float32) -> list[Sickness]:
        """What is wrong with a step, from its numbers on the host; `most` is what it was told. To be asked in order."""
        loss = float(metrics["loss"].sum) / max(float(metrics["loss"].weight), 1.0)
        if math.isfinite(loss):
            before = [(each, value) for each, value in self._losses if each < step]  # a step may be done again
            self._losses = [*before, (step, loss)][-self._options.spike_window - 1 :]
        stood = self._unchanged
        if signs.changed >= _ALIVE:
            self._unchanged = 0
        elif float(metrics["learning_rate"].value) >= self._least_rate:
            self._unchanged += 1
        found = [
            Sickness(kind, policy, self._words(kind, metrics, most))
            for kind, policy in policies(self._options).items()
            if getattr(signs, kind)
        ]
        if stood < self._unchanged == self._options.stalled_steps:
            rate = float(metrics["learning_rate"].value)
            few = f"fewer than {_ALIVE:.0%} of the weights have changed"
            words = f"{few} in each of {self._unchanged} steps; the learning rate is {rate:.3g}"
            found.append(Sickness("stalled", self._options.stalled, words))
        return found

    def _words(self, kind: str, metrics: dict[str, WeightedMean], most: np.float32) -> str:
        if not metrics["loss"].weight:
            return "it has no targets"
        loss, norm = float(metrics["loss"].value), float(metrics["grad_norm"].value)
        if kind == "non_finite":
            return f"its loss is {loss:g} and its gradient norm {norm:g}"
        if kind == "spike":
            factor = self._options.spike_factor
            return f"its loss is {loss:g}, more than {float(most):g} ({factor:g} times the median of the steps before)"
        return f"its mean reward margin is {float(metrics[_MARGIN].value):g}"


def unhalted(sharding: Any) -> Array:
    """`Limits.halted` of a run's first step."""
    return jax.device_put(np.bool_(False), sharding)
