"""`zephyr-jax evaluate lm-eval`: the tasks of EleutherAI's lm-eval on our own log-probs."""

import json
import sys
from dataclasses import asdict, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from zephyr_jax.checkpoint.resolve import abstract_of, load_weights
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
    """Run the tasks; lm-eval's own table. Raises InputError, also where the package or a task is not to be had.

    Results are written after each task, so that one that cannot be run loses none of those before it.
    """
    check_file_creatable(config.output)
    if find_spec("lm_eval") is None:
        raise InputError("lm-eval is not installed. Install it: pip install 'zephyr-jax[lm-eval]'.")
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import handle_non_serializable, make_table

    manager = TaskManager(include_path=config.include_path)
    known = set(manager.all_tasks)
    if unknown := [name for name in config.tasks if name not in known]:
        raise InputError(
            f"lm-eval knows no task {join_items(unknown)}. Choose from its {len(known):,} (lm-eval ls tasks), or name the folder "
            "with your own YAML files in `include_path`."
        )
    lm = _adapter(config)
    whole: dict[str, Any] = {}
    for name in config.tasks:
        try:
            lm.truncated = type(lm.truncated)()
            found = _run(config, name, lm, manager)
            found["truncated"] = {name: asdict(lm.truncated)}
        except InputError:
            if whole:
                print(make_table(whole))  # of those that were done before
            raise
        for part, content in found.items():
            together = whole.setdefault(part, content)
            if isinstance(content, dict) and isinstance(together, dict):
                together |= content
        if config.output:
            text = json.dumps(whole, indent=2, default=handle_non_serializable, ensure_ascii=False)
            write_atomic(config.output, text + "\n")
    groups = f"\n{make_table(whole, 'groups')}" if whole.get("groups") else ""
    return f"{make_table(whole)}{groups}{_truncations(whole, lm.max_length)}"


def _truncations(whole: dict[str, Any], context: int) -> str:
    """A line for each task with requests that did not fit; empty where all did."""
    return "".join(
        f"\nwarning: {name}: {found['cut']:,} of {found['asked']:,} requests were longer than the context of {context:,} tokens "
        f"and lost their beginnings ({found['tokens']:,} tokens)"
        for name, found in whole["truncated"].items()
        if found["cut"]
    )


def _run(config: LmEvalConfig, task: str, lm: "ZephyrLM", manager: "TaskManager") -> dict[str, Any]:
    from lm_eval import simple_evaluate

    shots = LEADERBOARD.get(task) if config.num_fewshot is None else config.num_fewshot
    try:
        found = simple_evaluate(
            lm, tasks=[task], num_fewshot=shots, limit=config.limit, task_manager=manager, log_samples=config.log_samples,
            apply_chat_template=bool(config.chat_template), bootstrap_iters=1000,
        )  # fmt: skip
    except InputError as error:
        raise InputError(f"lm-eval cannot run {task}: {error}") from error
    except Exception as error:  # tasks fetch their data from the hub, and raise many kinds
        raise InputError(
            f"lm-eval cannot run {task}: {type(error).__name__}: {' '.join(str(error).split())[:300]} If its data is not to be "
            "had from the hub, name a folder with a YAML file for local data in `include_path`."
        ) from error
    return dict(found)


def _adapter(config: LmEvalConfig) -> "ZephyrLM":
    from zephyr_jax.evaluate.lm_eval_adapter import Parts, ZephyrLM

    found = open_text_model("evaluate lm-eval", config.model, config.mesh, config.batch_size)
    if config.chat_template:
        tokenizer = found.chat_tokenizer(config.chat_template)
        found, found.tokenizer.chat_template = found.with_chat_stops(tokenizer), tokenizer.template.source
    model = abstract_of(found.source.model_config, found.options, found.rules)
    weights = load_weights(found.source, model)
    context = found.context_length(config.context_length)

    def scorer(row_length: int) -> Scorer:
        data = replace(DataOptions(), row_length=row_length)
        return Scorer(
            model=model,
            parameters=weights,
            data=data,
            rules=found.rules,
            num_rows=found.batch_size,
            logprob_chunk=config.model.logprob_chunk,
            greedy=True,
        )

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done:,} of {total:,} batches", end="" if done < total else "\n", file=sys.stderr)

    parts = Parts(
        found.source.asked,
        found.tokenizer,
        scorer,
        lambda: found.engine(context),
        context,
        found.stop_ids,
        progress=progress,
    )
    return ZephyrLM(parts)


def main(config: LmEvalConfig, command: str) -> str:
    """`zephyr-jax evaluate lm-eval`."""
    return lm_eval(config)
