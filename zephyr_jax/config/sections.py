"""The settings of a run in sections: frozen dataclasses with bounds on their fields and rules between them.

The other modules of `config` put the sections together into one config per command. This module never imports jax.
"""

from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum
from typing import Any, Literal, cast

from zephyr_jax.config.constraints import (
    ADVANCED,
    RESUMABLE,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from zephyr_jax.errors import InputError

DEFAULT_ROW_LENGTH = 2048
ROW_MULTIPLE = 128  # of row lengths that every attention kernel takes
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


type TemplateValue = bool | int | float | str | list[bool | int | float | str]
"""Value of a chat template's argument."""
BaseFormat = Literal["float32", "bfloat16", "int8", "int4", "nf4"]
"""How the frozen weights below an adapter are stored."""


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
    """Model: a Hugging Face folder or hub id (config.json and safetensors), or the output folder of a run of `sft` or
    `dpo`."""
    revision: str | None = field(default=None, metadata=ADVANCED)
    """Hub revision (branch, tag or commit) of `path`. Set a commit for reproducible runs; default: the main branch."""
    adapter: str | None = None
    """LoRA adapter on top of `path`: a folder or hub id in PEFT's format. A `path` that holds only an adapter, or a run with
    one, needs no setting."""
    adapter_revision: str | None = field(default=None, metadata=ADVANCED)
    """Hub revision (branch, tag or commit) of `adapter`; default: the main branch."""


@dataclass(frozen=True)
class ForwardOptions(WeightsOptions):
    """The model's files, and how the forward pass computes."""

    compute_dtype: Literal["bfloat16", "float32"] = unset("bfloat16")
    """Dtype of matmuls and activations; weights, norms, softmax and log-probs stay float32. Default: the dtype of the run
    in `path`, else bfloat16.

    - `bfloat16`: the TPU's native dtype; half the activation memory.
    - `float32`: for CPUs, and for comparisons of numbers.
    """


@dataclass(frozen=True)
class ScoringOptions(ForwardOptions):
    """The model's files, and how the forward pass computes logits and log-probs."""

    logprob_chunk: PositiveInt | None = field(default=None, metadata=ADVANCED)
    """Chunk size of the unembedding, in target tokens per device. Bounds the logits' memory to `logprob_chunk *
    vocab_size`. Default: 256 on a CPU, else 128 to 1,024 by the size of the vocabulary."""


@dataclass(frozen=True)
class ModelOptions(ScoringOptions):
    """The weights to start from, and how forward and backward pass compute."""

    remat: Remat = field(default=Remat.FULL, metadata=RESUMABLE)
    """Rematerialization (activation checkpointing) policy: what each block saves for the backward pass, which recomputes
    the rest. `plan --fit` finds the fastest one that fits.

    - `full`: its input; least memory, most recomputation.
    - `full_offload`: its input, offloaded to pinned host memory.
    - `save_attention`: also attention's output and softmax statistics, so that the attention kernel runs forward once.
    - `save_dots`: also the products with weights; only elementwise operations are recomputed.
    - `none`: everything; nothing is recomputed.
    """
    save_logits: bool = field(default=False, metadata=RESUMABLE | ADVANCED)
    """Save the targets' logits, float32 [rows, row length, vocab], instead of recomputing them: a quarter fewer operations
    in the unembedding. For small models with memory to spare."""


@dataclass(frozen=True)
class DataOptions:
    """Where rows come from and how they become tokens."""

    path: str = ""
    """Data set: a file (JSONL, JSON, Parquet, CSV, TSV or Arrow, compressed or not), a folder of files, a `save_to_disk`
    folder, or a hub id; gs:// works too."""
    split: str = "train"
    """Split to read, of hub ids and of folders with splits; a single file has only `train`."""
    eval_path: str | None = None
    """Data set for evaluation; default: `path`, if `eval_split` is set."""
    eval_split: str | None = None
    """Split for evaluation; default: `train` of `eval_path`. With neither of the two set, nothing is evaluated."""
    revision: str | None = field(default=None, metadata=ADVANCED)
    """Hub revision (branch, tag or commit) of `path`; default: the main branch."""
    limit: PositiveInt | None = None
    """Maximum number of rows of each split, from its start; default: all. Set it for trial runs."""
    chat_template: str | None = None
    """Chat template: one of these names, or a path to a Jinja file. Default: that of the run or checkpoint in `model.path`,
    else `zephyr`.

    - `zephyr`: Zephyr's; inserts an empty system message where a conversation has none, as in its training.
    - `zephyr-no-system`: the same, and inserts nothing.
    - `tokenizer`: the checkpoint's own (of several, the `default` one).
    - `tokenizer:NAME`: the checkpoint's template of this name.
    """
    template_args: dict[str, TemplateValue] = field(default_factory=dict)
    """Chat template arguments: values of variables that the template reads, such as `enable_thinking: false`; they become a
    part of the template. Booleans, numbers, texts or lists. Default: those of the run in `model.path`."""
    template_date: str | None = field(default=None, metadata=ADVANCED)
    """Date, YYYY-MM-DD, for chat templates that print the current date. Default: that of the run that is resumed or
    continued, or of the reference table, else today."""
    allow_template_change: bool = field(default=False, metadata=RESUMABLE | ADVANCED)
    """Continue a run with another chat template than it was trained with; `sft`, `reference` and `dpo` refuse that
    otherwise."""
    multi_turn: Literal["all", "last"] = unset("all")
    """Conversations of several answers (SFT). Default: `all`; `evaluate` uses the run's.

    - `all`: one example, whose targets are all answers.
    - `last`: one example per answer, which ends with it; earlier turns are context. For templates that rewrite earlier turns.
    """
    targets: Literal["assistant", "all"] = unset("assistant")
    """Loss mask: the tokens that the loss counts. Default: `assistant`; `evaluate` uses the run's.

    - `assistant`: the assistant's answers with their end token.
    - `all`: all tokens but the first, as for pretraining (SFT only).
    """
    max_length: PositiveInt = unset(2048)
    """Maximum sequence length in tokens; longer sequences are handled by `on_bad_row`. It may exceed the model's positions
    if no sequence does. Default: 2048; `evaluate` uses the run's."""
    max_prompt_length: PositiveInt = unset(DEFAULT_PROMPT_LENGTH)
    """Preferences: maximum prompt length in tokens; the prompt of an over-long pair is truncated to it first (BOS and the
    end stay). Default: 512, or half of `max_length` if that is not more."""
    row_length: PositiveInt = field(default=unset(DEFAULT_ROW_LENGTH), metadata=ADVANCED)
    """Length of a packed row in tokens; a row holds whole conversations or pairs. Default: 2048, or the longest example
    (`max_length`, for pairs twice that) if that is more."""
    packing: bool = True
    """Sequence packing: several conversations (pairs) share a row, and each attends only to itself. Off: one per row."""
    packing_window: PositiveInt = field(default=8192, metadata=ADVANCED)
    """Number of shuffled examples that are packed together, with `batch.rows`. A larger window pads less and shuffles less."""
    share_prompts: bool = True
    """Preferences: compute the prompt of a pair once for both answers; a row then holds more pairs, and results are equal up
    to rounding. Off: each answer has its own copy. A run cannot be resumed with another value."""
    on_bad_row: Literal["truncate", "drop", "error"] = unset("truncate")
    """Action for rows that are over-long, malformed or without targets. Default: `truncate`; `evaluate` uses the run's.

    - `truncate`: truncate over-long rows, skip the others.
    - `drop`: skip all of them.
    - `error`: stop with an error that counts them.
    """
    allow_contradictions: bool = field(default=False, metadata=ADVANCED)
    """Use rows whose columns contradict each other: a `prompt` that the dialogue does not contain, a `score_chosen` below
    `score_rejected`. Off: these are bad rows."""
    max_skipped_fraction: Fraction = field(default=0.1, metadata=RESUMABLE | ADVANCED)
    """Maximum fraction of rows skipped, and of tokens skipped or truncated. Above it `sft`, `dpo` and `reference` stop;
    `evaluate` and `preview` print a warning. 1: never stop."""
    num_workers: PositiveInt | None = field(default=None, metadata=RESUMABLE | ADVANCED)
    """Number of processes that tokenize; results are cached by content, so that a second run reads them back. Default: one for
    every 4,000 rows, at most one for each CPU core."""

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

    def unshared_row_length(self, segments: int) -> int:
        """Columns of a row of attention in which each of an example's `segments` has its own copy of the prompt.

        One and a half times `row_length`, which rarely limits packing, or more where the longest example may need it; a multiple
        of the blocks of attention kernels.
        """
        longest = segments * min(self.max_length, self.row_length)
        multiple = 4 * ROW_MULTIPLE if self.row_length >= 2048 else ROW_MULTIPLE
        return -(-max(3 * self.row_length // 2, longest) // multiple) * multiple

    def check(self) -> None:
        """Raise InputError where a sequence is longer than a row, or settings contradict each other."""
        if self.multi_turn == "last" and self.targets == "all":
            raise InputError(
                "data.targets: expected `assistant` with data.multi_turn `last`, got `all`: earlier turns would be targets "
                "once for each later answer. Set one of them to its default."
            )
        if self.max_length > self.row_length:
            raise InputError(
                f"data.row_length: expected at least data.max_length ({self.max_length}), got {self.row_length}. A row must "
                "hold the longest sequence: raise data.row_length or lower data.max_length."
            )

    def check_one_split(self) -> None:
        """Raise InputError for settings of training that a command which reads one split ignores."""
        values = {"data.eval_path": self.eval_path, "data.eval_split": self.eval_split}
        given = [name for name, value in values.items() if value is not None]
        if given:
            raise InputError(
                f"{' and '.join(given)} set for a command that reads one split: data.split of data.path. Pass "
                f"`{' '.join(f'--{name} None' for name in given)}`, and the rows to read with --data.path and --data.split."
            )

    @property
    def evaluation_source(self) -> tuple[str, str] | None:
        """Path and split to evaluate on; None where the settings name neither."""
        if self.eval_path is None and self.eval_split is None:
            return None
        return self.eval_path or self.path, self.eval_split or "train"


@dataclass(frozen=True)
class MeshOptions:
    """The device mesh of one TPU slice. One but `context` may be -1: the remaining devices. Several slices multiply `data`."""

    data: int = field(default=1, metadata=ADVANCED)
    """Data parallelism: number of weight copies in a slice, each with its part of the batch. Several slices multiply it."""
    fsdp: int = -1
    """Fully sharded data parallelism (ZeRO-3): number of shards of weights and optimizer state, each with its part of the
    batch. -1: the remaining devices."""
    context: PositiveInt = field(default=1, metadata=ADVANCED)
    """Context parallelism, for training and scoring on long rows: parts of a row, whose length must be a multiple of 256 times
    this. It shards weights and optimizer state, too, as `fsdp` does."""
    tensor: int = 1
    """Tensor parallelism: number of shards of heads, feed-forward and vocabulary. Raise it if one row per device does not
    fit. A vocabulary that it does not divide is padded in compiled programs only."""
    emulated_devices: PositiveInt | None = None
    """Number of devices to emulate on the CPU, for tests and laptops; default: the devices of this machine."""

    def without_context(self) -> "MeshOptions":
        """The mesh of as many devices that splits no rows: those of `context` join `fsdp`."""
        return replace(self, fsdp=self.fsdp if self.fsdp == -1 else self.fsdp * self.context, context=1)


@dataclass(frozen=True)
class EndpointOptions:
    """Requests to models behind OpenAI-compatible URLs; all models of a command share the budgets."""

    api_key_env: str | None = None
    """Environment variable with the API key, of models without `,api_key_env=`. The key itself is never written or logged."""
    max_tokens_param: Literal["max_tokens", "max_completion_tokens"] = field(default="max_tokens", metadata=ADVANCED)
    """Request parameter for the maximum length of a reply.

    - `max_tokens`: for most servers.
    - `max_completion_tokens`: for OpenAI's reasoning models, which refuse the other.
    """
    max_concurrency: PositiveInt = 8
    """Maximum number of requests in flight. Lower it if the endpoint answers with rate limits."""
    timeout: PositiveFloat = field(default=300.0, metadata=ADVANCED)
    """Request timeout in seconds; the request is then sent again."""
    max_retries: NonNegativeInt = field(default=6, metadata=ADVANCED)
    """Maximum number of retries of a request after a transient error."""
    backoff: NonNegativeFloat = field(default=1.0, metadata=ADVANCED)
    """Delay before the first retry in seconds; it doubles with each further retry, up to a minute."""
    max_total_tokens: PositiveInt | None = None
    """Token budget, of prompts and completions together; default: no limit."""
    price_per_mtok_in: NonNegativeFloat = 0.0
    """Price of a million prompt tokens in US dollars, of models without `,price_per_mtok_in=`."""
    price_per_mtok_out: NonNegativeFloat = 0.0
    """Price of a million completion tokens in US dollars, of models without `,price_per_mtok_out=`."""
    max_cost_usd: PositiveFloat | None = None
    """Cost budget in US dollars; each model needs a price. Default: no limit."""


@dataclass(frozen=True)
class DecontaminationOptions:
    """Test sets whose questions must not occur in prepared rows."""

    against: tuple[str, ...] = ()
    """Test sets for decontamination: files, folders or hub ids (JSONL, JSON, Parquet, CSV, text). Default: no
    decontamination."""
    ngram: NonNegativeInt = field(default=13, metadata=ADVANCED)
    """N-gram size (words), without case and punctuation. A row that shares one with a test question is removed; questions
    of 6 to `ngram` words must occur whole. 0: only equal texts."""
    scope: Literal["prompts", "all"] = field(default="prompts", metadata=ADVANCED)
    """Text that is searched for the questions.

    - `prompts`: the user messages.
    - `all`: the answers too.
    """

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
