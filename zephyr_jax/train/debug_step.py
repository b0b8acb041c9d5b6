"""`zephyr-jax debug-step`: recompute the batch of an anomalous step with the weights from before it."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zephyr_jax.batch import Batch, make_batch
from zephyr_jax.checkpoint.frozen import merge, split
from zephyr_jax.checkpoint.opened import AbstractModel, open_model
from zephyr_jax.checkpoint.steps import FOLDER, list_steps
from zephyr_jax.checkpoint.training_format import open_for_training
from zephyr_jax.config.training import DebugStepConfig, SftConfig
from zephyr_jax.config.yaml_file import from_dict
from zephyr_jax.data.batch_file import read_batch
from zephyr_jax.errors import InputError, join_items
from zephyr_jax.mean import Metrics, WeightedMean
from zephyr_jax.methods.base import Method
from zephyr_jax.methods.registry import METHODS, method_names
from zephyr_jax.objective.example_loss import Objective
from zephyr_jax.objective.logprob import Parameters, sequence_logprob
from zephyr_jax.parallel.hosts import require_single_process
from zephyr_jax.parallel.place import place_batch
from zephyr_jax.parallel.sharding import init_devices
from zephyr_jax.storage.files import Path, open_path
from zephyr_jax.train.step import accumulate

_MAX_EXAMPLES = 20


@dataclass(frozen=True)
class StepDiagnosis:
    """Loss and gradient of one batch with some weights."""

    weights: str
    """Where the weights are from."""
    loss: float
    grad_norm: float
    examples: list[tuple[str, float, str]]
    """Id, loss and headline metrics of each example, the largest loss first."""
    non_finite: list[str]
    """Names of the weights whose gradients hold NaN or infinities."""
    logged: str
    """What the run logged of the step."""

    def report(self) -> str:
        """A line for the run's log, one for the batch, and one for each of the worst examples."""
        lines = [
            f"logged: {self.logged}",
            f"recomputed with {self.weights}: loss {self.loss:g}, gradient norm {self.grad_norm:g}",
            *(
                f"  {identity:<24} loss {loss:<10.5g} {details}"
                for identity, loss, details in self.examples[:_MAX_EXAMPLES]
            ),
        ]
        if len(self.examples) > _MAX_EXAMPLES:
            lines.append(f"  ... and {len(self.examples) - _MAX_EXAMPLES:,} with a smaller loss")
        if self.non_finite:
            lines.append(f"non-finite gradients: {join_items(self.non_finite)}")
        return "\n".join(lines)


def debug_step(config: DebugStepConfig) -> StepDiagnosis:
    """Loss, gradient and the loss of each example, as training computes them. Raises InputError."""
    require_single_process("debug-step")
    rules = init_devices(config.mesh)
    arrays, facts = read_batch(config.batch_file)
    run = open_path(config.batch_file).parent.parent
    method = _method(facts["method"])
    settings, batch = _settings(method, facts["config"], config), make_batch(method.batch, arrays)
    step = _step(run, facts["step"], config.step)
    path = str(run / FOLDER / str(step)) if step else settings.model.path
    if step:
        opened = open_model(
            replace(settings.model, path=path, revision=None, adapter=None, adapter_revision=None), rules
        )
    else:
        opened = open_for_training(settings.model, settings.adapter, rules, settings.seed)
    model, parameters = opened.abstract, opened.load_weights()
    rows = batch.rows.tokens.shape[1]
    rules.check_divides("batch", rows, "rows of the batch")
    rules.check_row_length(batch.rows.tokens.shape[2])
    placed = place_batch(rules, batch, rows)
    chunk = model.logprob_chunk
    objective = method.objective(model.definition, settings, examples_per_row=facts["examples_per_row"], chunk=chunk)
    is_trainable = opened.weight_format.is_trainable
    trainable, frozen = split(parameters, is_trainable)
    shardings = split(model.shardings, is_trainable)[0]
    totals, metrics = _gradients(objective, trainable, frozen, placed, shardings)
    weight = max(float(metrics["loss"].weight), 1.0)
    non_finite = [
        ".".join(str(key.key) for key in path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(totals)
        if not bool(jnp.isfinite(leaf).all())
    ]
    return StepDiagnosis(
        weights=f"step {step} of {run}" if step else f"the weights that {run} started from",
        loss=float(metrics["loss"].sum) / weight,
        grad_norm=float(optax.tree.norm(totals)) / weight,
        examples=sorted(_examples(method, settings, model, parameters, placed, facts), key=_sort_key, reverse=True),
        non_finite=non_finite,
        logged=f"step {facts['step']}: {facts['what']}",
    )


def _gradients(
    objective: Objective, trainable: Parameters, frozen: Parameters, batch: Batch, shardings: Any
) -> tuple[Parameters, Metrics]:
    """Undivided gradients of the trainable weights, and metrics."""

    def gradients(trainable: Parameters, frozen: Parameters, batch: Batch) -> tuple[Parameters, Metrics]:
        return accumulate(lambda weights, rows: objective(merge(weights, frozen), rows), trainable, batch, shardings)

    result: tuple[Parameters, Metrics] = jax.jit(gradients)(trainable, frozen, batch)
    return result


def _sort_key(example: tuple[str, float, str]) -> float:
    return example[1] if np.isfinite(example[1]) else np.inf


def _method(name: str) -> Method:
    if name not in METHODS:
        raise InputError(f"Expected a batch of a run of {method_names()}, got one of `{name}`.")
    return METHODS[name]


def _settings(method: Method, saved: dict[str, Any], config: DebugStepConfig) -> SftConfig:
    """The run's settings, with the compute dtype of the command."""
    settings = from_dict(method.config, saved, config.batch_file)
    dtype = config.compute_dtype or settings.model.compute_dtype
    return replace(settings, model=replace(settings.model, compute_dtype=dtype))


def _step(run: Path, anomalous: int, requested: int | None) -> int:
    """The saved step to take weights from: the requested one, or the last before the anomalous one; 0 is the start."""
    steps = [0, *list_steps(run)]
    if requested is not None and requested not in steps:
        raise InputError(f"{run} has no step {requested}; it has {join_items(steps)} (0: the weights it started from).")
    return max(step for step in steps if step < anomalous) if requested is None else requested


def _examples(
    method: Method,
    settings: SftConfig,
    model: AbstractModel,
    parameters: Parameters,
    batch: Batch,
    facts: dict[str, Any],
) -> list[tuple[str, float, str]]:
    """Id, loss and headline metrics of each example, in the batch's order."""
    segments = facts["examples_per_row"] * method.examples.segments_per_example
    chunk = model.logprob_chunk
    examples = []
    microbatches, size = batch.rows.tokens.shape[:2]
    for index in range(microbatches):
        part = jax.tree.map(lambda leaf, index=index: leaf[index], batch)
        policy = sequence_logprob(model.definition, parameters, part.rows, segments=segments, chunk=chunk)
        losses = jax.device_get(method.loss(policy, part, method.options_of(settings)))
        ids = facts["ids"][index * size : (index + 1) * size]
        for line, row in enumerate(ids):
            for slot, identity in enumerate(row):
                loss, *metrics = (
                    WeightedMean(mean.sum[line, slot], mean.weight[line, slot])
                    for mean in (losses.loss, *(losses.metrics[name] for name in method.headline_metrics))
                )
                titles = [method.metric_titles[name] for name in method.headline_metrics]
                details = [
                    f"{title} {mean.value:.5g}" for title, mean in zip(titles, metrics, strict=True) if mean.weight
                ]
                examples.append((identity, float(loss.value), ", ".join(details) or f"{loss.weight:.0f} targets"))
    return examples


def main(config: DebugStepConfig, command: str) -> str:
    """`zephyr-jax debug-step`."""
    return debug_step(config).report()
