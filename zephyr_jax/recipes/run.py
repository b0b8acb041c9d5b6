"""What SFT and DPO share before they train: opening a run, and laying out its data."""

from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np

from zephyr_jax import startup
from zephyr_jax.card import differences, to_dict
from zephyr_jax.checkpoint.source import AbstractModel, ModelSource, check_vocabulary, find_model
from zephyr_jax.checkpoint.steps import FOLDER, DamagedStepError, read_progress, steps_in
from zephyr_jax.config import DataOptions, DpoOptions
from zephyr_jax.data.chat import load_template
from zephyr_jax.data.examples import Examples
from zephyr_jax.data.pack import Plan, plan_evaluation, plan_training
from zephyr_jax.data.tokens import ChatTokenizer, load_tokenizer
from zephyr_jax.errors import InputError
from zephyr_jax.objective.dpo import dpo_objective
from zephyr_jax.objective.sft import sft_objective
from zephyr_jax.parallel.hosts import wait_for_all
from zephyr_jax.parallel.programs import Compilations
from zephyr_jax.parallel.rules import Rules, open_rules
from zephyr_jax.storage.files import Path, check_can_be_made, open_path
from zephyr_jax.train.step import Objective
from zephyr_jax.verbs.training import SftConfig

_MAY_CHANGE = (
    "output",
    "resume",
    "mesh",
    "health",
    "report",
    "expected",
    "schedule.keep",
    "schedule.log_every",
    "schedule.grace",
    "model.keep",
    "optimizer.moments_on_host",
    "data.workers",
    "reference",
)
"""Settings that a resumed run may change without changing what it computes."""


@dataclass(frozen=True)
class Split:
    """Examples with the plan that lays them out."""

    examples: Examples
    plan: Plan
    reference: np.ndarray | None = None


@dataclass(frozen=True)
class Run:
    """A run's folder, mesh, model files and tokenizer, before any weights are loaded."""

    folder: Path
    rules: Rules
    source: ModelSource
    tokenizer: ChatTokenizer
    start: int
    """Step to start from, as far as is known before its arrays are read."""
    progress: dict[str, Any]
    """What the checkpoint at `start` says; empty for a fresh run."""
    compilations: Compilations


def open_run(config: SftConfig) -> Run:
    """Check the config and the folder, and find out where to start; nothing is written. Raises InputError."""
    config.check()
    startup.begin()
    compilations = Compilations()
    rules = open_rules(config.mesh)
    rules.check_divides("batch", microbatch_rows(config), "batch.microbatch_rows (or batch.rows)")
    source = find_model(config.model)
    tokenizer = open_tokenizer(source, config.data)
    folder = _check_folder(config)
    start, progress = _newest(folder) if (folder / FOLDER).is_dir() else (0, {})
    if progress:
        _check_same(progress["config"], config)
    wait_for_all("looked at the run's folder")  # before any process writes into it
    return Run(folder, rules, source, tokenizer, start, progress, compilations)


def _newest(folder: Path) -> tuple[int, dict[str, Any]]:
    """The last saved step whose progress can be read; whether its arrays can, shows when they are."""
    for step in reversed(steps_in(folder)):
        try:
            return step, read_progress(folder, step)
        except DamagedStepError:
            continue
    return 0, {}


def open_tokenizer(source: ModelSource, data: DataOptions) -> ChatTokenizer:
    """The model's tokenizer with the chat template that `data.template` names. Raises InputError."""
    tokenizer = load_tokenizer(str(source.folder))
    check_vocabulary(source.shape, len(tokenizer), source.asked)
    return ChatTokenizer(tokenizer, load_template(data.template, tokenizer))


def _check_folder(config: SftConfig) -> Path:
    folder = open_path(config.output)
    check_can_be_made(folder, checkpoints=True)
    if not config.resume and (folder / FOLDER).exists():
        raise InputError(f"{folder} holds a run already and `resume` is off. Choose another output or turn resume on.")
    return folder


def _check_same(saved: dict[str, Any], config: SftConfig) -> None:
    changed = {
        name: values for name, values in differences(to_dict(config), saved).items() if not name.startswith(_MAY_CHANGE)
    }
    if changed:
        pairs = "; ".join(f"{name} was {then!r}, now {now!r}" for name, (now, then) in changed.items())
        raise InputError(
            f"{config.output} was started with other settings: {pairs}. A resumed run must be the same run: put the settings "
            "back, or choose another output."
        )


def training_split(config: SftConfig, examples: Examples, reference: np.ndarray | None = None) -> Split:
    """The plan of the whole run; `reference` are the pairs' reference log-prob sums."""
    plan = plan_training(
        examples.lengths, config.data, config.batch, config.schedule.epochs, config.schedule.max_steps, config.seed
    )
    return Split(examples, plan, reference)


def evaluation_split(config: SftConfig, examples: Examples, reference: np.ndarray | None = None) -> Split:
    """One pass, in microbatches of the size that training uses."""
    return Split(examples, plan_evaluation(examples.lengths, config.data, microbatch_rows(config)), reference)


def evaluation_source(data: DataOptions) -> tuple[str, str] | None:
    """Path and split to evaluate on, or None when the config names neither."""
    if data.eval_path is None and data.eval_split is None:
        return None
    return data.eval_path or data.path, data.eval_split or "train"


def microbatch_rows(config: SftConfig) -> int:
    """Rows of one forward and backward."""
    return config.batch.microbatch_rows or config.batch.rows or 1


def align(training: Split, evaluation: Split | None) -> tuple[Split, Split | None]:
    """Give both plans the same number of segments per row, so that one compiled log-prob serves both."""
    if evaluation is None:
        return training, None
    most = max(training.plan.examples_per_row, evaluation.plan.examples_per_row)
    first, second = (replace(each, plan=replace(each.plan, examples_per_row=most)) for each in (training, evaluation))
    return first, second


def make_objective(model: AbstractModel, dpo: DpoOptions | None, examples_per_row: int, chunk: int) -> Objective:
    """The loss over pairs, or over conversations where there are no options for pairs."""
    if dpo is not None:
        return dpo_objective(model.definition, dpo, 2 * examples_per_row, chunk)
    return sft_objective(model.definition, examples_per_row, chunk)


def data_identity(examples: Examples) -> str:
    """A hash of every example's content, in order."""
    return blake2b(examples.keys().astype("U32").tobytes(), digest_size=16).hexdigest()
