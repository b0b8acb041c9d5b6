"""What the training loop draws and saves: placed batches, checkpoints, and the batches of anomalous steps."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax.profiler import TraceAnnotation

from zephyr_jax.checkpoint.manager import CheckpointManager
from zephyr_jax.data.batch_file import BAD_BATCHES, write_batch
from zephyr_jax.data.loader import iterate
from zephyr_jax.errors import join_items
from zephyr_jax.parallel.place import local_rows, place_batch
from zephyr_jax.parallel.sharding import ShardingRules
from zephyr_jax.storage.files import Path, list_names
from zephyr_jax.train.anomalies import Anomaly, AnomalyDetector
from zephyr_jax.train.metrics import Reporter
from zephyr_jax.train.setup import Split
from zephyr_jax.train.state import TrainState
from zephyr_jax.train.trace import BATCH

_MAX_BAD_BATCHES = 20  # together they may take hundreds of megabytes


class PlacedBatches:
    """Pairs of the index in the plan and the batch on the mesh; knows the iterator state before each of the last batches."""

    def __init__(self, split: Split, rules: ShardingRules, position: dict[str, Any] | None, reporter: Reporter):
        self._split, self._rules, self._reporter = split, rules, reporter
        self._ids: list[str] = []
        self._batches = iterate(split.batches(local_rows(rules, split.plan.microbatch_rows)))
        if position:
            self._batches.set_state(position)
        self._states: dict[int, Any] = {}

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return self

    def __next__(self) -> tuple[int, Any]:
        with TraceAnnotation(BATCH):
            return self._next()

    def _next(self) -> tuple[int, Any]:
        state = self._batches.get_state()
        index, batch = next(self._batches)
        self._states = {earlier: kept for earlier, kept in self._states.items() if earlier > index - 3} | {index: state}
        self._reporter.log_example_ids(index + 1, lambda: self._example_ids(index))
        return index, place_batch(self._rules, batch, self._split.plan.microbatch_rows)

    def position(self, step: int) -> dict[str, Any]:
        """The iterator state right before the batch of step `step + 1`."""
        state: dict[str, Any] = self._states.get(step, self._batches.get_state())
        return state

    def _example_ids(self, index: int) -> list[str]:
        self._ids = self._ids or self._split.examples.ids()
        return [self._ids[example] for row in self._split.plan.steps[index] for example in row]


@dataclass(frozen=True, kw_only=True)
class CheckpointHooks:
    """What the loop saves: checkpoints, and the batches of anomalous steps."""

    folder: Path
    split: Split
    checkpoints: CheckpointManager
    reporter: Reporter
    batches: PlacedBatches
    detector: AnomalyDetector
    facts: dict[str, Any]
    """Constant part of every checkpoint's progress."""
    weights_only: bool
    """Whether the run's only checkpoint holds weights alone."""

    def save(self, step: int, state: TrainState, metrics: dict[str, float] | None) -> None:
        """Save a step with the position of its data, after its metrics were flushed."""
        self.reporter.flush()
        progress = {
            "data": self.batches.position(step),
            "anomalies": self.detector.state,
            "interval": self.reporter.interval,
            **self.facts,
        }
        if self.weights_only:
            self.checkpoints.save_weights(step, state.trainable, progress, metrics)
        else:
            self.checkpoints.save(step, state.trainable, (state.step, state.optimizer_state), progress, metrics)

    def save_bad_batch(self, step: int, anomalies: list[Anomaly]) -> str:
        """Write the global batch of an anomalous step, by process 0. Returns the description for logs and errors."""
        all_ids = self.split.examples.ids()
        ids = [[all_ids[example] for example in row] for row in self.split.plan.steps[step - 1]]
        file = self.folder / BAD_BATCHES / f"step-{step:06}.safetensors"
        has_room = file.exists() or len(list_names(file.parent)) < _MAX_BAD_BATCHES
        text = "; ".join(anomaly.text for anomaly in anomalies)
        if has_room and jax.process_index() == 0:
            all_rows = slice(0, self.split.plan.microbatch_rows)
            source = self.split.batches(all_rows)
            facts: dict[str, Any] = {
                "step": step,
                "kinds": [anomaly.kind for anomaly in anomalies],
                "what": text,
                "ids": ids,
                "examples_per_row": self.split.plan.examples_per_row,
                "method": self.facts["provenance"]["made_by"],
                "config": self.facts["config"],
            }
            file.parent.mkdir(parents=True, exist_ok=True)
            write_batch(file, source[step - 1], facts)
        examples = join_items([example for row in ids for example in row], 3)
        saved = f"batch saved to {file}; rerun: `zephyr-jax debug-step --batch_file {shlex.quote(str(file))}`"
        full = f"batch not saved: {file.parent} has {_MAX_BAD_BATCHES} already"
        return f"step {step}: {text}; examples {examples}; {saved if has_room else full}"


def evaluation_batches(split: Split, rules: ShardingRules) -> Iterator[Any]:
    """One pass over a split, as batches on the mesh."""
    rows = split.plan.microbatch_rows
    return (place_batch(rules, batch, rows) for _, batch in iterate(split.batches(local_rows(rules, rows))))
