"""`zephyr-jax reference`: score every pair of a card once with the frozen weights, into the reference table."""

import re
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress, TaskID

from zephyr_jax.checkpoint.identity import weights_fingerprint
from zephyr_jax.checkpoint.source import abstract_of, find_model, load_weights
from zephyr_jax.config import DataOptions
from zephyr_jax.data.examples import Examples, load_preferences
from zephyr_jax.data.tokens import ChatTokenizer
from zephyr_jax.errors import InputError
from zephyr_jax.objective.logprob import VERSION
from zephyr_jax.parallel.hosts import wait_for_all
from zephyr_jax.parallel.rules import open_rules
from zephyr_jax.recipes.run import evaluation_source, microbatch_rows, open_tokenizer
from zephyr_jax.reference.compute import Scorer, fill
from zephyr_jax.reference.table import Identity, ReferenceTable, require_complete, why_anew
from zephyr_jax.storage.cloud import explained
from zephyr_jax.storage.files import Path, check_can_be_made, open_path
from zephyr_jax.verbs import DpoConfig

_TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}
"""How far, relatively, a sum may be off when its pair is computed in other company: by compute dtype."""


@dataclass(frozen=True)
class Filled:
    """What a reference pass did."""

    folder: Path
    computed: int
    reused: int


@dataclass(frozen=True)
class _Desk:
    """What scoring needs, loaded."""

    splits: dict[str, Examples]
    scorer: Scorer
    table: ReferenceTable
    console: Console

    def say(self, words: str) -> None:
        """A line for people, once for all hosts."""
        self.console.print(words, highlight=False, markup=False, soft_wrap=True)


def _open(config: DpoConfig, command: str) -> _Desk:
    config.check()
    rules = open_rules(config.mesh)
    check_can_be_made(config.reference)
    rules.check_divides("batch", microbatch_rows(config), "batch.microbatch_rows (or batch.rows)")
    source = find_model(config.model)
    tokenizer = open_tokenizer(source, config.data)
    splits = preference_splits(config, tokenizer)
    model = abstract_of(source.shape, config.model, rules)
    parameters = load_weights(source, model)
    identity = identity_of(config, tokenizer, weights_fingerprint(parameters))
    table = ReferenceTable(open_path(config.reference), identity, command)
    scorer = Scorer(model, parameters, config.data, rules, microbatch_rows(config), config.model.logprob_chunk)
    return _Desk(splits, scorer, table, Console(stderr=True, quiet=jax.process_index() != 0))


@explained()
def reference(config: DpoConfig, command: str = "zephyr-jax reference") -> Filled:
    """Fill the table for the training and the evaluation split. Raises InputError, which names `command` to run again."""
    desk = _open(config, command)
    table = desk.table
    why = why_anew(open_path(config.reference), table, sum(map(len, desk.splits.values())))
    if why:
        desk.say(why)
    missing = {name: table.missing(examples.keys()) for name, examples in desk.splits.items()}
    wait_for_all("the reference table is read")  # what one host adds from here on must not change another's plan
    if jax.process_index() == 0:
        table.write_manifest()
    computed = reused = 0
    for name, examples in desk.splits.items():
        desk.say(examples.summary(name))
        with Progress(console=desk.console, transient=True) as bar:
            task = bar.add_task(f"reference log-probs, {name}", total=None)
            new, old = fill(table, examples, desk.scorer, missing[name], partial(_show, bar, task))
        computed, reused = computed + new, reused + old
    desk.say(f"{computed:,} computed, {reused:,} reused in {table.folder}")
    return Filled(table.folder, computed, reused)


@explained()
def verify(config: DpoConfig, pairs: int, command: str = "zephyr-jax reference") -> str:
    """Compute `pairs` random pairs of the table anew, with the weights of `config`, and say how far they are off.

    All parts' digests are checked on the way. Raises InputError for a damaged part, where the table lacks one of the card's
    pairs, and where a sum differs by more than the tolerance of the compute dtype; `command` is the one that was given.
    """
    filling = _without_verify(command)
    desk = _open(config, filling)
    worst, checked = (0.0, ""), 0
    for examples in desk.splits.values():
        keys, ids = examples.keys(), examples.ids()
        stored = require_complete(open_path(config.reference), desk.table, keys, ids, filling)
        share = -(-pairs * len(examples) // sum(map(len, desk.splits.values())))
        drawn = np.random.default_rng(config.seed).choice(len(keys), min(share, len(keys)), replace=False)
        places, found = desk.scorer.recompute(examples.select(drawn))
        checked += len(drawn)
        drawn = drawn[places]
        worst = max(worst, _check_sums(desk.table, found, stored[drawn], [ids[place] for place in drawn], config))
    return (
        f"{checked:,} of {sum(map(len, desk.splits.values())):,} pairs computed anew: at most {worst[0]:.2g} off, relatively"
        f"{f' ({worst[1]})' if worst[1] else ''}. All {len(desk.table.parts):,} parts of {desk.table.folder} are whole."
    )


def _check_sums(
    table: ReferenceTable, found: np.ndarray, stored: np.ndarray, ids: list[str], config: DpoConfig
) -> tuple[float, str]:
    """The largest relative difference of float32 [n, 2] sums, and its pair. Raises InputError where it is too large."""
    off = np.abs(found - stored) / np.maximum(1, np.abs(stored))
    if not off.size:
        return 0.0, ""
    pair, side = np.unravel_index(np.argmax(off), off.shape)
    tolerance = _TOLERANCE[config.model.compute_dtype]
    if not off[pair, side] <= tolerance:
        raise InputError(
            f"The reference table {table.folder} holds other values than these weights give: pair {ids[pair]}, "
            f"{('chosen', 'rejected')[side]}: {stored[pair, side]:.6f} there, {found[pair, side]:.6f} computed anew, "
            f"{int((off > tolerance).any(axis=1).sum())} of {len(ids)} pairs beyond the relative tolerance {tolerance:g}. "
            "Delete that folder and run `zephyr-jax reference` again, without --verify, to compute all of it anew."
        )
    return float(off[pair, side]), ids[pair]


def _without_verify(command: str) -> str:
    """The command that fills the table."""
    return re.sub(r" --verify(=| )\d+", "", command)


def _show(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)


def preference_splits(config: DpoConfig, tokenizer: ChatTokenizer) -> dict[str, Examples]:
    """`training`, and `evaluation` where the config names one."""
    splits = {"training": load_preferences(config.data, tokenizer, config.data.path, config.data.split)}
    held_out = evaluation_source(config.data)
    if held_out:
        splits["evaluation"] = load_preferences(config.data, tokenizer, *held_out)
    return splits


def identity_of(config: DpoConfig, tokenizer: ChatTokenizer, weights: str) -> Identity:
    """The identity that this config's reference log-probs have with weights of that fingerprint."""
    return Identity(weights, tokenizer.fingerprint, length_rule(config.data), config.model.compute_dtype, VERSION)


def length_rule(data: DataOptions) -> str:
    """How over-long pairs are treated, in words that go into the manifest."""
    return f"max_length {data.max_length}, max_prompt_length {data.max_prompt_length}, {data.on_bad_row}"
