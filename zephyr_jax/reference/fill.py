"""`zephyr-jax reference`: score every pair of a card once with the frozen weights, into the reference table."""

import re
from dataclasses import dataclass, replace
from functools import cached_property, partial

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress, TaskID

from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.checkpoint.fingerprint import weights_fingerprint
from zephyr_jax.checkpoint.fingerprint_cache import known_fingerprint, remember_fingerprint, weights_state
from zephyr_jax.checkpoint.inheritance import resolve_settings
from zephyr_jax.checkpoint.resolve import open_model
from zephyr_jax.config.sections import DataOptions
from zephyr_jax.config.tables import ReferenceConfig, ReferenceVerifyConfig
from zephyr_jax.config.training import DpoConfig, SftConfig
from zephyr_jax.data.splits import load_splits
from zephyr_jax.errors import InputError
from zephyr_jax.methods.registry import method_of
from zephyr_jax.objective.logprob import VERSION
from zephyr_jax.parallel.hosts import all_hosts_agree, barrier
from zephyr_jax.parallel.sharding import init_devices
from zephyr_jax.reference.score import Scorer, fill
from zephyr_jax.reference.table import Identity, ReferenceTable, recorded_days, require_complete, why_anew
from zephyr_jax.storage.files import Path, check_folder_creatable, open_path

_TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}
"""How far, relatively, a sum may be off when its pair is computed in other company: by compute dtype."""


@dataclass(frozen=True)
class Filled:
    """What a reference pass did."""

    folder: Path
    computed: int
    reused: int


class _Desk:
    """What a pass needs; weights are brought when they are asked for."""

    def __init__(self, config: DpoConfig, command: str):
        self._rules = init_devices(config.mesh)
        check_folder_creatable(config.reference)
        self._rules.check_divides("batch", config.batch.rows_per_forward, "batch.microbatch_rows (or batch.rows)")
        opened = open_model(config.model, self._rules)
        self._source = opened.source
        tables = recorded_days(config.reference)
        config, self._tokenizer = resolve_settings("reference", config, self._source, tables=tables)
        self._config, self._command = config, command
        opened.check_weights()
        kind, max_positions = method_of(config).examples, self._source.model_config.max_positions
        self.splits = load_splits(kind, config.data, self._tokenizer, max_positions, self._source.asked)
        self._opened = replace(opened, options=config.model)
        self._console = Console(stderr=True, quiet=jax.process_index() != 0)

    @cached_property
    def _state(self) -> str:
        return weights_state(self._source)

    def say(self, words: str) -> None:
        """A line for people, once for all hosts."""
        self._console.print(words, highlight=False, markup=False, soft_wrap=True)

    def bar(self) -> Progress:
        """A progress bar."""
        return Progress(console=self._console, transient=True)

    def full_table(self) -> ReferenceTable | None:
        """The table, where the weights' fingerprint is known without reading them, and nothing is missing from it."""
        known = known_fingerprint(self._source, self._state)
        if not all_hosts_agree(known is not None) or known is None:
            return None
        table = self._table(known)
        full = not any(table.missing(examples.keys()).any() for examples in self.splits.values())
        return table if all_hosts_agree(full) else None

    def with_weights(self) -> tuple[Scorer, ReferenceTable]:
        """What scores, and the table of these very weights."""
        state = self._state  # before they are loaded
        parameters = self._opened.load_weights()
        fingerprint = weights_fingerprint(parameters)
        remember_fingerprint(self._source, state, fingerprint)
        config = self._config
        scorer = Scorer(
            self._opened.abstract,
            parameters,
            config.data,
            self._rules,
            config.batch.rows_per_forward,
            config.model.logprob_chunk,
        )
        return scorer, self._table(fingerprint)

    def _table(self, weights: str) -> ReferenceTable:
        identity = identity_of(self._config, self._tokenizer, weights)
        day = self._config.data.template_date
        return ReferenceTable(open_path(self._config.reference), identity, self._command, day)


def reference(config: DpoConfig, command: str = "zephyr-jax reference") -> Filled:
    """Fill the table for the training and the evaluation split. Raises InputError, which names `command` to run again.

    Where nothing is missing, no weights are read.
    """
    desk = _Desk(config, command)
    table = desk.full_table()
    computed, reused = (0, sum(map(len, desk.splits.values()))) if table else (0, 0)
    if table is None:
        scorer, table = desk.with_weights()
        computed, reused = _fill(desk, scorer, table, open_path(config.reference))
    desk.say(f"{computed:,} computed, {reused:,} reused in {table.folder}")
    return Filled(table.folder, computed, reused)


def _fill(desk: _Desk, scorer: Scorer, table: ReferenceTable, root: Path) -> tuple[int, int]:
    """How many pairs were computed, and how many were there."""
    why = why_anew(root, table, sum(map(len, desk.splits.values())))
    if why:
        desk.say(why)
    missing = {name: table.missing(examples.keys()) for name, examples in desk.splits.items()}
    barrier("the reference table is read")  # what one host adds from here on must not change another's plan
    if jax.process_index() == 0:
        table.write_manifest()
    computed = reused = 0
    for name, examples in desk.splits.items():
        desk.say(examples.summary(name))
        with desk.bar() as bar:
            task = bar.add_task(f"reference log-probs, {name}", total=None)
            new, old = fill(table, examples, scorer, missing[name], partial(_show, bar, task))
        computed, reused = computed + new, reused + old
    return computed, reused


def verify(config: DpoConfig, pairs: int, command: str = "zephyr-jax reference") -> str:
    """Compute `pairs` random pairs of the table anew, with the weights of `config`, and say how far they are off.

    All parts' digests are checked on the way. Raises InputError for a damaged part, where the table lacks one of the card's
    pairs, and where a sum differs by more than the tolerance of the compute dtype; `command` fills the table.
    """
    desk = _Desk(config, command)
    scorer, table = desk.with_weights()
    total = sum(map(len, desk.splits.values()))
    worst, checked = (0.0, ""), 0
    for examples in desk.splits.values():
        keys, ids = examples.keys(), examples.ids()
        stored = require_complete(open_path(config.reference), table, keys, ids, command)
        share = -(-pairs * len(examples) // total)
        drawn = np.random.default_rng(config.seed).choice(len(keys), min(share, len(keys)), replace=False)
        places, found = scorer.recompute(examples.select(drawn))
        checked += len(drawn)
        drawn = drawn[places]
        worst = max(worst, _check_sums(table, found, stored[drawn], [ids[place] for place in drawn]))
    return (
        f"{checked:,} of {total:,} pairs computed anew: at most {worst[0]:.2g} off, relatively"
        f"{f' ({worst[1]})' if worst[1] else ''}. All {len(table.parts):,} parts of {table.folder} are whole."
    )


def _check_sums(table: ReferenceTable, found: np.ndarray, stored: np.ndarray, ids: list[str]) -> tuple[float, str]:
    """The largest relative difference of float32 [n, 2] sums, and its pair. Raises InputError where it is too large."""
    off = np.abs(found - stored) / np.maximum(1, np.abs(stored))
    if not off.size:
        return 0.0, ""
    pair, side = np.unravel_index(np.argmax(off), off.shape)
    tolerance = _TOLERANCE[table.identity.compute_dtype]
    if not off[pair, side] <= tolerance:
        raise InputError(
            f"The reference table {table.folder} holds other values than these weights give: pair {ids[pair]}, "
            f"{('chosen', 'rejected')[side]}: {stored[pair, side]:.6f} there, {found[pair, side]:.6f} computed anew, "
            f"{int((off > tolerance).any(axis=1).sum())} of {len(ids)} pairs beyond the relative tolerance {tolerance:g}. "
            "Delete that folder and run `zephyr-jax reference` again to compute all of it anew."
        )
    return float(off[pair, side]), ids[pair]


def _show(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)


def identity_of(config: SftConfig, tokenizer: ChatTokenizer, weights: str) -> Identity:
    """The identity that this config's reference log-probs have with weights of that fingerprint."""
    return Identity(weights, tokenizer.fingerprint, length_rule(config.data), config.model.compute_dtype, VERSION)


def length_rule(data: DataOptions) -> str:
    """How over-long pairs are treated, in words that go into the manifest."""
    return f"max_length {data.max_length}, max_prompt_length {data.max_prompt_length}, {data.on_bad_row}"


def main(config: ReferenceConfig, command: str) -> str:
    """`zephyr-jax reference`."""
    folder = str(reference(config, command).folder)
    return f"{folder}\n{verify(config, config.verify_pairs, command)}" if config.verify_pairs else folder


def main_verify(config: ReferenceVerifyConfig, command: str) -> str:
    """`zephyr-jax reference verify`."""
    fill_command = re.sub(r" --num_pairs(=| )\d+", "", command).replace("reference verify", "reference", 1)
    return verify(config, config.num_pairs, fill_command)
