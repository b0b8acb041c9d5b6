"""The settings of `preview`, `check`, `report` and `demo`."""

from dataclasses import dataclass, field
from typing import ClassVar

from zephyr_jax.config.constraints import ADVANCED, NonNegativeInt, PositiveInt
from zephyr_jax.config.sampling import Seed
from zephyr_jax.config.sections import DATA, DataOptions, MeshOptions, WeightsOptions
from zephyr_jax.errors import InputError

_RUN = {"run": "the folder that `sft` or `dpo` wrote"}


@dataclass(frozen=True)
class PreviewConfig:
    """Print rows as the model sees them: target tokens in color, token counts, truncated and skipped rows with reasons."""

    REQUIRED: ClassVar[dict[str, str]] = {
        "model.path": "a model folder or hub id, for its tokenizer",
        "data.path": DATA,
    }

    model: WeightsOptions = field(default_factory=WeightsOptions)
    data: DataOptions = field(default_factory=DataOptions)
    num_examples: PositiveInt = 3
    """Number of rows to print."""
    start: NonNegativeInt = 0
    """Index of the first row."""

    def check(self) -> None:
        """Raise InputError for settings of training."""
        self.data.check_one_split()


@dataclass(frozen=True)
class CheckConfig:
    """Compare a finished run's last evaluation with the results that its card expects."""

    REQUIRED: ClassVar[dict[str, str]] = _RUN

    run: str = ""
    """Folder of the run."""
    card: str | None = None
    """Card with the `expected` ranges; default: the run's own settings."""


@dataclass(frozen=True)
class ReportConfig:
    """Write RUN/report.html of a run, finished or not: curves, data, samples, settings and versions."""

    REQUIRED: ClassVar[dict[str, str]] = _RUN

    run: str = ""
    """Folder of the run."""
    sample_files: tuple[str, ...] = ()
    """Sample files, as FILE or NAME=FILE: what `generate --output` wrote for the same prompts, one per stage. Reports have
    them side by side, also later ones of the run."""
    num_prompts: PositiveInt = 10
    """Number of prompts from `sample_files` in the report."""
    num_samples: NonNegativeInt = 0
    """Number of held-out prompts that the run and the stages before it answer now, unless they have already. A run of one
    process does so at its end."""
    mesh: MeshOptions = field(default_factory=MeshOptions)
    """Mesh for `num_samples`."""

    def check(self) -> None:
        """Raise InputError for two sources of samples."""
        if self.num_samples and self.sample_files:
            raise InputError("num_samples and sample_files are both set: expected one of them.")
        if self.mesh.context > 1:
            raise InputError(
                f"mesh.context: expected 1, got {self.mesh.context}: answers are generated token by token, and no rows are split."
            )


@dataclass(frozen=True)
class DemoConfig:
    """The paper's experiment in small: a tiny base model, dSFT, AI feedback, dDPO and the results table, on emulated devices."""

    REQUIRED: ClassVar[dict[str, str]] = {"output": "a folder"}

    output: str = "runs/demo"
    """Output folder for all results."""
    base_model: str | None = None
    """Base model (folder or hub id); default: the one in the package."""
    emulated_devices: PositiveInt = field(default=8, metadata=ADVANCED)
    """Number of devices to emulate on the CPU."""
    num_conversations: PositiveInt = field(default=2400, metadata=ADVANCED)
    """Number of the teacher's conversations for dSFT."""
    num_prompts: PositiveInt = field(default=1000, metadata=ADVANCED)
    """Number of prompts that the dSFT model answers four times, for the preference pairs."""
    num_held_out: PositiveInt = field(default=128, metadata=ADVANCED)
    """Number of prompts and pairs on which all stages are evaluated, each about a word that no training prompt has."""
    seed: Seed = 0
    """Random seed of the data, its order and the samples."""
    num_seeds: PositiveInt = 1
    """Number of repetitions, with `seed` and the seeds after it; the table then has means over them."""
