"""`zephyr-jax reference`: score every pair of a card once with the frozen weights, into the reference table."""

from dataclasses import dataclass
from functools import partial

import jax
from rich.console import Console
from rich.progress import Progress, TaskID

from zephyr_jax.checkpoint.identity import weights_fingerprint
from zephyr_jax.checkpoint.source import abstract_of, find_model, load_weights
from zephyr_jax.config import DataOptions
from zephyr_jax.data.examples import Examples, load_preferences
from zephyr_jax.data.tokens import ChatTokenizer
from zephyr_jax.objective.logprob import VERSION
from zephyr_jax.parallel.rules import open_rules
from zephyr_jax.recipes.run import evaluation_source, microbatch_rows, open_tokenizer
from zephyr_jax.reference.compute import fill
from zephyr_jax.reference.table import Identity, ReferenceTable
from zephyr_jax.storage.cloud import explained
from zephyr_jax.storage.files import Path, check_can_be_made, open_path
from zephyr_jax.verbs import DpoConfig


@dataclass(frozen=True)
class Filled:
    """What a reference pass did."""

    folder: Path
    computed: int
    reused: int


@explained()
def reference(config: DpoConfig) -> Filled:
    """Fill the table for the training and the evaluation split. Raises InputError."""
    config.check()
    rules = open_rules(config.mesh)
    check_can_be_made(config.reference)
    rules.check_divides("batch", microbatch_rows(config), "batch.microbatch_rows (or batch.rows)")
    source = find_model(config.model)
    tokenizer = open_tokenizer(source, config.data)
    splits = preference_splits(config, tokenizer)
    model = abstract_of(source.shape, config.model, rules)
    parameters = load_weights(source, model)

    table = ReferenceTable(open_path(config.reference), identity_of(config, tokenizer, weights_fingerprint(parameters)))
    console = Console(stderr=True, quiet=jax.process_index() != 0)
    computed = reused = 0
    for name, examples in splits.items():
        console.print(examples.summary(name), highlight=False, markup=False, soft_wrap=True)
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task(f"reference log-probs, {name}", total=None)
            new, old = fill(
                table, examples, model, parameters, config.data, rules, microbatch_rows(config),
                config.model.logprob_chunk, partial(_show, bar, task),
            )  # fmt: skip
        computed, reused = computed + new, reused + old
    console.print(
        f"{computed:,} computed, {reused:,} reused in {table.folder}", highlight=False, markup=False, soft_wrap=True
    )
    return Filled(table.folder, computed, reused)


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
