"""Rows of processes and devices."""

import jax
import numpy as np
import pytest

from zephyr_jax.config import MeshOptions
from zephyr_jax.errors import InputError
from zephyr_jax.parallel.mesh import make_mesh
from zephyr_jax.parallel.place import local_part, local_rows, place_batch
from zephyr_jax.parallel.rules import RULES, Rules


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 8, 1), (1, 1, 8)])
def test_placed_rows_come_back_in_order_and_once(sizes: tuple[int, int, int]) -> None:
    """Whatever the mesh, replicas on the tensor axis included."""
    rules = Rules(make_mesh(MeshOptions(data=sizes[0], fsdp=sizes[1], tensor=sizes[2])))
    rows = np.arange(2 * 8 * 3).reshape(2, 8, 3)
    assert local_rows(rules, 8) == slice(0, 8)
    placed = place_batch(rules, {"tokens": rows}, 8)["tokens"]
    assert placed.shape == (2, 8, 3)
    np.testing.assert_array_equal(placed, rows)
    first = jax.device_put(rows[0], rules.sharding("batch", None))
    np.testing.assert_array_equal(local_part(first), rows[0])


def test_every_weight_axis_is_in_the_table() -> None:
    """An axis that the table lacks is an error; no two axes of one weight go to the same mesh axis."""
    rules = Rules(make_mesh(MeshOptions()))
    with pytest.raises(InputError, match="colour"):
        rules.sharding("colour")
    assert RULES["embed"] != RULES["mlp"] != RULES["layers"]
