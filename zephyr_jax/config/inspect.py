"""What shows something: `preview` of rows, `check` and `page` of a run, `demo` of the whole recipe."""

from dataclasses import dataclass, field

from zephyr_jax.config.checks import check_data, check_not_negative, check_one_split, check_positive, refuse, require
from zephyr_jax.config.sections import DataOptions, MeshOptions, WeightsOptions


@dataclass(frozen=True)
class PreviewConfig:
    """Rows as the model will see them: targets in colour, token counts, what is cut and what is left out, and why."""

    model: WeightsOptions = field(default_factory=WeightsOptions)
    data: DataOptions = field(default_factory=DataOptions)
    num_examples: int = 3
    """How many to print."""
    start: int = 0
    """Index of the first."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold together."""
        require(self.model.path, "model.path", "a model folder or hub id, for its tokenizer")
        require(self.data.path, "data.path", "rows to show: a file, a folder or a hub id")
        check_data(self.data)
        check_one_split(self.data)
        check_positive(num_examples=self.num_examples)


@dataclass(frozen=True)
class CheckConfig:
    """Whether a finished run's last evaluation is what its card expects, or by how much it is not."""

    run: str = ""
    """Folder of the run."""
    card: str | None = None
    """Card whose `expected` to take; default: the run's own."""

    def check(self) -> None:
        """Raise InputError when no run is named."""
        require(self.run, "run", "the folder that `sft` or `dpo` wrote")


@dataclass(frozen=True)
class ReportConfig:
    """The page of a run, finished or not: curves, data, answers, settings and versions in RUN/report.html."""

    run: str = ""
    """Folder of the run."""
    sample_files: tuple[str, ...] = ()
    """Files that `generate --output` wrote for the same prompts, one a stage, as FILE or NAME=FILE; they are shown side by side
    and kept for later pages of the run."""
    num_prompts: int = 10
    """How many prompts of these files to take."""
    num_samples: int = 0
    """Have the run and the stages before it answer so many held-out prompts now, if they have not yet: a run of one process
    does so when it has ended, one of several does not."""
    mesh: MeshOptions = field(default_factory=MeshOptions)
    """Where they answer."""

    def check(self) -> None:
        """Raise InputError when no run is named, or no prompt is asked for."""
        require(self.run, "run", "the folder that `sft` or `dpo` wrote")
        check_positive(num_prompts=self.num_prompts)
        check_not_negative(num_samples=self.num_samples)
        if self.num_samples and self.sample_files:
            refuse("num_samples and sample_files are both given.", "Give files, or have the stages asked.")


@dataclass(frozen=True)
class DemoConfig:
    """The paper's experiment in small: from a tiny base over dSFT, AI feedback and dDPO to its table, on emulated devices."""

    output: str = "runs/demo"
    """Folder for everything that the demo makes."""
    base_model: str | None = None
    """Another base to start from (folder or hub id); default: the one that the package ships."""
    emulated_devices: int = 8
    """Devices that the CPU poses as."""
    num_conversations: int = 2400
    """Conversations of the teacher for dSFT."""
    num_prompts: int = 1000
    """Prompts that the dSFT model answers four times, for the pairs."""
    num_held_out: int = 128
    """Prompts and pairs, each about a word that no prompt of the training names, on which all stages are measured."""
    seed: int = 0
    """Decides the data, its order, and the samples."""
    num_seeds: int = 1
    """Do it all so many times, with `seed` and those after it; the table then has means over them."""

    def check(self) -> None:
        """Raise InputError for settings that cannot hold."""
        require(self.output, "output", "a folder")
        check_positive(emulated_devices=self.emulated_devices, num_conversations=self.num_conversations)
        check_positive(num_prompts=self.num_prompts, num_held_out=self.num_held_out, num_seeds=self.num_seeds)
