"""Optimizer and learning-rate schedule, from optax, with the update rules of PyTorch and Hugging Face."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from zephyr_jax.config.training_sections import OptimizerOptions
from zephyr_jax.train.offload import offload_moments


def learning_rate(options: OptimizerOptions, total: int) -> optax.Schedule:
    """Learning rate of step k = 0, 1, ...: linear warmup from 0, then decay to 0 at `total` steps (or constant)."""
    warmup = math.ceil(options.warmup_ratio * total)
    rest = max(total - warmup, 1)
    peak = options.learning_rate
    shapes = {
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "constant": optax.constant_schedule(peak),
    }
    shape = shapes[options.lr_schedule]
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), shape], [warmup]) if warmup else shape


def make_optimizer(options: OptimizerOptions, total: int) -> optax.GradientTransformationExtraArgs:
    """Clip by global norm, scale by moments, add weight decay, multiply by minus the learning rate.

    `update` has two more bool arguments, False by default: `skipped` keeps the state except the schedule's step count;
    `halted` keeps that too.

    Args:
        options: Settings.
        total: Steps of the run.
    """
    rate = optax.scale_by_learning_rate(learning_rate(options, total))
    clip = optax.identity() if options.max_grad_norm is None else optax.clip_by_global_norm(options.max_grad_norm)
    if options.name == "rmsprop":
        scale = optax.scale_by_rms(decay=0.99, eps=options.eps, eps_in_sqrt=False)
    else:
        scale = optax.scale_by_adam(options.b1, options.b2, options.eps, mu_dtype=options.first_moment_dtype)
    moments = _store_second_moment(scale, options.second_moment_dtype)
    update = _optional(optax.chain(moments, optax.add_decayed_weights(options.weight_decay), rate))
    return optax.chain(clip, offload_moments(update) if options.offload_moments else update)


def _optional(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`inner` with the arguments `skipped` and `halted`."""

    def update(
        gradients: Any, state: Any, parameters: Any = None, *, skipped: Any = False, halted: Any = False, **_: Any
    ) -> tuple[Any, Any]:
        def select(old: Any, new: Any) -> Any:
            if isinstance(new, optax.ScaleByScheduleState):
                return optax.ScaleByScheduleState(jnp.where(halted, old.count, new.count))
            return jnp.where(skipped, old, new)

        updates, after = inner.update(gradients, state, parameters)
        return updates, jax.tree.map(select, state, after, is_leaf=lambda x: isinstance(x, optax.ScaleByScheduleState))

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _store_second_moment(inner: optax.GradientTransformation, dtype: str) -> optax.GradientTransformation:
    """`inner` with `nu` of its state stored in `dtype` between steps; the arithmetic stays in float32."""
    if dtype == "float32":
        return inner

    def cast(state: Any, to: Any) -> Any:
        return state._replace(nu=jax.tree.map(lambda leaf: leaf.astype(to), state.nu))

    def init(parameters: Any) -> Any:
        return cast(inner.init(parameters), dtype)

    def update(gradients: Any, state: Any, parameters: Any = None) -> tuple[Any, Any]:
        updates, state = inner.update(gradients, cast(state, jnp.float32), parameters)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(init, update)
