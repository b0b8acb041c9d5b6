"""One optimizer step: gradients of loss sums over microbatches, one division by the global weight, one update or none.

Losses stay sums until the end, so k microbatches give exactly the gradient of one large batch, however unevenly tokens or
pairs are distributed over them, and the logged loss is the loss that was optimized.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from zephyr_jax.batch import Batch
from zephyr_jax.checkpoint.frozen import merge
from zephyr_jax.config.training_sections import AnomalyOptions
from zephyr_jax.mean import Metrics, WeightedMean
from zephyr_jax.model.grad_dtype import SlottedWeight, gradient_slots
from zephyr_jax.objective.example_loss import Objective
from zephyr_jax.objective.logprob import Parameters
from zephyr_jax.train.anomalies import StepFlags, StepLimits, detect
from zephyr_jax.train.state import TrainState

type TrainStep = Any
"""A jitted (state, batch, limits) -> (next state, metrics, flags)."""


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformationExtraArgs,
    rate: optax.Schedule,
    shardings: TrainState,
    anomaly: AnomalyOptions,
    grad_dtype: str = "float32",
) -> TrainStep:
    """A jitted training step. The state is donated: its buffers become those of the next state.

    Args:
        objective: (weights, microbatch) -> loss and metrics, as undivided sums.
        optimizer: Of `make_optimizer`.
        rate: Learning rate by step, for the metrics.
        shardings: Of the state.
        anomaly: Policies; a skipped step returns weights and moments bit-identical.
        grad_dtype: Dtype in which the backward pass of one microbatch stores gradients; sums over microbatches and everything
            after are float32.

    Returns:
        (state, batch [A, B, ...], limits) -> (next state, metrics, flags).
    """

    def step(state: TrainState, batch: Any, limits: StepLimits) -> tuple[TrainState, Metrics, StepFlags]:
        def trainable_objective(trainable: Parameters, microbatch: Any) -> tuple[WeightedMean, Metrics]:
            return objective(merge(trainable, state.frozen), microbatch)

        totals, metrics = accumulate(trainable_objective, state.trainable, batch, shardings.trainable, grad_dtype)
        weight = jnp.maximum(metrics["loss"].weight, 1)  # a count: 0 (no targets) or at least 1
        grads = jax.tree.map(lambda total: total.astype(jnp.float32) / weight, totals)
        one = jnp.float32(1)
        metrics["grad_norm"] = WeightedMean(optax.tree.norm(grads), one)
        metrics["learning_rate"] = WeightedMean(jnp.asarray(rate(state.step), jnp.float32), one)
        flags = detect(anomaly, metrics, limits)
        updates, optimizer_state = optimizer.update(
            grads, state.optimizer_state, state.trainable, skipped=flags.skipped, halted=flags.halted
        )
        # A select of the old value, not an update multiplied by 0: NaN * 0 is NaN.
        trainable = jax.tree.map(
            lambda old, update: jnp.where(flags.skipped, old, old + update), state.trainable, updates
        )
        next_state = TrainState(
            step=jnp.where(flags.halted, state.step, state.step + 1),
            trainable=trainable,
            frozen=state.frozen,
            optimizer_state=optimizer_state,
        )
        return next_state, metrics, flags._replace(changed=_changed_fraction(state.trainable, trainable))

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None, None))


def _changed_fraction(old: Parameters, new: Parameters) -> Array:
    """Fraction of weights whose bits differ."""
    counts = jax.tree.map(lambda x, y: jnp.sum(x != y, dtype=jnp.float32), old, new)
    size = float(sum(leaf.size for leaf in jax.tree.leaves(old)))  # exceeds int32 from 2.1 billion weights on
    return jax.tree.reduce(jnp.add, counts) / size


def accumulate(
    objective: Objective, parameters: Parameters, batch: Any, shardings: Any, grad_dtype: str = "float32"
) -> tuple[Parameters, Metrics]:
    """Gradient of the loss sum over all microbatches (not yet divided), and all metrics including `loss`.

    Args:
        objective: (parameters, microbatch) -> loss and metrics.
        parameters: The weights to differentiate.
        batch: Arrays [A, B, ...]: A microbatches of B rows.
        shardings: Of `parameters`. Gradients are constrained to them, so that no device ever holds more than its shard.
        grad_dtype: Dtype of the gradients of one microbatch; with several they are summed in float32.
    """
    slotted = partial(jax.tree.map, SlottedWeight, parameters)

    def loss_sum(parameters: Parameters, microbatch: Any) -> tuple[Array, Metrics]:
        loss, metrics = objective(parameters, microbatch)
        return loss.sum, {"loss": loss, **metrics, **_counts(microbatch)}

    def gradient(microbatch: Any) -> tuple[Parameters, Metrics]:
        slots = gradient_slots(parameters, grad_dtype)
        gradients, metrics = jax.grad(lambda at: loss_sum(slotted(at), microbatch), has_aux=True)(slots)
        return jax.lax.with_sharding_constraint(gradients, shardings), metrics

    microbatches = batch.rows.tokens.shape[0]
    first = jax.tree.map(lambda leaf: leaf[0], batch)
    if microbatches == 1:
        return gradient(first)

    def add(total: tuple[Parameters, Metrics], microbatch: Any) -> tuple[Parameters, Metrics]:
        result: tuple[Parameters, Metrics] = jax.tree.map(jnp.add, total, gradient(microbatch))
        return result

    def body(total: tuple[Parameters, Metrics], microbatch: Any) -> tuple[tuple[Parameters, Metrics], None]:
        is_present = jnp.any(microbatch.rows.segments > 0)  # the last microbatches of a small step may be empty
        return jax.lax.cond(is_present, add, lambda total, _: total, total, microbatch), None

    shapes = jax.eval_shape(gradient, first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)
    zeros = jax.lax.with_sharding_constraint(zeros[0], shardings), zeros[1]
    return jax.lax.scan(body, zeros, batch)[0]


def _counts(microbatch: Batch) -> Metrics:
    rows = microbatch.rows
    slots = jnp.float32(rows.tokens.size)
    tokens = jnp.sum(rows.segments > 0, dtype=jnp.float32)
    targets = jnp.sum(rows.targets, dtype=jnp.float32)
    return {"padding": WeightedMean(slots - tokens, slots), "targets": WeightedMean(targets, tokens)}
