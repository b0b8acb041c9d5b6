"""Log-probs of rows in memory: `score`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from zephyr_jax.api.loading import LoadedModel
from zephyr_jax.api.tokens import kind_of_row, segments_of_row
from zephyr_jax.config.sections import ROW_MULTIPLE, DataOptions, is_unset
from zephyr_jax.data.examples import Examples, examples_of
from zephyr_jax.data.splits import check_positions
from zephyr_jax.errors import InputError
from zephyr_jax.reference.score import Scorer
from zephyr_jax.storage.cloud import translate_cloud_errors


@dataclass(frozen=True)
class RowScores:
    """Log-probs of N rows with S segments each: one of a conversation, two of a pair (chosen, rejected)."""

    segments: tuple[str, ...]
    """Names of the S segments."""
    sums: np.ndarray
    """float32 [N, S], nats: log p(targets of the segment | tokens before them), summed over the targets."""
    counts: np.ndarray
    """int32 [N, S]: number of targets."""
    truncated: tuple[int, ...]
    """Indices of the rows that were longer than `data.max_length` and are cut."""

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood in nats per target token; for conversations the loss of `sft` and `evaluate`."""
        return -float(self.sums.sum(dtype=np.float64)) / int(self.counts.sum())


@translate_cloud_errors()
def score(model: LoadedModel, rows: Sequence[Mapping[str, Any]], *, batch_size: int = 8) -> RowScores:
    """Compute the log-probs of rows with the jitted `sequence_logprob` that training, `evaluate` and `reference` use.

    The numbers of a row do not depend on the other rows, beyond the rounding of the compute dtype.

    Args:
        model: Of `load_model`; its `tokenizer.data` decides which tokens are targets and what happens to over-long rows.
        rows: N conversations, or N preference pairs, in any row format.
        batch_size: Packed rows of one forward pass, a multiple of the mesh's `data` times `fsdp`.

    Returns:
        Sums and counts by row, in the order of `rows`.

    Raises:
        InputError: A row cannot be used, is not of the kind of the first one, or exceeds the model's positions.
    """
    if not rows:
        raise InputError("rows: expected at least one row, got an empty sequence.")
    model.rules.check_divides("batch", batch_size, "batch_size")
    examples, truncated = _tokenize(model, rows)
    data = model.tokenizer.data
    scorer = Scorer(
        model=model.opened.abstract,
        parameters=model.parameters,
        data=replace(data, row_length=_row_length(data, examples, model.rules.row_multiple)),
        rules=model.rules,
        num_rows=batch_size,
    )
    sums = np.zeros((len(rows), len(examples.segments)), np.float32)
    counts = np.zeros(sums.shape, np.int32)
    for batch in scorer.score(examples, lambda completed, total: None):
        sums[batch.examples], counts[batch.examples] = batch.sums, batch.counts
    return RowScores(examples.segments, sums, counts, truncated)


def _tokenize(model: LoadedModel, rows: Sequence[Mapping[str, Any]]) -> tuple[Examples, tuple[int, ...]]:
    """The rows as examples, and the indices of the truncated ones."""
    kind = kind_of_row(rows[0])
    segments, truncated = [], []
    for index, row in enumerate(rows):
        if kind_of_row(row) is not kind:
            raise InputError(
                f"Row {index} is one of {kind_of_row(row).name.lower()} and row 0 of {kind.name.lower()}. Score them separately."
            )
        example, is_truncated = segments_of_row(model.tokenizer, kind, row, f"Row {index}")
        segments.append(example)
        truncated += [index] if is_truncated else []
    examples = examples_of(segments, kind.segments)
    check_positions(examples, "rows", model.config.max_positions, model.source.asked)
    return examples, tuple(truncated)


def _row_length(data: DataOptions, examples: Examples, multiple: int) -> int:
    """Tokens of a packed row: as set if the longest example fits, else that example; rounded up for the mesh and to 128."""
    longest = int(examples.packed_lengths(data)[0].max())
    if not is_unset(data.row_length) and data.row_length >= longest:
        return -(-data.row_length // multiple) * multiple
    multiple = max(multiple, ROW_MULTIPLE)  # few different lengths, so few compiled programs
    return -(-longest // multiple) * multiple
