"""What compiled programs send: read right from the compiler's text, and little enough."""

from dataclasses import replace
from math import prod
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from zephyr_jax.batch import PairBatch, TokenBatch
from zephyr_jax.checkpoint.source import abstract_of, find_model
from zephyr_jax.config import DpoOptions, MeshOptions, ModelOptions, OptimizerOptions
from zephyr_jax.objective.dpo import dpo_objective
from zephyr_jax.parallel.collectives import Collective, collectives
from zephyr_jax.parallel.mesh import make_mesh
from zephyr_jax.parallel.rules import Rules
from zephyr_jax.train.optimizer import learning_rate, make_optimizer
from zephyr_jax.train.state import abstract_state, state_shardings
from zephyr_jax.train.step import make_step

TEXT = """
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %g = bf16[64,16]{1,0} all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}
  %s = (bf16[64,16]{1,0}, bf16[16,16]{1,0}) reduce-scatter-start(%g), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}

%condition (p: (s32[], f32[8,16])) -> pred[] {
  %limit = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (x: f32[8,16]) -> f32[8,16] {
  %loop = (s32[], f32[8,16]) while(%t), condition=%condition, body=%body
  %r = f32[10]{0} all-reduce(%y), replica_groups=mesh['data'=2,'fsdp'=4] {'data'}, to_apply=%add
}
"""


def test_bytes_groups_and_loops_are_read_from_the_text() -> None:
    """By hand: an all-gather and a reduce-scatter in a loop of five among four, an all-reduce among two."""
    gather, scatter, reduce = collectives(TEXT)
    assert gather == Collective("all-gather", 5 * 64 * 16 * 2 * 3 / 4, "bf16[64,16]", 5, 4)
    assert scatter == Collective("reduce-scatter", 5 * 16 * 16 * 2 * 3, "bf16[16,16]", 5, 4)
    assert reduce == Collective("all-reduce", 10 * 4 * 2 / 2, "f32[10]", 1, 2)


def test_a_real_program_is_read_too() -> None:
    """A sharded sum, compiled here: one all-reduce of the result among eight."""
    mesh = make_mesh(MeshOptions(), jax.devices())
    x = jax.ShapeDtypeStruct((8, 5), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
    whole = NamedSharding(mesh, PartitionSpec())
    text = jax.jit(lambda x: jnp.sum(x, axis=0), out_shardings=whole).lower(x).compile().as_text()
    (found,) = collectives(text)
    assert (found.kind, found.group, found.bytes) == ("all-reduce", 8, 5 * 4 * 2 * 7 / 8)


@pytest.fixture(scope="module", params=[{"fsdp": 8}, {"data": 2, "fsdp": 4}], ids=["1x8x1", "2x4x1"])
def dpo_step(request: pytest.FixtureRequest, golden: Path) -> tuple[list[Collective], int, int]:
    """Collectives of a compiled DPO step with a vocabulary far larger than the model, that vocabulary, and its columns."""
    rules = Rules(make_mesh(MeshOptions(**request.param), jax.devices()))
    options = ModelOptions(path=str(golden / "models" / "gqa"), compute_dtype="float32")
    shape = replace(find_model(options).shape, vocab=4096)
    model = abstract_of(shape, options, rules)
    optimizer = make_optimizer(OptimizerOptions(), 10)
    shardings = state_shardings(model.parameters, model.shardings, optimizer, rules)
    step = make_step(
        dpo_objective(model.definition, DpoOptions(), 4, 16),
        optimizer,
        learning_rate(OptimizerOptions(), 10),
        shardings,
    )

    def array(width: int, dtype: type) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, 8, width), dtype, sharding=rules.sharding("microbatch", "batch", None))

    ids = array(64, jnp.int32)
    batch = PairBatch(TokenBatch(ids, ids, ids, array(64, jnp.bool_)), array(4, jnp.float32), array(2, jnp.bool_))
    text = step.lower(abstract_state(model.parameters, optimizer, shardings), batch).compile().as_text()
    return collectives(text), shape.vocab, shape.model


def test_logits_never_travel(dpo_step: tuple[list[Collective], int, int]) -> None:
    """No collective carries tokens x vocabulary, nor a part of it: only the unembedding itself, or its gradient, may."""
    found, vocab, model = dpo_step
    assert found
    for each in found:
        sizes = [int(size) for size in each.result.split("[")[1][:-1].split(",") if size]
        assert prod(sizes) <= vocab * model, each
        assert not ({vocab, vocab // 8, vocab // 4} & set(sizes)) or {model, model // 8, model // 4} & set(sizes), each


def test_the_pair_difference_needs_no_wire(dpo_step: tuple[list[Collective], int, int]) -> None:
    """Both answers of a pair share a row, so nothing of the shape [rows, segments] is exchanged."""
    found, _, _ = dpo_step
    assert not [each for each in found if each.result in ("f32[8,4]", "f32[8,2]", "f32[1,4]", "f32[4,4]")]
