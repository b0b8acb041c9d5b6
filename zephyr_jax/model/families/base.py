"""What a model family is, and how the fields of its config.json are checked.

A family is one module with one `Family` value, listed in `registry.FAMILIES`. Where its architecture has an operation that the
decoder lacks, it needs a field of `ModelConfig` and that operation in `model.layers`; nothing else in the package knows
families.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import pydantic
from pydantic import Field

from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.tensors import HfTensor

type HfConfig = dict[str, Any]
"""A parsed config.json."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A Hugging Face architecture that the decoder computes."""

    model_type: str
    """`model_type` in config.json."""
    architecture: str
    """Model class of transformers, written to `architectures` on export."""
    read: Callable[[HfConfig], ModelConfig]
    """config.json -> configuration. Raises InputError for each feature that would be computed differently, with the reason."""
    write: Callable[[ModelConfig], HfConfig]
    """Fields of config.json that export overwrites, so that every version of transformers reads the same values."""
    tensors: Callable[[ModelConfig], tuple[HfTensor, ...]]
    """All parameters of the decoder, with their Hugging Face names."""


Size = Annotated[int, Field(ge=1, le=2**24)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Number = Annotated[float, Field(gt=0, lt=1e30)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Probability = Annotated[float, Field(ge=0, lt=1)]


class HfFields(pydantic.BaseModel):
    """Base of the fields that a family reads from config.json: strict types, unknown fields ignored."""

    model_config = pydantic.ConfigDict(strict=True, allow_inf_nan=False)


def parse_fields[F: HfFields](fields: type[F], hf_config: HfConfig, file: str = "config.json") -> F:
    """Check the types of the fields that are read.

    Args:
        fields: Their names and types.
        hf_config: The parsed file.
        file: Its name, for messages.

    Raises:
        InputError: A required field is absent or null, or a field has a value of another type; names the field.
    """
    required = [name for name, field in fields.model_fields.items() if field.is_required()]
    missing = [name for name in required if hf_config.get(name) is None]
    try:
        return fields.model_validate(hf_config)
    except pydantic.ValidationError as error:
        wrong = [problem for problem in error.errors() if problem["loc"][0] not in missing]
        if not wrong:
            raise InputError(
                f"{file} lacks {', '.join(missing)}. Take the {file.rpartition('/')[2]} that belongs to the weights."
            ) from error
        name, message, value = wrong[0]["loc"][0], wrong[0]["msg"], wrong[0]["input"]
        raise InputError(
            f"Invalid {name} in {file}: expected {message.removeprefix('Input should be ')}, got {truncate_repr(value)}. "
            f"Take the {file.rpartition('/')[2]} that belongs to the weights."
        ) from error


def check_supported(hf_config: HfConfig, neutral: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise InputError for a field whose value is not among the neutral ones, which leave the computation as it is."""
    for name, values in neutral.items():
        if hf_config.get(name) not in (None, *values):
            raise unsupported(name, hf_config[name])


def unsupported(name: str, value: Any) -> InputError:
    """The error for a field that asks for a computation that is not implemented."""
    return InputError(
        f"config.json sets `{name}` to {truncate_repr(value, 200)}, which is not implemented: the model would compute other "
        "values. Choose a checkpoint without it."
    )


def check_head_dim(head_dim: int) -> int:
    """The size itself. Raises InputError where rotary embeddings, which rotate pairs, cannot use it."""
    if head_dim < 2 or head_dim % 2:
        raise InputError(
            f"Invalid head_dim in config.json: expected an even number of at least 2 (rotary embeddings), got {head_dim}. Take "
            "the config.json that belongs to the weights."
        )
    return head_dim


def check_kv_heads(num_heads: int, num_kv_heads: int) -> int:
    """The number of key heads itself. Raises InputError where the query heads cannot share them equally."""
    if num_heads % num_kv_heads:
        raise InputError(
            f"Invalid num_key_value_heads in config.json: expected a divisor of num_attention_heads ({num_heads}), got "
            f"{num_kv_heads}. Take the config.json that belongs to the weights."
        )
    return num_kv_heads


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite positive number."""
    return type(value) in (int, float) and 0 < value < 1e30 and math.isfinite(value)
