"""`zephyr-jax evaluate`: a checkpoint's numbers on one split."""

import json
import sys
from collections.abc import Callable

import jax
import numpy as np

from zephyr_jax.checkpoint.identity import weights_fingerprint
from zephyr_jax.checkpoint.source import ModelSource, abstract_of, find_model, load_weights
from zephyr_jax.checkpoint.steps import read_progress, steps_in
from zephyr_jax.data.examples import Examples, load_conversations, load_preferences, room_for
from zephyr_jax.data.loader import BatchSource, iterate
from zephyr_jax.data.pack import plan_evaluation
from zephyr_jax.data.sources import open_rows
from zephyr_jax.data.tokens import ChatTokenizer
from zephyr_jax.errors import InputError
from zephyr_jax.objective.logprob import VERSION
from zephyr_jax.parallel.place import local_rows, place_batch
from zephyr_jax.parallel.rules import open_rules
from zephyr_jax.recipes.reference import length_rule
from zephyr_jax.recipes.run import make_objective, open_tokenizer
from zephyr_jax.reference.table import Identity, ReferenceTable, require_complete
from zephyr_jax.storage.cloud import explained
from zephyr_jax.storage.files import Path, check_can_be_read, check_can_be_written, open_path, write_whole
from zephyr_jax.train.evaluate import make_evaluation
from zephyr_jax.verbs.models import EvaluateConfig


@explained()
def evaluate(config: EvaluateConfig) -> dict[str, float]:
    """Name -> value over the whole split. Raises InputError."""
    config.check()
    rules = open_rules(config.mesh)
    check_can_be_written(config.output)
    rules.check_divides("batch", config.rows, "rows")
    source = find_model(config.model)
    tokenizer = open_tokenizer(source, config.data)
    pairs = "chosen" in open_rows(config.data.path, config.data.split, config.data.revision, 1).column_names
    read = load_preferences if pairs else load_conversations
    data = room_for(config.data, pairs)
    examples = read(data, tokenizer, data.path, data.split)
    say_what_counts(examples, data.path)
    plan = plan_evaluation(examples.lengths, data, config.rows)
    model = abstract_of(source.shape, config.model, rules)
    parameters = load_weights(source, model)

    sums = None
    if pairs and config.reference:
        identity = table_identity(config, source, tokenizer, lambda: weights_fingerprint(parameters))
        sums = reference_sums(open_path(config.reference), identity, examples)
    dpo = config.dpo if pairs else None
    objective = make_objective(model, dpo, plan.examples_per_row, config.model.logprob_chunk)
    batches = BatchSource(examples, plan, local_rows(rules, config.rows), sums)
    values = make_evaluation(objective, lambda: (place_batch(rules, batch, config.rows) for batch in iterate(batches)))(
        parameters
    )
    if pairs and not config.reference:
        values = _without_reference(values, config.dpo.beta)
    if config.output and jax.process_index() == 0:
        write_whole(config.output, json.dumps({**values, "examples": len(examples)}, indent=2) + "\n")
    return values


def say_what_counts(examples: Examples, name: str) -> None:
    """How many examples the numbers are of; which were cut, and which were left out."""
    if jax.process_index() == 0:
        print(examples.summary(name), file=sys.stderr, flush=True)


def table_identity(
    config: EvaluateConfig, source: ModelSource, tokenizer: ChatTokenizer, own: Callable[[], str]
) -> Identity:
    """The identity of the table that goes with a model: of the weights that its run started from, or of its `own`."""
    weights = _reference_weights(source) or own()
    return Identity(weights, tokenizer.fingerprint, length_rule(config.data), config.model.compute_dtype, VERSION)


def _reference_weights(source: ModelSource) -> str | None:
    """Fingerprint of the weights that a DPO run started from, as its checkpoint tells."""
    if source.run is None:
        return None
    steps = steps_in(source.run)
    saved = read_progress(source.run, steps[-1])["identity"].get("reference") if steps else None
    return saved["weights"] if saved else None


def reference_sums(root: Path, identity: Identity, examples: Examples) -> np.ndarray:
    """float32 [N, 2] of a table that must hold them all. Raises InputError."""
    command = (
        f"zephyr-jax reference --reference {root}, with this data, this dtype and the weights that DPO starts from"
    )
    check_can_be_read(root)
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
