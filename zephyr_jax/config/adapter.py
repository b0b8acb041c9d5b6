"""The settings of low-rank adapters (LoRA), and of how the frozen weights below them are stored."""

from dataclasses import dataclass, field
from typing import Literal

from zephyr_jax.config.constraints import ADVANCED, NonNegativeInt, PositiveFloat, PositiveInt
from zephyr_jax.config.sections import BaseFormat, ForwardOptions, ScoringOptions, is_unset, unset
from zephyr_jax.errors import InputError

DEFAULT_BLOCK = 64


@dataclass(frozen=True)
class AdapterOptions:
    """Low-rank adapters (LoRA): small trainable matrices beside frozen weights, which may be quantized (QLoRA)."""

    rank: NonNegativeInt = unset(0)
    """Rank of the adapters; 0: none, all weights train. Default: 0, or the adapter of the run in `model.path`, which then
    continues."""
    alpha: PositiveFloat = 16.0
    """LoRA alpha: the product of the adapter's matrices is scaled by `alpha / rank`."""
    targets: tuple[str, ...] = ("*_proj",)
    """Adapted projections: glob patterns of Hugging Face's module names, such as `q_proj`, `self_attn.*` or `mlp.*`.
    Default: all seven of a layer."""
    use_rslora: bool = False
    """Scale by `alpha / sqrt(rank)` instead (rank-stabilized LoRA). Set it for ranks of 64 and more."""
    base_format: BaseFormat = unset("bfloat16")
    """Storage format of the frozen weights. The reference table depends on it: set the same for `reference` and `dpo`.
    Default: the format of the adapter that continues, else bfloat16.

    - `float32`: four bytes a weight, for comparisons of numbers.
    - `bfloat16`: two bytes; exact for most published checkpoints.
    - `int8`: one byte and a scale per block.
    - `int4`: half a byte and a scale per block.
    - `nf4`: half a byte and a scale per block, in the quantiles of a normal distribution (QLoRA's format).
    """
    block_size: PositiveInt = field(default=DEFAULT_BLOCK, metadata=ADVANCED)
    """Block size of int8, int4 and nf4: inputs of a projection that share a scale. It must divide the inputs of each device."""
    init: Literal["lora", "pissa"] = field(default="lora", metadata=ADVANCED)
    """Initial values of a new adapter; either leaves the model's outputs as they are.

    - `lora`: A uniform as in PEFT, B zero.
    - `pissa`: the largest singular values of each weight (PiSSA), whose initial product is subtracted again.
    """
    start: Literal["continue", "merge"] = "continue"
    """Use of an adapter that the model in `model.path` has already.

    - `continue`: train it further; `rank`, `alpha` and `targets` must be those of the adapter.
    - `merge`: merge it into its base in bfloat16 (float32 where `base_format` is), and train a new one.
    """

    @property
    def is_quantized(self) -> bool:
        """Whether the frozen weights are stored as codes."""
        return self.base_format in ("int8", "int4", "nf4")

    def check(self) -> None:
        """Raise InputError for settings of an adapter without one, and for a block size that no format uses."""
        if self.rank == 0 and not is_unset(self.rank):
            self.check_unused()
        if self.block_size != DEFAULT_BLOCK and not self.is_quantized:
            raise InputError(
                f"adapter.block_size is {self.block_size} and adapter.base_format `{self.base_format}`: only int8, int4 and nf4 "
                "have blocks. Set one of these, or leave adapter.block_size unset."
            )

    def check_unused(self) -> None:
        """Raise InputError where a setting other than the rank is set: without an adapter it would have no effect."""
        default = AdapterOptions()
        names = ("alpha", "targets", "use_rslora", "init", "start", "block_size", "base_format")
        given = [name for name in names if getattr(self, name) != getattr(default, name)]
        if given:
            values = " and ".join(f"adapter.{name} is {_format_value(getattr(self, name))}" for name in given)
            raise InputError(
                f"{values} with adapter.rank 0, which trains all weights in float32. Set a rank, such as `--adapter.rank 16`, "
                f"or leave {'it' if len(given) == 1 else 'them'} unset."
            )


def _format_value(value: object) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True)
class StorageOptions:
    """How a command that does not train stores the weights it computes with."""

    base_format: BaseFormat | None = None
    """Storage format of the weights: int8, int4 and nf4 take less memory and change the outputs. Default: the format that
    the adapter in `path` was trained with, else float32.

    - `float32`: four bytes a weight.
    - `bfloat16`: two bytes.
    - `int8`: one byte and a scale per block.
    - `int4`: half a byte and a scale per block.
    - `nf4`: half a byte and a scale per block, in the quantiles of a normal distribution.
    """
    block_size: PositiveInt | None = field(default=None, metadata=ADVANCED)
    """Block size of int8, int4 and nf4: inputs of a projection that share a scale. Default: the run's, else 64."""


@dataclass(frozen=True)
class InferenceOptions(StorageOptions, ForwardOptions):
    """The model's files, how their weights are stored, and how the forward pass computes."""


@dataclass(frozen=True)
class EvaluationOptions(StorageOptions, ScoringOptions):
    """The model's files, how their weights are stored, and how the forward pass computes logits and log-probs."""
