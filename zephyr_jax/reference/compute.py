"""The pass that fills a reference table: frozen weights, forward only, the same jitted log-prob that DPO trains with."""

from collections.abc import Callable
from uuid import uuid4

import jax
import numpy as np

from zephyr_jax.batch import token_rows
from zephyr_jax.checkpoint.source import AbstractModel
from zephyr_jax.config import DataOptions
from zephyr_jax.data.examples import Examples
from zephyr_jax.data.loader import BatchSource, iterate
from zephyr_jax.data.pack import plan_evaluation
from zephyr_jax.objective.logprob import Parameters, sequence_logprob
from zephyr_jax.parallel.place import local_part, local_rows, place_batch
from zephyr_jax.parallel.rules import Rules
from zephyr_jax.reference.table import ReferenceTable

_BATCHES_PER_PART = 64


def fill(
    table: ReferenceTable,
    examples: Examples,
    model: AbstractModel,
    parameters: Parameters,
    data: DataOptions,
    rules: Rules,
    rows: int,
    chunk: int,
    progress: Callable[[int, int], None],
) -> tuple[int, int]:
    """Compute what the table lacks of `examples`. Returns (pairs computed, pairs reused).

    `rows` rows go through one forward; `progress(done, total)` is called after each. A killed pass loses at most the
    batches since its last part.
    """
    keys = examples.keys()
    wanted = np.flatnonzero(table.missing(keys))
    if not len(wanted):
        return 0, len(keys)
    plan = plan_evaluation(examples.lengths[wanted], data, rows)
    mine = local_rows(rules, rows)
    chosen = examples.select(wanted)
    source = BatchSource(chosen, plan, mine)
    part: list[tuple[str, float, float]] = []
    for index, batch in enumerate(iterate(source)):
        placed = place_batch(rules, batch, rows)
        microbatch = jax.tree.map(lambda leaf: leaf[0], token_rows(placed))
        found = sequence_logprob(
            model.definition, parameters, microbatch, segments=2 * plan.examples_per_row, chunk=chunk
        )
        step = [*plan.steps[index], *[()] * (rows - len(plan.steps[index]))][mine]
        sums, counts = local_part(found.sum), local_part(found.number)
        for row, row_sums, row_counts in zip(step, sums, counts, strict=True):
            row_keys = keys[wanted[list(row)]].reshape(-1).tolist()
            part += zip(row_keys, row_sums.tolist(), row_counts.tolist(), strict=False)
        if part and ((index + 1) % _BATCHES_PER_PART == 0 or index + 1 == len(plan.steps)):
            part_keys, part_sums, part_counts = zip(*part, strict=True)
            table.add(uuid4().hex, list(part_keys), np.array(part_sums), np.array(part_counts))
            part = []
        progress(index + 1, len(plan.steps))
    return len(wanted), len(keys) - len(wanted)
