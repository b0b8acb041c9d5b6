"""The settings of commands that use a model: `evaluate`, `generate`, `serve`, `chat`, `export`, `lineage`."""

import re
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from zephyr_jax.config.adapter import EvaluationOptions, InferenceOptions
from zephyr_jax.config.constraints import ADVANCED, PositiveFloat, PositiveInt
from zephyr_jax.config.sampling import MaxNewTokens, Temperature, TopK, TopKSamplingOptions, TopP
from zephyr_jax.config.sections import (
    DATA,
    MODEL,
    DataOptions,
    MeshOptions,
    TemplateValue,
    WeightsOptions,
    unset,
)
from zephyr_jax.config.training_sections import DpoOptions
from zephyr_jax.config.validation import require
from zephyr_jax.errors import InputError, truncate_repr

_MODEL = {"model.path": MODEL}
_REPOSITORY = re.compile(r"(?!.*(?:--|\.\.))\b[\w.-]+\b/\b[\w.-]{1,96}\b", re.ASCII)
"""A repository of the Hugging Face hub, with its owner."""
_CONTEXT = "Maximum tokens of prompt and answer together"
_SHARD_GIB = 4.0


@dataclass(frozen=True)
class EvaluateConfig:
    """Loss of a checkpoint on conversations, or loss, accuracy and margins on preferences, by the columns of the rows."""

    REQUIRED: ClassVar[dict[str, str]] = {**_MODEL, "data.path": DATA}

    model: EvaluationOptions = field(default_factory=EvaluationOptions)
    data: DataOptions = field(default_factory=DataOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    dpo: DpoOptions = field(default_factory=DpoOptions)
    reference: str | None = None
    """Preferences: folder of the reference table that the run was trained with. Without a reference, answers are compared
    by the model's own log-probs."""
    reference_table: str | None = field(default=None, metadata=ADVANCED)
    """Preferences: name of the table in `reference`, as `reference ls` prints it, also where other weights made it."""
    reference_model: str | None = None
    """Preferences: reference model (a run, a step of a run, a Hugging Face folder or a hub id), instead of `reference`. Its
    log-probs are computed first, so that one model is in memory at a time."""
    reference_revision: str | None = field(default=None, metadata=ADVANCED)
    """Hub revision (branch, tag or commit) of `reference_model`."""
    batch_size: PositiveInt = 8
    """Batch size of the forward pass, in rows. Lower it if memory is short."""
    output: str | None = None
    """JSON file for the metrics; default: they are only printed."""

    def check(self) -> None:
        """Raise InputError for settings that contradict each other."""
        self.data.check_one_split()
        if self.reference and self.reference_model:
            raise InputError(
                f"reference is {self.reference} and reference_model {self.reference_model}: expected one of them."
            )
        if self.reference_table and not self.reference:
            raise InputError(
                f"reference_table is {self.reference_table} without `reference`. Pass the folder of the table."
            )
        if self.reference_revision and not self.reference_model:
            raise InputError("reference_revision is set without `reference_model`. Pass the hub id of the model.")
        if self.dpo != DpoOptions() and not (self.reference or self.reference_model):
            raise InputError(
                "`dpo` settings have no effect without a reference. Pass `reference` (a table's folder) or `reference_model` "
                "(a checkpoint)."
            )


@dataclass(frozen=True)
class PreferencesConfig(EvaluateConfig):
    """Preference accuracy, margins and calibration: of all pairs, by a column and by length."""

    group_by: str | None = None
    """Column to group the metrics by, such as `source`; default: no groups."""


@dataclass(frozen=True)
class GenerateConfig(TopKSamplingOptions):
    """Answers of a model to prompts, in batches."""

    REQUIRED: ClassVar[dict[str, str]] = _MODEL

    model: InferenceOptions = field(default_factory=InferenceOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    prompts: tuple[str, ...] = ()
    """Prompts: user messages on the command line, instead of `data`."""
    data: str | None = None
    """File of prompts: rows with `prompt` (text) or `messages` (an assistant answer at the end is removed), instead of
    `prompts`."""
    split: str = field(default="train", metadata=ADVANCED)
    """Split of `data`."""
    limit: PositiveInt | None = None
    """Maximum number of prompts, from the start; default: all."""
    chat_template: str | None = None
    """Chat template, as in `data.chat_template`; default: the checkpoint's own, else `zephyr`. `none` continues the plain
    text of the prompts, as for base models."""
    template_args: dict[str, TemplateValue] = field(default_factory=dict, metadata=ADVANCED)
    """Chat template arguments, as in `data.template_args`; default: those of the checkpoint's run."""
    system: str | None = None
    """System message, of every prompt that has none."""
    batch_size: PositiveInt = 8
    """Batch size: prompts that are decoded together (continuous batching). Lower it if memory is short."""
    output: str | None = None
    """JSONL file for prompts and answers; default: they are only printed. The same command resumes an interrupted one
    (`<output>.part`, and `<output>.part-N` of process N)."""

    def check(self) -> None:
        """Raise InputError for settings that contradict each other."""
        if bool(self.prompts) == bool(self.data):
            raise InputError("Expected exactly one of `prompts` and `data`, such as `--prompts 'Hello!'`.")
        if self.chat_template == "none" and self.system is not None:
            raise InputError(
                "`system` is set with chat_template `none`: plain text has no system message. Remove it, or use a template."
            )
        if self.chat_template == "none" and self.template_args:
            raise InputError(
                "`template_args` are set with chat_template `none`: plain text has no template. Remove them."
            )
        if self.temperature == 0 and (self.top_p < 1 or self.top_k):
            raise InputError(
                f"top_p is {self.top_p} and top_k {self.top_k} at temperature 0: they have no effect on greedy decoding. Set a "
                "temperature."
            )


@dataclass(frozen=True)
class ServeConfig:
    """An OpenAI-compatible server: /v1/chat/completions, streaming or not, and /v1/models."""

    REQUIRED: ClassVar[dict[str, str]] = _MODEL

    model: InferenceOptions = field(default_factory=InferenceOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    name: str | None = None
    """Model name for clients; default: the last part of `model.adapter`, else of `model.path`."""
    chat_template: str | None = None
    """Chat template, as in `data.chat_template`; default: the checkpoint's own, else `zephyr`."""
    template_args: dict[str, TemplateValue] = field(default_factory=dict, metadata=ADVANCED)
    """Chat template arguments, as in `data.template_args`; default: those of the checkpoint's run."""
    host: str = "127.0.0.1"
    """Network address to listen on; 0.0.0.0 serves other machines."""
    port: Annotated[int, Field(ge=0, lt=2**16)] = 8000
    """Network port to listen on; 0: any free port."""
    api_key_env: str | None = None
    """Environment variable with the API key that clients must send; default: no key. The key itself is never written or
    logged."""
    max_concurrency: PositiveInt = 8
    """Batch size: requests that are decoded together (continuous batching); the others wait."""
    max_open_requests: PositiveInt = field(default=256, metadata=ADVANCED)
    """Maximum number of requests that are decoded or wait; further ones are refused with status 429."""
    context_length: PositiveInt | None = None
    """Context length: maximum tokens of prompt and answer together. Default: 4,096, or the model's positions if that is
    less."""


@dataclass(frozen=True)
class ChatConfig(TopKSamplingOptions):
    """Chat with a model in the terminal; the answer is streamed."""

    REQUIRED: ClassVar[dict[str, str]] = _MODEL

    model: InferenceOptions = field(default_factory=InferenceOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    chat_template: str | None = None
    """Chat template, as in `data.chat_template`; default: the checkpoint's own, else `zephyr`."""
    template_args: dict[str, TemplateValue] = field(default_factory=dict, metadata=ADVANCED)
    """Chat template arguments, as in `data.template_args`; default: those of the checkpoint's run."""
    system: str | None = None
    """System message; `/system TEXT` changes it during the chat."""
    max_new_tokens: MaxNewTokens = 512
    temperature: Temperature = 0.7
    top_p: TopP = 0.95
    top_k: TopK = 50


@dataclass(frozen=True)
class ExportConfig:
    """Write a Hugging Face folder from a run or another folder (safetensors, config, tokenizer with its chat template, model
    card), and upload it to the Hugging Face hub on request."""

    REQUIRED: ClassVar[dict[str, str]] = {"output": "a folder to write"}

    model: WeightsOptions = field(default_factory=WeightsOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    output: str = ""
    """Output folder."""
    format: Literal["merged", "adapter"] = "merged"
    """What to write of a model with a LoRA adapter.

    - `merged`: all weights, with the adapter merged into its base; also for models without an adapter.
    - `adapter`: the adapter alone, in the format of peft and vLLM.
    """
    merge_into: Literal["original", "stored"] = "original"
    """Base weights that the adapter is merged into.

    - `original`: those of the base model's files.
    - `stored`: those that training computed with, rounded by the base format; outputs equal those of the trained model.
    """
    base: str | None = field(default=None, metadata=ADVANCED)
    """Format `adapter`: hub id or folder of the base model that adapter_config.json names; default: the model that the
    run started from."""
    dtype: Literal["bfloat16", "float16", "float32"] = unset("bfloat16")
    """Dtype of the written weights; training keeps float32. A weight beyond the dtype's range (65,504 in float16) is an
    error. Default: bfloat16, or float32 for format `adapter`.

    - `bfloat16`: two bytes a weight, with the range of float32.
    - `float16`: two bytes a weight, for hardware without bfloat16.
    - `float32`: four bytes a weight, as trained.
    """
    max_shard_gib: PositiveFloat = field(default=_SHARD_GIB, metadata=ADVANCED)
    """Maximum size of a safetensors file in GiB."""
    license: str | None = None
    """License id of the model card, such as apache-2.0; default: the license in the base model's card, if it has one."""
    push_to: str | None = None
    """Hub repository (OWNER/NAME) to upload the export to; a missing one is created. The token comes from HF_TOKEN or
    `hf auth login`. Without `model.path`, the complete export in `output` is uploaded."""
    public: bool = False
    """Create the hub repository as public, and allow an upload to a public one; default: private."""

    def check(self) -> None:
        """Raise InputError for settings that contradict each other."""
        self._check_format()
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise InputError(
                "license: expected a license id of the Hugging Face hub, such as apache-2.0, mit or other, got "
                f"{truncate_repr(self.license)}."
            )
        if self.push_to is None:
            require(self.model.path, "model.path", MODEL)
            if self.public:
                raise InputError("public is set without `push_to`. Pass the hub repository: `--push_to OWNER/NAME`.")
            return
        if not _REPOSITORY.fullmatch(self.push_to) or self.push_to.endswith(".git"):
            raise InputError(
                "push_to: expected OWNER/NAME of a hub repository (letters, digits, `-`, `_` and `.`; NAME at most 96), got "
                f"{truncate_repr(self.push_to)}."
            )
        if not self.model.path and self.license:
            raise InputError(
                "license is set without `model.path`: a complete export is uploaded as it is. Set the license in its README.md."
            )
        if not self.model.path and self.format == "adapter":
            raise InputError(
                "format is `adapter` without `model.path`: a complete export is uploaded as it is. Pass the run: `--model.path "
                "RUN`."
            )
        if self.output.startswith("gs://"):
            raise InputError(
                f"push_to needs an export on this machine's disk, got output {self.output}. Export without push_to, copy the "
                f"folder (`gcloud storage cp -r {self.output} FOLDER`) and run `zephyr-jax export --output FOLDER --push_to "
                f"{self.push_to}`."
            )

    def _check_format(self) -> None:
        """Raise InputError for settings that have no effect on the format."""
        if self.format == "merged" and self.base:
            raise InputError(
                f"base is {self.base} with format `merged`, which names no other model. Pass `--format adapter`, or leave base "
                "unset."
            )
        if self.format == "adapter" and self.merge_into != "original":
            raise InputError(
                f"merge_into is `{self.merge_into}` with format `adapter`, which merges nothing. Pass one of them."
            )
        if self.format == "adapter" and self.max_shard_gib != _SHARD_GIB:
            raise InputError(
                f"max_shard_gib is {self.max_shard_gib:g} with format `adapter`, which is one file. Leave max_shard_gib unset."
            )
        if not self.model.path and self.merge_into != "original":
            raise InputError(
                f"merge_into is `{self.merge_into}` without `model.path`: a complete export is uploaded as it is. Pass the run: "
                "`--model.path RUN`."
            )


@dataclass(frozen=True)
class LineageConfig:
    """The stages that made a run or an export, with their data, settings, seed, versions and devices."""

    REQUIRED: ClassVar[dict[str, str]] = {"path": "the folder of a run or an export"}

    path: str = ""
    """Folder of a run or an export."""
