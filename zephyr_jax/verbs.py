"""One config a verb: its sections, and the check that they hold together. Never imports jax.

A *card* is a YAML file that fills one of these; dotted overrides on the command line win over the card. Settings that
cannot take effect together are refused, never ignored.
"""

from dataclasses import dataclass, field
from typing import Literal

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
from zephyr_jax.errors import InputError


def _refuse(got: str, need: str) -> None:
    raise InputError(f"{got} {need}")


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
        _require(self.model.path, "model.path", "a model: a Hugging Face folder, a hub id or a run of ours")
        _require(self.data.path, "data.path", "training data: a file, a folder or a hub id")
        _require(self.output, "output", "a folder for the run")
        _check_data(self.data)
        _check_model(self.model)
        if self.seed < 0:
            _refuse(f"seed is {self.seed}.", "It must not be negative.")
        _check_batch(self.batch)
        _check_optimizer(self.optimizer, self.schedule)


@dataclass(frozen=True)
class DpoConfig(SftConfig):
    """Direct preference optimisation (dDPO); the `reference` verb takes the same card and fills the table first."""

    dpo: DpoOptions = field(default_factory=DpoOptions)
    reference: str = ""
    """Folder of the reference table: `zephyr-jax reference` writes it, `zephyr-jax dpo` reads it."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold together."""
        super().check()
        _require(self.reference, "reference", "a folder for the reference table")
        if self.data.targets != "assistant":
            _refuse("data.targets is `all`.", "Preferences count the answers only; set `data.targets: assistant`.")
        if self.data.row_length < 2 * self.data.max_length and self.data.on_bad_row == "truncate":
            _refuse(
                f"data.row_length is {self.data.row_length} and data.max_length {self.data.max_length}.",
                "A pair shares a row, so a row must hold two sequences: set data.row_length to at least "
                f"{2 * self.data.max_length} or lower data.max_length.",
            )
        if self.data.max_prompt_length >= self.data.max_length:
            _refuse(
                f"data.max_prompt_length is {self.data.max_prompt_length}, data.max_length {self.data.max_length}.",
                "The prompt must leave room for an answer: lower data.max_prompt_length.",
            )
        _check_dpo(self.dpo)


@dataclass(frozen=True)
class PlanConfig(DpoConfig):
    """What a card's step needs on a TPU topology, from the TPU compiler, with no hardware."""

    topology: str = "v5e:2x4"
    """Chips to plan for: kind and grid, such as v5e:2x4, v5e:4x4, v6e:2x4, v5p:2x2x1."""
    step: Literal["sft", "dpo", "reference"] | None = None
    """What to compile; default: `dpo` where the card names a reference table, else `sft`."""
    shape: Literal["mistral-7b"] | None = None
    """Plan for this model's sizes; default: those of the folder model.path, or Mistral-7B's (and it is said) when that is no
    folder here. Nothing is downloaded."""

    def check(self) -> None:
        """Raise InputError for settings that cannot hold together; model, data and output may be unset or absent."""
        _check_data(self.data)
        _check_model(self.model)
        _check_batch(self.batch)
        _check_optimizer(self.optimizer, self.schedule)
        _check_dpo(self.dpo)

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
        _require(self.model.path, "model.path", "a model: a Hugging Face folder, a hub id or a run of ours")
        _require(self.data.path, "data.path", "rows to evaluate on: a file, a folder or a hub id")
        _check_data(self.data)
        _check_one_split(self.data)
        if self.dpo != DpoOptions() and not self.reference:
            _refuse(
                "`dpo` settings are given without `reference`.", "They have no effect then: pass the table's folder."
            )
        _check_dpo(self.dpo)
        _check_positive(rows=self.rows)


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
        _require(self.model.path, "model.path", "a model: a Hugging Face folder, a hub id or a run of ours")
        if bool(self.prompts) == bool(self.data):
            _refuse(
                "Prompts come from `prompts` or from `data`, exactly one of them.", "Pass `--prompts 'Hello!'`, say."
            )
        _check_positive(rows=self.rows, max_new_tokens=self.max_new_tokens, top_p=self.top_p, limit=self.limit)
        if self.template == "none" and self.system is not None:
            _refuse(
                "`system` is given with template `none`.",
                "Plain text has no system message: drop it or use a template.",
            )
        if self.temperature < 0 or self.top_p > 1:
            _refuse(f"temperature is {self.temperature}, top_p {self.top_p}.", "It needs temperature >= 0, top_p <= 1.")
        if self.temperature == 0 and self.top_p < 1:
            _refuse(f"top_p is {self.top_p} at temperature 0.", "Greedy decoding draws nothing: set a temperature.")


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
        _require(self.model.path, "model.path", "a model: a run of ours, a Hugging Face folder or a hub id")
        _require(self.output, "output", "a folder to make")
        _check_positive(max_file_gib=self.max_file_gib)


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
        _require(self.model.path, "model.path", "a model folder or hub id, for its tokenizer")
        _require(self.data.path, "data.path", "rows to show: a file, a folder or a hub id")
        _check_data(self.data)
        _check_one_split(self.data)
        _check_positive(rows=self.rows)


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
        _require(self.output, "output", "a folder")
        _check_positive(emulated_devices=self.emulated_devices)


def _require(value: str, name: str, what: str) -> None:
    if not value:
        _refuse(f"`{name}` is not set.", f"It needs {what}. Pass `--{name} ...` or set it in the card.")


def _check_positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and value <= 0:
            _refuse(f"{name.replace('__', '.')} is {value}.", "It must be greater than zero.")


def _check_model(model: ModelOptions) -> None:
    _check_positive(model__logprob_chunk=model.logprob_chunk)


def _check_data(data: DataOptions) -> None:
    _check_positive(
        data__max_length=data.max_length,
        data__max_prompt_length=data.max_prompt_length,
        data__row_length=data.row_length,
        data__packing_window=data.packing_window,
        data__limit=data.limit,
        data__workers=data.workers,
    )
    if data.max_length > data.row_length:
        _refuse(
            f"data.max_length is {data.max_length} and data.row_length {data.row_length}.",
            "A row must hold the longest sequence: raise data.row_length or lower data.max_length.",
        )


def _check_one_split(data: DataOptions) -> None:
    if data.eval_path is not None or data.eval_split is not None:
        _refuse(
            f"data.eval_path is {data.eval_path!r} and data.eval_split {data.eval_split!r}.",
            "This verb looks at one split: name it with data.path and data.split.",
        )


def _check_batch(batch: BatchOptions) -> None:
    if (batch.rows is None) == (batch.examples is None):
        _refuse(
            f"batch.rows is {batch.rows} and batch.examples {batch.examples}.",
            "Exactly one of them says how large a step is: `rows` counts packed rows, `examples` conversations "
            "or pairs.",
        )
    _check_positive(
        batch__rows=batch.rows, batch__examples=batch.examples, batch__microbatch_rows=batch.microbatch_rows
    )
    if batch.examples is not None and batch.microbatch_rows is None:
        _refuse(
            "batch.examples is set without batch.microbatch_rows.",
            "The number of rows of a step varies then, so set how many go through one forward and backward.",
        )
    if batch.rows is not None and batch.microbatch_rows is not None and batch.rows % batch.microbatch_rows:
        _refuse(
            f"batch.rows is {batch.rows} and batch.microbatch_rows {batch.microbatch_rows}.",
            "The second must divide the first.",
        )


def _check_optimizer(optimizer: OptimizerOptions, schedule: ScheduleOptions) -> None:
    _check_positive(
        optimizer__learning_rate=optimizer.learning_rate,
        optimizer__eps=optimizer.eps,
        optimizer__clip_norm=optimizer.clip_norm,
        schedule__epochs=schedule.epochs,
        schedule__max_steps=schedule.max_steps,
        schedule__log_every=schedule.log_every,
        schedule__keep_last=schedule.keep_last,
    )
    if not 0 <= optimizer.warmup_ratio < 1:
        _refuse(f"optimizer.warmup_ratio is {optimizer.warmup_ratio}.", "It is a share of all steps: 0 <= ratio < 1.")
    adamw_only = ("b1", "b2", "weight_decay", "first_moment_dtype")
    default = OptimizerOptions()
    set_here = [
        f"{name} {getattr(optimizer, name)}"
        for name in adamw_only
        if getattr(optimizer, name) != getattr(default, name)
    ]
    if optimizer.name == "rmsprop" and set_here:
        _refuse(
            f"optimizer.name is `rmsprop` with {' and '.join(set_here)}.",
            "RMSprop has none of these; leave them at their defaults or use `adamw`.",
        )


def _check_dpo(dpo: DpoOptions) -> None:
    _check_positive(dpo__beta=dpo.beta)
    if not 0 <= dpo.label_smoothing < 0.5:
        _refuse(f"dpo.label_smoothing is {dpo.label_smoothing}.", "It must be at least 0 and below 0.5.")
    if dpo.label_smoothing and dpo.loss not in ("sigmoid", "robust"):
        _refuse(
            f"dpo.label_smoothing is {dpo.label_smoothing} with dpo.loss `{dpo.loss}`.",
            "Only `sigmoid` and `robust` smooth labels; set it to 0 or change the loss.",
        )
    if dpo.sft_weight < 0:
        _refuse(f"dpo.sft_weight is {dpo.sft_weight}.", "It must not be negative.")
