"""An adapter whose B is zero, as new ones are, changes no bit of the hidden states and of the loss."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.models import make_rules, packed_rows, random_segments
from zephyr_jax.batch import TokenBatch
from zephyr_jax.checkpoint.opened import AbstractModel, OpenedModel
from zephyr_jax.checkpoint.training_format import open_for_training
from zephyr_jax.config.adapter import AdapterOptions
from zephyr_jax.config.sections import ModelOptions
from zephyr_jax.model.attention.dense import SegmentInfo
from zephyr_jax.model.decoder import build
from zephyr_jax.model.lora import LORA_A, LORA_B, only_adapter
from zephyr_jax.objective.example_loss import make_objective
from zephyr_jax.objective.sft import sft_loss


def outputs(opened: OpenedModel, batch: TokenBatch) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states and the SFT loss."""
    model: AbstractModel = opened.abstract
    objective = make_objective(sft_loss, model.definition, None, segments=2, chunk=16)

    @jax.jit
    def forward(parameters: Any) -> tuple[jax.Array, jax.Array]:
        decoder = build(model.definition, parameters)
        hidden_BLD = decoder(batch.tokens, SegmentInfo(batch.segments, batch.positions))
        return hidden_BLD, objective(parameters, batch)[0].value

    hidden, loss = forward(opened.load_weights())
    return np.asarray(hidden), np.asarray(loss)


ALL = {"devices": 8, "data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    ("dtype", "base_format", "mesh"),
    [("float32", "float32", {}), ("bfloat16", "bfloat16", ALL), ("float32", "nf4", ALL), ("bfloat16", "nf4", {})],
    ids=["float32-float32", "bfloat16-bfloat16-2x2x2", "float32-nf4-2x2x2", "bfloat16-nf4"],
)
def test_a_new_adapter_changes_no_bit(golden: Path, dtype: str, base_format: Any, mesh: dict[str, int]) -> None:
    """Against the same base without it, on all seven projections."""
    model = ModelOptions(path=str(golden / "models" / "window"), compute_dtype=dtype)
    block = {"block_size": 8} if base_format == "nf4" else {}
    adapter = AdapterOptions(rank=4, base_format=base_format, **block)
    opened = open_for_training(model, adapter, make_rules(**mesh), seed=1)
    base = opened.as_reference()
    assert base.weight_format.lora is None
    assert base.weight_format.base_format == opened.weight_format.base_format == base_format
    nodes = jax.tree.leaves(only_adapter(opened.load_weights()), is_leaf=lambda node: LORA_A in node)
    assert len(nodes) == 7
    assert all(np.asarray(node[LORA_A]).any() and not np.asarray(node[LORA_B]).any() for node in nodes)
    sizes = [9, 14, 6, 11, 7, 12, 8, 15]
    segments = random_segments(sizes)
    batch = packed_rows([segments[row : row + 2] for row in range(0, 8, 2)], 32)
    for found, expected in zip(outputs(opened, batch), outputs(base, batch), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
