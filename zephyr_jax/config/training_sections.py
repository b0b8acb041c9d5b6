"""The settings of training in sections: batch, optimizer, schedule, anomalies, metrics and the preference loss."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from zephyr_jax.config.constraints import (
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
    """Packed rows per step: little padding; the number of examples varies a little. Default: 16, unless `examples` is set."""
    examples: PositiveInt | None = None
    """Conversations (pairs) per step exactly; the number of rows varies, and the last microbatch is padded."""
    microbatch_rows: PositiveInt | None = None
    """Rows per forward and backward pass (gradient accumulation): sums are accumulated and divided once. Default: all rows of a
    step."""

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
    """`adamw`, or `rmsprop` as torch.optim.RMSprop with alpha 0.99."""
    learning_rate: PositiveFloat = 2e-5
    """Peak learning rate, reached at the end of the warm-up; step 0 has learning rate 0 if there is a warm-up."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up; cosine and linear end at 0."""
    warmup_ratio: Decay = 0.1
    """Fraction of all steps that warm up, rounded up."""
    b1: Decay = 0.9
    """AdamW: decay of the first moment."""
    b2: Decay = 0.999
    """AdamW: decay of the second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW: decoupled weight decay, of all weights."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradients are clipped to this global norm; None: no clipping."""
    grad_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the gradients of one microbatch. `bfloat16` halves their memory and needs `model.compute_dtype: bfloat16`, the
    dtype of the products behind them. Sums over microbatches are float32 always."""
    first_moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """AdamW: storage dtype of the first moment."""
    second_moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Storage dtype of the second moment; computed in float32."""
    offload_moments: bool = field(default=False, metadata=RESUMABLE)
    """Keep the moments in host memory between updates: less HBM, and host transfers of their size in every step."""

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
    """Passes over the data, each in another order."""
    max_steps: PositiveInt | None = None
    """Number of steps, at which the learning rate schedule ends too; default: all steps of `epochs`. If `epochs` of the data
    give fewer steps, the run and its schedule end there, and a message reports it."""
    evaluate_every: NonNegativeInt = 100
    """Steps between evaluations, besides the one at the end; 0: only at the end."""
    save_every: NonNegativeInt = 100
    """Steps between checkpoints, besides the one at the end; 0: only at the end."""
    save: Literal["state", "weights"] = "state"
    """`state`: checkpoints hold weights and optimizer state in float32, and a run can be resumed from each.
    `weights`: only the final weights are saved, in bfloat16 (7B: 13.5 GiB instead of 67 GiB a checkpoint); an interrupted run
    starts over. `save_every`, `keep_last` and `keep_best` do not apply."""
    keep_last: PositiveInt = field(default=2, metadata=RESUMABLE)
    """Number of newest checkpoints to keep."""
    grace_seconds: PositiveFloat = field(default=120.0, metadata=RESUMABLE)
    """Seconds to finish a step and save after SIGTERM, Ctrl-C or a preemption notice, before the process ends."""
    keep_best: NonNegativeInt = field(default=1, metadata=RESUMABLE)
    """Number of checkpoints with the lowest evaluation loss to keep besides those."""
    log_every: PositiveInt = field(default=1, metadata=RESUMABLE)
    """Steps between lines of metrics; each line has means over the steps since the last one."""


@dataclass(frozen=True)
class AnomalyOptions:
    """Reaction to an anomalous step: `stop` before its update, `skip` its update, or `continue` with it.

    Each is logged with the example ids of its batch, and the batch is saved for `zephyr-jax debug-step`.
    """

    LIMITS: ClassVar[dict[str, str]] = {}
    """Kind of a further anomaly -> metric whose absolute value is compared with the setting KIND_limit. The setting KIND is its
    policy."""

    non_finite: Literal["stop", "skip", "continue"] = "stop"
    """A loss or a gradient that is NaN or infinite, or a step without targets."""
    spike: Literal["stop", "skip", "continue"] = "continue"
    """A loss larger than `spike_factor` times the median of the `spike_window` steps before the last one."""
    spike_factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 4.0
    """Ratio of loss and median above which a step is a spike."""
    spike_window: PositiveInt = 50
    """Number of steps of the median; the first ten steps are never spikes."""
    stalled: Literal["stop", "continue"] = "stop"
    """Fewer than 1 % of the weights changed in each of `stalled_steps` consecutive steps: updates are lost in rounding. Steps
    with a learning rate below 1 % of its peak do not count."""
    stalled_steps: PositiveInt = 20
    """Number of consecutive steps for `stalled`."""


@dataclass(frozen=True)
class PairAnomalyOptions(AnomalyOptions):
    """Reaction to an anomalous step of DPO, where the reward margin is watched as well."""

    LIMITS: ClassVar[dict[str, str]] = {"margin": "rewards/margins"}

    margin: Literal["stop", "skip", "continue"] = "stop"
    """A mean reward margin beyond +/- `margin_limit`."""
    margin_limit: PositiveFloat = 100.0
    """Largest mean reward margin, in beta times nats."""


@dataclass(frozen=True)
class ReportOptions:
    """Where metrics go besides `metrics.jsonl`, which is always written."""

    log_example_ids: bool = False
    """Write the ids of each step's examples to `<output>/examples.jsonl`."""
    tensorboard: bool = False
    """Write TensorBoard event files under `<output>/tensorboard`."""
    wandb_project: str | None = None
    """Log to this Weights & Biases project (needs the `wandb` extra)."""
    progress_bar: bool = True
    """Draw a progress bar; off: a plain line per report."""
    num_samples: NonNegativeInt = 10
    """Number of held-out prompts (of training prompts without held-out rows) that the finished run and the stages before it
    answer for `report.html`; 0: none. Runs of several processes generate none."""


@dataclass(frozen=True)
class DpoOptions:
    """The preference loss."""

    loss: Literal["sigmoid", "ipo", "ipo_sum", "hinge", "robust"] = "sigmoid"
    """`sigmoid`: DPO; `ipo`: IPO with per-token means as in TRL; `ipo_sum`: with the paper's sums; `hinge`: SLiC;
    `robust`: unbiased under label noise."""
    beta: PositiveFloat = 0.1
    """Strength of the regularization towards the reference model."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Assumed fraction of wrong labels: conservative DPO under `sigmoid`, unbiased under `robust`."""
    sft_weight: NonNegativeFloat = 0.0
    """Weight of an added SFT loss: the mean negative log-likelihood per token of the chosen answer."""

    def check(self) -> None:
        """Raise InputError for label smoothing with a loss that has none."""
        if self.label_smoothing and self.loss not in ("sigmoid", "robust"):
            raise InputError(
                f"dpo.label_smoothing is {self.label_smoothing} with dpo.loss `{self.loss}`: only `sigmoid` and `robust` smooth "
                "labels. Set it to 0, or change the loss."
            )
