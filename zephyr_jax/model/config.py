"""Architecture of a decoder: the sizes and options that all code reads; `model.families` makes it from a config.json."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from zephyr_jax.model.rope import Rope, RopeScaling

type Activation = Literal["silu", "gelu", "gelu_tanh"]


class LayerKind(NamedTuple):
    """What differs between layers of one model besides their weights."""

    window: int | None
    """Sliding window in tokens; None: full attention."""
    rope: Rope | None
    """None: no rotary embeddings."""


@dataclass(frozen=True, kw_only=True)
class QueryScaling:
    """Factor of queries that grows with their position: 1 + beta log(1 + floor(position / length)) (Llama 4)."""

    beta: float
    length: int
    """Positions of which all have the same factor."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and options of a decoder-only transformer (RMSNorm, RoPE, grouped-query attention, gated feed-forward).

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
    unit_offset_norms: bool = False
    """Whether norms multiply by 1 + weight (Gemma)."""
    norm_placement: Literal["pre", "post", "both"] = "pre"
    """Norms of attention and of feed-forward: of the input, of the output before it is added (OLMo 2), or both (Gemma 2)."""
    qk_norm: Literal["none", "head", "all_heads"] = "none"
    """Norms of queries and keys before rotation: none, over each head (Qwen3), over all heads at once (OLMo 2)."""
    qkv_bias: bool = False
    """Whether queries, keys and values have biases (Qwen2)."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float | None = None
    """Base in layers with a sliding window, whose frequencies are not scaled (Gemma 3); None: as in other layers."""
    rotary_share: float = 1.0
    """Share of a head's dimensions that is rotated, the first ones (Phi-4-mini)."""
    no_rope_layers: tuple[int, ...] = ()
    """Layers without rotary embeddings (SmolLM3)."""
    sliding_window: int | None = None
    """A token attends to itself and the `sliding_window - 1` tokens before it; None: to all before it."""
    full_attention_layers: tuple[int, ...] = ()
    """Layers without the sliding window, of a model with one (Gemma 2 and 3, OLMo 3)."""
    attention_scale: float | None = None
    """Factor of queries times keys; None: 1 / sqrt(head_dim)."""
    attention_softcap: float | None = None
    """Soft cap of attention scores (Gemma 2)."""
    query_scaling: QueryScaling | None = None
    """Factor of rotated queries by their position (Ministral 3)."""
    activation: Activation = "silu"
    """Of the gate in the feed-forward."""
    tie_embeddings: bool = False
    """Whether the unembedding is the embedding's transpose."""
    embedding_scale: float = 1.0
    """Factor of embeddings (Gemma, Granite)."""
    residual_scale: float = 1.0
    """Factor of what attention and feed-forward add (Granite)."""
    logit_scale: float = 1.0
    """Factor of logits (Granite)."""
    logit_softcap: float | None = None
    """Soft cap of logits, after the factor (Gemma 2)."""
    max_positions: int
    """Longest sequence that the model was trained for, in tokens."""

    @property
    def rotary_dim(self) -> int:
        """Rotated dimensions of a head."""
        return int(self.head_dim * self.rotary_share)

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """Window and rotary embeddings of every layer."""
        return tuple(self._layer_kind(layer) for layer in range(self.num_layers))

    def _layer_kind(self, layer: int) -> LayerKind:
        window = None if layer in self.full_attention_layers else self.sliding_window
        rope = Rope(theta=self.rope_theta, scaling=self.rope_scaling)
        if window is not None and self.local_rope_theta is not None:
            rope = Rope(theta=self.local_rope_theta)
        return LayerKind(window, None if layer in self.no_rope_layers else rope)

    @property
    def num_parameters(self) -> int:
        """Number of weights."""
        D, H, N, K = self.d_model, self.head_dim, self.num_heads, self.num_kv_heads
        layer = D * H * (2 * N + 2 * K) + 3 * D * self.d_ff + (4 if self.norm_placement == "both" else 2) * D
        layer += {"none": 0, "head": 2 * H, "all_heads": (N + K) * H}[self.qk_norm]
        layer += (N + 2 * K) * H if self.qkv_bias else 0
        embeddings = (1 if self.tie_embeddings else 2) * self.vocab_size * D
        return self.num_layers * layer + embeddings + D
