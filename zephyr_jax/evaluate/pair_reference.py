"""The reference that pairs are evaluated against: the table of the run, one that the user names, or another checkpoint."""

import logging
import shlex
from dataclasses import replace
from typing import Any, cast

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.checkpoint.model_source import ModelSource
from zephyr_jax.checkpoint.opened import open_model
from zephyr_jax.checkpoint.resolve import check_vocabulary
from zephyr_jax.checkpoint.steps import list_steps, read_progress
from zephyr_jax.data.examples import Examples
from zephyr_jax.errors import InputError, join_items
from zephyr_jax.evaluate.opened import OpenedEvaluation
from zephyr_jax.objective.logprob import VERSION, Parameters
from zephyr_jax.reference.fill import length_rule
from zephyr_jax.reference.maintenance import inspect_tables
from zephyr_jax.reference.score import Scorer
from zephyr_jax.reference.table import (
    Identity,
    ReferenceTable,
    differing_fields,
    require_complete,
)
from zephyr_jax.storage.files import Path, check_readable, open_path

logger = logging.getLogger(__name__)


def load_with_reference(opened: OpenedEvaluation[Any], examples: Examples) -> tuple[Parameters, np.ndarray | None]:
    """The weights, and the log-prob sums of the reference that the settings name.

    Another model's sums are computed, and a named table is read, before the weights are loaded.

    Args:
        opened: The checkpoint; its settings name at most one of `reference_model` and `reference`.
        examples: Pairs.

    Returns:
        Weights, and float32 [N, 2] sums (of this process's rows), or None without a reference.

    Raises:
        InputError: The model or table cannot be used with these examples.
    """
    config = opened.config
    sums = None
    if config.reference_model:
        sums = _model_sums(opened, examples)
    elif config.reference_table:
        sums = _named_sums(opened, examples)
    parameters = opened.model.load_weights()
    if sums is None and config.reference:
        weights = started_from(opened.source) or opened.model.reference_fingerprint(parameters)
        sums = _table_sums(open_path(config.reference), _identity(opened, weights), examples)
    return parameters, sums


def _identity(opened: OpenedEvaluation[Any], weights: str) -> Identity:
    """The identity of a table that fits the evaluation, of weights with this fingerprint."""
    config = opened.config
    return Identity(
        weights, opened.tokenizer.fingerprint, length_rule(config.data), config.model.compute_dtype, VERSION
    )


def _table_sums(root: Path, identity: Identity, examples: Examples) -> np.ndarray:
    """float32 [N, 2] of a table that must hold them all. Raises InputError."""
    fill = f"zephyr-jax reference --reference {shlex.quote(str(root))}"
    command = f"{fill}, with this data, this dtype and the weights that the run started from"
    check_readable(root)
    if not root.is_dir():
        raise InputError(f"Expected a reference table in {root}, got no such folder. To compute it: {command}")
    return require_complete(root, ReferenceTable(root, identity), examples.keys(), examples.ids(), command)


def started_from(source: ModelSource) -> str | None:
    """Fingerprint of the weights that a DPO run started from, as its checkpoint holds it."""
    if source.run is None:
        return None
    steps = list_steps(source.run)
    saved = read_progress(source.run, steps[-1])["identity"].get("reference") if steps else None
    return saved["weights"] if saved else None


def _model_sums(opened: OpenedEvaluation[Any], examples: Examples) -> np.ndarray:
    """A pass of the other model over all pairs; its weights are out of memory when this returns."""
    config = opened.config
    options = replace(
        config.model,
        path=str(config.reference_model),
        revision=config.reference_revision,
        adapter=None,
        adapter_revision=None,
    )
    other = open_model(options, opened.rules)
    _check_same_tokens(opened.source, other.source, examples)
    parameters = other.load_weights()
    _report(opened.source, f"log-probs of {other.source.asked}", other.reference_fingerprint(parameters))
    scorer = Scorer(
        model=other.abstract,
        parameters=parameters,
        data=config.data,
        rules=opened.rules,
        num_rows=config.batch_size,
    )
    indices, scored = scorer.score_all(examples)
    sums = np.zeros((len(examples), examples.segments_per_example), np.float32)
    sums[indices] = scored
    return sums


def _check_same_tokens(source: ModelSource, other: ModelSource, examples: Examples) -> None:
    """Raise InputError unless the ids in the examples are the same tokens for both models."""
    tokenizers = [load_tokenizer(str(model.folder)) for model in (source, other)]
    check_vocabulary(other.model_config, tokenizers[1], other.asked)
    used = sorted(
        {int(token) for row in examples.rows.data.column("tokens").chunks for token in np.unique(row.flatten())}
    )
    pairs = zip(used, _tokens(tokenizers[0], used), _tokens(tokenizers[1], used), strict=True)
    wrong = [(number, one, two) for number, one, two in pairs if one != two]
    if wrong:
        number, one, two = wrong[0]
        raise InputError(
            f"reference_model {other.asked} has another tokenizer than {source.asked}: id {number} is {one!r} in the model and "
            f"{two!r} in the reference ({len(wrong):,} of {len(used):,} ids differ). Their log-probs cannot be compared: choose "
            "a reference with the same tokenizer, such as the checkpoint that the model was trained from."
        )


def _tokens(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str | None]:
    known = [number for number in ids if number < len(tokenizer)]
    names = dict(zip(known, cast(list[str], tokenizer.convert_ids_to_tokens(known)), strict=True))
    return [names.get(number) for number in ids]


def _named_sums(opened: OpenedEvaluation[Any], examples: Examples) -> np.ndarray:
    """Sums of the table that the settings name; its weights may be others."""
    config = opened.config
    root, name = open_path(str(config.reference)), str(config.reference_table)
    check_readable(root)
    identity = _named_identity(root, name)
    expected = _identity(opened, identity.weights)
    if wrong := differing_fields(vars(identity), vars(expected)):
        pairs = [f"expected {field} {vars(expected)[field]!r}, got {vars(identity)[field]!r}" for field in wrong]
        raise InputError(
            f"The reference table {name} in {root} does not fit this evaluation: {join_items(pairs)}. Only the weights may be "
            "others: evaluate with the settings of the table, or name a table that fits (`zephyr-jax reference ls`)."
        )
    _report(opened.source, f"table {name} in {root}", identity.weights)
    command = f"zephyr-jax reference --reference {shlex.quote(str(root))}, with this data and the weights of the table"
    return require_complete(root, ReferenceTable(root, identity), examples.keys(), examples.ids(), command)


def _named_identity(root: Path, name: str) -> Identity:
    tables = {table.folder.name: table for table in inspect_tables(root)}
    if name not in tables:
        raise InputError(
            f"Expected the name of a reference table in {root} ({join_items(sorted(tables)) or 'empty'}), got {name!r}. To see "
            f"their identities: zephyr-jax reference ls --reference {shlex.quote(str(root))}"
        )
    if not tables[name].fields:
        raise InputError(tables[name].damage[0])
    return Identity(**tables[name].fields)


def _report(source: ModelSource, reference: str, weights: str) -> None:
    """Log where the reference is from, on host 0."""
    own = started_from(source)
    relation = {None: "", weights: ", which the run started from"}.get(own, f"; the run started from weights {own}")
    if jax.process_index() == 0:
        logger.info("reference: %s, weights %s%s", reference, weights, relation)
