"""What trains and what training needs: `sft`, `dpo`, and `replay` of a step that went wrong."""

from dataclasses import dataclass, field
from typing import Literal

from zephyr_jax.config.checks import (
    check_anomaly,
    check_batch,
    check_data,
    check_dpo,
    check_model,
    check_not_negative,
    check_optimizer,
    refuse,
    require,
)
from zephyr_jax.config.sections import (
    AnomalyOptions,
    BatchOptions,
    DataOptions,
    DpoOptions,
    MeshOptions,
    ModelOptions,
    OptimizerOptions,
    PairAnomalyOptions,
    ReportOptions,
    ScheduleOptions,
)


@dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning on conversations (dSFT): the loss counts the assistant's tokens only."""

    output: str = ""
    """Folder of the run: config, metrics, checkpoints, tokenizer. The same command resumes it."""
    seed: int = 42
    """Decides the order of the data; nothing else is random."""
    resume: bool = True
    """Continue from the newest checkpoint in `output`; off: refuse to touch a run that is there."""
    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    batch: BatchOptions = field(default_factory=BatchOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    anomaly: AnomalyOptions = field(default_factory=AnomalyOptions)
    report: ReportOptions = field(default_factory=ReportOptions)
    expected: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Ranges in which the last evaluation's numbers should lie, by name; `zephyr-jax check` looks."""
    expected_settings: dict[str, str] = field(default_factory=dict)
    """Settings, by full name, that `expected` takes for granted; `zephyr-jax check` compares no run that has others."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold together."""
        require(self.model.path, "model.path", "a model: a Hugging Face folder, a hub id or a run of ours")
        require(self.data.path, "data.path", "training data: a file, a folder or a hub id")
        require(self.output, "output", "a folder for the run")
        check_data(self.data)
        check_model(self.model)
        check_not_negative(report__answers=self.report.num_samples)
        if self.seed < 0:
            refuse(f"seed is {self.seed}.", "It must not be negative.")
        check_batch(self.batch)
        check_optimizer(self.optimizer, self.schedule, self.model)
        check_anomaly(self.anomaly)
        for name, (low, high) in self.expected.items():
            if not low <= high:
                refuse(f"expected.{name} is [{low}, {high}].", "It is a range: the smaller number comes first.")


@dataclass(frozen=True)
class DpoConfig(SftConfig):
    """Direct preference optimisation (dDPO); the `reference` verb takes the same card and fills the table first."""

    anomaly: PairAnomalyOptions = field(default_factory=PairAnomalyOptions)
    dpo: DpoOptions = field(default_factory=DpoOptions)
    reference: str = ""
    """Folder of the reference table: `zephyr-jax reference` writes it, `zephyr-jax dpo` reads it."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold together."""
        super().check()
        require(self.reference, "reference", "a folder for the reference table")
        if self.data.targets != "assistant":
            refuse("data.targets is `all`.", "Preferences count the answers only; set `data.targets: assistant`.")
        if self.data.row_length < 2 * self.data.max_length and self.data.on_bad_row == "truncate":
            refuse(
                f"data.row_length is {self.data.row_length} and data.max_length {self.data.max_length}.",
                "A pair shares a row, so a row must hold two sequences: set data.row_length to at least "
                f"{2 * self.data.max_length} or lower data.max_length.",
            )
        if self.data.max_prompt_length >= self.data.max_length:
            refuse(
                f"data.max_prompt_length is {self.data.max_prompt_length}, data.max_length {self.data.max_length}.",
                "The prompt must leave room for an answer: lower data.max_prompt_length.",
            )
        check_dpo(self.dpo)


@dataclass(frozen=True)
class DebugStepConfig:
    """The batch of a sick step once more, alone: its loss, its gradient, and the examples that are to blame."""

    batch_file: str = ""
    """A file in a run's `sick` folder."""
    step: int | None = None
    """Saved step to take the weights from, 0 for those that the run started from; default: the last one before the sick."""
    compute_dtype: Literal["bfloat16", "float32"] | None = None
    """Compute in another dtype than the run did."""
    mesh: MeshOptions = field(default_factory=MeshOptions)

    def check(self) -> None:
        """Raise InputError when no file is named."""
        require(self.batch_file, "batch", "a file that a run kept: RUN/sick/step-NUMBER.safetensors")
