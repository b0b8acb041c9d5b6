"""`zephyr-jax evaluate`: a checkpoint's numbers on one split."""

import json
import logging
import shlex
from collections.abc import Callable

import jax
import numpy as np

from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.checkpoint.fingerprint import weights_fingerprint
from zephyr_jax.checkpoint.inheritance import resolve_settings, run_of
from zephyr_jax.checkpoint.provenance import Record
from zephyr_jax.checkpoint.resolve import ModelSource, open_model
from zephyr_jax.config.models import EvaluateConfig
from zephyr_jax.config.training import SftConfig
from zephyr_jax.config.yaml_file import from_dict
from zephyr_jax.data.examples import Examples, load_examples
from zephyr_jax.data.loader import BatchSource, iterate
from zephyr_jax.data.pack import plan_evaluation
from zephyr_jax.data.splits import check_positions
from zephyr_jax.errors import InputError
from zephyr_jax.evaluate.pair_reference import named_reference, started_from
from zephyr_jax.methods.base import Method
from zephyr_jax.methods.registry import method_of_rows
from zephyr_jax.objective.logprob import VERSION
from zephyr_jax.parallel.place import local_rows, place_batch
from zephyr_jax.parallel.sharding import init_devices
from zephyr_jax.reference.fill import length_rule
from zephyr_jax.reference.table import Identity, ReferenceTable, recorded_template_dates, require_complete
from zephyr_jax.storage.files import Path, check_file_creatable, check_readable, open_path, write_atomic
from zephyr_jax.train.evaluate import make_evaluation

logger = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig) -> dict[str, float]:
    """Name -> value over the whole split. Raises InputError."""
    rules = init_devices(config.mesh)
    check_file_creatable(config.output)
    rules.check_divides("batch", config.batch_size, "batch_size")
    opened = open_model(config.model, rules)
    opened.check_weights()
    source = opened.source
    tables = recorded_template_dates(config.reference)
    config, opened, tokenizer = resolve_settings("evaluate", config, opened, tables=tables)
    run = run_of(source.record)
    method = method_of_rows(config.data, trained_by=run.get("made_by"))
    if not method.uses_reference and (config.reference or config.reference_model):
        raise InputError(
            f"{config.data.path} holds {method.examples.name.lower()}, which are not compared with a reference. Drop `reference` "
            "and `reference_model`, or evaluate on rows of a method that has a reference."
        )
    data = config.data.fitted(method.examples.segments_per_example)
    examples = load_examples(method.examples, data, tokenizer, data.path, data.split)
    log_summary(examples, data.path, data.max_skipped_fraction)
    check_positions(examples, data.path, source.model_config.max_positions, source.asked)
    plan = plan_evaluation(examples.lengths, data, config.batch_size)
    sums = named_reference(config, source, tokenizer, data, examples, rules)
    parameters = opened.load_weights()

    if sums is None and config.reference:
        identity = table_identity(config, source, tokenizer, lambda: weights_fingerprint(parameters))
        sums = reference_sums(open_path(config.reference), identity, examples)
    settings = _loss_settings(method, config, run)
    objective = method.objective(
        opened.abstract.definition, settings, examples_per_row=plan.examples_per_row, chunk=config.model.logprob_chunk
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
    return from_dict(method.config, run["config"], "the run's record")


def log_summary(examples: Examples, name: str, limit: float) -> None:
    """Log the number of examples, what was truncated and skipped, and a warning if that exceeds `limit`; on host 0."""
    if jax.process_index() == 0:
        logger.info("%s", examples.summary(name))
        if warning := examples.stats.warning(limit):
            logger.warning("%s", warning)


def table_identity(
    config: EvaluateConfig, source: ModelSource, tokenizer: ChatTokenizer, own: Callable[[], str]
) -> Identity:
    """The identity of the table that goes with a model: of the weights that its run started from, or of its `own`."""
    weights = started_from(source) or own()
    return Identity(weights, tokenizer.fingerprint, length_rule(config.data), config.model.compute_dtype, VERSION)


def reference_sums(root: Path, identity: Identity, examples: Examples) -> np.ndarray:
    """float32 [N, 2] of a table that must hold them all. Raises InputError."""
    fill = f"zephyr-jax reference --reference {shlex.quote(str(root))}"
    command = f"{fill}, with this data, this dtype and the weights that the run started from"
    check_readable(root)
    if not root.is_dir():
        raise InputError(f"Expected a reference table in {root}, got no such folder. To compute it: {command}")
    return require_complete(root, ReferenceTable(root, identity), examples.keys(), examples.ids(), command)


def main(config: EvaluateConfig, command: str) -> str:
    """`zephyr-jax evaluate`: one metric per line."""
    return "\n".join(f"{name:<22} {value:.6g}" for name, value in evaluate(config).items())
