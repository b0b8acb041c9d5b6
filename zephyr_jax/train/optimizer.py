"""The update rule and its learning-rate schedule, from optax, equal to PyTorch's and Hugging Face's step by step."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from zephyr_jax.config.training_sections import OptimizerOptions
from zephyr_jax.train.offload import on_host


def learning_rate(options: OptimizerOptions, total: int) -> optax.Schedule:
    """Rate of step k = 0, 1, ...: a linear warm-up from 0, then the schedule's shape down to 0 at `total` steps."""
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
    """Clip by global norm, scale by moments, decay, times minus the learning rate.

    `update` takes two more bool scalars, False by default: `left_out` gives the state back as it was, but for the place in
    the learning rate's schedule; `halted` gives that back, too.
    """
    rate = optax.scale_by_learning_rate(learning_rate(options, total))
    clip = optax.identity() if options.max_grad_norm is None else optax.clip_by_global_norm(options.max_grad_norm)
    if options.name == "rmsprop":
        scale = optax.scale_by_rms(decay=0.99, eps=options.eps, eps_in_sqrt=False)
    else:
        scale = optax.scale_by_adam(options.b1, options.b2, options.eps, mu_dtype=options.first_moment_dtype)
    moments = _store_second_moment(scale, options.second_moment_dtype)
    update = _optional(optax.chain(moments, optax.add_decayed_weights(options.weight_decay), rate))
    return optax.chain(clip, on_host(update) if options.offload_moments else update)


def _optional(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`inner`, whose state may stay as it was."""

    def update(
        gradients: Any, state: Any, parameters: Any = None, *, left_out: Any = False, halted: Any = False, **_: Any
    ) -> tuple[Any, Any]:
        def chosen(old: Any, new: Any) -> Any:
            if isinstance(new, optax.ScaleByScheduleState):
                return optax.ScaleByScheduleState(jnp.where(halted, old.count, new.count))
            return jnp.where(left_out, old, new)

        updates, after = inner.update(gradients, state, parameters)
        return updates, jax.tree.map(chosen, state, after, is_leaf=lambda x: isinstance(x, optax.ScaleByScheduleState))

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _store_second_moment(inner: optax.GradientTransformation, dtype: str) -> optax.GradientTransformation:
    """`inner` with its state's `nu` kept in `dtype` between steps; the arithmetic stays in float32."""
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
