"""The pass that fills a reference table: frozen weights, forward only, the same jitted log-prob that DPO trains with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from uuid import uuid4

import jax
import numpy as np

from zephyr_jax.batch import TokenBatch
from zephyr_jax.checkpoint.resolve import AbstractModel
from zephyr_jax.config.sections import DataOptions
from zephyr_jax.data.examples import Examples
from zephyr_jax.data.loader import BatchSource, iterate
from zephyr_jax.data.pack import plan_evaluation
from zephyr_jax.objective.logprob import Parameters, sequence_logprob, sequence_logprob_and_greedy
from zephyr_jax.parallel.place import local_rows, local_shard, place_batch
from zephyr_jax.parallel.sharding import ShardingRules
from zephyr_jax.reference.table import ReferenceTable

_BATCHES_PER_PART = 64


@dataclass(frozen=True)
class _Scored:
    """One batch, of this process's rows: n examples."""

    examples: np.ndarray
    """int64 [n]: their places."""
    sums: np.ndarray
    """float32 [n, segments of an example]."""
    counts: np.ndarray
    """int32, as many."""
    greedy: np.ndarray | None
    """bool, as many: whether all targets are the likeliest tokens, where that is asked."""
    last: bool


@dataclass(frozen=True)
class Scorer:
    """What scores sequences: frozen weights on a mesh, `rows` rows of packed examples in one forward."""

    model: AbstractModel
    parameters: Parameters
    data: DataOptions
    rules: ShardingRules
    rows: int
    chunk: int
    """Target tokens whose logits exist at one time."""
    greedy: bool = False
    """Also tell whether targets are the likeliest tokens."""

    def recompute(self, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
        """Log-prob sums without any table: int64 [n] places and float32 sums of this process's rows."""
        batches = list(self.scored(examples, lambda done, total: None))
        return np.concatenate([each.examples for each in batches]), np.concatenate([each.sums for each in batches])

    def scored(self, examples: Examples, progress: Callable[[int, int], None]) -> Iterator[_Scored]:
        """All examples, batch by batch; `progress(done, total)` is called after each."""
        plan = plan_evaluation(examples.lengths, self.data, self.rows)
        mine, segments = local_rows(self.rules, self.rows), examples.segments_per_example
        for index, batch in iterate(BatchSource(examples, plan, mine, TokenBatch)):
            placed = place_batch(self.rules, batch, self.rows)
            microbatch = jax.tree.map(lambda leaf: leaf[0], placed)
            how = {"segments": segments * plan.examples_per_row, "chunk": self.chunk}
            what, best = (self.model.definition, self.parameters, microbatch), None
            if self.greedy:
                found, best = sequence_logprob_and_greedy(*what, **how)
            else:
                found = sequence_logprob(*what, **how)
            step = [*plan.steps[index], *[()] * (self.rows - len(plan.steps[index]))][mine]
            sums, counts = local_shard(found.sum), local_shard(found.num_targets)
            places = np.array([place for row in step for place in row], np.int64)
            held = np.array([segments * len(row) for row in step])[:, None] > np.arange(sums.shape[1])
            greedy = None if best is None else local_shard(best)[held].reshape(-1, segments)
            last = index + 1 == len(plan.steps)
            yield _Scored(places, sums[held].reshape(-1, segments), counts[held].reshape(-1, segments), greedy, last)
            progress(index + 1, len(plan.steps))


def fill(
    table: ReferenceTable,
    examples: Examples,
    scorer: Scorer,
    missing: np.ndarray,
    progress: Callable[[int, int], None],
) -> tuple[int, int]:
    """Compute the pairs of `examples` that are `missing` (bool [N], the same on all hosts) from the table.

    Returns (pairs computed, pairs reused). A killed pass loses at most the batches since its last part.
    """
    keys = examples.keys()
    wanted = np.flatnonzero(missing)
    if not len(wanted):
        return 0, len(keys)
    waiting: list[_Scored] = []
    for index, batch in enumerate(scorer.scored(examples.select(wanted), progress)):
        waiting += [batch] if len(batch.examples) else []
        if waiting and (batch.last or (index + 1) % _BATCHES_PER_PART == 0):
            part_keys = [keys[wanted[each.examples]].reshape(-1) for each in waiting]
            sums, counts = ([getattr(each, name).reshape(-1) for each in waiting] for name in ("sums", "counts"))
            table.add(uuid4().hex, np.concatenate(part_keys).tolist(), np.concatenate(sums), np.concatenate(counts))
            waiting = []
    return len(wanted), len(keys) - len(wanted)
