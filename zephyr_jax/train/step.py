"""One optimizer step: gradients of sums over microbatches, one division by the global weight, one update, or none.

Because losses are sums until the end, k microbatches give the gradient of one big batch exactly, however unevenly
tokens or pairs fall on them, and the logged loss is the loss that was optimised.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from zephyr_jax.batch import Batch
from zephyr_jax.config.training_sections import AnomalyOptions
from zephyr_jax.mean import Metrics, WeightedMean
from zephyr_jax.model.grad_dtype import Tapped, taps
from zephyr_jax.objective.example_loss import Objective
from zephyr_jax.objective.logprob import Parameters
from zephyr_jax.train.anomalies import Limits, Signs, look
from zephyr_jax.train.state import TrainState

type Step = Any
"""A jitted (state, batch, limits) -> (next state, metrics, signs)."""


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformationExtraArgs,
    rate: optax.Schedule,
    shardings: TrainState,
    health: AnomalyOptions,
    grad_dtype: str = "float32",
) -> Step:
    """Jitted (state, batch [A, B, ...], limits) -> (next state, metrics, signs); the old state's buffers go to the new one.

    `grad_dtype` is what the backward pass of a microbatch leaves in memory. Sums over microbatches and all that
    follows are float32. A step that `anomaly` says to leave out gives weights and moments back as they were, bit for bit.
    """

    def step(state: TrainState, batch: Any, limits: Limits) -> tuple[TrainState, Metrics, Signs]:
        totals, metrics = accumulate(objective, state.parameters, batch, shardings.parameters, grad_dtype)
        weight = jnp.maximum(metrics["loss"].weight, 1)  # it counts, so it is 0 or at least 1
        gradients = jax.tree.map(lambda total: total.astype(jnp.float32) / weight, totals)
        one = jnp.float32(1)
        metrics["grad_norm"] = WeightedMean(optax.tree.norm(gradients), one)
        metrics["learning_rate"] = WeightedMean(jnp.asarray(rate(state.step), jnp.float32), one)
        signs = look(health, metrics, limits)
        updates, moments = optimizer.update(
            gradients, state.optimizer, state.parameters, left_out=signs.left_out, halted=signs.halted
        )
        parameters = jax.tree.map(
            lambda old, change: jnp.where(signs.left_out, old, old + change), state.parameters, updates
        )
        after = TrainState(jnp.where(signs.halted, state.step, state.step + 1), parameters, moments)
        return after, metrics, signs._replace(changed=_differ(state.parameters, parameters))

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None, None))


def _differ(one: Parameters, other: Parameters) -> Array:
    """The share of weights that are not the same."""
    counts = jax.tree.map(lambda x, y: jnp.sum(x != y, dtype=jnp.float32), one, other)
    size = float(sum(leaf.size for leaf in jax.tree.leaves(one)))  # more than 32 bits hold, from 2.1 billion weights on
    return jax.tree.reduce(jnp.add, counts) / size


def accumulate(
    objective: Objective, parameters: Parameters, batch: Any, shardings: Any, grad_dtype: str = "float32"
) -> tuple[Parameters, Metrics]:
    """Gradient of the loss's sum over all microbatches (not yet divided), and all metrics, `loss` among them.

    Gradients are pinned to the shardings of their weights, so that no device ever holds more than its part. With one
    microbatch they come in `grad_dtype`, else as a float32 sum.
    """
    tapped = partial(jax.tree.map, Tapped, parameters)

    def loss_sum(parameters: Parameters, microbatch: Any) -> tuple[Array, Metrics]:
        loss, metrics = objective(parameters, microbatch)
        return loss.sum, {"loss": loss, **metrics, **_counts(microbatch)}

    def gradient(microbatch: Any) -> tuple[Parameters, Metrics]:
        at = taps(parameters, grad_dtype)
        gradients, metrics = jax.grad(lambda at: loss_sum(tapped(at), microbatch), has_aux=True)(at)
        return jax.lax.with_sharding_constraint(gradients, shardings), metrics

    microbatches = batch.rows.tokens.shape[0]
    first = jax.tree.map(lambda leaf: leaf[0], batch)
    if microbatches == 1:
        return gradient(first)

    def add(total: tuple[Parameters, Metrics], microbatch: Any) -> tuple[Parameters, Metrics]:
        return jax.tree.map(jnp.add, total, gradient(microbatch))

    def body(total: tuple[Parameters, Metrics], microbatch: Any) -> tuple[tuple[Parameters, Metrics], None]:
        present = jnp.any(microbatch.rows.segments > 0)  # the last ones of a small step may be empty
        return jax.lax.cond(present, add, lambda total, _: total, total, microbatch), None

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
