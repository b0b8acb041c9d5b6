"""`zephyr-jax evaluate`: a checkpoint's numbers on one split."""

import json

import jax

from zephyr_jax.checkpoint.inheritance import run_of
from zephyr_jax.checkpoint.provenance import Record
from zephyr_jax.config.models import EvaluateConfig
from zephyr_jax.config.training import SftConfig
from zephyr_jax.config.yaml_file import from_dict
from zephyr_jax.data.loader import BatchSource, iterate
from zephyr_jax.data.pack import plan_evaluation
from zephyr_jax.errors import InputError
from zephyr_jax.evaluate.opened import open_evaluation
from zephyr_jax.evaluate.pair_reference import load_with_reference
from zephyr_jax.methods.base import Method
from zephyr_jax.methods.registry import method_of_rows
from zephyr_jax.parallel.place import local_rows, place_batch
from zephyr_jax.parallel.sharding import init_devices
from zephyr_jax.storage.files import check_file_creatable, write_atomic
from zephyr_jax.train.evaluate import make_evaluation


def evaluate(config: EvaluateConfig) -> dict[str, float]:
    """Name -> value over the whole split. Raises InputError."""
    rules = init_devices(config.mesh)
    check_file_creatable(config.output)
    opened = open_evaluation("evaluate", config, rules)
    run = run_of(opened.source.record)
    method = method_of_rows(opened.config.data, trained_by=run.get("made_by"))
    if not method.uses_reference and (config.reference or config.reference_model):
        raise InputError(
            f"{config.data.path} holds {method.examples.name.lower()}, which are not compared with a reference. Drop `reference` "
            "and `reference_model`, or evaluate on rows of a method that has a reference."
        )
    opened = opened.fitted(method.examples)
    config = opened.config
    examples = opened.load_examples(method.examples)
    lengths, unshared = examples.packed_lengths(config.data)
    plan = plan_evaluation(lengths, config.data, config.batch_size, unshared)
    parameters, sums = load_with_reference(opened, examples)
    settings = _loss_settings(method, config, run)
    objective = method.objective(
        opened.model.abstract.definition,
        settings,
        examples_per_row=plan.examples_per_row,
        chunk=opened.model.abstract.logprob_chunk,
    )
    columns = method.reference_columns(sums, len(examples))
    batches = BatchSource(examples, plan, local_rows(rules, config.batch_size), method.batch, columns)
    values = make_evaluation(
        objective, lambda: (place_batch(rules, batch, config.batch_size) for _, batch in iterate(batches))
    )(parameters)
    if method.reference_free_metrics and sums is None:
        values = method.reference_free_metrics(values, method.options_of(settings))
    if config.output and jax.process_index() == 0:
        write_atomic(config.output, json.dumps({**values, "examples": len(examples)}, indent=2) + "\n")
    return values


def _loss_settings(method: Method, config: EvaluateConfig, run: Record) -> EvaluateConfig | SftConfig:
    """Where the options of the loss are: the command's own, else those of the model's run, else the method's defaults."""
    if method.options is None or hasattr(config, method.options):
        return config
    if run.get("made_by") != method.name:
        return method.config()
    return from_dict(method.config, run.get("config", {}), "the run's record")


def main(config: EvaluateConfig, command: str) -> str:
    """`zephyr-jax evaluate`: one metric per line."""
    return "\n".join(f"{name:<22} {value:.6g}" for name, value in evaluate(config).items())
