"""The settings of `feedback conversations`, `feedback answers` and `feedback rate`."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from zephyr_jax.config.constraints import ADVANCED, PositiveInt
from zephyr_jax.config.sampling import MaxNewTokens, SamplingOptions, Temperature
from zephyr_jax.config.sections import DATA, EndpointOptions, MeshOptions, unset
from zephyr_jax.errors import InputError

MODEL_SPEC = "a model: PATH or MODEL@http://HOST:PORT/v1"
_REQUIRED = {"data": f"prompts, {DATA}", "output": "a folder"}


@dataclass(frozen=True)
class FeedbackConfig(SamplingOptions):
    """Settings that the three commands share. `temperature` is that of models whose specification has none."""

    REQUIRED: ClassVar[dict[str, str]] = _REQUIRED

    max_new_tokens: MaxNewTokens = 1024
    data: str = ""
    """Input rows: a JSONL or Parquet file, a folder of files, or a hub id; gs:// works too."""
    split: str = field(default="train", metadata=ADVANCED)
    """Split of `data`."""
    limit: PositiveInt | None = None
    """Maximum number of rows, from the start; default: all. Set it for trial runs."""
    output: str = ""
    """Output folder: train.jsonl, rejected.jsonl (unusable rows, with reasons) and the journals of all replies. The same
    command resumes in it and sends no request twice."""
    estimate: bool = False
    """Dry run: estimate the number of requests, tokens and dollars, and send none."""
    endpoint: EndpointOptions = field(default_factory=EndpointOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    compute_dtype: Literal["bfloat16", "float32"] = field(default=unset("bfloat16"), metadata=ADVANCED)
    """Local models: dtype of matmuls and activations. Default: a run's own, else bfloat16.

    - `bfloat16`: the TPU's native dtype; half the activation memory.
    - `float32`: for CPUs, and for comparisons of numbers.
    """
    chat_template: str | None = field(default=None, metadata=ADVANCED)
    """Local models: chat template, as in `data.chat_template` of training; default: the checkpoint's own."""
    batch_size: PositiveInt = 16
    """Local models: batch size, the requests that are decoded together. Lower it if memory is short."""
    context_length: PositiveInt | None = field(default=None, metadata=ADVANCED)
    """Local models: context length, the maximum tokens of prompt and answer together. Default: 4,096, or the model's
    positions if that is less."""
    send_seed: bool = field(default=True, metadata=ADVANCED)
    """Send a seed with each request; off for APIs that refuse one."""


@dataclass(frozen=True)
class ConversationsConfig(FeedbackConfig):
    """Dialogues from seed prompts between a model as the user and one as the assistant. `zephyr-jax sft` reads them."""

    REQUIRED: ClassVar[dict[str, str]] = {**_REQUIRED, "assistant": MODEL_SPEC}

    user: str = ""
    """Model of the user, in the form of `assistant`; default: the same model."""
    assistant: str = ""
    """Model of the assistant: PATH, or MODEL@http://HOST:PORT/v1. Options follow as `,key=value`: temperature, name, and
    for URLs api_key_env, price_per_mtok_in, price_per_mtok_out."""
    turns: PositiveInt = 3
    """Maximum number of turns (questions) per dialogue. The first is the seed prompt; the user model may end the dialogue
    before the last."""
    system: str | None = None
    """System message of the assistant; it stays in the rows. Default: none."""
    temperature: Temperature = 0.7
    user_max_new_tokens: MaxNewTokens = field(default=256, metadata=ADVANCED)
    """Maximum length of a question in tokens; `max_new_tokens` is that of an answer. A dialogue ends before an answer that
    was truncated."""

    def check(self) -> None:
        """Raise InputError for settings that contradict each other."""
        if self.turns == 1 and self.user:
            raise InputError(
                "`user` has no effect with turns 1: the only question is the seed prompt. Remove one of them."
            )


@dataclass(frozen=True)
class AnswersConfig(FeedbackConfig):
    """Answers of several models to each prompt, in the form of openbmb/UltraFeedback, for `feedback rate`."""

    models: tuple[str, ...] = ()
    """Models, each PATH or MODEL@http://HOST:PORT/v1. Options follow as `,key=value`: temperature, name (in the rows), and
    for URLs api_key_env, price_per_mtok_in, price_per_mtok_out."""
    num_answers: PositiveInt | None = None
    """Number of answers per prompt, by as many models, which are drawn for each prompt; default: all models. UltraFeedback:
    4 of 17."""
    principles: tuple[str, ...] = ("helpfulness", "truthfulness", "honesty", "harmlessness")
    """Principles; one is drawn for each answer and is its system message. These four and `calibration` exist. Without a
    value: no system messages."""
    temperature: Temperature = 1.0

    def check(self) -> None:
        """Raise InputError for settings that are missing or contradict each other."""
        if not self.models:
            raise InputError(f"`models` is not set: expected one or more, each {MODEL_SPEC}.")
        if self.num_answers is not None and self.num_answers > len(self.models):
            raise InputError(
                f"num_answers: expected at most the number of models ({len(self.models)}), got {self.num_answers}. A model "
                "answers a prompt once."
            )


@dataclass(frozen=True)
class RateConfig(FeedbackConfig):
    """Ratings of answers by a judge: four aspects from 1 to 5, each with its reason, and a score from 1 to 10."""

    REQUIRED: ClassVar[dict[str, str]] = {**_REQUIRED, "judge": MODEL_SPEC}

    judge: str = ""
    """Judge: PATH, or MODEL@http://HOST:PORT/v1. Options follow as `,key=value`: temperature, and for URLs api_key_env,
    price_per_mtok_in, price_per_mtok_out."""
    max_answer_chars: PositiveInt = field(default=20_000, metadata=ADVANCED)
    """Maximum length of an answer in the judge's prompt, in characters. `max_new_tokens` is for a judgment, of all answers
    of a row by one aspect."""
