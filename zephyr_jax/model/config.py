"""Architecture of a decoder: the sizes and options that all code reads; `model.families` makes it from a config.json."""

from dataclasses import dataclass
from typing import Literal

type Activation = Literal["silu", "gelu", "gelu_tanh"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and options of a decoder-only transformer (pre-norm RMSNorm, RoPE, grouped-query attention, gated feed-forward).

    A family whose architecture differs adds a field here, with the value that leaves other families as they are as default.
    """

    model_type: str
    """Family that names the tensors and writes config.json."""
    vocab_size: int
    d_model: int
    d_ff: int
    """Hidden size of the feed-forward."""
    num_layers: int
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    head_dim: int
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    sliding_window: int | None = None
    """A token attends to itself and the `sliding_window - 1` tokens before it; None: to all before it."""
    activation: Activation = "silu"
    """Of the gate in the feed-forward."""
    tie_embeddings: bool = False
    """Whether the unembedding is the embedding's transpose."""
    max_positions: int
    """Longest sequence that the model was trained for, in tokens."""

    @property
    def num_parameters(self) -> int:
        """Number of weights."""
        attention = self.d_model * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        layer = attention + 3 * self.d_model * self.d_ff + 2 * self.d_model
        embeddings = (1 if self.tie_embeddings else 2) * self.vocab_size * self.d_model
        return self.num_layers * layer + embeddings + self.d_model
