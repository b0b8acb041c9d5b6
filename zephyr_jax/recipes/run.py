"""What SFT and DPO share: opening a run, resuming it, and fitting an objective."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import jax
import numpy as np

from zephyr_jax import startup
from zephyr_jax.card import differences, save_card, to_dict
from zephyr_jax.checkpoint.manager import FOLDER, CheckpointManager
from zephyr_jax.checkpoint.provenance import Record, make_record, read_record, write_record
from zephyr_jax.checkpoint.source import AbstractModel, ModelSource, check_vocabulary, copy_model_files, find_model
from zephyr_jax.config import DataOptions
from zephyr_jax.data.chat import load_template, without_markers
from zephyr_jax.data.examples import Examples
from zephyr_jax.data.loader import BatchSource, iterate
from zephyr_jax.data.pack import Plan, plan_evaluation, plan_training
from zephyr_jax.data.tokens import ChatTokenizer, load_tokenizer
from zephyr_jax.errors import InputError
from zephyr_jax.objective.logprob import Parameters
from zephyr_jax.parallel.hosts import wait_for_all
from zephyr_jax.parallel.place import local_rows, place_batch
from zephyr_jax.parallel.programs import Compilations
from zephyr_jax.parallel.rules import Rules, open_rules
from zephyr_jax.parallel.stop import StopRequest
from zephyr_jax.storage.files import Path, check_can_be_made, open_path
from zephyr_jax.train.evaluate import make_evaluation
from zephyr_jax.train.loop import Loop
from zephyr_jax.train.optimizer import learning_rate, make_optimizer
from zephyr_jax.train.report import Reporter
from zephyr_jax.train.state import TrainState, abstract_state, initial_state, state_shardings
from zephyr_jax.train.step import Objective, make_step
from zephyr_jax.verbs import DpoConfig, SftConfig

_MAY_CHANGE = (
    "output",
    "resume",
    "mesh",
    "report",
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
    """Step to start from."""
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
    start, progress = _newest(folder, config) if (folder / FOLDER).is_dir() else (0, {})
    if progress:
        _check_same(progress["config"], config)
    wait_for_all("looked at the run's folder")  # before any process writes into it
    return Run(folder, rules, source, tokenizer, start, progress, compilations)


def _newest(folder: Path, config: SftConfig) -> tuple[int, dict[str, Any]]:
    checkpoints = CheckpointManager(folder, config.schedule)
    try:
        start = checkpoints.newest() or 0
        return start, checkpoints.progress(start) if start else {}
    finally:
        checkpoints.close()


def _begin(config: SftConfig, run: "Run", record: Record) -> CheckpointManager:
    """Make the run's folder and put everything but checkpoints into it, once every host has found all to be good."""
    wait_for_all("know their data and weights")
    run.folder.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        save_card(config, run.folder / "config.yaml")
        write_record(run.folder, record)
        copy_model_files(run.source, run.folder, without_markers(run.tokenizer.template.source))
    return CheckpointManager(run.folder, config.schedule)


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


def fit(
    config: SftConfig,
    run: Run,
    model: AbstractModel,
    load: Callable[[], Parameters],
    objective: Objective,
    training: Split,
    evaluation: Split | None,
    identity: dict[str, Any],
) -> TrainState:
    """Train to the end of the plan, from the run's newest checkpoint or from the weights that `load()` brings.

    `identity` is saved with every checkpoint and must be equal on resume.
    """
    startup.passed("data", run.compilations.take())
    total = len(training.plan.steps)
    optimizer = make_optimizer(config.optimizer, total)
    shardings = state_shardings(
        model.parameters, model.shardings, optimizer, run.rules, config.optimizer.moments_on_host
    )
    record = _record(config, run, training, identity)
    if run.start:
        _check_identity(run.progress["identity"], identity, config.output)
        checkpoints = _begin(config, run, record)
        empty = abstract_state(model.parameters, optimizer, shardings)
        parameters, moments = checkpoints.restore(run.start, empty.parameters, (empty.step, empty.optimizer))
        state = TrainState(moments[0], parameters, moments[1])
    else:
        parameters = load()
        checkpoints = _begin(config, run, record)
        state = initial_state(parameters, optimizer, shardings)
    startup.passed("weights", run.compilations.take())
    rows = training.plan.microbatch_rows
    batches = iterate(_source(training, run.rules))
    if run.start:
        batches.set_state(run.progress["data"])
    reporter = Reporter(run.folder, config.report, to_dict(config), total, run.start, jax.process_index() == 0)
    reporter.note(_headline(run, model, training))

    def save(step: int, state: TrainState, metrics: dict[str, float] | None) -> None:
        progress = {"data": batches.get_state(), "config": to_dict(config), "identity": identity, "provenance": record}
        reporter.flush()  # a checkpoint is never ahead of its metrics
        checkpoints.save(step, state.parameters, (state.step, state.optimizer), progress, metrics)

    def first_step() -> str:
        startup.passed("evaluate and step" if evaluate else "step", run.compilations.take())
        return startup.report(run.compilations.sources())

    evaluate = make_evaluation(objective, lambda: _placed(evaluation, run.rules)) if evaluation else None
    rate = learning_rate(config.optimizer, total)
    step = make_step(objective, optimizer, rate, shardings, config.optimizer.gradient_dtype)
    placed = (place_batch(run.rules, batch, rows) for batch in batches)
    try:
        with StopRequest(config.schedule.grace) as request:
            loop = Loop(step, placed, evaluate, save, request.reached, reporter, config.schedule, total, first_step)
            return loop.run(state, run.start)
    finally:
        reporter.close()
        checkpoints.close()


def _record(config: SftConfig, run: Run, training: Split, identity: dict[str, Any]) -> Record:
    """The provenance of what this run makes; one that is resumed keeps its first record and adds where it went on."""
    verb = "dpo" if isinstance(config, DpoConfig) else "sft"
    data = f"{len(training.examples):,} examples, content {identity['data']}"
    facts = {"output": config.output, "config": to_dict(config), "steps": len(training.plan.steps), "data": data}
    if "reference" in identity:
        facts["reference"] = f"weights {identity['reference']['weights']}"
    record = make_record(verb, run.source.record, **facts)
    first = read_record(run.folder) if run.start else None
    if first is None:
        return record
    again = {name: record[name] for name in ("at", "devices", "versions", "commit")} | {"step": run.start}
    return {**first, "resumed": [*first.get("resumed", []), again]}


def _source(split: Split, rules: Rules) -> BatchSource:
    mine = local_rows(rules, split.plan.microbatch_rows)
    return BatchSource(split.examples, split.plan, mine, split.reference)


def _placed(split: Split, rules: Rules) -> Iterator[Any]:
    return (place_batch(rules, batch, split.plan.microbatch_rows) for batch in iterate(_source(split, rules)))


def data_identity(examples: Examples) -> str:
    """A hash of every example's content, in order."""
    return blake2b(examples.keys().astype("U32").tobytes(), digest_size=16).hexdigest()


def _check_identity(saved: dict[str, Any], now: dict[str, Any], output: str) -> None:
    changed = {name: (saved.get(name), now[name]) for name in now if saved.get(name) != now[name]}
    if changed:
        pairs = "; ".join(f"{name} was {then}, now {this}" for name, (then, this) in changed.items())
        raise InputError(
            f"{output} was started on something else: {pairs}. A resumed run must see the same data and tokens: bring them "
            "back, or choose another output."
        )


def _headline(run: Run, model: AbstractModel, training: Split) -> str:
    plan, mesh = training.plan, dict(run.rules.mesh.shape)
    sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.items())
    where = f"resuming at step {run.start}" if run.start else "starting"
    return (
        f"{training.examples.summary('training')}\n"
        f"{model.shape.parameters:,} parameters on {sizes}; {len(plan.steps):,} steps of up to "
        f"{plan.microbatches} x {plan.microbatch_rows} rows of {plan.row_length} tokens; {where} in {run.folder}"
    )
