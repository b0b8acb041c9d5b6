"""Rows of processes and devices."""

import jax
import numpy as np
import pytest

from zephyr_jax.config.sections import MeshOptions
from zephyr_jax.errors import InputError
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.decoder import Compute, abstract_model
from zephyr_jax.model.weight_format import PLAIN, stored_weights
from zephyr_jax.parallel.mesh import make_mesh
from zephyr_jax.parallel.place import local_rows, local_shard, place_batch
from zephyr_jax.parallel.sharding import ShardingRules, parameter_shardings


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 8, 1), (1, 1, 8)])
def test_placed_rows_come_back_in_order_and_once(sizes: tuple[int, int, int]) -> None:
    """Whatever the mesh, replicas on the tensor axis included."""
    rules = ShardingRules(make_mesh(MeshOptions(data=sizes[0], fsdp=sizes[1], tensor=sizes[2])))
    rows = np.arange(2 * 8 * 3).reshape(2, 8, 3)
    assert local_rows(rules, 8) == slice(0, 8)
    placed = place_batch(rules, {"tokens": rows}, 8)["tokens"]
    assert placed.shape == (2, 8, 3)
    np.testing.assert_array_equal(placed, rows)
    first = jax.device_put(rows[0], rules.sharding("batch", None))
    np.testing.assert_array_equal(local_shard(first), rows[0])


@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_axis_is_in_the_table_and_none_takes_a_mesh_axis_twice(tied: bool) -> None:
    """Matrices are split over fsdp and over tensor, each once; norms over nothing; an unknown axis is an error."""
    rules = ShardingRules(make_mesh(MeshOptions(data=2, fsdp=2, tensor=2)))
    shape = ModelConfig(
        model_type="llama",
        vocab_size=96,
        d_model=32,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        norm_eps=1e-5,
        rope_theta=1e4,
        sliding_window=None,
        tie_embeddings=tied,
        max_positions=64,
    )
    weights = stored_weights(shape, abstract_model(shape, Compute())[1], PLAIN)
    shardings = jax.tree.leaves(parameter_shardings(weights, rules))
    used = [[axis for axis in sharding.spec if axis is not None] for sharding in shardings]
    assert sorted(map(len, used)) == [0] * 3 + [2] * (8 if tied else 9)
    assert all(set(axes) == {"fsdp", "tensor"} for axes in used if axes)
    with pytest.raises(InputError, match="colour"):
        rules.sharding("colour")
