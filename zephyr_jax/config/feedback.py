"""Feedback by models: `feedback conversations`, `feedback answers`, `feedback rate`."""

from dataclasses import dataclass, field, replace
from typing import Literal

from zephyr_jax.config.checks import check_endpoint, check_not_negative, check_positive, check_sampling, refuse, require
from zephyr_jax.config.sections import EndpointOptions, MeshOptions, unset


@dataclass(frozen=True)
class FeedbackConfig:
    """Settings that the three verbs share."""

    data: str = ""
    """Rows to begin with: JSONL or Parquet, a folder of them, or a hub id; gs:// works too."""
    split: str = "train"
    """Split of `data`."""
    limit: int | None = None
    """Only the first so many rows."""
    output: str = ""
    """Folder for train.jsonl, rejected.jsonl (what could not be used, and why) and the journals of all replies; the same command
    goes on in it, and asks for nothing twice."""
    estimate: bool = False
    """Only say how many requests, tokens and dollars it will take."""
    endpoint: EndpointOptions = field(default_factory=EndpointOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    compute_dtype: Literal["bfloat16", "float32"] = unset("bfloat16")
    """Checkpoints in this process: dtype of matmuls and activations; default: a run's own, else bfloat16."""
    chat_template: str | None = None
    """Checkpoints in this process: chat template, as in `data.chat_template` of training; default: the checkpoint's own."""
    batch_size: int = 16
    """Checkpoints in this process: requests at work at one time."""
    context_length: int | None = None
    """Checkpoints in this process: tokens of prompt and answer together; default: 4,096, or as many positions as they have."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens with this much probability."""
    seed: int = 0
    """Decides all draws: models, principles, orders, and the tokens of models that take a seed."""
    send_seed: bool = True
    """Off for addresses that refuse a seed."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold."""
        require(self.data, "data", "rows with prompts: a file, a folder or a hub id")
        require(self.output, "output", "a folder")
        check_positive(
            limit=self.limit, batch_size=self.batch_size, context_length=self.context_length, top_p=self.top_p
        )
        check_not_negative(seed=self.seed)
        check_endpoint(replace(self.endpoint, max_cost_usd=None))  # models may have prices of their own
        check_positive(endpoint__most_dollars=self.endpoint.max_cost_usd)
        check_sampling(top_p=self.top_p)
        if self.endpoint.model:
            refuse(
                f"endpoint.model is {self.endpoint.model!r}.",
                "Several models may be asked: write each one's name before its address, MODEL@http://HOST:PORT/v1.",
            )


@dataclass(frozen=True)
class ConversationsConfig(FeedbackConfig):
    """Dialogues from seed prompts: one model plays the person who asks, one the assistant. `zephyr-jax sft` reads them."""

    user: str = ""
    """The model that asks: PATH, or MODEL@http://HOST:PORT/v1; after a comma `temperature=`, `api_key_env=VARIABLE`,
    `price_per_mtok_in=`, `price_per_mtok_out=`, `name=`. Default: the same as `assistant`."""
    assistant: str = ""
    """The model that answers, written in the same way."""
    turns: int = 3
    """Questions of a dialogue at most; the first is the seed prompt, and the person may leave before the last."""
    system: str | None = None
    """System message of the assistant; it stays in the rows."""
    temperature: float = 0.7
    """Temperature of models that name none of their own; 0: the likeliest token each time."""
    user_max_new_tokens: int = 256
    """Longest question in tokens."""
    assistant_max_new_tokens: int = 1024
    """Longest answer in tokens; a dialogue ends before one that was cut."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold."""
        super().check()
        require(self.assistant, "assistant", "a model: PATH, or MODEL@http://HOST:PORT/v1")
        check_positive(
            turns=self.turns,
            user_max_new_tokens=self.user_max_new_tokens,
            assistant_max_new_tokens=self.assistant_max_new_tokens,
        )
        check_sampling(self.temperature)
        if self.turns == 1 and self.user:
            refuse("`user` is set and turns is 1.", "The first question is the seed prompt: nobody asks another.")


@dataclass(frozen=True)
class AnswersConfig(FeedbackConfig):
    """Answers of several models to each prompt, in the form of openbmb/UltraFeedback; `feedback rate` rates them."""

    models: tuple[str, ...] = ()
    """Models, each PATH or MODEL@http://HOST:PORT/v1; after a comma `temperature=`, `api_key_env=VARIABLE`, `price_per_mtok_in=`,
    `price_per_mtok_out=`, `name=` (what the rows call it)."""
    num_answers: int | None = None
    """Models that answer a prompt, drawn for each; default: all. UltraFeedback: 4 of 17."""
    principles: tuple[str, ...] = ("helpfulness", "truthfulness", "honesty", "harmlessness")
    """One is drawn for each answer and given to the model as a system message: those, and `calibration`. None of them:
    `--principles` without a word."""
    temperature: float = 1.0
    """Temperature of models that name none of their own; 0: the likeliest token each time."""
    max_new_tokens: int = 1024
    """Longest answer in tokens."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold."""
        super().check()
        if not self.models:
            refuse(
                "`models` is not set.", "It needs models: PATH, or MODEL@http://HOST:PORT/v1, several after each other."
            )
        check_positive(num_answers=self.num_answers, max_new_tokens=self.max_new_tokens)
        check_sampling(self.temperature)
        if self.num_answers is not None and self.num_answers > len(self.models):
            refuse(
                f"num_answers is {self.num_answers} with {len(self.models)} models.",
                "A model answers a prompt once: name more models, or ask for fewer answers.",
            )


@dataclass(frozen=True)
class RateConfig(FeedbackConfig):
    """Ratings of answers by a judge: four aspects from 1 to 5, each with its reason, and a score from 1 to 10."""

    judge: str = ""
    """The model that rates: PATH, or MODEL@http://HOST:PORT/v1; after a comma `api_key_env=VARIABLE`,
    `price_per_mtok_in=`, `price_per_mtok_out=`."""
    temperature: float = 0.0
    """0: the likeliest token each time."""
    max_new_tokens: int = 1024
    """Longest judgment in tokens; all answers of a row are rated in one, aspect by aspect."""
    max_answer_chars: int = 20_000
    """Characters of an answer that the judge is shown."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold."""
        super().check()
        require(self.judge, "judge", "a model: PATH, or MODEL@http://HOST:PORT/v1")
        check_positive(max_new_tokens=self.max_new_tokens, max_answer_chars=self.max_answer_chars)
        check_sampling(self.temperature)
