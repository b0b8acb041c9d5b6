"""What every method does before it trains: opening a run, and planning its data."""

import logging
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import jax
import numpy as np

from zephyr_jax import startup
from zephyr_jax.batch import Batch
from zephyr_jax.chat.exported_template import exported_template
from zephyr_jax.chat.template_source import without_markers
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.chat.tokenizer_files import TRAINING_TEMPLATE
from zephyr_jax.checkpoint.disk_space import check_disk_space
from zephyr_jax.checkpoint.frozen import IsTrainable, split
from zephyr_jax.checkpoint.hf.model_files import model_files
from zephyr_jax.checkpoint.inheritance import resolve_settings
from zephyr_jax.checkpoint.model_source import INITIAL_ADAPTER, ModelSource
from zephyr_jax.checkpoint.opened import OpenedModel
from zephyr_jax.checkpoint.steps import FOLDER, SAVED, Checkpoint, find_checkpoint
from zephyr_jax.checkpoint.training_format import open_for_training, resolved_settings
from zephyr_jax.config.training import SftConfig
from zephyr_jax.config.validation import resumable_settings
from zephyr_jax.config.yaml_file import differences, fill_missing, to_dict
from zephyr_jax.data.examples import Examples
from zephyr_jax.data.loader import BatchSource
from zephyr_jax.data.pack import PackingPlan, plan_evaluation, plan_training
from zephyr_jax.errors import InputError
from zephyr_jax.methods.base import Method
from zephyr_jax.methods.registry import method_of
from zephyr_jax.parallel.compile_cache import CompileStats
from zephyr_jax.parallel.hosts import barrier
from zephyr_jax.parallel.sharding import init_devices
from zephyr_jax.reference.table import recorded_template_dates
from zephyr_jax.storage.files import Path, check_folder_creatable, open_path
from zephyr_jax.train.optimizer import make_optimizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Examples with the plan that lays them out as batches."""

    examples: Examples
    plan: PackingPlan
    batch_type: type[Batch]
    columns: dict[str, np.ndarray]
    """Columns besides those of the examples, [N] or [N, values], such as reference log-probs."""

    def batches(self, rows: slice) -> BatchSource[Batch]:
        """The batches of the plan, with these rows of each microbatch."""
        return BatchSource(self.examples, self.plan, rows, self.batch_type, self.columns)


@dataclass(frozen=True)
class Run:
    """A run's settings, folder, mesh, model files and tokenizer, before any weights are loaded."""

    config: SftConfig
    """The settings with every inherited value filled in."""
    method: Method
    folder: Path
    opened: OpenedModel
    tokenizer: ChatTokenizer
    checkpoint: Checkpoint
    """The saved step to resume from: the newest whose progress can be read, until its arrays are restored."""
    compile_stats: CompileStats
    model_files: dict[str, Any]
    """What goes into the run beside its weights: config, tokenizer and chat template, by file name."""

    @property
    def start(self) -> int:
        """Step to start from."""
        return self.checkpoint.step

    @property
    def progress(self) -> dict[str, Any]:
        """Progress of the checkpoint; empty for a new run."""
        return self.checkpoint.progress

    @property
    def is_trainable(self) -> IsTrainable:
        """Which weights train: those of the adapter, or all."""
        return self.opened.weight_format.is_trainable

    @property
    def finished(self) -> bool:
        """Whether it has ended with `schedule.save: weights`, so that there is nothing to resume."""
        return self.progress.get(SAVED) == "weights"


def open_run(config: SftConfig) -> Run:
    """Check the config and the folder, fill in what the config inherits, and find out where to start; nothing is written.

    Raises InputError.
    """
    startup.begin()
    compile_stats = CompileStats()
    rules = init_devices(config.mesh)
    rules.check_divides("batch", config.batch.rows_per_forward, "batch.microbatch_rows (or batch.rows)")
    opened = open_for_training(config.model, config.adapter, rules, config.seed)
    source = opened.source
    folder = _check_folder(config)
    checkpoint = find_checkpoint(folder) if (folder / FOLDER).is_dir() else Checkpoint(folder)
    progress = checkpoint.progress
    if progress and opened.new_adapter:
        opened = replace(opened, new_adapter=opened.new_adapter.saved_in(folder / INITIAL_ADAPTER))
    method = method_of(config)
    tables = recorded_template_dates(method.reference_folder(config))
    config, opened, tokenizer = resolve_settings(method.name, config, opened, progress.get("config"), tables)
    rules.check_row_length(config.data.row_length)
    config = replace(config, adapter=resolved_settings(config.adapter, opened))
    if progress:
        _check_same(progress, config, method)
    run = Run(
        config=config,
        method=method,
        folder=folder,
        opened=opened,
        tokenizer=tokenizer,
        checkpoint=checkpoint,
        compile_stats=compile_stats,
        model_files=_model_files(source, tokenizer),
    )
    if run.finished:
        logger.info(
            "%s is finished at step %d, nothing to train: with schedule.save `weights` it has no optimizer state to resume from. "
            "To continue from its weights: --model.path %s and another output.",
            folder,
            run.start,
            folder,
        )
    else:
        if not progress:
            run.opened.check_weights()
        _check_room(config, run)
    barrier("looked at the run's folder")  # before any process writes into it
    return run


def _check_room(config: SftConfig, run: Run) -> None:
    parameters = split(run.opened.abstract.parameters, run.is_trainable)[0]
    moments = jax.eval_shape(make_optimizer(config.optimizer, 1).init, parameters)
    evaluates = config.data.evaluation_source is not None
    check_disk_space(
        run.folder,
        config.schedule,
        state=(parameters, moments),
        parameters=parameters,
        evaluates=evaluates,
        num_saved=len(run.checkpoint.steps),
    )


def _model_files(source: ModelSource, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """What transformers reads, and the template with generation markers, with which a later stage finds the answers."""
    template = without_markers(exported_template(tokenizer))
    files = model_files(source, tokenizer.saved, template, tokenizer.stop_ids)
    return {**files, TRAINING_TEMPLATE: tokenizer.template.source}


def _check_folder(config: SftConfig) -> Path:
    folder = open_path(config.output)
    check_folder_creatable(folder, checkpoints=True)
    if not config.resume and (folder / FOLDER).exists():
        raise InputError(f"{folder} holds a run already and `resume` is off. Choose another output or turn resume on.")
    return folder


def _check_same(progress: dict[str, Any], config: SftConfig, method: Method) -> None:
    """Raise InputError unless the run that wrote `progress` has this method and equal settings but for the resumable ones."""
    trained_by = progress.get("provenance", {}).get("made_by", method.name)
    if trained_by != method.name:
        raise InputError(f"{config.output} is a run of `{trained_by}`, got `{method.name}`. Choose another output.")
    resumable = resumable_settings(type(config))
    defaults = to_dict(type(config)())
    # A run from before this setting: its answers have their own copies of the prompt, so its rows are others.
    defaults["data"]["share_prompts"] = method.examples.segments_per_example == 1
    saved = fill_missing(progress["config"], defaults)
    changed = {
        name: values
        for name, values in differences(to_dict(config), saved).items()
        if not any(name == free or name.startswith(f"{free}.") for free in resumable)
    }
    if changed:
        pairs = "; ".join(f"{name} was {then!r}, now {now!r}" for name, (now, then) in changed.items())
        raise InputError(
            f"{config.output} was started with other settings: {pairs}. A resumed run must be the same run: put the settings "
            "back, or choose another output."
        )


def plan_splits(
    config: SftConfig, method: Method, examples: dict[str, Examples], sums: dict[str, np.ndarray]
) -> dict[str, Split]:
    """Plan the whole run, and one pass of evaluation in microbatches of the same size.

    Both plans get the same number of example slots per row, so that one compiled log-prob serves both.

    Args:
        config: Settings of the run.
        method: The training method.
        examples: By split: `training`, and `evaluation` where there is one.
        sums: By split: float32 [N, segments per example] log-probs of the reference; empty for a method without one.
    """
    data, batch, schedule = config.data, config.batch, config.schedule
    lengths = {name: split.packed_lengths(data) for name, split in examples.items()}
    of_training, unshared = lengths["training"]
    plans = {
        "training": plan_training(of_training, data, batch, schedule.epochs, schedule.max_steps, config.seed, unshared)
    }
    if "evaluation" in lengths:
        of_evaluation, unshared = lengths["evaluation"]
        plans["evaluation"] = plan_evaluation(of_evaluation, data, batch.rows_per_forward, unshared)
    slots = max(plan.examples_per_row for plan in plans.values())
    return {
        name: Split(
            examples=examples[name],
            plan=replace(plan, examples_per_row=slots),
            batch_type=method.batch,
            columns=method.reference_columns(sums.get(name), len(examples[name])),
        )
        for name, plan in plans.items()
    }


def data_identity(examples: Examples) -> str:
    """A hash of every example's content, in order."""
    return blake2b(examples.keys().astype("U32").tobytes(), digest_size=16).hexdigest()
