"""Correspondence between parameters of the decoder and Hugging Face tensors, used by import and export alike.

A parameter is laid out [inputs..., outputs...] and stacked over layers; a Hugging Face tensor is [outputs, inputs], one per
layer.
"""

import math
from dataclasses import dataclass

import numpy as np

type Index = tuple[slice, ...]

EMBEDDING, UNEMBEDDING = ("embedding",), ("unembedding",)
"""Paths of the two parameters that tied embeddings share."""


@dataclass(frozen=True)
class FusedRows:
    """Where a parameter lies in a Hugging Face tensor that holds several projections of one input (Phi-3)."""

    start: int
    """Its first row."""
    total: int
    """Rows of the tensor."""
    module: str
    """Module that the projection alone would be, such as `q_proj`; adapters are attached to it."""


@dataclass(frozen=True)
class HfTensor:
    """One parameter and its Hugging Face tensor, or tensors where it is stacked over layers.

    Sizes and indices of the parameter are without the layer axis in every method.
    """

    path: tuple[str, ...]
    """Keys of the parameter in the pure dict of the decoder's parameters."""
    name: str
    """Hugging Face's name; `{}` stands for the layer."""
    inputs: int = 0
    """Number of leading input axes of the parameter; 0 for one that is stored without a transpose (embedding, norm, bias)."""
    is_flat: bool = False
    """Whether a parameter [heads, head_dim] without inputs is one axis in Hugging Face's tensor (biases, norms of all heads)."""
    fused: FusedRows | None = None
    """Rows of the tensor that are the parameter, of a projection; None: all of them."""

    @property
    def module(self) -> str:
        """Name of the module of this parameter; `{}` stands for the layer."""
        name = self.name.removesuffix(".weight")
        return f"{name.rpartition('.')[0]}.{self.fused.module}" if self.fused else name

    @property
    def stacked(self) -> bool:
        """Whether the parameter has a leading layer axis."""
        return "{}" in self.name

    def names(self, num_layers: int) -> list[str]:
        """Hugging Face's names: one per layer, or a single one."""
        return [self.name.format(layer) for layer in range(num_layers)] if self.stacked else [self.name]

    def hf_sizes(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Sizes of the Hugging Face tensor of a parameter of `sizes`."""
        own = self.own_sizes(sizes)
        return (self.fused.total, *own[1:]) if self.fused else own

    def own_sizes(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Sizes of a parameter of `sizes` in Hugging Face's layout: of its rows alone where the tensor holds others."""
        if self.is_flat:
            return (math.prod(sizes),)
        if not self.inputs:
            return sizes
        return math.prod(sizes[self.inputs :]), math.prod(sizes[: self.inputs])

    def hf_index(self, sizes: tuple[int, ...], index: Index) -> Index:
        """Part of the Hugging Face tensor that holds `index` of a parameter of `sizes`.

        Only the first of several input (or output) axes may be split, so that the part is one rectangle.
        """
        if self.is_flat:
            return (_flat_slice(sizes, index),)
        if not self.inputs:
            return index
        outputs = _flat_slice(sizes[self.inputs :], index[self.inputs :], self.fused.start if self.fused else 0)
        return outputs, _flat_slice(sizes[: self.inputs], index[: self.inputs])

    def hf_view(self, block: np.ndarray) -> np.ndarray:
        """View of a contiguous block of the parameter in Hugging Face's layout; writes to the view change the block."""
        if self.is_flat:
            return block.reshape(-1)
        if not self.inputs:
            return block
        return block.reshape(math.prod(block.shape[: self.inputs]), -1).T

    def to_hf(self, value: np.ndarray) -> np.ndarray:
        """The whole parameter in Hugging Face's layout, contiguous; its rows alone where the tensor holds others."""
        return np.ascontiguousarray(self.hf_view(value)) if self.inputs or self.is_flat else value


def _flat_slice(sizes: tuple[int, ...], index: Index, first: int = 0) -> slice:
    start, stop, _ = index[0].indices(sizes[0])
    inner = math.prod(sizes[1:])
    return slice(first + start * inner, first + stop * inner)
