"""Training, as SFT and DPO share it: weights and state in place, then the loop, then everything closed in order."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax

from zephyr_jax import startup
from zephyr_jax.checkpoint.hf.model_files import write_model_files
from zephyr_jax.checkpoint.manager import CheckpointManager
from zephyr_jax.checkpoint.provenance import Record, make_record, read_record, write_record
from zephyr_jax.checkpoint.resolve import AbstractModel
from zephyr_jax.checkpoint.steps import DAMAGED, DamagedStepError, read_progress, restore_state, set_aside, steps_in
from zephyr_jax.config.training import SftConfig
from zephyr_jax.config.yaml_file import save_card, to_dict
from zephyr_jax.data.batch_file import write_batch
from zephyr_jax.data.loader import iterate
from zephyr_jax.errors import InputError, join_items
from zephyr_jax.objective.logprob import Parameters
from zephyr_jax.parallel.devices import describe_devices
from zephyr_jax.parallel.hosts import all_hosts_agree, barrier
from zephyr_jax.parallel.place import local_rows, place_batch
from zephyr_jax.parallel.preemption import StopRequest
from zephyr_jax.parallel.sharding import ShardingRules
from zephyr_jax.report.report import try_write_histograms, try_write_report
from zephyr_jax.report.run_record import SICK
from zephyr_jax.storage.files import Path, list_names
from zephyr_jax.train.anomalies import Health, Sickness, unhalted
from zephyr_jax.train.evaluate import make_evaluation
from zephyr_jax.train.loop import Loop
from zephyr_jax.train.metrics import Reporter
from zephyr_jax.train.optimizer import learning_rate, make_optimizer
from zephyr_jax.train.setup import Run, Split
from zephyr_jax.train.state import TrainState, abstract_state, initial_state, state_shardings
from zephyr_jax.train.step import Objective, make_step

_MOST_KEPT = 20  # batches of sick steps; they may have hundreds of megabytes together


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
    """Train to the end of the plan, from the run's newest good checkpoint or from the weights that `load()` brings.

    `identity` is saved with every checkpoint and must be equal on resume.
    """
    startup.add_phase("data", run.compile_stats.take_seconds())
    total = len(training.plan.steps)
    optimizer = make_optimizer(config.optimizer, total)
    shardings = state_shardings(
        model.parameters, model.shardings, optimizer, run.opened.rules, config.optimizer.offload_moments
    )
    found = _newest_good(run, abstract_state(model.parameters, optimizer, shardings))
    run = found.run
    if run.start:
        _check_identity(run.progress["identity"], identity, config.output)
    state = found.state or initial_state(load(), optimizer, shardings)
    record = _record(config, run, training, evaluation, identity)
    checkpoints = _begin(config, run, record, training)
    startup.add_phase("weights", run.compile_stats.take_seconds())
    first, interval = jax.process_index() == 0, run.progress.get("interval")
    reporter = Reporter(run.folder, config.report, to_dict(config), total, run.start, first, interval)
    reporter.note(_headline(run, model, training))
    reporter.note(_fewer_steps(config, total))
    health = Health(config.anomaly, run.progress.get("health"), config.optimizer.learning_rate)
    data = _Data(training, run.opened.rules, run.progress.get("data"), reporter)
    facts = {"config": to_dict(config), "identity": identity, "provenance": record}
    only_weights = config.schedule.save == "weights"
    keeper = _Keeper(run.folder, training, checkpoints, reporter, data, health, facts, only_weights)
    evaluate = make_evaluation(objective, lambda: _placed(evaluation, run.opened.rules)) if evaluation else None
    rate = learning_rate(config.optimizer, total)
    step = make_step(objective, optimizer, rate, shardings, config.anomaly, config.optimizer.grad_dtype)

    def first_step() -> str:
        startup.add_phase("evaluate and step" if evaluate else "step", run.compile_stats.take_seconds())
        return startup.summary(run.compile_stats.cache_summary())

    try:
        with StopRequest(config.schedule.grace_seconds) as request:
            loop = Loop(
                step, data, evaluate, keeper.save, request.reached, health, keeper.keep_batch, reporter, config.schedule,
                total, first_step,
            )  # fmt: skip
            return loop.run(state, run.start, unhalted(shardings.step))
    finally:
        reporter.close()
        checkpoints.close()
        if first:
            try_write_report(run.folder)


class _Data:
    """Placed batches with their places in the plan; remembers where the iterator stood before each of the last few."""

    def __init__(self, split: Split, rules: ShardingRules, position: dict[str, Any] | None, reporter: Reporter):
        self._split, self._rules, self._reporter = split, rules, reporter
        self._ids: list[str] = []
        self._batches = iterate(split.batches(local_rows(rules, split.plan.microbatch_rows)))
        if position:
            self._batches.set_state(position)
        self._before: dict[int, Any] = {}

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return self

    def __next__(self) -> tuple[int, Any]:
        before = self._batches.get_state()
        place, batch = next(self._batches)
        self._before = {each: state for each, state in self._before.items() if each > place - 3} | {place: before}
        self._reporter.drawn(place + 1, lambda: self._ids_of(place))
        return place, place_batch(self._rules, batch, self._split.plan.microbatch_rows)

    def position(self, step: int) -> dict[str, Any]:
        """The iterator's state right before the batch of step `step + 1`."""
        return self._before.get(step, self._batches.get_state())

    def _ids_of(self, place: int) -> list[str]:
        self._ids = self._ids or self._split.examples.ids()
        return [self._ids[example] for row in self._split.plan.steps[place] for example in row]


@dataclass(frozen=True)
class _Keeper:
    """What a run keeps on its way: its steps, and the batches of sick ones."""

    folder: Path
    split: Split
    checkpoints: CheckpointManager
    reporter: Reporter
    data: _Data
    health: Health
    facts: dict[str, Any]
    """What every checkpoint says of the run."""
    weights_only: bool
    """Whether the one checkpoint of the run holds weights only."""

    def save(self, step: int, state: TrainState, metrics: dict[str, float] | None) -> None:
        """Save a step with the place of its data; a checkpoint is never ahead of its metrics."""
        self.reporter.flush()
        progress = {
            "data": self.data.position(step), "health": self.health.state, "interval": self.reporter.interval,
            **self.facts,
        }  # fmt: skip
        if self.weights_only:
            self.checkpoints.save_weights(step, state.parameters, progress, metrics)
        else:
            self.checkpoints.save(step, state.parameters, (state.step, state.optimizer), progress, metrics)

    def keep_batch(self, step: int, found: list[Sickness]) -> str:
        """Write the whole batch of a sick step, once for all hosts; says what it is, where, and how to look at it."""
        every = self.split.examples.ids()
        ids = [[every[example] for example in row] for row in self.split.plan.steps[step - 1]]
        name = self.folder / SICK / f"step-{step:06}.safetensors"
        kept = name.exists() or len(list_names(name.parent)) < _MOST_KEPT
        what = "; ".join(each.words for each in found)
        if kept and jax.process_index() == 0:
            whole = slice(0, self.split.plan.microbatch_rows)
            source = self.split.batches(whole)
            kinds = [each.kind for each in found]
            segments = self.split.plan.examples_per_row
            facts: dict[str, Any] = {
                "step": step,
                "kinds": kinds,
                "what": what,
                "ids": ids,
                "examples_per_row": segments,
            }
            name.parent.mkdir(parents=True, exist_ok=True)
            facts |= {"method": self.facts["provenance"]["made_by"], "config": self.facts["config"]}
            write_batch(name, source[step - 1], facts)
        first = join_items([each for row in ids for each in row], 3)
        where = f"zephyr-jax debug-step --batch_file {name}" if kept else f"not kept: {_MOST_KEPT} are in {name.parent}"
        return f"Step {step} is sick: {what}. Its examples: {first}. Its batch: {where}."


@dataclass(frozen=True)
class _Found:
    """Where a run stands, with its state unless it starts from the base's weights."""

    run: Run
    state: TrainState | None = None


def _newest_good(run: Run, empty: TrainState) -> _Found:
    """The newest saved step that every process can read; damaged ones are set aside.

    Where the only one is damaged the run starts anew. Raises InputError where several are and none is good.
    """
    damaged: list[int] = []
    for step in reversed(steps_in(run.folder)):
        found = _read(run.folder, step, empty)
        if all_hosts_agree(found is not None) and found is not None:
            _put_away(run.folder, damaged, f"going on from step {step}")
            return _Found(replace(run, start=step, progress=found[0]), found[1])
        damaged.append(step)
    if len(damaged) > 1:
        raise InputError(
            f"All checkpoints of {run.folder} are damaged: steps {join_items(damaged)}. That is no accident of one file: check "
            "the disk and the versions of jax and orbax-checkpoint. To train anew, choose another output."
        )
    _put_away(run.folder, damaged, "there is none before it, so the run starts anew")
    return _Found(replace(run, start=0, progress={}))


def _read(folder: Path, step: int, empty: TrainState) -> tuple[dict[str, Any], TrainState] | None:
    try:
        progress = read_progress(folder, step)
        parameters, (number, moments) = restore_state(folder, step, empty.parameters, (empty.step, empty.optimizer))
    except DamagedStepError as error:
        print(str(error).partition(" Choose ")[0], file=sys.stderr, flush=True)
        return None
    return progress, TrainState(number, parameters, moments)


def _put_away(folder: Path, damaged: list[int], then: str) -> None:
    if damaged and jax.process_index() == 0:
        for step in damaged:
            set_aside(folder, step)
        steps = f"step{'s' if len(damaged) > 1 else ''} {join_items(damaged)}"
        print(f"set aside {steps} in {folder / DAMAGED}; {then}", file=sys.stderr, flush=True)


def _begin(config: SftConfig, run: Run, record: Record, training: Split) -> CheckpointManager:
    """Make the run's folder and put everything but checkpoints into it, once every host has found all to be good."""
    barrier("know their data and weights")
    run.folder.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        save_card(config, run.folder / "config.yaml")
        write_record(run.folder, record)
        write_model_files(run.folder, run.model_files)
        try_write_histograms(run.folder, training.examples)
        try_write_report(run.folder)  # of a run that was killed this is the first one
    return CheckpointManager(run.folder, config.schedule)


def _record(config: SftConfig, run: Run, training: Split, evaluation: Split | None, identity: dict[str, Any]) -> Record:
    """The provenance of what this run makes; one that is resumed keeps its first record and adds where it went on."""
    data = f"{len(training.examples):,} examples, content {identity['data']}"
    facts: dict[str, Any] = {
        "output": config.output,
        "config": to_dict(config),
        "steps": len(training.plan.steps),
        "data": data,
    }
    template = run.tokenizer.template
    facts["template"] = {"name": template.name, "source": template.short_hash} | (
        {"date": template.day.isoformat()} if template.day else {}
    )
    for name, split in {"data": training, "eval": evaluation}.items():
        facts |= {f"{name}_{kind}": found for kind, found in split.examples.stats.record().items()} if split else {}
    if "reference" in identity:
        facts["reference"] = f"weights {identity['reference']['weights']}"
    record = make_record(run.method.name, run.opened.source.record, **facts)
    first = read_record(run.folder) if run.start else None
    if first is None:
        return record
    again = {name: record[name] for name in ("at", "devices", "processes", "versions", "commit")} | {"step": run.start}
    return {**first, "resumed": [*first.get("resumed", []), again]}


def _placed(split: Split, rules: ShardingRules) -> Iterator[Any]:
    rows = split.plan.microbatch_rows
    return (place_batch(rules, batch, rows) for _, batch in iterate(split.batches(local_rows(rules, rows))))


def _check_identity(saved: dict[str, Any], now: dict[str, Any], output: str) -> None:
    changed = {name: (saved.get(name), now[name]) for name in now if saved.get(name) != now[name]}
    if changed:
        pairs = "; ".join(f"{name} was {then}, now {this}" for name, (then, this) in changed.items())
        raise InputError(
            f"{output} was started on something else: {pairs}. A resumed run must see the same data and tokens: bring them "
            "back, or choose another output."
        )


def _fewer_steps(config: SftConfig, total: int) -> str:
    """A line where the data end before `schedule.max_steps`; empty otherwise."""
    schedule = config.schedule
    if schedule.max_steps is None or total >= schedule.max_steps:
        return ""
    epochs = f"{schedule.epochs} epoch{'' if schedule.epochs == 1 else 's'}"
    return (
        f"schedule.max_steps is {schedule.max_steps:,}, and {epochs} of the data give {total:,} steps: the run and its learning "
        f"rate schedule end at step {total:,}. For more steps raise schedule.epochs."
    )


def _headline(run: Run, model: AbstractModel, training: Split) -> str:
    plan, mesh = training.plan, dict(run.opened.rules.mesh.shape)
    sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.items())
    devices = describe_devices(list(run.opened.rules.mesh.devices.flat))
    where = f"resuming at step {run.start}" if run.start else "starting"
    return (
        f"{training.examples.summary('training')}\n"
        f"{model.config.num_parameters:,} parameters on {devices} as {sizes}; {len(plan.steps):,} steps of up to "
        f"{plan.microbatches} x {plan.microbatch_rows} rows of {plan.row_length} tokens; {where} in {run.folder}"
    )
