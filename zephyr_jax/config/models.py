"""What is done with a model that is there: `evaluate`, `generate`, `serve`, `chat`, `export`, `lineage`."""

from dataclasses import dataclass, field
from typing import Literal

from zephyr_jax.config.checks import (
    check_data,
    check_dpo,
    check_model,
    check_one_split,
    check_positive,
    check_sampling,
    refuse,
    require,
)
from zephyr_jax.config.sections import (
    DataOptions,
    DpoOptions,
    ForwardOptions,
    MeshOptions,
    ScoringOptions,
    WeightsOptions,
)


@dataclass(frozen=True)
class EvaluateConfig:
    """Loss of a checkpoint on conversations, or loss, accuracy and margins on preferences; the columns decide which."""

    model: ScoringOptions = field(default_factory=ScoringOptions)
    data: DataOptions = field(default_factory=DataOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    dpo: DpoOptions = field(default_factory=DpoOptions)
    reference: str | None = None
    """Preferences: the reference table that the run was trained with (its run knows which); without it, answers are
    compared by the model's own log-probs."""
    reference_table: str | None = None
    """Preferences: name of the table in `reference`, as `reference ls` shows it, also where other weights made it."""
    reference_model: str | None = None
    """Preferences: checkpoint whose log-probs are the reference: a run, a step of one, a Hugging Face folder or a hub id.
    They are computed first, in a separate pass, so one model is in memory at a time. Excludes `reference`."""
    reference_revision: str | None = None
    """Hub revision of `reference_model`."""
    batch_size: int = 8
    """Rows of one forward pass."""
    output: str | None = None
    """Also write the numbers to this JSON file."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold together."""
        require(self.model.path, "model.path", "a model: a Hugging Face folder, a hub id or a run of ours")
        require(self.data.path, "data.path", "rows to evaluate on: a file, a folder or a hub id")
        check_model(self.model)
        check_data(self.data)
        check_one_split(self.data)
        if self.reference and self.reference_model:
            refuse(
                f"reference is {self.reference} and reference_model {self.reference_model}.",
                "Both are references: pass one of them.",
            )
        if self.reference_table and not self.reference:
            refuse(f"reference_table is {self.reference_table} without `reference`.", "Pass the folder of the table.")
        if self.reference_revision and not self.reference_model:
            refuse("reference_revision is given without `reference_model`.", "Pass the hub id of the model.")
        if self.dpo != DpoOptions() and not (self.reference or self.reference_model):
            refuse(
                "`dpo` settings are given without a reference.",
                "They have no effect then: pass `reference` (a table's folder) or `reference_model` (a checkpoint).",
            )
        check_dpo(self.dpo)
        check_positive(batch_size=self.batch_size)


@dataclass(frozen=True)
class PreferencesConfig(EvaluateConfig):
    """What a model thinks of pairs: accuracy, margins and calibration, over all, by a column and by length."""

    group_by: str | None = None
    """Column whose values make groups, such as `source`."""


@dataclass(frozen=True)
class GenerateConfig:
    """Answers of a model to prompts, many at a time."""

    model: ForwardOptions = field(default_factory=ForwardOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    prompts: tuple[str, ...] = ()
    """User messages; or give a file in `data`."""
    data: str | None = None
    """Rows with `prompt` (text) or `messages` (an assistant answer at the end is cut off)."""
    split: str = "train"
    """Split of `data`."""
    limit: int | None = None
    """Only the first so many prompts."""
    chat_template: str | None = None
    """Chat template, as in `data.chat_template`; default: the checkpoint's own, and `zephyr` where it has none. `none` continues
    the plain text of the prompts."""
    system: str | None = None
    """System message of every prompt that has none."""
    batch_size: int = 8
    """Prompts decoded together; when one has ended, the next takes its place."""
    max_new_tokens: int = 256
    """Longest answer in tokens."""
    temperature: float = 0.0
    """0: the likeliest token each time (greedy)."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens with this much probability."""
    top_k: int = 0
    """Draw from so many of the likeliest tokens; 0: from all."""
    seed: int = 0
    """Decides the draws; a prompt's answer does not depend on what else is in the batch."""
    output: str | None = None
    """JSONL file to write prompts and answers to; the same command goes on where a killed one was (`<output>.part`)."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold together."""
        require(self.model.path, "model.path", "a model: a Hugging Face folder, a hub id or a run of ours")
        if bool(self.prompts) == bool(self.data):
            refuse(
                "Prompts come from `prompts` or from `data`, exactly one of them.", "Pass `--prompts 'Hello!'`, say."
            )
        check_positive(
            batch_size=self.batch_size, max_new_tokens=self.max_new_tokens, top_p=self.top_p, limit=self.limit
        )
        if self.chat_template == "none" and self.system is not None:
            refuse(
                "`system` is given with template `none`.",
                "Plain text has no system message: drop it or use a template.",
            )
        check_sampling(self.temperature, self.top_p, self.top_k, self.seed)
        if self.temperature == 0 and (self.top_p < 1 or self.top_k):
            refuse(
                f"top_p is {self.top_p} and top_k {self.top_k} at temperature 0.",
                "Greedy decoding draws nothing: set a temperature.",
            )


@dataclass(frozen=True)
class ServeConfig:
    """An OpenAI-compatible server: /v1/chat/completions, whole or streamed, and /v1/models."""

    model: ForwardOptions = field(default_factory=ForwardOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    name: str | None = None
    """What clients call the model; default: the last part of `model.path`."""
    chat_template: str | None = None
    """Chat template, as in `data.chat_template`; default: the checkpoint's own, and `zephyr` where it has none."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 lets other machines in."""
    port: int = 8000
    """Port to listen at; 0: any that is free."""
    api_key_env: str | None = None
    """Name of an environment variable with the key that clients must show; the key itself is in no file and no log."""
    max_concurrency: int = 8
    """Requests at work at one time; the others wait."""
    max_open_requests: int = 256
    """Requests that may be open at one time; more are refused with 429."""
    context_length: int | None = None
    """Tokens of prompt and answer together; default: 4,096, or as many positions as the model has."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold."""
        require(self.model.path, "model.path", "a model: a run of ours, a Hugging Face folder or a hub id")
        check_positive(
            max_concurrency=self.max_concurrency,
            max_open_requests=self.max_open_requests,
            context_length=self.context_length,
        )
        if not 0 <= self.port < 2**16:
            refuse(f"port is {self.port}.", "It must be at least 0 and below 65,536.")


@dataclass(frozen=True)
class ChatConfig:
    """Talk to a model in the terminal; the answer appears as it is made."""

    model: ForwardOptions = field(default_factory=ForwardOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    chat_template: str | None = None
    """Chat template, as in `data.chat_template`; default: the checkpoint's own, and `zephyr` where it has none."""
    system: str | None = None
    """System message; `/system TEXT` changes it."""
    max_new_tokens: int = 512
    """Longest answer in tokens."""
    temperature: float = 0.7
    """0: the likeliest token each time (greedy)."""
    top_p: float = 0.95
    """Draw from the smallest set of tokens with this much probability."""
    top_k: int = 50
    """Draw from so many of the likeliest tokens; 0: from all."""
    seed: int = 0
    """Decides the draws."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold."""
        require(self.model.path, "model.path", "a model: a run of ours, a Hugging Face folder or a hub id")
        check_positive(max_new_tokens=self.max_new_tokens, top_p=self.top_p)
        check_sampling(self.temperature, self.top_p, self.top_k, self.seed)


@dataclass(frozen=True)
class ExportConfig:
    """A Hugging Face folder from a run (or another folder): safetensors, config, tokenizer with its chat template."""

    model: WeightsOptions = field(default_factory=WeightsOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    output: str = ""
    """Folder to make."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Dtype of the written weights; training keeps float32. A weight beyond what the dtype holds (65,504 in float16) is an
    error."""
    max_shard_gib: float = 4.0
    """Largest safetensors file."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold together."""
        require(self.model.path, "model.path", "a model: a run of ours, a Hugging Face folder or a hub id")
        require(self.output, "output", "a folder to make")
        check_positive(max_shard_gib=self.max_shard_gib)


@dataclass(frozen=True)
class LineageConfig:
    """Where a run or an export comes from: every stage with its data, settings, seed, versions and devices."""

    path: str = ""
    """Folder of a run or an export."""

    def check(self) -> None:
        """Raise InputError when no folder is named."""
        require(self.path, "path", "the folder of a run or an export")
