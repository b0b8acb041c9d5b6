"""Train a model from prepared data: restore or load the state, run the loop, close everything in order."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax

from zephyr_jax import startup
from zephyr_jax.checkpoint.frozen import FROZEN, IsTrainable, check_frozen, frozen_record
from zephyr_jax.checkpoint.hf.export import export_adapter_folder
from zephyr_jax.checkpoint.hf.model_files import write_model_files
from zephyr_jax.checkpoint.hf.peft_config import PeftAdapter
from zephyr_jax.checkpoint.manager import CheckpointManager
from zephyr_jax.checkpoint.model_source import INITIAL_ADAPTER
from zephyr_jax.checkpoint.opened import AbstractModel
from zephyr_jax.checkpoint.provenance import Record, make_record, read_record, write_record
from zephyr_jax.checkpoint.steps import Checkpoint, restore_latest_valid
from zephyr_jax.checkpoint.training_format import training_record
from zephyr_jax.config.step_range import StepRange
from zephyr_jax.config.training import SftConfig
from zephyr_jax.config.yaml_file import save_card, to_dict
from zephyr_jax.errors import InputError
from zephyr_jax.model.lora import num_adapter_weights
from zephyr_jax.objective.example_loss import Objective
from zephyr_jax.objective.logprob import Parameters
from zephyr_jax.parallel.devices import describe_devices
from zephyr_jax.parallel.hosts import barrier
from zephyr_jax.parallel.preemption import StopRequest
from zephyr_jax.storage.files import remove_folder
from zephyr_jax.train.anomalies import AnomalyDetector, not_halted
from zephyr_jax.train.evaluate import Evaluate, make_evaluation
from zephyr_jax.train.goodput import Goodput
from zephyr_jax.train.hooks import CheckpointHooks, PlacedBatches, evaluation_batches
from zephyr_jax.train.loop import Loop
from zephyr_jax.train.metrics import Reporter
from zephyr_jax.train.optimizer import learning_rate, make_optimizer
from zephyr_jax.train.profiler import ProfiledStep
from zephyr_jax.train.setup import Run, Split
from zephyr_jax.train.state import (
    TrainState,
    abstract_state,
    frozen_weights,
    initial_state,
    state_shardings,
)
from zephyr_jax.train.step import TrainStep, make_step
from zephyr_jax.train.throughput import flops_per_token


def fit(
    run: Run,
    model: AbstractModel,
    *,
    load: Callable[[], Parameters],
    objective: Objective,
    training: Split,
    evaluation: Split | None,
    identity: dict[str, Any],
    on_start: Callable[[], None] = lambda: None,
    is_trainable: IsTrainable = lambda _: True,
) -> TrainState:
    """Train to the end of the plan, from the run's latest valid checkpoint or from loaded weights. Returns the final state.

    Args:
        run: Of `open_run`.
        model: Shapes and shardings of the weights.
        load: Returns the weights to start from; on resume it is called for frozen weights only.
        objective: The loss over a microbatch.
        training: Data of the run.
        evaluation: Data to evaluate on.
        identity: Saved with every checkpoint; must be equal on resume.
        on_start: Called once the run's folder is complete, before the first step.
        is_trainable: Which weights train; the others are neither updated nor saved.

    Raises InputError (other data, damaged checkpoints), TrainingError (an anomaly), Stopped (on request).
    """
    config = run.config
    profiled = _profiled_steps(config, training)
    startup.add_phase("data", run.compile_stats.take_seconds())
    optimizer = make_optimizer(config.optimizer, len(training.plan.steps))
    shardings = state_shardings(
        model.parameters, model.shardings, optimizer, run.opened.rules, config.optimizer.offload_moments, is_trainable
    )
    restored = _restore(run, abstract_state(model.parameters, optimizer, shardings), shardings, load, identity)
    run = restored.run
    state = restored.state or initial_state(load(), optimizer, shardings)
    record = _make_record(config, run, training, evaluation, identity)
    checkpoints = prepare_run_dir(config, run, record, state)
    on_start()
    startup.add_phase("weights", run.compile_stats.take_seconds())
    goodput = Goodput(run.folder, run.start, run.compile_stats, startup.phases())
    facts = {"config": to_dict(config), "identity": identity, "provenance": record, **_frozen_facts(state)}
    hooks = _make_hooks(config, run, model, training, checkpoints, facts)
    rate = learning_rate(config.optimizer, len(training.plan.steps))
    step = make_step(objective, optimizer, rate, shardings, config.anomaly, config.optimizer.grad_dtype)
    evaluate = None
    if evaluation:
        evaluate = make_evaluation(objective, partial(evaluation_batches, evaluation, run.opened.rules))
    try:
        with StopRequest(config.schedule.grace_seconds) as request, _profiled(step, profiled, run) as step:
            loop = _make_loop(config, run, step, evaluate, hooks, request.reached, goodput)
            return loop.run(state, run.start, not_halted(shardings.step))
    finally:
        hooks.reporter.close()
        checkpoints.close()


def _make_hooks(
    config: SftConfig,
    run: Run,
    model: AbstractModel,
    training: Split,
    checkpoints: CheckpointManager,
    facts: dict[str, Any],
) -> CheckpointHooks:
    total, row_length = len(training.plan.steps), training.plan.row_length
    reporter = Reporter(
        run.folder,
        config.report,
        config=to_dict(config),
        total=total,
        start=run.start,
        enabled=jax.process_index() == 0,
        interval=run.progress.get("interval"),
        flops_per_token=flops_per_token(
            model.config, min(config.data.max_length, row_length), num_adapter_weights(model.parameters)
        ),
        headline=run.method.headline_metrics,
    )
    reporter.info(training.examples.summary("training"))
    reporter.info(_describe_run(run, model, training))
    reporter.info(_describe_shorter_run(config, total))
    if total == 1 and float(learning_rate(config.optimizer, total)(0)) == 0:
        reporter.warning(
            "the only step of the run has learning rate 0, the start of the warmup: the weights will not change. Raise "
            "schedule.epochs, use more rows, or pass --optimizer.warmup_ratio 0."
        )
    return CheckpointHooks(
        folder=run.folder,
        split=training,
        checkpoints=checkpoints,
        reporter=reporter,
        batches=PlacedBatches(training, run.opened.rules, run.progress.get("data"), reporter),
        detector=AnomalyDetector(config.anomaly, run.progress.get("anomalies"), config.optimizer.learning_rate),
        facts=facts,
        weights_only=config.schedule.save == "weights",
    )


def _profiled_steps(config: SftConfig, training: Split) -> StepRange | None:
    """The steps of `config.profile`. Raises InputError for steps that the run does not have."""
    return StepRange.of_run(config.profile, "profile", len(training.plan.steps)) if config.profile else None


def _profiled(step: TrainStep, steps: StepRange | None, run: Run) -> AbstractContextManager[TrainStep]:
    """The step, which profiles itself while the run does `steps`."""
    return ProfiledStep(step, steps, run.start, run.folder) if steps else nullcontext(step)


def _frozen_facts(state: TrainState) -> dict[str, Any]:
    """The record of the weights that checkpoints leave out."""
    return {FROZEN: frozen_record(state.frozen)} if state.frozen else {}


def _make_loop(
    config: SftConfig,
    run: Run,
    step: TrainStep,
    evaluate: Evaluate | None,
    hooks: CheckpointHooks,
    should_stop: Callable[[int], bool],
    goodput: Goodput,
) -> Loop:
    def save(step: int, *state: Any) -> None:
        goodput.timed("save", hooks.save)(step, *state)
        goodput.write(step)

    def startup_summary() -> str:
        startup.add_phase("evaluate and step" if evaluate else "step", run.compile_stats.take_seconds())
        return startup.summary(run.compile_stats.cache_summary())

    return Loop(
        step=step,
        batches=hooks.batches,
        evaluate=goodput.timed("evaluate", evaluate) if evaluate else None,
        save=save,
        should_stop=should_stop,
        detector=hooks.detector,
        save_bad_batch=hooks.save_bad_batch,
        reporter=hooks.reporter,
        schedule=config.schedule,
        total=len(hooks.split.plan.steps),
        startup_summary=startup_summary,
    )


@dataclass(frozen=True)
class Restored:
    """A run at the step to resume from; without `state` when it starts from loaded weights."""

    run: Run
    state: TrainState | None = None


def _restore(
    run: Run, abstract: TrainState, shardings: TrainState, load: Callable[[], Parameters], identity: dict[str, Any]
) -> Restored:
    restored = restore_latest_valid(run.checkpoint, abstract.trainable, (abstract.step, abstract.optimizer_state))
    if restored is None:
        return Restored(replace(run, checkpoint=Checkpoint(run.folder)))
    checkpoint, trainable, (step, optimizer_state) = restored
    _check_identity(checkpoint.progress["identity"], identity, run.config.output)
    frozen = frozen_weights(load(), shardings) if shardings.frozen else {}
    if frozen:
        check_frozen(checkpoint.progress, frozen, run.folder)
    state = TrainState(step=step, trainable=trainable, frozen=frozen, optimizer_state=optimizer_state)
    return Restored(replace(run, checkpoint=checkpoint), state)


def prepare_run_dir(config: SftConfig, run: Run, record: Record, state: TrainState) -> CheckpointManager:
    """Create the run's folder with everything except checkpoints, once every process has its data and weights."""
    barrier("data and weights are ready")
    run.folder.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        save_card(config, run.folder / "config.yaml")
        write_record(run.folder, record)
        write_model_files(run.folder, run.model_files)
    if not run.start:
        _save_initial_adapter(run, state)
    return CheckpointManager(run.folder, config.schedule)


def _save_initial_adapter(run: Run, state: TrainState) -> None:
    """Save the adapter that was subtracted from the base (PiSSA): all later loads of the run need it."""
    opened = run.opened
    lora = opened.weight_format.lora
    if lora is None or opened.new_adapter is None or opened.new_adapter.init != "pissa":
        return
    folder = run.folder / INITIAL_ADAPTER
    if jax.process_index() == 0:
        remove_folder(folder)
    barrier("an earlier initial adapter is removed")
    adapter = PeftAdapter(spec=lora, base=None, revision=None)
    export_adapter_folder(folder, state.trainable, opened.source.model_config, adapter, {}, dtype="float32")


def _make_record(
    config: SftConfig, run: Run, training: Split, evaluation: Split | None, identity: dict[str, Any]
) -> Record:
    """Provenance of the run; a resumed run keeps its first record and adds where it resumed."""
    template = run.tokenizer.template
    facts: dict[str, Any] = {
        "output": config.output,
        "config": to_dict(config),
        "steps": len(training.plan.steps),
        "data": f"{len(training.examples):,} examples, content {identity['data']}",
        "template": {"name": template.name, "source": template.short_hash}
        | ({"date": template.day.isoformat()} if template.day else {}),
    }
    for name, split in {"data": training, "eval": evaluation}.items():
        facts |= {f"{name}_{kind}": value for kind, value in split.examples.stats.record().items()} if split else {}
    if adapter := training_record(run.opened):
        facts["adapter"] = adapter
    if "reference" in identity:
        facts["reference"] = f"weights {identity['reference']['weights']}"
    record = make_record(run.method.name, run.opened.source.record, **facts)
    first = read_record(run.folder) if run.start else None
    if first is None:
        return record
    resumed = {name: record[name] for name in ("at", "devices", "processes", "versions", "commit")} | {
        "step": run.start
    }
    return {**first, "resumed": [*first.get("resumed", []), resumed]}


def _check_identity(saved: dict[str, Any], current: dict[str, Any], output: str) -> None:
    changed = {name: (saved.get(name), current[name]) for name in current if saved.get(name) != current[name]}
    if changed:
        differences = "; ".join(f"{name}: expected {old}, got {new}" for name, (old, new) in changed.items())
        raise InputError(
            f"{output} was started with other data or tokens: {differences}. Restore them, or choose another output."
        )


def _describe_shorter_run(config: SftConfig, total: int) -> str:
    """A line when the data end before `schedule.max_steps`; empty otherwise."""
    schedule = config.schedule
    if schedule.max_steps is None or total >= schedule.max_steps:
        return ""
    epochs = f"{schedule.epochs} epoch{'' if schedule.epochs == 1 else 's'}"
    return (
        f"schedule.max_steps is {schedule.max_steps:,}, but {epochs} of the data give {total:,} steps: the run and its learning "
        f"rate schedule end at step {total:,}. For more steps, raise schedule.epochs."
    )


def _describe_run(run: Run, model: AbstractModel, training: Split) -> str:
    plan = training.plan
    mesh = " x ".join(f"{axis} {size}" for axis, size in run.opened.rules.mesh.shape.items())
    devices = describe_devices(list(run.opened.rules.mesh.devices.flat))
    start = f"resuming at step {run.start}" if run.start else "starting"
    return (
        f"{model.config.num_parameters:,} parameters on {devices}, mesh {mesh}; {len(plan.steps):,} steps of up to "
        f"{plan.microbatches} x {plan.microbatch_rows} rows of {plan.row_length} tokens; {start} in {run.folder}"
    )
