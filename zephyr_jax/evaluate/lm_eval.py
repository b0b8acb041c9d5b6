"""`zephyr-jax evaluate lm-eval`: tasks of EleutherAI's lm-eval with this package's log-probs and generation."""

import json
import sys
from dataclasses import asdict
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from zephyr_jax.config.benchmarks import LEADERBOARD, LmEvalConfig
from zephyr_jax.config.sections import DataOptions
from zephyr_jax.errors import InputError, join_items
from zephyr_jax.generate.load import open_text_model
from zephyr_jax.reference.score import Scorer
from zephyr_jax.storage.files import check_file_creatable, write_atomic

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from zephyr_jax.evaluate.lm_eval_adapter import ZephyrLM


def lm_eval(config: LmEvalConfig) -> str:
    """Run the tasks; returns lm-eval's table of results.

    Results are written after each task, so that a task that fails loses none of those before it. Raises InputError, also for a
    missing package or an unknown task.
    """
    check_file_creatable(config.output)
    if find_spec("lm_eval") is None:
        raise InputError(
            "lm-eval is not installed. In a clone: `uv run --extra lm-eval zephyr-jax ...`; else pip install "
            "'zephyr-jax[lm-eval]'."
        )
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import handle_non_serializable, make_table

    manager = TaskManager(include_path=config.include_path)
    known = set(manager.all_tasks)
    if unknown := [name for name in config.tasks if name not in known]:
        raise InputError(
            f"Unknown tasks of lm-eval: {join_items(unknown)}. Choose from its {len(known):,} (lm-eval ls tasks), or name the "
            "folder with your own YAML files in `include_path`."
        )
    lm = _adapter(config)
    results: dict[str, Any] = {}
    for name in config.tasks:
        try:
            task_results = _run_task(config, name, lm, manager)
        except InputError:
            if results:
                print(make_table(results))  # of the finished tasks
            raise
        for section, content in task_results.items():
            merged = results.setdefault(section, content)
            if isinstance(content, dict) and isinstance(merged, dict):
                merged |= content
        if config.output:
            text = json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False)
            write_atomic(config.output, text + "\n")
    groups = f"\n{make_table(results, 'groups')}" if results.get("groups") else ""
    return f"{make_table(results)}{groups}{_truncation_warnings(results, lm.max_length)}"


def _truncation_warnings(results: dict[str, Any], context: int) -> str:
    """A line for each task with truncated requests."""
    return "".join(
        f"\nwarning: {name}: {stats['cut']:,} of {stats['asked']:,} requests were longer than the context of {context:,} tokens "
        f"and truncated from the left ({stats['tokens']:,} tokens removed)"
        for name, stats in results["truncated"].items()
        if stats["cut"]
    )


def _run_task(config: LmEvalConfig, task: str, lm: "ZephyrLM", manager: "TaskManager") -> dict[str, Any]:
    from lm_eval import simple_evaluate

    lm.truncated = type(lm.truncated)()
    try:
        results = simple_evaluate(
            lm,
            tasks=[task],
            num_fewshot=LEADERBOARD.get(task) if config.num_fewshot is None else config.num_fewshot,
            limit=config.limit,
            task_manager=manager,
            log_samples=config.log_samples,
            apply_chat_template=bool(config.chat_template),
            bootstrap_iters=1000,
        )
    except InputError as error:
        raise InputError(f"lm-eval cannot run {task}: {error}") from error
    except Exception as error:  # tasks download their data from the hub, and raise many kinds of errors
        raise InputError(
            f"lm-eval cannot run {task}: {type(error).__name__}: {' '.join(str(error).split())[:300]} If its data is not "
            "available from the hub, name a folder with a YAML file for local data in `include_path`."
        ) from error
    return {**results, "truncated": {task: asdict(lm.truncated)}}


def _adapter(config: LmEvalConfig) -> "ZephyrLM":
    from zephyr_jax.evaluate.lm_eval_adapter import ZephyrLM

    model = open_text_model("evaluate lm-eval", config.model, config.mesh, config.batch_size)
    if config.chat_template:
        tokenizer = model.chat_tokenizer(config.chat_template)
        model, model.tokenizer.chat_template = model.with_chat_stops(tokenizer), tokenizer.template.source
    weights = model.opened.load_weights()

    def make_scorer(row_length: int) -> Scorer:
        return Scorer(
            model=model.opened.abstract,
            parameters=weights,
            data=DataOptions(row_length=row_length),
            rules=model.rules,
            num_rows=model.batch_size,
            greedy=True,
        )

    def progress(completed: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{completed:,} of {total:,} batches", end="" if completed < total else "\n", file=sys.stderr)

    return ZephyrLM(model, make_scorer, model.context_length(config.context_length), progress)


def main(config: LmEvalConfig, command: str) -> str:
    """`zephyr-jax evaluate lm-eval`."""
    return lm_eval(config)
