"""The pass that fills a reference table: frozen weights, forward only, the same jitted log-prob that DPO trains with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from uuid import uuid4

import jax
import numpy as np

from zephyr_jax.batch import SharedTokenBatch, TokenBatch
from zephyr_jax.checkpoint.opened import AbstractModel
from zephyr_jax.config.sections import DataOptions
from zephyr_jax.data.examples import Examples
from zephyr_jax.data.loader import BatchSource, iterate
from zephyr_jax.data.pack import plan_evaluation
from zephyr_jax.objective.logprob import Parameters, sequence_logprob, sequence_logprob_and_greedy
from zephyr_jax.parallel.place import local_rows, local_shard, place_batch
from zephyr_jax.parallel.sharding import ShardingRules
from zephyr_jax.reference.table import ReferenceTable

_BATCHES_PER_SHARD = 64


@dataclass(frozen=True)
class ScoredBatch:
    """Log-probs of n examples in this process's rows of one batch."""

    examples: np.ndarray
    """int64 [n]: indices of the examples."""
    sums: np.ndarray
    """float32 [n, segments per example]: sums of the target log-probs."""
    counts: np.ndarray
    """int32 of the same shape: numbers of targets."""
    greedy: np.ndarray | None
    """bool of the same shape, if requested: whether every target is the most likely token."""
    last: bool


@dataclass(frozen=True)
class Scorer:
    """Computes log-probs of examples with frozen weights, packed into batches of `num_rows` rows."""

    model: AbstractModel
    parameters: Parameters
    data: DataOptions
    rules: ShardingRules
    num_rows: int
    greedy: bool = False
    """Whether to report greediness, too."""

    def score_all(self, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
        """int64 [n] indices and float32 [n, segments per example] sums of the examples in this process's rows."""
        batches = list(self.score(examples, lambda completed, total: None))
        return (
            np.concatenate([batch.examples for batch in batches]),
            np.concatenate([batch.sums for batch in batches]),
        )

    def score(self, examples: Examples, progress: Callable[[int, int], None]) -> Iterator[ScoredBatch]:
        """Score all examples, batch by batch; calls `progress(completed, total)` with numbers of batches."""
        lengths, unshared = examples.packed_lengths(self.data)
        plan = plan_evaluation(lengths, self.data, self.num_rows, unshared)
        batch_type = SharedTokenBatch if unshared else TokenBatch
        own_rows, segments = local_rows(self.rules, self.num_rows), examples.segments_per_example
        for index, batch in iterate(BatchSource(examples, plan, own_rows, batch_type)):
            placed = place_batch(self.rules, batch, self.num_rows)
            microbatch = jax.tree.map(lambda leaf: leaf[0], placed)
            function = sequence_logprob_and_greedy if self.greedy else sequence_logprob
            output = function(
                self.model.definition,
                self.parameters,
                microbatch,
                segments=segments * plan.examples_per_row,
                chunk=self.model.logprob_chunk,
            )
            logprob, greedy = output if self.greedy else (output, None)
            rows = [*plan.steps[index], *[()] * (self.num_rows - len(plan.steps[index]))][own_rows]
            sums, counts = local_shard(logprob.sum), local_shard(logprob.num_targets)
            # bool [rows, segments of a row]: the segments in use
            used = np.array([segments * len(row) for row in rows])[:, None] > np.arange(sums.shape[1])
            yield ScoredBatch(
                examples=np.array([example for row in rows for example in row], np.int64),
                sums=sums[used].reshape(-1, segments),
                counts=counts[used].reshape(-1, segments),
                greedy=None if greedy is None else local_shard(greedy)[used].reshape(-1, segments),
                last=index + 1 == len(plan.steps),
            )
            progress(index + 1, len(plan.steps))


def fill(
    table: ReferenceTable,
    examples: Examples,
    scorer: Scorer,
    missing: np.ndarray,
    progress: Callable[[int, int], None],
) -> tuple[int, int]:
    """Compute missing examples and add them to the table. A killed pass loses at most the batches since its last shard.

    Args:
        table: The table.
        examples: N examples.
        scorer: Computes their log-probs.
        missing: bool [N], the same on all hosts: the examples to compute.
        progress: Called with the completed and the total number of batches.

    Returns:
        Number of examples that were computed and reused.
    """
    keys = examples.keys()
    indices = np.flatnonzero(missing)
    if not len(indices):
        return 0, len(keys)
    pending: list[ScoredBatch] = []
    for number, batch in enumerate(scorer.score(examples.select(indices), progress), 1):
        pending += [batch] if len(batch.examples) else []
        if pending and (batch.last or number % _BATCHES_PER_SHARD == 0):
            scored = indices[np.concatenate([item.examples for item in pending])]
            sums, counts = (np.concatenate([getattr(item, name) for item in pending]) for name in ("sums", "counts"))
            table.add(uuid4().hex, keys[scored].reshape(-1).tolist(), sums.reshape(-1), counts.reshape(-1))
            pending = []
    return len(indices), len(keys) - len(indices)
