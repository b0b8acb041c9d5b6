"""The settings of `sft`, `dpo` and `debug-step`."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from zephyr_jax.config.adapter import AdapterOptions
from zephyr_jax.config.constraints import ADVANCED, RESUMABLE, NonNegativeInt
from zephyr_jax.config.sampling import Seed
from zephyr_jax.config.sections import DATA, MODEL, DataOptions, MeshOptions, ModelOptions
from zephyr_jax.config.step_range import StepRange
from zephyr_jax.config.training_sections import (
    AnomalyOptions,
    BatchOptions,
    DpoOptions,
    OptimizerOptions,
    PairAnomalyOptions,
    ReportOptions,
    ScheduleOptions,
)
from zephyr_jax.errors import InputError

_RUN = {"model.path": MODEL, "data.path": DATA, "output": "a folder for the run"}


@dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning on conversations (dSFT): the loss is over the assistant's tokens only."""

    REQUIRED: ClassVar[dict[str, str]] = _RUN

    output: str = field(default="", metadata=RESUMABLE)
    """Output folder of the run: config, metrics, checkpoints, tokenizer. The same command resumes the run in it."""
    seed: Seed = 42
    """Data seed: orders the examples. Nothing else in training is random."""
    resume: bool = field(default=True, metadata=RESUMABLE)
    """Resume from the newest checkpoint in `output`; off: an error if `output` holds a run."""
    model: ModelOptions = field(default_factory=ModelOptions)
    adapter: AdapterOptions = field(default_factory=AdapterOptions)
    data: DataOptions = field(default_factory=DataOptions)
    batch: BatchOptions = field(default_factory=BatchOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions, metadata=RESUMABLE)
    anomaly: AnomalyOptions = field(default_factory=AnomalyOptions, metadata=RESUMABLE)
    report: ReportOptions = field(default_factory=ReportOptions, metadata=RESUMABLE)
    profile: str | None = field(default=None, metadata=RESUMABLE)
    """Steps to profile, as `first:last`, such as `10:13`: writes a trace for xprof to `<output>/profile` and a table of where
    the time went into the report. Default: none."""
    expected: dict[str, tuple[float, float]] = field(default_factory=dict, metadata=RESUMABLE | ADVANCED)
    """Expected ranges of the last evaluation's metrics, as name, low and high, for `zephyr-jax check`."""
    expected_settings: dict[str, str] = field(default_factory=dict, metadata=RESUMABLE | ADVANCED)
    """Settings, as full name and value, under which `expected` holds; `zephyr-jax check` compares no run with other values."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", self.data.fitted(self.segments_per_example))

    @property
    def segments_per_example(self) -> int:
        """Sequences of one example that share a row."""
        return 1

    def check(self) -> None:
        """Raise InputError for settings that contradict each other."""
        if self.optimizer.grad_dtype == "bfloat16" and self.model.compute_dtype != "bfloat16":
            raise InputError(
                f"optimizer.grad_dtype is bfloat16 and model.compute_dtype {self.model.compute_dtype}: gradients stored in a "
                "narrower dtype than they are computed in lose precision. Give both the same dtype."
            )
        if self.model.save_logits and self.adapter.rank:
            raise InputError(
                f"model.save_logits is true and adapter.rank {self.adapter.rank}: the backward pass of a frozen unembedding "
                "needs no logits. Remove model.save_logits."
            )
        if self.profile is not None:
            StepRange.parse(self.profile, "profile")
        for name, (low, high) in self.expected.items():
            if not low <= high:
                raise InputError(f"expected.{name}: expected [low, high], got [{low}, {high}].")


@dataclass(frozen=True)
class DpoConfig(SftConfig):
    """Direct preference optimization (dDPO); `reference` takes the same card and fills the reference table first."""

    REQUIRED: ClassVar[dict[str, str]] = {**_RUN, "reference": "the folder of the reference table"}

    anomaly: PairAnomalyOptions = field(default_factory=PairAnomalyOptions, metadata=RESUMABLE)
    dpo: DpoOptions = field(default_factory=DpoOptions)
    reference: str = field(default="", metadata=RESUMABLE)
    """Folder of the reference table: `zephyr-jax reference` writes it, `zephyr-jax dpo` reads it."""

    @property
    def segments_per_example(self) -> int:
        """Sequences of one example that share a row."""
        return 2

    def check(self) -> None:
        """Raise InputError for settings that contradict each other."""
        super().check()
        data = self.data
        if data.targets != "assistant":
            raise InputError(
                "data.targets: expected `assistant`, got `all`. The preference loss is over the answers only."
            )
        if data.multi_turn != "all":
            raise InputError(
                "data.multi_turn: expected `all`, got `last`. The answers after the messages that chosen and rejected share are "
                "targets, and the prompt is context in any case: remove the setting."
            )
        # With shared prompts the data decide: two answers of `max_length` tokens share at least a part of them.
        if data.row_length < 2 * data.max_length and data.on_bad_row == "truncate" and not data.share_prompts:
            raise InputError(
                f"data.row_length: expected at least twice data.max_length ({data.max_length}), got {data.row_length}. A pair "
                f"shares a row: set data.row_length to at least {2 * data.max_length}, or lower data.max_length."
            )
        if data.max_prompt_length >= data.max_length:
            raise InputError(
                f"data.max_prompt_length: expected less than data.max_length ({data.max_length}), got "
                f"{data.max_prompt_length}. The prompt must leave room for an answer: lower data.max_prompt_length."
            )


@dataclass(frozen=True)
class DebugStepConfig:
    """Recompute the saved batch of an anomalous step: its loss, its gradient, and each example's part."""

    REQUIRED: ClassVar[dict[str, str]] = {"batch_file": "a batch that a run has saved at an anomalous step"}

    batch_file: str = ""
    """Saved batch: the file that the run wrote at the anomalous step; the run's message names it."""
    step: NonNegativeInt | None = None
    """Checkpoint step whose weights to use; 0: those that the run started from. Default: the last checkpoint before the
    anomalous step."""
    compute_dtype: Literal["bfloat16", "float32"] | None = None
    """Dtype of matmuls and activations; default: the run's. Set it to find out whether rounding causes the anomaly.

    - `bfloat16`: the TPU's native dtype.
    - `float32`: full precision.
    """
    mesh: MeshOptions = field(default_factory=MeshOptions)
