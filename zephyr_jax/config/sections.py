"""Every setting of a run, in sections: frozen dataclasses, one home per setting. This module never imports jax.

`verbs` puts the sections together into one config a verb and checks that they hold together.
"""

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any, Literal, cast


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

    logprob_chunk: int = 256
    """Target tokens of a device whose logits exist at one time; memory grows with this, not with the rows."""


@dataclass(frozen=True)
class ModelOptions(ScoringOptions):
    """The weights to start from, and how forward and backward pass compute."""

    remat: Remat = Remat.FULL
    """Rematerialization (activation checkpointing) policy: what a layer saves for the backward pass, which recomputes the rest.
    `full`: its input. `full_offload`: the same, offloaded to pinned host memory. `save_attention`: also attention's output and
    softmax statistics; the attention kernel then runs forward once instead of twice. `save_dots`: also the products with
    weights; only elementwise operations are recomputed. `none`: everything; nothing is recomputed."""
    save_logits: bool = False
    """Keep the targets' logits, float32 [rows, row length, vocab], for the backward pass instead of making them again,
    chunk by chunk: a quarter less work for the unembedding, for small models with memory to spare."""


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
    limit: int | None = None
    """Use only the first so many rows of each split."""
    chat_template: str | None = None
    """Chat template: `zephyr` (an empty system message comes first where a conversation has none, as Zephyr was trained),
    `zephyr-no-system` (inserts nothing), `tokenizer` (the checkpoint's own, of several the `default` one; another one is
    `tokenizer:NAME`), or a path to a Jinja file. Default: that of the run or checkpoint in `model.path`, else `zephyr`."""
    template_date: str | None = None
    """Day, YYYY-MM-DD, that a chat template prints which prints the date. Default: the day of the run that is resumed or
    continued, or of the reference table, else today; a run keeps its day."""
    allow_template_change: bool = False
    """Let `sft`, `reference` and `dpo` continue a run with another chat template than it was trained with."""
    targets: Literal["assistant", "all"] = unset("assistant")
    """Tokens that count: assistant answers with their end token, or every token but the first (SFT only). `evaluate` takes
    the run's; default: `assistant`."""
    max_length: int = unset(2048)
    """Longest sequence in tokens; longer ones meet `on_bad_row`. It may exceed the model's positions as long as no row does.
    `evaluate` takes the run's; default: 2048."""
    max_prompt_length: int = unset(512)
    """Preferences: an over-long pair first cuts its prompt to this many tokens (keeps BOS and the prompt's end). `evaluate`
    takes the run's; default: 512."""
    row_length: int = unset(2048)
    """Tokens of a packed row; a row holds whole conversations or whole pairs. Where it is the default, `preview` and `evaluate`,
    whose numbers do not depend on it, take 2 x `max_length` for pairs if that is more."""
    packing: bool = True
    """Pack several conversations (pairs) into a row; off: one each."""
    packing_window: int = 8192
    """With `batch.rows`: so many shuffled examples are packed together; larger pads less and shuffles less."""
    on_bad_row: Literal["truncate", "drop", "error"] = unset("truncate")
    """Over-length rows are cut, dropped or refused. Malformed and zero-target rows are dropped under `truncate`. `evaluate`
    takes the run's; default: `truncate`."""
    allow_contradictions: bool = False
    """Use rows whose columns contradict each other: a `prompt` that the dialogue does not contain, a `score_chosen` below
    `score_rejected`. Off: these are bad rows."""
    max_skipped_fraction: float = 0.1
    """Largest share of the data that may be lost: of the rows that are skipped, and of the tokens that are skipped or cut
    off. Above it `sft`, `dpo` and `reference` stop, and `evaluate` and `preview` print a warning. 1: never stop."""
    num_workers: int = 1
    """Processes that tokenise; results are cached by content, so a second run reads them back."""

    @property
    def evaluation_source(self) -> tuple[str, str] | None:
        """Path and split to evaluate on; None where the settings name neither."""
        if self.eval_path is None and self.eval_split is None:
            return None
        return self.eval_path or self.path, self.eval_split or "train"


@dataclass(frozen=True)
class MeshOptions:
    """The device mesh of one TPU slice. One size may be -1: whatever is left. Several slices multiply `data`."""

    data: int = 1
    """Copies of the weights in a slice; each sees its part of the batch."""
    fsdp: int = -1
    """Shards of weights and optimizer state along the model dimension; each also sees its part of the batch."""
    tensor: int = 1
    """Shards of heads, feed-forward and vocabulary. A vocabulary that does not divide is padded inside of programs only."""
    emulated_devices: int | None = None
    """Emulate so many devices on the CPU (tests, laptops); default: the devices that are there."""


@dataclass(frozen=True)
class BatchOptions:
    """What one optimizer step sees. Give `rows` or `examples`, not both."""

    rows: int | None = None
    """Packed rows per step: no padding beyond packing's; the number of examples varies a little."""
    examples: int | None = None
    """Conversations (pairs) per step exactly; the number of rows varies, the last microbatch is padded."""
    microbatch_rows: int | None = None
    """Rows per forward and backward; gradients of sums are added up and divided once. Default: all of a step."""

    @property
    def rows_per_forward(self) -> int:
        """Rows of one forward and backward."""
        return self.microbatch_rows or self.rows or 1


@dataclass(frozen=True)
class OptimizerOptions:
    """Update rule and schedule, equal to PyTorch's and Hugging Face's step by step."""

    name: Literal["adamw", "rmsprop"] = "adamw"
    """`adamw`, or `rmsprop` as torch.optim.RMSprop with alpha 0.99."""
    learning_rate: float = 2e-5
    """Peak, reached at the end of the warm-up; step 0 has learning rate 0 when there is a warm-up."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up; cosine and linear end at 0."""
    warmup_ratio: float = 0.1
    """Share of all steps that warm up, rounded up."""
    b1: float = 0.9
    """AdamW: decay of the first moment."""
    b2: float = 0.999
    """AdamW: decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """AdamW: decoupled decay of every weight."""
    max_grad_norm: float | None = 1.0
    """Gradients are scaled down to this global norm where theirs is larger; None: never."""
    grad_dtype: Literal["float32", "bfloat16"] = "float32"
    """What the backward pass of a microbatch leaves in memory. `bfloat16` halves that, needs `compute_dtype: bfloat16`, and
    loses almost nothing: the products behind it have that dtype already. Sums over microbatches are float32 always."""
    first_moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """AdamW: storage of the first moment."""
    second_moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Storage of the second moment; computed in float32."""
    offload_moments: bool = False
    """Keep the moments in the host's memory between updates: less HBM, and as much traffic a step as the moments are large."""


@dataclass(frozen=True)
class ScheduleOptions:
    """How long to train, how often to look, what to keep."""

    epochs: int = 1
    """Passes over the data; each has a shuffle of its own."""
    max_steps: int | None = None
    """Stop the whole schedule after so many steps (the learning rate ends there too). If `epochs` of the data give fewer, the
    run ends there, the schedule runs over those, and one line reports it."""
    evaluate_every: int = 100
    """Steps between evaluations; one more at the end; 0: only at the end."""
    save_every: int = 100
    """Steps between checkpoints; one more at the end; 0: only at the end."""
    save: Literal["state", "weights"] = "state"
    """`state`: checkpoints hold weights and optimizer state, float32, and a run can be resumed from each.
    `weights`: only the final weights are saved, in bfloat16 (7B: 13.5 GiB instead of 67 GiB a checkpoint); nothing is saved
    before, so an interrupted run starts over. `save_every`, `keep_last` and `keep_best` do not apply."""
    keep_last: int = 2
    """Newest checkpoints to keep."""
    grace_seconds: float = 120.0
    """Seconds to finish a step and save after SIGTERM, Ctrl-C or a notice of preemption; after that, the process ends."""
    keep_best: int = 1
    """So many checkpoints with the lowest evaluation loss are kept besides those."""
    log_every: int = 1
    """Steps between lines of metrics; each line holds means over the steps since the last line, tokens/s among them."""


@dataclass(frozen=True)
class AnomalyOptions:
    """What to do about a sick step: `stop` before it takes effect, `skip` its update, or `continue` with it.

    Each is named with the examples of its batch, and the batch is kept in `<output>/sick` for `zephyr-jax debug-step`.
    """

    non_finite: Literal["stop", "skip", "continue"] = "stop"
    """A loss or a gradient that is NaN or infinite, or a step without a single target."""
    spike: Literal["stop", "skip", "continue"] = "continue"
    """A loss larger than `spike_factor` times the median of the `spike_window` steps before the last."""
    spike_factor: float = 4.0
    """How many times the median a loss must be, to be a spike."""
    spike_window: int = 50
    """Steps that the median is of; none is judged before there are ten."""
    stalled: Literal["stop", "continue"] = "stop"
    """Fewer than 1 % of the weights changed in `stalled_steps` steps in a row: the learning rate is lost in rounding. Steps in
    which the schedule is below 1 % of its peak do not count."""
    stalled_steps: int = 20
    """How many steps in a row, for `stalled`."""


@dataclass(frozen=True)
class PairAnomalyOptions(AnomalyOptions):
    """What to do about a sick step of DPO, where the margin of rewards is watched, too."""

    margin: Literal["stop", "skip", "continue"] = "stop"
    """A mean reward margin that explodes: beyond `margin_limit`, either way."""
    margin_limit: float = 100.0
    """The largest mean margin that is no explosion, in beta times nats."""


@dataclass(frozen=True)
class ReportOptions:
    """Where metrics go besides `metrics.jsonl`, which is always written."""

    log_example_ids: bool = False
    """Write the ids of each step's examples to `<output>/examples.jsonl`."""

    tensorboard: bool = False
    """Write TensorBoard event files under `<output>/tensorboard`."""
    wandb_project: str | None = None
    """Log to this Weights & Biases project (needs the `wandb` extra)."""
    progress_bar: bool = True
    """Draw a progress bar; off: a plain line per report."""
    num_samples: int = 10
    """When a run of one process has ended, it and the stages before it answer so many held-out prompts (of the training rows,
    where nothing is held out) for its page, `report.html`; 0: none."""


@dataclass(frozen=True)
class EndpointOptions:
    """How a model behind an OpenAI-compatible address is asked."""

    model: str | None = None
    """Its name there; default: the only one that the address serves."""
    api_key_env: str | None = None
    """Name of the environment variable with the key; the key itself is in no file and no log."""
    max_tokens_param: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the address calls the longest reply; OpenAI's reasoning models refuse `max_tokens`."""
    max_concurrency: int = 8
    """Requests under way at one time."""
    timeout: float = 300.0
    """Seconds until a request is given up and sent again."""
    max_retries: int = 6
    """How often a request is sent again after a failure that may pass."""
    backoff: float = 1.0
    """Seconds before it is sent again the first time; each later pause is twice as long, up to a minute."""
    max_total_tokens: int | None = None
    """Stop when so many tokens, there and back, have been used."""
    price_per_mtok_in: float = 0.0
    """Dollars per million tokens sent."""
    price_per_mtok_out: float = 0.0
    """Dollars per million tokens that come back."""
    max_cost_usd: float | None = None
    """Stop when so much has been spent."""


@dataclass(frozen=True)
class DecontaminationOptions:
    """Test sets that no prepared row may come from."""

    against: tuple[str, ...] = ()
    """Files, folders or hub ids of test sets (JSONL, JSON, Parquet, CSV, text); their questions are looked for."""
    ngram: int = 13
    """So many words in a row (without case and punctuation) that are a test text's give a row away; shorter texts of six
    words or more must be there whole. 0: only rows that are a test text, word for word."""
    scope: Literal["prompts", "all"] = "prompts"
    """What is looked through: what users say, or the answers too."""


@dataclass(frozen=True)
class DpoOptions:
    """The preference loss."""

    loss: Literal["sigmoid", "ipo", "ipo_sum", "hinge", "robust"] = "sigmoid"
    """`ipo` uses per-token means as TRL does today, `ipo_sum` the paper's sums."""
    beta: float = 0.1
    """Strength of the pull towards the reference."""
    label_smoothing: float = 0.0
    """Share of labels believed wrong: conservative DPO under `sigmoid`, unbiased under `robust`."""
    sft_weight: float = 0.0
    """Adds this times the mean negative log-likelihood per token of the chosen answer."""
