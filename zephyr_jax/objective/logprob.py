"""The one sequence log-probability: SFT, DPO, evaluation and the reference pass all call `sequence_logprob`.

The shift by one lives here and nowhere else: token t is predicted by the hidden state at t - 1.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from zephyr_jax.batch import Rows, SharedTokenBatch
from zephyr_jax.model.attention.dense import SegmentInfo
from zephyr_jax.model.attention.shared_prompt import SharedInfo
from zephyr_jax.model.attention.zigzag import from_zigzag, to_zigzag
from zephyr_jax.model.decoder import Decoder, build
from zephyr_jax.model.layers import Placement
from zephyr_jax.objective.token_logprob import Chunking, token_logprob

type Parameters = dict[str, Any]

VERSION = 2
"""Raised whenever the arithmetic changes; part of a reference table's identity."""


class SegmentLogProb(NamedTuple):
    """Sums over the target tokens of each segment."""

    sum: Array
    """float32 [B, S]: log p(targets of the segment | tokens before them)."""
    num_targets: Array
    """float32 [B, S]: number of targets."""


@partial(jax.jit, static_argnames=("definition", "segments", "chunk"))
def sequence_logprob(
    definition: nnx.GraphDef[Any], parameters: Parameters, batch: Rows, *, segments: int, chunk: int
) -> SegmentLogProb:
    """Log-prob sums and target counts of segments 1 ... `segments` of each row, in float32.

    Only target tokens meet the unembedding, `chunk` of a device at a time, and unless the model saves logits the backward
    pass recomputes them: neither direction ever holds [B, L, V].

    Args:
        definition: The decoder's graph.
        parameters: Its weights.
        batch: Packed rows [B, L], with or without shared prompts.
        segments: S, segment slots of a row; static.
        chunk: Target tokens of a device whose logits exist at one time; static.
    """
    model: Decoder = build(definition, parameters)
    return _segment_logprob(model, _hidden_states(model, batch), batch, segments, chunk)


@partial(jax.jit, static_argnames=("definition", "segments", "chunk"))
def sequence_logprob_and_greedy(
    definition: nnx.GraphDef[Any], parameters: Parameters, batch: Rows, *, segments: int, chunk: int
) -> tuple[SegmentLogProb, Array]:
    """The same, and bool [B, S]: whether all targets of a segment are the likeliest tokens (true where it has none).

    All columns meet the unembedding here, `chunk` of each row at a time.
    """
    model: Decoder = build(definition, parameters)
    hidden_BLD = _hidden_states(model, batch)
    next_BL, _, member_BLS = _next_tokens(batch, segments)
    unembedding_DV = model.unembedding_DV.astype(hidden_BLD.dtype)

    def likeliest(hidden_BCD: Array) -> Array:
        # Without scale and soft cap, which keep the order of logits.
        logits_BCV = jnp.einsum("bcd,dv->bcv", hidden_BCD, unembedding_DV, preferred_element_type=jnp.float32)
        return jnp.argmax(logits_BCV, axis=-1).astype(jnp.int32)

    B, L, D = hidden_BLD.shape
    C = min(chunk, L)
    predicting_BLD = hidden_BLD
    if isinstance(batch, SharedTokenBatch):
        predicting_BLD = jnp.take_along_axis(hidden_BLD, batch.source[..., None], axis=1)
    hidden_ZBCD = jnp.pad(predicting_BLD, ((0, 0), (0, -L % C), (0, 0))).reshape(B, -1, C, D).swapaxes(0, 1)
    best_BL = jax.lax.map(likeliest, hidden_ZBCD).swapaxes(0, 1).reshape(B, -1)[:, :L]
    greedy_BS = jnp.all((best_BL == next_BL)[..., None] | ~member_BLS, axis=1)
    return _segment_logprob(model, hidden_BLD, batch, segments, chunk), greedy_BS


def _hidden_states(model: Decoder, batch: Rows) -> Array:
    """Final hidden states [B, L, D]."""
    info = SegmentInfo(batch.segments, batch.positions)
    if isinstance(batch, SharedTokenBatch):
        return model(batch.tokens, info, SharedInfo.of(batch))
    return model(batch.tokens, info)


def _segment_logprob(model: Decoder, hidden_BLD: Array, batch: Rows, segments: int, chunk: int) -> SegmentLogProb:
    next_BL, mask_BL, member_BLS = _next_tokens(batch, segments)
    source_BL = batch.source if isinstance(batch, SharedTokenBatch) else None
    logprob_BL = _column_logprob(model, hidden_BLD, next_BL, mask_BL, chunk, source_BL)
    sum_BS = jnp.sum(jnp.where(member_BLS, logprob_BL[..., None], 0.0), axis=1)
    return SegmentLogProb(sum_BS, jnp.sum(member_BLS, axis=1, dtype=jnp.float32))


def _next_tokens(batch: Rows, segments: int) -> tuple[Array, Array, Array]:
    """What each column predicts: column t - 1 of hidden states predicts token t, the last column nothing.

    With shared prompts column t stands for token t itself, which column `source[t]` of hidden states predicts: the last column
    of a prompt predicts the first token of each of its answers.

    Returns:
        The tokens, int32 [B, L]; whether they are targets, bool [B, L]; of which segment they are targets, bool [B, L, S].
    """
    if isinstance(batch, SharedTokenBatch):
        next_BL, mask_BL = batch.tokens, batch.targets
    else:
        next_BL = jnp.roll(batch.tokens, -1, axis=1)
        mask_BL = jnp.roll(batch.targets, -1, axis=1).at[:, -1].set(False)
    member_BLS = (batch.segments[..., None] == jnp.arange(1, segments + 1)) & mask_BL[..., None]
    return next_BL, mask_BL, member_BLS


class _TokenShards(NamedTuple):
    """How devices hold the columns of rows: each lays its rows, or its parts of rows, end to end to one line of M columns."""

    placement: Placement

    @property
    def parts(self) -> int:
        """Devices that share a row, whose columns are then in zigzag order."""
        return self.placement.num_shards("length")

    def fold(self, x: Array) -> Array:
        """[B, L, ...] -> [R, M, ...]; nothing crosses devices."""
        R, (B, L), parts = self.placement.num_shards("tokens"), x.shape[:2], self.parts
        if parts > 1:
            x = x.reshape(R // parts, -1, parts, L // parts, *x.shape[2:]).swapaxes(1, 2)
        x = x.reshape(R, B * L // R, *x.shape[(2 if parts == 1 else 4) :])
        return self.placement.constrain(x, "tokens", *[None] * (x.ndim - 1))

    def unfold(self, x_RM: Array, L: int) -> Array:
        """[R, M] -> [B, L] with columns in their own order."""
        if self.parts == 1:
            return x_RM.reshape(-1, L)
        x = x_RM.reshape(len(x_RM) // self.parts, self.parts, -1, L // self.parts).swapaxes(1, 2)
        return from_zigzag(x.reshape(-1, L), self.parts)

    def predicting(self, hidden_BLD: Array, source_BL: Array) -> Array:
        """Hidden states of the columns that predict, which may be on other devices: [B, L, D] in zigzag order, as given."""
        constrain = self.placement.constrain
        everywhere_BLD = from_zigzag(constrain(hidden_BLD, "batch", None, "model"), self.parts)
        source_BL1 = to_zigzag(source_BL, self.parts)[..., None]
        return constrain(jnp.take_along_axis(everywhere_BLD, source_BL1, axis=1), "batch", "length", "model")


def _column_logprob(
    model: Decoder, hidden_BLD: Array, next_BL: Array, mask_BL: Array, chunk: int, source_BL: Array | None
) -> Array:
    """float32 [B, L] log-probs of the next tokens inside the mask, 0 outside; `source_BL` as in `SharedTokenBatch`."""
    placement, (B, L) = model.compute.placement, next_BL.shape
    shards = _TokenShards(placement)
    if shards.parts > 1 and source_BL is not None:
        hidden_BLD, source_BL = shards.predicting(hidden_BLD, source_BL), None
    # Prompts and padding are a third to a half of all columns. Each device sorts the targets of its columns to the front: all
    # chunks but one are full of targets or empty, and empty ones are skipped. A stable sort of booleans keeps the order of
    # targets, so sums do not depend on padding.
    hidden_RMD = shards.fold(hidden_BLD)
    next_RM, mask_RM = (shards.fold(to_zigzag(x, shards.parts)) for x in (next_BL, mask_BL))
    front_RM = jnp.argsort(~mask_RM, axis=1, stable=True)
    hidden_of_RM = front_RM
    if source_BL is not None:  # one gather for both: to the predicting column of the row, and to the front
        row_start_B1 = L * (jnp.arange(B, dtype=jnp.int32) % (B // len(front_RM)))[:, None]
        hidden_of_RM = jnp.take_along_axis(shards.fold(row_start_B1 + source_BL), front_RM, axis=1)
    hidden_RMD = jnp.take_along_axis(hidden_RMD, hidden_of_RM[..., None], axis=1)
    next_RM, mask_RM = (jnp.take_along_axis(x, front_RM, axis=1) for x in (next_RM, mask_RM))
    columns = min(chunk, front_RM.shape[1])
    chunking = Chunking.choose(columns, model.compute.save_logits, placement, front_RM.size, model.config.vocab_size)
    unembedding_DV = model.unembedding_DV.astype(hidden_BLD.dtype)
    logprob_RM = token_logprob(hidden_RMD, unembedding_DV, next_RM, mask_RM, chunking, model.config)
    # The inverse of a permutation is its argsort: log-probs return to the columns that they came from.
    back_RM = jnp.argsort(front_RM, axis=1)
    return shards.unfold(jnp.take_along_axis(logprob_RM, back_RM, axis=1), L)
