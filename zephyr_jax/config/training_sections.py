"""The settings of training in sections: batch, optimizer, schedule, anomalies, metrics and the preference loss."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from zephyr_jax.config.constraints import (
    ADVANCED,
    RESUMABLE,
    Decay,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from zephyr_jax.config.sections import is_unset, unset
from zephyr_jax.errors import InputError


@dataclass(frozen=True)
class BatchOptions:
    """What one optimizer step sees: packed rows, or examples."""

    rows: PositiveInt | None = unset(16)
    """Batch size in packed rows per optimizer step: little padding, and the number of examples varies a little. Default:
    16, unless `examples` is set."""
    examples: PositiveInt | None = None
    """Batch size in examples (conversations or pairs) per optimizer step, exactly. The number of rows varies, and the last
    microbatch is padded; set `microbatch_rows` with it."""
    microbatch_rows: PositiveInt | None = None
    """Microbatch size in rows, for gradient accumulation: the rows of one forward and backward pass. Lower it if a step
    does not fit into memory. Default: all rows of a step."""

    def __post_init__(self) -> None:
        rows: int | None = self.rows
        if rows is None and self.examples is None:
            rows = unset(16)
        elif is_unset(rows) and self.examples is not None:
            rows = None
        object.__setattr__(self, "rows", rows)

    @property
    def rows_per_forward(self) -> int:
        """Rows of one forward and backward pass."""
        return self.microbatch_rows or self.rows or 1

    def check(self) -> None:
        """Raise InputError for two batch sizes, or for microbatches that do not divide a step."""
        if self.rows is not None and self.examples is not None:
            raise InputError(
                f"batch.rows is {self.rows} and batch.examples {self.examples}: expected exactly one of them. `rows` counts "
                "packed rows, `examples` conversations or pairs; set the other one to null (`--batch.rows None` or "
                "`--batch.examples None`)."
            )
        if self.examples is not None and self.microbatch_rows is None:
            raise InputError(
                "batch.microbatch_rows is not set with batch.examples: the number of rows of a step varies then, so set the "
                "rows of one forward and backward pass, such as `--batch.microbatch_rows 8`."
            )
        if self.rows is not None and self.microbatch_rows is not None and self.rows % self.microbatch_rows:
            raise InputError(
                f"batch.microbatch_rows: expected a divisor of batch.rows ({self.rows}), got {self.microbatch_rows}."
            )


@dataclass(frozen=True)
class OptimizerOptions:
    """Update rule and learning rate schedule, equal to PyTorch's and Hugging Face's step by step."""

    name: Literal["adamw", "rmsprop"] = "adamw"
    """Optimizer.

    - `adamw`: AdamW with decoupled weight decay.
    - `rmsprop`: RMSprop as torch.optim.RMSprop with alpha 0.99.
    """
    learning_rate: PositiveFloat = 2e-5
    """Peak learning rate, at the end of the warm-up; with a warm-up, step 0 has learning rate 0."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate schedule after the warm-up.

    - `cosine`: half a cosine, to 0 at the end.
    - `linear`: a line, to 0 at the end.
    - `constant`: the peak.
    """
    warmup_ratio: Decay = 0.1
    """Warm-up length as a fraction of all steps, rounded up."""
    b1: Decay = field(default=0.9, metadata=ADVANCED)
    """AdamW beta1: decay rate of the first moment."""
    b2: Decay = field(default=0.999, metadata=ADVANCED)
    """AdamW beta2: decay rate of the second moment."""
    eps: PositiveFloat = field(default=1e-8, metadata=ADVANCED)
    """Epsilon, added to the root of the second moment."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW: decoupled weight decay, of all weights."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradient clipping: maximum global norm. None: no clipping."""
    grad_dtype: Literal["float32", "bfloat16"] = field(default="float32", metadata=ADVANCED)
    """Dtype of the gradients of one microbatch; sums over microbatches are float32 always.

    - `float32`: full precision.
    - `bfloat16`: half the memory; needs `model.compute_dtype bfloat16`.
    """
    first_moment_dtype: Literal["float32", "bfloat16"] = field(default="float32", metadata=ADVANCED)
    """AdamW: storage dtype of the first moment; the update is computed in float32.

    - `float32`: full precision.
    - `bfloat16`: half the memory.
    """
    second_moment_dtype: Literal["float32", "bfloat16"] = field(default="float32", metadata=ADVANCED)
    """Storage dtype of the second moment; the update is computed in float32.

    - `float32`: full precision.
    - `bfloat16`: half the memory; needs a smaller `b2`, such as 0.95, since it rounds away most updates with 0.999.
    """
    offload_moments: bool = field(default=False, metadata=RESUMABLE | ADVANCED)
    """Offload the moments to host memory between updates: less HBM, and host transfers of their size in every step."""

    def check(self) -> None:
        """Raise InputError for settings of AdamW with another optimizer."""
        default = OptimizerOptions()
        names = ("b1", "b2", "weight_decay", "first_moment_dtype")
        given = [f"{name} {getattr(self, name)}" for name in names if getattr(self, name) != getattr(default, name)]
        if self.name == "rmsprop" and given:
            raise InputError(
                f"optimizer.name is `rmsprop` with {' and '.join(given)}, which only AdamW uses: leave them at their defaults, "
                "or use `adamw`."
            )


@dataclass(frozen=True)
class ScheduleOptions:
    """Length of the training; intervals of evaluation, checkpoints and metrics; which checkpoints to keep."""

    epochs: PositiveInt = 1
    """Number of epochs (passes over the data), each in another order."""
    max_steps: PositiveInt | None = None
    """Maximum number of optimizer steps, at which the learning rate schedule ends too. Default: all steps of `epochs`. With
    fewer of those, run and schedule end there, and a message reports it."""
    evaluate_every: NonNegativeInt = 100
    """Evaluation interval in steps; the end is always evaluated. 0: only the end."""
    save_every: NonNegativeInt = 100
    """Checkpoint interval in steps; the end is always saved. 0: only the end."""
    save: Literal["state", "weights"] = field(default="state", metadata=ADVANCED)
    """Contents of checkpoints. With `weights` an interrupted run starts over, and `save_every`, `keep_last` and `keep_best`
    do not apply.

    - `state`: weights and optimizer state in float32; a run can be resumed from each checkpoint.
    - `weights`: only the final weights, in bfloat16 (7B: 13.5 GiB instead of 67 GiB).
    """
    keep_last: PositiveInt = field(default=2, metadata=RESUMABLE | ADVANCED)
    """Number of newest checkpoints to keep."""
    grace_seconds: PositiveFloat = field(default=120.0, metadata=RESUMABLE | ADVANCED)
    """Grace period in seconds to finish a step and save after SIGTERM, Ctrl-C or a preemption notice, before the process
    ends."""
    keep_best: NonNegativeInt = field(default=1, metadata=RESUMABLE | ADVANCED)
    """Number of checkpoints with the lowest evaluation loss to keep besides the newest."""
    log_every: PositiveInt = field(default=1, metadata=RESUMABLE)
    """Logging interval in steps; each line of metrics has means over the steps since the last one."""


@dataclass(frozen=True)
class AnomalyOptions:
    """Reaction to an anomalous step: `stop` before its update, `skip` its update, or `continue` with it.

    Each is logged with the example ids of its batch, and the batch is saved for `zephyr-jax debug-step`.
    """

    LIMITS: ClassVar[dict[str, str]] = {}
    """Kind of a further anomaly -> metric whose absolute value is compared with the setting KIND_limit. The setting KIND is its
    policy."""

    non_finite: Literal["stop", "skip", "continue"] = field(default="stop", metadata=ADVANCED)
    """Policy for a non-finite step: loss or gradient NaN or infinite, or no targets.

    - `stop`: end the run before the update.
    - `skip`: skip the update.
    - `continue`: apply the update.
    """
    spike: Literal["stop", "skip", "continue"] = field(default="continue", metadata=ADVANCED)
    """Policy for a loss spike: a loss above `spike_factor` times the median of the `spike_window` steps before the last
    one.

    - `stop`: end the run before the update.
    - `skip`: skip the update.
    - `continue`: apply the update.
    """
    spike_factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] = field(default=4.0, metadata=ADVANCED)
    """Ratio of loss and median above which a step is a loss spike."""
    spike_window: PositiveInt = field(default=50, metadata=ADVANCED)
    """Number of steps of the median for `spike`; the first ten steps are never spikes."""
    stalled: Literal["stop", "continue"] = field(default="stop", metadata=ADVANCED)
    """Policy for stalled weights: fewer than 1 % of them change in each of `stalled_steps` steps, lost in rounding. Steps
    with a learning rate below 1 % of its peak do not count.

    - `stop`: end the run.
    - `continue`: go on.
    """
    stalled_steps: PositiveInt = field(default=20, metadata=ADVANCED)
    """Number of consecutive steps for `stalled`."""


@dataclass(frozen=True)
class PairAnomalyOptions(AnomalyOptions):
    """Reaction to an anomalous step of DPO, where the reward margin is watched as well."""

    LIMITS: ClassVar[dict[str, str]] = {"margin": "rewards/margins"}

    margin: Literal["stop", "skip", "continue"] = field(default="stop", metadata=ADVANCED)
    """Policy for a mean reward margin beyond +/- `margin_limit`.

    - `stop`: end the run before the update.
    - `skip`: skip the update.
    - `continue`: apply the update.
    """
    margin_limit: PositiveFloat = field(default=100.0, metadata=ADVANCED)
    """Maximum absolute mean reward margin, in beta times nats, for `margin`."""


@dataclass(frozen=True)
class ReportOptions:
    """Where metrics go besides `metrics.jsonl`, which is always written."""

    log_example_ids: bool = field(default=False, metadata=ADVANCED)
    """Write the ids of each step's examples to `<output>/examples.jsonl`."""
    tensorboard: bool = False
    """Write TensorBoard event files to `<output>/tensorboard`."""
    wandb_project: str | None = None
    """Weights & Biases project to log to; needs the `wandb` extra. Default: no logging there."""
    progress_bar: bool = True
    """Progress bar; off: one plain line per report."""
    num_samples: NonNegativeInt = 10
    """Number of prompts (held-out ones, else training prompts) that the finished run and the stages before it answer for
    `report.html`. 0: none. Runs of several processes generate none."""


@dataclass(frozen=True)
class DpoOptions:
    """The preference loss."""

    loss: Literal["sigmoid", "ipo", "ipo_sum", "hinge", "robust"] = "sigmoid"
    """Preference loss.

    - `sigmoid`: DPO.
    - `ipo`: IPO with per-token means, as in TRL.
    - `ipo_sum`: IPO with sums over tokens, as in its paper.
    - `hinge`: SLiC's hinge loss.
    - `robust`: DPO, unbiased under label noise (`label_smoothing`).
    """
    beta: PositiveFloat = 0.1
    """KL regularization strength: higher values keep the model closer to the reference model."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Label smoothing: the assumed fraction of wrong labels, from 0 to below 0.5. Conservative DPO under `sigmoid`,
    unbiased under `robust`."""
    sft_weight: NonNegativeFloat = 0.0
    """SFT (NLL) loss weight: adds the mean negative log-likelihood per token of the chosen answer. 0: none."""

    def check(self) -> None:
        """Raise InputError for label smoothing with a loss that has none."""
        if self.label_smoothing and self.loss not in ("sigmoid", "robust"):
            raise InputError(
                f"dpo.label_smoothing is {self.label_smoothing} with dpo.loss `{self.loss}`: only `sigmoid` and `robust` smooth "
                "labels. Set it to 0, or change the loss."
            )
