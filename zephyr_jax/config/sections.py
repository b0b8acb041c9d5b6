"""The settings of a run in sections: frozen dataclasses with bounds on their fields and rules between them.

The other modules of `config` put the sections together into one config per command. This module never imports jax.
"""

from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum
from typing import Any, Literal, cast

from zephyr_jax.config.constraints import (
    RESUMABLE,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from zephyr_jax.errors import InputError

DEFAULT_ROW_LENGTH = 2048
DEFAULT_PROMPT_LENGTH = 512
MODEL = "a model: a run of `sft` or `dpo`, a Hugging Face folder or a hub id"
DATA = "rows: a file, a folder or a hub id"
"""What required settings hold, for the message where they are missing."""


class Remat(StrEnum):
    """Rematerialization (activation checkpointing) policies; `zephyr_jax.model.remat` has what each saves and costs."""

    FULL = "full"
    FULL_OFFLOAD = "full_offload"
    SAVE_ATTENTION = "save_attention"
    SAVE_DOTS = "save_dots"
    NONE = "none"


class DefaultInt(int):
    """An int that nothing has set: a run that a command continues or looks at may replace it."""


class DefaultStr(str):
    """A str that nothing has set: a run that a command continues or looks at may replace it."""


def unset[T](value: T) -> T:
    """The default of a setting that later commands inherit: equal to `value`; `is_unset` is true for it, not for a given one."""
    return cast(T, DefaultInt(value) if isinstance(value, int) else DefaultStr(value))


def is_unset(value: Any) -> bool:
    """Whether a setting still has the default that `unset` made."""
    return isinstance(value, DefaultInt | DefaultStr)


def settled(value: Any) -> Any:
    """The plain int or str of a setting."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, DefaultInt):
        return int(value)
    return str(value) if isinstance(value, DefaultStr) else value


@dataclass(frozen=True)
class WeightsOptions:
    """The model's files."""

    path: str = ""
    """Hugging Face folder or hub id (config.json and safetensors), or the output folder of a run of `sft` or `dpo`."""
    revision: str | None = None
    """Hub revision (branch, tag or commit) when `path` is a hub id."""


@dataclass(frozen=True)
class ForwardOptions(WeightsOptions):
    """The model's files, and how the forward pass computes."""

    compute_dtype: Literal["bfloat16", "float32"] = unset("bfloat16")
    """Dtype of matmuls and activations. Weights stay float32; norms, softmax and log-probs are float32 always. Default: the
    dtype of the run in `path`, else bfloat16."""


@dataclass(frozen=True)
class ScoringOptions(ForwardOptions):
    """The same, for commands that compute log-probs."""

    logprob_chunk: PositiveInt = 256
    """Chunk size of the unembedding in target tokens per device; bounds the logits' memory to `logprob_chunk * vocab_size`."""


@dataclass(frozen=True)
class ModelOptions(ScoringOptions):
    """The weights to start from, and how forward and backward pass compute."""

    remat: Remat = field(default=Remat.FULL, metadata=RESUMABLE)
    """Rematerialization (activation checkpointing) policy: what a layer saves for the backward pass, which recomputes the rest.
    `full`: its input. `full_offload`: the same, offloaded to pinned host memory. `save_attention`: also attention's output and
    softmax statistics; the attention kernel then runs forward once instead of twice. `save_dots`: also the products with
    weights; only elementwise operations are recomputed. `none`: everything; nothing is recomputed."""
    save_logits: bool = field(default=False, metadata=RESUMABLE)
    """Save the targets' logits, float32 [rows, row length, vocab], for the backward pass instead of recomputing them in chunks:
    a quarter fewer operations in the unembedding, for small models with memory to spare."""


@dataclass(frozen=True)
class DataOptions:
    """Where rows come from and how they become tokens."""

    path: str = ""
    """File of rows (JSONL, JSON, Parquet, CSV, TSV or Arrow, compressed or not), a folder of them, a `save_to_disk` folder, or a
    hub id; gs:// works too."""
    split: str = "train"
    """Split to read (hub ids and folders with splits; a single file has only `train`)."""
    eval_path: str | None = None
    """Rows for evaluation; default: `path`."""
    eval_split: str | None = None
    """Split to evaluate on; with neither `eval_path` nor `eval_split`, nothing is evaluated."""
    revision: str | None = None
    """Hub revision when `path` is a hub id."""
    limit: PositiveInt | None = None
    """Number of rows to use of each split, from its start; default: all."""
    chat_template: str | None = None
    """Chat template: `zephyr` (an empty system message comes first where a conversation has none, as Zephyr was trained),
    `zephyr-no-system` (inserts nothing), `tokenizer` (the checkpoint's own, of several the `default` one; another one is
    `tokenizer:NAME`), or a path to a Jinja file. Default: that of the run or checkpoint in `model.path`, else `zephyr`."""
    template_date: str | None = None
    """Date, YYYY-MM-DD, for chat templates that print the current date. Default: the date of the run that is resumed or
    continued, or of the reference table, else today; a run keeps its date."""
    allow_template_change: bool = field(default=False, metadata=RESUMABLE)
    """Let `sft`, `reference` and `dpo` continue a run with another chat template than it was trained with."""
    targets: Literal["assistant", "all"] = unset("assistant")
    """Tokens in the loss: `assistant`, the assistant's answers with their end token, or `all` tokens but the first (SFT only).
    Default: `assistant`; `evaluate` uses the run's."""
    max_length: PositiveInt = unset(2048)
    """Maximum sequence length in tokens; longer ones are handled by `on_bad_row`. It may exceed the model's positions as long
    as no sequence does. Default: 2048; `evaluate` uses the run's."""
    max_prompt_length: PositiveInt = unset(DEFAULT_PROMPT_LENGTH)
    """Preferences: the prompt of an over-long pair is first truncated to this many tokens (BOS and the prompt's end stay).
    Default: 512, or half of `max_length` if that is not more; `evaluate` uses the run's."""
    row_length: PositiveInt = unset(DEFAULT_ROW_LENGTH)
    """Length of a packed row in tokens; a row holds whole conversations or whole pairs. Default: 2048, or the longest example
    (`max_length`, for pairs twice that) if that is more."""
    packing: bool = True
    """Pack several conversations (pairs) into a row; off: one per row."""
    packing_window: PositiveInt = 8192
    """With `batch.rows`: number of shuffled examples that are packed together; a larger window pads less and shuffles less."""
    on_bad_row: Literal["truncate", "drop", "error"] = unset("truncate")
    """Over-length rows are truncated, dropped or an error. Malformed and zero-target rows are dropped under `truncate`.
    Default: `truncate`; `evaluate` uses the run's."""
    allow_contradictions: bool = False
    """Use rows whose columns contradict each other: a `prompt` that the dialogue does not contain, a `score_chosen` below
    `score_rejected`. Off: these are bad rows."""
    max_skipped_fraction: Fraction = field(default=0.1, metadata=RESUMABLE)
    """Largest fraction of the rows that may be skipped, and of the tokens that may be skipped or truncated. Above it `sft`,
    `dpo` and `reference` stop, and `evaluate` and `preview` print a warning. 1: never stop."""
    num_workers: PositiveInt = field(default=1, metadata=RESUMABLE)
    """Processes that tokenize; results are cached by content, so that a second run reads them back."""

    def fitted(self, segments: int) -> "DataOptions":
        """Lengths that nothing has set, made to fit: a row holds `segments` sequences, and a prompt leaves room for an answer."""
        row, prompt = self.row_length, self.max_prompt_length
        if is_unset(row):
            row = unset(max(DEFAULT_ROW_LENGTH, segments * self.max_length))
        if is_unset(prompt):  # from the default, not from `prompt`: a card may have fitted it to another `max_length`
            short = self.max_length <= DEFAULT_PROMPT_LENGTH
            prompt = unset(max(1, self.max_length // 2) if short else DEFAULT_PROMPT_LENGTH)
        unchanged = (row, prompt) == (self.row_length, self.max_prompt_length)
        return self if unchanged else replace(self, row_length=row, max_prompt_length=prompt)

    def check(self) -> None:
        """Raise InputError where a sequence is longer than a row."""
        if self.max_length > self.row_length:
            raise InputError(
                f"data.row_length: expected at least data.max_length ({self.max_length}), got {self.row_length}. A row must "
                "hold the longest sequence: raise data.row_length or lower data.max_length."
            )

    def check_one_split(self) -> None:
        """Raise InputError for settings of training that a command which reads one split ignores."""
        if self.eval_path is not None or self.eval_split is not None:
            raise InputError(
                "data.eval_path and data.eval_split are settings of training: this command reads one split. Set data.path and "
                "data.split to the rows that are meant."
            )

    @property
    def evaluation_source(self) -> tuple[str, str] | None:
        """Path and split to evaluate on; None where the settings name neither."""
        if self.eval_path is None and self.eval_split is None:
            return None
        return self.eval_path or self.path, self.eval_split or "train"


@dataclass(frozen=True)
class MeshOptions:
    """The device mesh of one TPU slice. One size may be -1: the remaining devices. Several slices multiply `data`."""

    data: int = 1
    """Data parallelism: copies of the weights in a slice, each with its part of the batch."""
    fsdp: int = -1
    """Fully sharded data parallelism: shards of weights and optimizer state, each with its part of the batch."""
    tensor: int = 1
    """Tensor parallelism: shards of heads, feed-forward and vocabulary. A vocabulary that does not divide is padded inside of
    compiled programs only."""
    emulated_devices: PositiveInt | None = None
    """Number of devices to emulate on the CPU (tests, laptops); default: the devices of this machine."""


@dataclass(frozen=True)
class EndpointOptions:
    """Requests to models behind OpenAI-compatible URLs; all models of a command share the budgets."""

    api_key_env: str | None = None
    """Environment variable with the API key of models without `,api_key_env=`; the key itself is never written or logged."""
    max_tokens_param: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Request parameter for the longest reply; OpenAI's reasoning models refuse `max_tokens`."""
    max_concurrency: PositiveInt = 8
    """Requests in flight at one time."""
    timeout: PositiveFloat = 300.0
    """Seconds until a request is abandoned and sent again."""
    max_retries: NonNegativeInt = 6
    """Retries of a request after a transient error."""
    backoff: NonNegativeFloat = 1.0
    """Seconds before the first retry; doubles with each further retry, up to a minute."""
    max_total_tokens: PositiveInt | None = None
    """Budget of tokens, of prompts and completions together; default: no limit."""
    price_per_mtok_in: NonNegativeFloat = 0.0
    """US dollars per million prompt tokens of models without `,price_per_mtok_in=`."""
    price_per_mtok_out: NonNegativeFloat = 0.0
    """US dollars per million completion tokens of models without `,price_per_mtok_out=`."""
    max_cost_usd: PositiveFloat | None = None
    """Budget in US dollars; each model needs a price. Default: no limit."""


@dataclass(frozen=True)
class DecontaminationOptions:
    """Test sets whose questions must not occur in prepared rows."""

    against: tuple[str, ...] = ()
    """Files, folders or hub ids of test sets (JSONL, JSON, Parquet, CSV, text)."""
    ngram: NonNegativeInt = 13
    """Consecutive words (without case and punctuation) shared with a test question that make a row contaminated; shorter
    questions of six words or more must occur entirely. 0: only rows that equal a test question."""
    scope: Literal["prompts", "all"] = "prompts"
    """Text that is searched: `prompts`, the user messages, or `all`, the answers too."""

    def check(self) -> None:
        """Raise InputError for n-grams without meaning, or settings without a test set."""
        if self.ngram and not 6 <= self.ngram <= 1000:
            raise InputError(
                f"decontaminate.ngram: expected 6 to 1,000 words, or 0 for whole texts only, got {self.ngram}. Fewer than six "
                "consecutive words occur in unrelated texts."
            )
        if not self.against and self != DecontaminationOptions():
            raise InputError(
                f"decontaminate.ngram is {self.ngram} and decontaminate.scope `{self.scope}` without a test set. Name files with "
                "decontaminate.against, or leave these at their defaults."
            )
