"""What SFT and DPO share before they train: opening a run, and laying out its data."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import jax
import numpy as np

from zephyr_jax import startup
from zephyr_jax.chat.exported_template import exported_template
from zephyr_jax.chat.template_source import without_markers
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.chat.tokenizer_files import TRAINING_TEMPLATE, load_tokenizer
from zephyr_jax.checkpoint.disk_space import check_disk_space
from zephyr_jax.checkpoint.hf.model_files import model_files
from zephyr_jax.checkpoint.inheritance import resolve, training_tokenizer
from zephyr_jax.checkpoint.resolve import (
    AbstractModel,
    ModelSource,
    OpenedModel,
    check_vocabulary,
    open_model,
)
from zephyr_jax.checkpoint.steps import FOLDER, SAVED, DamagedStepError, read_progress, steps_in
from zephyr_jax.config.sections import DataOptions, DpoOptions
from zephyr_jax.config.training import DpoConfig, SftConfig
from zephyr_jax.config.yaml_file import differences, to_dict
from zephyr_jax.data.examples import Examples
from zephyr_jax.data.pack import Plan, plan_evaluation, plan_training
from zephyr_jax.errors import InputError
from zephyr_jax.objective.dpo import dpo_objective
from zephyr_jax.objective.sft import sft_objective
from zephyr_jax.parallel.compile_cache import CompileStats
from zephyr_jax.parallel.hosts import barrier
from zephyr_jax.parallel.sharding import init_devices
from zephyr_jax.reference.table import recorded_days
from zephyr_jax.storage.files import Path, check_folder_creatable, open_path
from zephyr_jax.train.optimizer import make_optimizer
from zephyr_jax.train.step import Objective

_MAY_CHANGE = (
    "output",
    "resume",
    "mesh",
    "anomaly",
    "report",
    "expected",
    "schedule.keep",
    "schedule.log_every",
    "schedule.grace_seconds",
    "model.remat",
    "optimizer.offload_moments",
    "data.num_workers",
    "data.allow_template_change",
    "data.max_skipped_fraction",
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
class Run[C: SftConfig]:
    """A run's settings, folder, mesh, model files and tokenizer, before any weights are loaded."""

    config: C
    """The settings with every inherited value filled in."""
    folder: Path
    opened: OpenedModel
    tokenizer: ChatTokenizer
    start: int
    """Step to start from, as far as is known before its arrays are read."""
    progress: dict[str, Any]
    """What the checkpoint at `start` says; empty for a fresh run."""
    compile_stats: CompileStats
    model_files: dict[str, Any]
    """What goes into the run beside its weights: config, tokenizer and chat template, by file name."""

    @property
    def finished(self) -> bool:
        """Whether it has ended with `schedule.save: weights`, so that there is nothing to resume."""
        return self.progress.get(SAVED) == "weights"


def open_run[C: SftConfig](config: C) -> Run[C]:
    """Check the config and the folder, fill in what the config inherits, and find out where to start; nothing is written.

    Raises InputError.
    """
    startup.begin()
    compile_stats = CompileStats()
    rules = init_devices(config.mesh)
    rules.check_divides("batch", microbatch_rows(config), "batch.microbatch_rows (or batch.rows)")
    opened = open_model(config.model, rules)
    source = opened.source
    folder = _check_folder(config)
    start, progress = _newest(folder) if (folder / FOLDER).is_dir() else (0, {})
    config, tokenizer = resolve_run("dpo" if isinstance(config, DpoConfig) else "sft", config, source, progress)
    if progress:
        _check_same(progress["config"], config)
    run = Run(
        config=config,
        folder=folder,
        opened=replace(opened, options=config.model),
        tokenizer=tokenizer,
        start=start,
        progress=progress,
        compile_stats=compile_stats,
        model_files=_model_files(source, tokenizer),
    )
    if run.finished:
        print(
            f"{folder} is finished at step {start}, and nothing is trained: with schedule.save `weights` it holds no optimizer "
            f"state to resume from. To train on from its weights: --model.path {folder} and another output.",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    else:
        if not progress:
            run.opened.check_weights()
        _check_room(config, run)
    barrier("looked at the run's folder")  # before any process writes into it
    return run


def _check_room(config: SftConfig, run: Run) -> None:
    parameters = run.opened.abstract.parameters
    moments = jax.eval_shape(make_optimizer(config.optimizer, 1).init, parameters)
    evaluates = evaluation_source(config.data) is not None
    check_disk_space(run.folder, config.schedule, (parameters, moments), parameters, evaluates)


def resolve_run[C: SftConfig](
    command: str, config: C, source: ModelSource, progress: dict[str, Any]
) -> tuple[C, ChatTokenizer]:
    """The settings of `sft`, `reference` or `dpo` with every inherited value, and the tokenizer with its chat template.

    `progress` is what the checkpoint holds from which a run is resumed; {} for a new one. Raises InputError.
    """
    tables = recorded_days(open_path(config.reference)) if isinstance(config, DpoConfig) else []
    found = resolve(command, source, config.model, config.data, progress.get("config"), tables)
    config = replace(config, model=found.model, data=found.data)
    config.check()
    return config, found.chat


def _model_files(source: ModelSource, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """What transformers reads, and the template with the generation markers, from which a later stage tells answers."""
    template = without_markers(exported_template(tokenizer))
    files = model_files(source, tokenizer.saved, template, tokenizer.stop_ids)
    return {**files, TRAINING_TEMPLATE: tokenizer.template.source}


def _newest(folder: Path) -> tuple[int, dict[str, Any]]:
    """The last saved step whose progress can be read; whether its arrays can, shows when they are."""
    for step in reversed(steps_in(folder)):
        try:
            return step, read_progress(folder, step)
        except DamagedStepError:
            continue
    return 0, {}


def open_tokenizer(source: ModelSource, data: DataOptions) -> ChatTokenizer:
    """The model's tokenizer with the chat template for training that `data.chat_template` names. Raises InputError."""
    tokenizer = load_tokenizer(str(source.folder))
    chat = training_tokenizer(source.asked, tokenizer, data)
    check_vocabulary(source.model_config, tokenizer, source.asked, chat.template)
    return chat


def check_positions(examples: Examples, name: str, source: ModelSource) -> None:
    """Raise InputError where an example is longer than the positions that the model has."""
    lengths, limit = examples.segment_lengths(), source.model_config.max_positions
    if limit and lengths.max() > limit:
        raise InputError(
            f"{name}: expected at most the {limit:,} positions (max_position_embeddings) of {source.asked}, got "
            f"{lengths.max():,} tokens in the longest example; {int((lengths > limit).any(axis=1).sum()):,} of {len(examples):,} "
            f"are longer. Set data.max_length to {limit} or less; data.on_bad_row decides whether longer ones are cut or dropped."
        )


def _check_folder(config: SftConfig) -> Path:
    folder = open_path(config.output)
    check_folder_creatable(folder, checkpoints=True)
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


def checked_splits(
    load: Callable[[DataOptions, ChatTokenizer, str, str], Examples],
    data: DataOptions,
    tokenizer: ChatTokenizer,
    source: ModelSource,
) -> dict[str, Examples]:
    """`training`, and `evaluation` where the settings name one, no example of which exceeds the model's positions.

    Raises:
        InputError: Rows cannot be read, one exceeds the positions, or more are skipped or cut than `max_skipped_fraction` allows.
    """
    places = {"training": (data.path, data.split), "evaluation": evaluation_source(data)}
    splits: dict[str, Examples] = {}
    for name, place in places.items():
        if place is not None:
            splits[name] = load(data, tokenizer, *place)
            check_positions(splits[name], f"{place[0]}:{place[1]}", source)
            splits[name].stats.check(f"{place[0]}:{place[1]}", data.max_skipped_fraction)
    return splits


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
