"""`zephyr-jax reference`: compute the frozen model's log-probs of every pair once, into the reference table."""

import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress, TaskID

from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.checkpoint.fingerprint_cache import cache_fingerprint, find_fingerprint, weights_key
from zephyr_jax.checkpoint.inheritance import resolve_settings
from zephyr_jax.checkpoint.training_format import open_for_training
from zephyr_jax.config.sections import DataOptions
from zephyr_jax.config.tables import ReferenceConfig, ReferenceVerifyConfig
from zephyr_jax.config.training import SftConfig
from zephyr_jax.data.splits import load_splits
from zephyr_jax.errors import InputError
from zephyr_jax.methods.registry import method_of
from zephyr_jax.model.weight_format import WeightFormat
from zephyr_jax.objective.logprob import VERSION
from zephyr_jax.parallel.hosts import all_hosts_agree, barrier
from zephyr_jax.parallel.sharding import init_devices
from zephyr_jax.reference.score import Scorer, fill
from zephyr_jax.reference.table import (
    Identity,
    ReferenceTable,
    explain_rebuild,
    recorded_template_dates,
    require_complete,
)
from zephyr_jax.storage.files import Path, check_folder_creatable, open_path

_logger = logging.getLogger(__name__)
_TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}
"""Relative tolerance of a sum by compute dtype: a pair packed with other pairs sums in another order."""


@dataclass(frozen=True)
class PassResult:
    """Number of pairs that a reference pass computed and found in the table."""

    folder: Path
    computed: int
    reused: int


class ReferencePass:
    """A checked config with its pairs; weights are read on demand."""

    def __init__(self, config: SftConfig, command: str):
        self._rules = init_devices(config.mesh)
        self.method = method_of(config)
        root = self.method.reference_folder(config)
        if root is None:
            raise InputError(f"`reference` is not set or `{self.method.name}` has none. Pass --reference FOLDER.")
        check_folder_creatable(root)
        self.root = open_path(root)
        self._rules.check_divides("batch", config.batch.rows_per_forward, "batch.microbatch_rows (or batch.rows)")
        opened = open_for_training(config.model, config.adapter, self._rules, config.seed).as_reference()
        self._source = opened.source
        tables = recorded_template_dates(root)
        config, self._opened, self._tokenizer = resolve_settings("reference", config, opened, tables=tables)
        self._rules.check_row_length(config.data.row_length)
        self._config, self._command = config, command
        opened.check_weights()
        kind, max_positions = self.method.examples, self._source.model_config.max_positions
        self.splits = load_splits(kind, config.data, self._tokenizer, max_positions, self._source.asked)

    @cached_property
    def _state(self) -> str:
        return weights_key(self._source)

    @property
    def _format(self) -> WeightFormat:
        return self._opened.weight_format

    def full_table(self) -> ReferenceTable | None:
        """The table, if the fingerprint of the weights is cached and no pair is missing; else None."""
        # The weights of a new adapter (PiSSA) depend on its seed, too, which the key lacks: nothing is cached for them.
        is_cached = self._opened.new_adapter is None
        fingerprint = find_fingerprint(self._source, self._state, self._format) if is_cached else None
        if not all_hosts_agree(fingerprint is not None) or fingerprint is None:
            return None
        table = self._table(fingerprint)
        full = not any(table.missing(examples.keys()).any() for examples in self.splits.values())
        return table if all_hosts_agree(full) else None

    def with_weights(self) -> tuple[Scorer, ReferenceTable]:
        """Load the weights; returns a scorer with them and their table."""
        state = self._state  # taken before the load, so that a change during it is noticed
        parameters = self._opened.load_weights()
        fingerprint = self._opened.reference_fingerprint(parameters)
        if self._opened.new_adapter is None:
            cache_fingerprint(self._source, state, self._format, fingerprint)
        config = self._config
        scorer = Scorer(
            model=self._opened.abstract,
            parameters=parameters,
            data=config.data,
            rules=self._rules,
            num_rows=config.batch.rows_per_forward,
        )
        return scorer, self._table(fingerprint)

    def _table(self, weights: str) -> ReferenceTable:
        identity = identity_of(self._config, self._tokenizer, weights)
        template_date = self._config.data.template_date
        return ReferenceTable(self.root, identity, self._command, template_date)


def reference(config: SftConfig, command: str = "zephyr-jax reference") -> PassResult:
    """Fill the table for the training and the evaluation split. Weights are read only if a pair is missing.

    Args:
        config: The config of the DPO run.
        command: Command line of this pass, for errors.

    Raises:
        InputError: for a model, data or a table that cannot be used.
    """
    run = ReferencePass(config, command)
    table = run.full_table()
    computed, reused = (0, sum(map(len, run.splits.values()))) if table else (0, 0)
    if table is None:
        scorer, table = run.with_weights()
        computed, reused = _fill(run, scorer, table)
    _log(f"reference log-probs: {computed:,} computed, {reused:,} reused in {table.folder}")
    return PassResult(table.folder, computed, reused)


def _fill(run: ReferencePass, scorer: Scorer, table: ReferenceTable) -> tuple[int, int]:
    """Number of pairs that were computed and reused."""
    reason = explain_rebuild(run.root, table, sum(map(len, run.splits.values())))
    if reason:
        _log(reason)
    missing = {name: table.missing(examples.keys()) for name, examples in run.splits.items()}
    barrier("the reference table is read")  # pairs added from here on must not change the plan of another host
    if jax.process_index() == 0:
        table.write_manifest()
    computed = reused = 0
    for name, examples in run.splits.items():
        _log(examples.summary(name))
        # Without a terminal, the bar would print an empty line.
        enabled = sys.stderr.isatty() and jax.process_index() == 0
        with Progress(console=Console(stderr=True), transient=True, disable=not enabled) as bar:
            update = partial(_update, bar, bar.add_task(f"reference log-probs, {name}", total=None))
            new, old = fill(table, examples, scorer, missing[name], update)
        computed, reused = computed + new, reused + old
    return computed, reused


def verify(config: SftConfig, pairs: int, command: str = "zephyr-jax reference") -> str:
    """Recompute random pairs of a full table and compare; also verifies the digests of all shards.

    Args:
        config: The config of the pass.
        pairs: Number of pairs to recompute.
        command: Command line that fills the table, for errors.

    Returns:
        A summary with the largest relative difference.

    Raises:
        InputError: for a damaged shard, a missing pair, or a difference beyond the tolerance of the compute dtype.
    """
    run = ReferencePass(config, command)
    scorer, table = run.with_weights()
    total = sum(map(len, run.splits.values()))
    worst, checked = (0.0, ""), 0
    for examples in run.splits.values():
        keys, ids = examples.keys(), examples.ids()
        stored = require_complete(run.root, table, keys, ids, command)
        share = -(-pairs * len(examples) // total)
        sample = np.random.default_rng(config.seed).choice(len(keys), min(share, len(keys)), replace=False)
        order, sums = scorer.score_all(examples.select(sample))
        checked += len(sample)
        sample = sample[order]
        worst = max(
            worst, _compare(table, sums, stored[sample], [ids[index] for index in sample], run.method.examples.segments)
        )
    return (
        f"{checked:,} of {total:,} pairs recomputed: largest relative difference {worst[0]:.2g}"
        f"{f' ({worst[1]})' if worst[1] else ''}. {len(table.shards):,} shards of {table.folder} verified."
    )


def _compare(
    table: ReferenceTable, recomputed: np.ndarray, stored: np.ndarray, ids: list[str], segments: Sequence[str]
) -> tuple[float, str]:
    """Largest relative difference of float32 [n, segments] sums, and the id of its example.

    Raises InputError beyond the tolerance.
    """
    difference = np.abs(recomputed - stored) / np.maximum(1, np.abs(stored))
    if not difference.size:
        return 0.0, ""
    pair, side = np.unravel_index(np.argmax(difference), difference.shape)
    tolerance = _TOLERANCE[table.identity.compute_dtype]
    if not difference[pair, side] <= tolerance:
        raise InputError(
            f"The reference table {table.folder} does not match these weights: pair {ids[pair]}, "
            f"{segments[int(side)]}: expected {recomputed[pair, side]:.6f}, got {stored[pair, side]:.6f}; "
            f"{int((difference > tolerance).any(axis=1).sum())} of {len(ids)} pairs are beyond the relative tolerance "
            f"{tolerance:g}. Delete this folder and run `zephyr-jax reference` again."
        )
    return float(difference[pair, side]), ids[pair]


def _update(bar: Progress, task: TaskID, completed: int, total: int) -> None:
    bar.update(task, completed=completed, total=total)


def _log(message: str) -> None:
    """Log on the first host only."""
    if jax.process_index() == 0:
        _logger.info("%s", message)


def identity_of(config: SftConfig, tokenizer: ChatTokenizer, weights: str) -> Identity:
    """The identity of this config's reference log-probs for weights with this fingerprint."""
    return Identity(
        weights=weights,
        tokenizer=tokenizer.fingerprint,
        length_rule=length_rule(config.data),
        compute_dtype=config.model.compute_dtype,
        logprob_version=VERSION,
    )


def length_rule(data: DataOptions) -> str:
    """How too long pairs are truncated, as text for the manifest."""
    return f"max_length {data.max_length}, max_prompt_length {data.max_prompt_length}, {data.on_bad_row}"


def main(config: SftConfig, command: str) -> str:
    """`zephyr-jax reference`, or the reference command of another method."""
    folder = str(reference(config, command).folder)
    verify_pairs = config.verify_pairs if isinstance(config, ReferenceConfig) else 0
    return f"{folder}\n{verify(config, verify_pairs, command)}" if verify_pairs else folder


def main_verify(config: ReferenceVerifyConfig, command: str) -> str:
    """`zephyr-jax reference verify`."""
    fill_command = re.sub(r" --num_pairs(=| )\d+", "", command).replace("reference verify", "reference", 1)
    return verify(config, config.num_pairs, fill_command)
