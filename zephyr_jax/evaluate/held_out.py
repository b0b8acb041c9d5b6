"""`zephyr-jax evaluate`: a checkpoint's numbers on one split."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np

from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.checkpoint.fingerprint import weights_fingerprint
from zephyr_jax.checkpoint.inheritance import resolve
from zephyr_jax.checkpoint.resolve import ModelSource, open_model
from zephyr_jax.config.models import EvaluateConfig
from zephyr_jax.data.examples import Examples, holds_pairs, load_conversations, load_preferences, room_for
from zephyr_jax.data.loader import BatchSource, iterate
from zephyr_jax.data.pack import plan_evaluation
from zephyr_jax.errors import InputError
from zephyr_jax.evaluate.pair_reference import named_reference, started_from
from zephyr_jax.objective.logprob import VERSION
from zephyr_jax.parallel.place import local_rows, place_batch
from zephyr_jax.parallel.sharding import init_devices
from zephyr_jax.reference.fill import length_rule
from zephyr_jax.reference.table import Identity, ReferenceTable, recorded_days, require_complete
from zephyr_jax.storage.files import Path, check_file_creatable, check_readable, open_path, write_atomic
from zephyr_jax.train.evaluate import make_evaluation
from zephyr_jax.train.setup import check_positions, make_objective


def evaluate(config: EvaluateConfig) -> dict[str, float]:
    """Name -> value over the whole split. Raises InputError."""
    rules = init_devices(config.mesh)
    check_file_creatable(config.output)
    rules.check_divides("batch", config.batch_size, "rows")
    opened = open_model(config.model, rules)
    opened.check_weights()
    source = opened.source
    config, tokenizer = resolve_evaluation("evaluate", config, source)
    opened = replace(opened, options=config.model)
    pairs = holds_pairs(config.data)
    read = load_preferences if pairs else load_conversations
    if not pairs and (config.reference or config.reference_model):
        raise InputError(
            f"{config.data.path} holds conversations, and a reference is given. Only preferences are compared with one: drop "
            "`reference` and `reference_model`, or evaluate on rows with `chosen` and `rejected`."
        )
    data = room_for(config.data, pairs)
    examples = read(data, tokenizer, data.path, data.split)
    say_what_counts(examples, data.path, data.max_skipped_fraction)
    check_positions(examples, data.path, source)
    plan = plan_evaluation(examples.lengths, data, config.batch_size)
    sums = named_reference(config, source, tokenizer, data, examples, rules)
    parameters = opened.load_weights()

    if sums is None and config.reference:
        identity = table_identity(config, source, tokenizer, lambda: weights_fingerprint(parameters))
        sums = reference_sums(open_path(config.reference), identity, examples)
    dpo = config.dpo if pairs else None
    objective = make_objective(opened.abstract, dpo, plan.examples_per_row, config.model.logprob_chunk)
    batches = BatchSource(examples, plan, local_rows(rules, config.batch_size), sums)
    values = make_evaluation(
        objective, lambda: (place_batch(rules, batch, config.batch_size) for batch in iterate(batches))
    )(parameters)
    if pairs and sums is None:
        values = _without_reference(values, config.dpo.beta)
    if config.output and jax.process_index() == 0:
        write_atomic(config.output, json.dumps({**values, "examples": len(examples)}, indent=2) + "\n")
    return values


def resolve_evaluation[C: EvaluateConfig](command: str, config: C, source: ModelSource) -> tuple[C, ChatTokenizer]:
    """The settings with every value that the model's run hands on, and the tokenizer with its template. Raises InputError."""
    tables = recorded_days(open_path(config.reference)) if config.reference else []
    found = resolve(command, source, config.model, config.data, tables=tables)
    config = replace(config, model=found.model, data=found.data)
    return config, found.chat


def say_what_counts(examples: Examples, name: str, limit: float) -> None:
    """How many examples the numbers are of; which were cut, and which were left out; a warning above `limit`."""
    if jax.process_index() == 0:
        warning = skip_warning(examples, limit)
        print("\n".join([examples.summary(name), *warning]), file=sys.stderr, flush=True)


def skip_warning(examples: Examples, limit: float) -> list[str]:
    """A line where more rows or tokens are skipped or cut than training would accept; nothing otherwise."""
    stats = examples.stats
    return [f"warning: {stats.describe()}. Above {limit:g}, `sft` and `dpo` stop."] if stats.exceeds(limit) else []


def table_identity(
    config: EvaluateConfig, source: ModelSource, tokenizer: ChatTokenizer, own: Callable[[], str]
) -> Identity:
    """The identity of the table that goes with a model: of the weights that its run started from, or of its `own`."""
    weights = started_from(source) or own()
    return Identity(weights, tokenizer.fingerprint, length_rule(config.data), config.model.compute_dtype, VERSION)


def reference_sums(root: Path, identity: Identity, examples: Examples) -> np.ndarray:
    """float32 [N, 2] of a table that must hold them all. Raises InputError."""
    command = (
        f"zephyr-jax reference --reference {root}, with this data, this dtype and the weights that DPO starts from"
    )
    check_readable(root)
    if not root.is_dir():
        raise InputError(f"There is no reference table in {root}. To make it: {command}")
    return require_complete(root, ReferenceTable(root, identity), examples.keys(), examples.ids(), command)


def _without_reference(values: dict[str, float], beta: float) -> dict[str, float]:
    """What still means something without a reference: which answer the model itself finds likelier."""
    return {
        "accuracy": values["rewards/accuracies"],
        "margin": values["rewards/margins"] / beta,
        "logps/chosen": values["logps/chosen"],
        "logps/rejected": values["logps/rejected"],
    }


def main(config: EvaluateConfig, command: str) -> str:
    """`zephyr-jax evaluate`: one metric per line."""
    return "\n".join(f"{name:<22} {value:.6g}" for name, value in evaluate(config).items())
