"""What settings must hold, alone and together: each check raises InputError with what it got and what it needs."""

import math

from zephyr_jax.config.sampling import SamplingParams
from zephyr_jax.config.sections import (
    AnomalyOptions,
    BatchOptions,
    DataOptions,
    DpoOptions,
    EndpointOptions,
    ModelOptions,
    OptimizerOptions,
    PairAnomalyOptions,
    ScheduleOptions,
    ScoringOptions,
)
from zephyr_jax.errors import InputError, truncate_repr

_MOST = 2**31 - 1
"""Tokens, rows and steps are counted in 32 bits on the device."""


def refuse(got: str, need: str) -> None:
    """Raise InputError: what was got, and what is needed."""
    raise InputError(f"{got} {need}")


def require(value: str, name: str, what: str) -> None:
    """A setting without a default must be set."""
    if not value:
        refuse(f"`{name}` is not set.", f"It needs {what}. Pass `--{name} ...` or set it in the card.")


def check_positive(**values: float | None) -> None:
    """Numbers that are given must be greater than zero, and no larger than counts may be; `a__b` stands for `a.b`."""
    for name, value in values.items():
        if value is not None and not 0 < value <= _MOST:
            refuse(
                f"{name.replace('__', '.')} is {truncate_repr(value)}.",
                f"It must be greater than zero and at most {_MOST:,}.",
            )


def check_not_negative(**values: float) -> None:
    """Numbers must be zero or greater, and finite; `a__b` stands for `a.b`."""
    for name, value in values.items():
        if not 0 <= value <= _MOST:
            refuse(
                f"{name.replace('__', '.')} is {truncate_repr(value)}.",
                f"It must not be negative, and at most {_MOST:,}.",
            )


def check_sampling(temperature: float = 0.0, top_p: float = 1.0, top_k: int = 0, seed: int = 0) -> None:
    """Raise InputError for sampling parameters outside the bounds that `SamplingParams` sets for every entrance."""
    SamplingParams(temperature, top_p, top_k, (seed,))


def check_model(model: ScoringOptions) -> None:
    """How the forward pass computes."""
    check_positive(model__logprob_chunk=model.logprob_chunk)


def check_data(data: DataOptions) -> None:
    """Lengths fit into each other."""
    check_positive(
        data__max_length=data.max_length,
        data__max_prompt_length=data.max_prompt_length,
        data__row_length=data.row_length,
        data__packing_window=data.packing_window,
        data__limit=data.limit,
        data__num_workers=data.num_workers,
    )
    if not 0 <= data.max_skipped_fraction <= 1:
        refuse(f"data.max_skipped_fraction is {data.max_skipped_fraction}.", "It is a share: set a number from 0 to 1.")
    if data.max_length > data.row_length:
        refuse(
            f"data.max_length is {data.max_length} and data.row_length {data.row_length}.",
            "A row must hold the longest sequence: raise data.row_length or lower data.max_length.",
        )


def check_one_split(data: DataOptions) -> None:
    """For verbs that look at one split only."""
    if data.eval_path is not None or data.eval_split is not None:
        refuse(
            f"data.eval_path is {data.eval_path!r} and data.eval_split {data.eval_split!r}.",
            "This verb looks at one split: name it with data.path and data.split.",
        )


def check_batch(batch: BatchOptions) -> None:
    """One measure of a step, and microbatches that divide it."""
    if (batch.rows is None) == (batch.examples is None):
        refuse(
            f"batch.rows is {batch.rows} and batch.examples {batch.examples}.",
            "Exactly one of them says how large a step is: `rows` counts packed rows, `examples` conversations "
            "or pairs. Pass `--batch.rows 16`, say, or a card that sets it (`--config configs/tiny/sft.yaml`).",
        )
    check_positive(batch__rows=batch.rows, batch__examples=batch.examples, batch__microbatch_rows=batch.microbatch_rows)
    if batch.examples is not None and batch.microbatch_rows is None:
        refuse(
            "batch.examples is set without batch.microbatch_rows.",
            "The number of rows of a step varies then, so set how many go through one forward and backward.",
        )
    if batch.rows is not None and batch.microbatch_rows is not None and batch.rows % batch.microbatch_rows:
        refuse(
            f"batch.rows is {batch.rows} and batch.microbatch_rows {batch.microbatch_rows}.",
            "The second must divide the first.",
        )


def check_optimizer(optimizer: OptimizerOptions, schedule: ScheduleOptions, model: ModelOptions) -> None:
    """Update rule, schedule and dtypes belong together."""
    check_positive(
        optimizer__learning_rate=optimizer.learning_rate,
        optimizer__eps=optimizer.eps,
        optimizer__max_grad_norm=optimizer.max_grad_norm,
        schedule__epochs=schedule.epochs,
        schedule__max_steps=schedule.max_steps,
        schedule__log_every=schedule.log_every,
        schedule__keep_last=schedule.keep_last,
        schedule__grace_seconds=schedule.grace_seconds,
    )
    check_not_negative(
        optimizer__weight_decay=optimizer.weight_decay,
        schedule__evaluate_every=schedule.evaluate_every,
        schedule__save_every=schedule.save_every,
        schedule__keep_best=schedule.keep_best,
    )
    if not (0 <= optimizer.b1 < 1 and 0 <= optimizer.b2 < 1):
        refuse(
            f"optimizer.b1 is {optimizer.b1} and optimizer.b2 {optimizer.b2}.",
            "They are decays: each must be at least 0 and below 1.",
        )
    if optimizer.grad_dtype == "bfloat16" and model.compute_dtype != "bfloat16":
        refuse(
            f"optimizer.grad_dtype is bfloat16 and model.compute_dtype {model.compute_dtype}.",
            "Gradients cannot be finer stored than computed, nor coarser without loss: give both the same dtype.",
        )
    if not 0 <= optimizer.warmup_ratio < 1:
        refuse(
            f"optimizer.warmup_ratio is {optimizer.warmup_ratio}.", "It is a share of all steps: set 0 <= ratio < 1."
        )
    adamw_only = ("b1", "b2", "weight_decay", "first_moment_dtype")
    default = OptimizerOptions()
    set_here = [
        f"{name} {getattr(optimizer, name)}"
        for name in adamw_only
        if getattr(optimizer, name) != getattr(default, name)
    ]
    if optimizer.name == "rmsprop" and set_here:
        refuse(
            f"optimizer.name is `rmsprop` with {' and '.join(set_here)}.",
            "RMSprop has none of these; leave them at their defaults or use `adamw`.",
        )


def check_anomaly(anomaly: AnomalyOptions) -> None:
    """Thresholds can be reached, and only by what is unusual."""
    check_positive(anomaly__spike_window=anomaly.spike_window, anomaly__stalled_steps=anomaly.stalled_steps)
    if not 1 < anomaly.spike_factor < math.inf:
        refuse(
            f"anomaly.spike_factor is {anomaly.spike_factor}.", "A spike is a larger loss: it needs a number above 1."
        )
    if isinstance(anomaly, PairAnomalyOptions):
        check_positive(anomaly__margin_limit=anomaly.margin_limit)


def check_endpoint(endpoint: EndpointOptions) -> None:
    """Limits that let anything through, and prices where money is counted."""
    check_positive(
        max_concurrency=endpoint.max_concurrency, timeout=endpoint.timeout, max_total_tokens=endpoint.max_total_tokens
    )
    check_not_negative(
        max_retries=endpoint.max_retries,
        backoff=endpoint.backoff,
        price_per_mtok_in=endpoint.price_per_mtok_in,
        price_per_mtok_out=endpoint.price_per_mtok_out,
    )
    if endpoint.max_cost_usd is not None and not (endpoint.price_per_mtok_in or endpoint.price_per_mtok_out):
        refuse(
            f"max_cost_usd is {endpoint.max_cost_usd:g} and no price is given.",
            "Money cannot be counted without: set price_per_mtok_in and price_per_mtok_out, dollars per million tokens.",
        )


def check_dpo(dpo: DpoOptions) -> None:
    """The loss and its constants belong together."""
    check_positive(dpo__beta=dpo.beta)
    if not 0 <= dpo.label_smoothing < 0.5:
        refuse(f"dpo.label_smoothing is {dpo.label_smoothing}.", "It must be at least 0 and below 0.5.")
    if dpo.label_smoothing and dpo.loss not in ("sigmoid", "robust"):
        refuse(
            f"dpo.label_smoothing is {dpo.label_smoothing} with dpo.loss `{dpo.loss}`.",
            "Only `sigmoid` and `robust` smooth labels; set it to 0 or change the loss.",
        )
    check_not_negative(dpo__sft_weight=dpo.sft_weight)
