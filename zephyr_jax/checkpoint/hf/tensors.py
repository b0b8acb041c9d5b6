"""The one table between our parameters and Hugging Face tensors, read in both directions.

Our weights are [inputs..., outputs...] and stacked over layers; Hugging Face's are [outputs, inputs], one a layer.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from zephyr_jax.model.config import ModelConfig

type Index = tuple[slice, ...]


@dataclass(frozen=True)
class Tensor:
    """One row of the table."""

    path: tuple[str, ...]
    """Where it lives in our parameters."""
    name: str
    """Hugging Face's name, `{}` standing for the layer."""
    inputs: int
    """How many leading axes of ours (after the layer axis) are inputs; 0: stored as it is, not transposed."""

    @property
    def stacked(self) -> bool:
        """Whether ours has a leading layer axis."""
        return "{}" in self.name

    def names(self, layers: int) -> list[str]:
        """Hugging Face's names, one a layer (or just one)."""
        return [self.name.format(layer) for layer in range(layers)] if self.stacked else [self.name]

    def hf_sizes(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Hugging Face's sizes of one tensor, given ours without the layer axis."""
        if not self.inputs:
            return sizes
        return math.prod(sizes[self.inputs :]), math.prod(sizes[: self.inputs])

    def hf_index(self, sizes: tuple[int, ...], index: Index) -> Index:
        """The part of Hugging Face's tensor that holds `index` of ours; both without the layer axis.

        Only the first of several input (or output) axes may be split, so that the part is one block.
        """
        if not self.inputs:
            return index
        halves = ((sizes[self.inputs :], index[self.inputs :]), (sizes[: self.inputs], index[: self.inputs]))
        return tuple(_block(half_sizes, half_index) for half_sizes, half_index in halves)

    def hf_view(self, block: np.ndarray) -> np.ndarray:
        """A contiguous block of ours (no layer axis) seen in Hugging Face's layout; what is written there lands in the block."""
        if not self.inputs:
            return block
        return block.reshape(math.prod(block.shape[: self.inputs]), -1).T

    def to_hf(self, value: np.ndarray) -> np.ndarray:
        """Hugging Face's layout of one whole tensor of ours (no layer axis)."""
        if not self.inputs:
            return value
        rows = math.prod(value.shape[: self.inputs])
        return np.ascontiguousarray(value.reshape(rows, -1).T)


def _block(sizes: tuple[int, ...], index: Index) -> slice:
    start, stop, _ = index[0].indices(sizes[0])
    inner = math.prod(sizes[1:])
    return slice(start * inner, stop * inner)


_ATTENTION, _MLP = ("decoder", "attention"), ("decoder", "feed_forward")
TABLE = (
    Tensor(("embedding",), "model.embed_tokens.weight", 0),
    Tensor((*_ATTENTION, "norm"), "model.layers.{}.input_layernorm.weight", 0),
    Tensor((*_ATTENTION, "query"), "model.layers.{}.self_attn.q_proj.weight", 1),
    Tensor((*_ATTENTION, "key"), "model.layers.{}.self_attn.k_proj.weight", 1),
    Tensor((*_ATTENTION, "value"), "model.layers.{}.self_attn.v_proj.weight", 1),
    Tensor((*_ATTENTION, "output"), "model.layers.{}.self_attn.o_proj.weight", 2),
    Tensor((*_MLP, "norm"), "model.layers.{}.post_attention_layernorm.weight", 0),
    Tensor((*_MLP, "gate"), "model.layers.{}.mlp.gate_proj.weight", 1),
    Tensor((*_MLP, "up"), "model.layers.{}.mlp.up_proj.weight", 1),
    Tensor((*_MLP, "down"), "model.layers.{}.mlp.down_proj.weight", 1),
    Tensor(("norm",), "model.norm.weight", 0),
    Tensor(("unembedding",), "lm_head.weight", 1),
)


def tensors_of(config: ModelConfig) -> Iterator[Tensor]:
    """The rows of the table that a model of this shape has."""
    return (tensor for tensor in TABLE if not (config.tie_embeddings and tensor.path == ("unembedding",)))
