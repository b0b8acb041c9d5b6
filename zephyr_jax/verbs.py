"""One config a verb: its sections, and the check that they hold together. Never imports jax.

A *card* is a YAML file that fills one of these; dotted overrides on the command line win over the card. Settings that
cannot take effect together are refused, never ignored.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from zephyr_jax.checks import (
    check_batch,
    check_data,
    check_dpo,
    check_model,
    check_not_negative,
    check_one_split,
    check_optimizer,
    check_positive,
    refuse,
    require,
)
from zephyr_jax.config import (
    BatchOptions,
    DataOptions,
    DpoOptions,
    MeshOptions,
    ModelOptions,
    OptimizerOptions,
    ReportOptions,
    ScheduleOptions,
)


@dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning on conversations (dSFT): the loss counts the assistant's tokens only."""

    output: str = ""
    """Folder of the run: config, metrics, checkpoints, tokenizer. The same command resumes it."""
    seed: int = 42
    """Decides the order of the data and nothing else."""
    resume: bool = True
    """Continue from the newest checkpoint in `output`; off: refuse to touch a run that is there."""
    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    batch: BatchOptions = field(default_factory=BatchOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    report: ReportOptions = field(default_factory=ReportOptions)

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold together."""
        require(self.model.path, "model.path", "a model: a Hugging Face folder, a hub id or a run of ours")
        require(self.data.path, "data.path", "training data: a file, a folder or a hub id")
        require(self.output, "output", "a folder for the run")
        check_data(self.data)
        check_model(self.model)
        if self.seed < 0:
            refuse(f"seed is {self.seed}.", "It must not be negative.")
        check_batch(self.batch)
        check_optimizer(self.optimizer, self.schedule, self.model)


@dataclass(frozen=True)
class DpoConfig(SftConfig):
    """Direct preference optimisation (dDPO); the `reference` verb takes the same card and fills the table first."""

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
class ReferenceConfig(DpoConfig):
    """The frozen weights' log-probs of every pair, once, into a table; it takes the card of `dpo`."""

    verify: int = 0
    """Instead of filling the table: compute so many of its pairs anew, drawn by `seed`, and refuse where it holds other
    values; 0: fill it. Digests of all parts are checked in any case."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold together."""
        super().check()
        check_not_negative(verify=self.verify)


@dataclass(frozen=True)
class ReferenceLsConfig:
    """The reference tables of a folder: identity, entries, bytes, parts, when last written, and what is damaged."""

    reference: str = ""
    """Folder that `zephyr-jax reference` writes to."""

    def check(self) -> None:
        """Raise InputError when no folder is named."""
        require(self.reference, "reference", "the folder of the reference tables")


@dataclass(frozen=True)
class ReferenceGcConfig(ReferenceLsConfig):
    """Tidy the reference tables of a folder while no pass runs: unfinished files go, small parts become one."""

    keep: tuple[str, ...] = ()
    """Delete every table but these; names as `reference ls` shows them."""
    older_than_days: float | None = None
    """Delete tables that were last written so many days ago or earlier (with `keep`: of the others)."""
    apply: bool = False
    """Do it; off: only say what would be done."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold."""
        super().check()
        check_not_negative(older_than_days=self.older_than_days or 0.0)


@dataclass(frozen=True)
class PlanConfig(DpoConfig):
    """What a card's step needs on a TPU topology, from the TPU compiler, with no hardware."""

    topology: str = "v5e:2x4"
    """Chips of a slice to plan for: kind and grid, such as v5e:2x4, v5e:4x4, v6e:2x4, v5p:2x2x1."""
    slices: int = 1
    """Slices of that topology, joined by the data centre's network; each holds copies of the weights."""
    step: Literal["sft", "dpo", "reference", "generate"] | None = None
    """What to compile; default: `dpo` where the card names a reference table, else `sft`."""
    fit: bool = False
    """Search the fastest settings that fit: rows of a microbatch, `model.keep`, mesh, and dtypes of gradients and moments."""
    shape: Literal["mistral-7b"] | None = None
    """Plan for this model's sizes; default: those of the folder model.path, or Mistral-7B's (and it is said) when that is no
    folder here. Nothing is downloaded."""

    def check(self) -> None:
        """Raise InputError for settings that cannot hold together; model, data and output may be unset or absent."""
        check_data(self.data)
        check_model(self.model)
        check_batch(self.batch)
        check_optimizer(self.optimizer, self.schedule, self.model)
        check_dpo(self.dpo)
        check_positive(slices=self.slices)
        if self.planned_step == "generate" and self.data.max_prompt_length >= self.data.row_length:
            refuse(
                f"data.max_prompt_length is {self.data.max_prompt_length}, data.row_length {self.data.row_length}.",
                "The prompt must leave room for an answer: lower data.max_prompt_length.",
            )
        if self.fit and self.planned_step not in ("sft", "dpo"):
            refuse(f"`fit` is on for the {self.planned_step} step.", "It searches training steps: plan sft or dpo.")

    @property
    def planned_step(self) -> str:
        """The step to compile."""
        return self.step or ("dpo" if self.reference else "sft")


@dataclass(frozen=True)
class EvaluateConfig:
    """Loss of a checkpoint on conversations, or loss, accuracy and margins on preferences; the columns decide which."""

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    dpo: DpoOptions = field(default_factory=DpoOptions)
    reference: str | None = None
    """Preferences: the reference table that the run was trained with (its run knows which); without it, answers are
    compared by the model's own log-probs."""
    rows: int = 8
    """Rows of one forward pass."""
    output: str | None = None
    """Also write the numbers to this JSON file."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold together."""
        require(self.model.path, "model.path", "a model: a Hugging Face folder, a hub id or a run of ours")
        require(self.data.path, "data.path", "rows to evaluate on: a file, a folder or a hub id")
        check_data(self.data)
        check_one_split(self.data)
        if self.dpo != DpoOptions() and not self.reference:
            refuse(
                "`dpo` settings are given without `reference`.", "They have no effect then: pass the table's folder."
            )
        check_dpo(self.dpo)
        check_positive(rows=self.rows)


@dataclass(frozen=True)
class GenerateConfig:
    """Answers of a model to prompts, many at a time."""

    model: ModelOptions = field(default_factory=ModelOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    prompts: tuple[str, ...] = ()
    """User messages; or give a file in `data`."""
    data: str | None = None
    """Rows with `prompt` (text) or `messages` (an assistant answer at the end is cut off)."""
    split: str = "train"
    """Split of `data`."""
    limit: int | None = None
    """Only the first so many prompts."""
    template: str = "zephyr"
    """Chat template, as in `data.template`; `none` continues the plain text of the prompts."""
    system: str | None = None
    """System message of every prompt that has none."""
    rows: int = 8
    """Prompts decoded together."""
    max_new_tokens: int = 256
    """Longest answer in tokens."""
    temperature: float = 0.0
    """0: the likeliest token each time (greedy)."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens with this much probability."""
    seed: int = 0
    """Decides the draws; a prompt's answer does not depend on what else is in the batch."""
    output: str | None = None
    """JSONL file to write prompts and answers to."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold together."""
        require(self.model.path, "model.path", "a model: a Hugging Face folder, a hub id or a run of ours")
        if bool(self.prompts) == bool(self.data):
            refuse(
                "Prompts come from `prompts` or from `data`, exactly one of them.", "Pass `--prompts 'Hello!'`, say."
            )
        check_positive(rows=self.rows, max_new_tokens=self.max_new_tokens, top_p=self.top_p, limit=self.limit)
        if self.template == "none" and self.system is not None:
            refuse(
                "`system` is given with template `none`.",
                "Plain text has no system message: drop it or use a template.",
            )
        if not 0 <= self.temperature < math.inf or self.top_p > 1:
            refuse(f"temperature is {self.temperature}, top_p {self.top_p}.", "It needs temperature >= 0, top_p <= 1.")
        if self.temperature == 0 and self.top_p < 1:
            refuse(f"top_p is {self.top_p} at temperature 0.", "Greedy decoding draws nothing: set a temperature.")


@dataclass(frozen=True)
class ExportConfig:
    """A Hugging Face folder from a run (or another folder): safetensors, config, tokenizer with its chat template."""

    model: ModelOptions = field(default_factory=ModelOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    output: str = ""
    """Folder to make."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of the written weights; training keeps float32."""
    max_file_gib: float = 4.0
    """Largest safetensors file."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold together."""
        require(self.model.path, "model.path", "a model: a run of ours, a Hugging Face folder or a hub id")
        require(self.output, "output", "a folder to make")
        check_positive(max_file_gib=self.max_file_gib)


@dataclass(frozen=True)
class LineageConfig:
    """Where a run or an export comes from: every stage with its data, settings, seed, versions and devices."""

    path: str = ""
    """Folder of a run or an export."""

    def check(self) -> None:
        """Raise InputError when no folder is named."""
        require(self.path, "path", "the folder of a run or an export")


@dataclass(frozen=True)
class PreviewConfig:
    """Rows as the model will see them: targets in colour, token counts, what is cut and what is left out, and why."""

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    rows: int = 3
    """How many to print."""
    start: int = 0
    """Index of the first."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold together."""
        require(self.model.path, "model.path", "a model folder or hub id, for its tokenizer")
        require(self.data.path, "data.path", "rows to show: a file, a folder or a hub id")
        check_data(self.data)
        check_one_split(self.data)
        check_positive(rows=self.rows)


@dataclass(frozen=True)
class DemoConfig:
    """The whole recipe on a tiny base and tiny data that the package makes itself, on emulated devices."""

    output: str = "runs/demo"
    """Folder for everything that the demo makes."""
    base: str | None = None
    """Another base to start from (folder or hub id); default: the one that the package ships."""
    emulated_devices: int = 8
    """Devices that the CPU poses as."""
    seed: int = 0
    """Decides the data and its order."""

    def check(self) -> None:
        """Raise InputError for settings that cannot hold."""
        require(self.output, "output", "a folder")
        check_positive(emulated_devices=self.emulated_devices)
