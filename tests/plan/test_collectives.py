"""What compiled programs send: read right from the compiler's text, and little enough."""

from dataclasses import replace
from math import prod
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from zephyr_jax.batch import PairBatch, TokenBatch
from zephyr_jax.checkpoint.opened import abstract_of
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.config.sections import MeshOptions, ModelOptions
from zephyr_jax.config.training_sections import DpoOptions, OptimizerOptions, PairAnomalyOptions
from zephyr_jax.objective.dpo import dpo_loss
from zephyr_jax.objective.example_loss import make_objective
from zephyr_jax.objective.token_logprob import Chunking
from zephyr_jax.parallel.mesh import make_mesh
from zephyr_jax.parallel.sharding import ShardingRules
from zephyr_jax.plan.collectives import Collective, collectives
from zephyr_jax.train.anomalies import StepLimits
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
  %r = (f32[10]{0}, f32[2,2]{1,0}) all-reduce(%y, %z), replica_groups=mesh['data'=2,'fsdp'=4] {'data'}, to_apply=%add
}
"""


def test_bytes_groups_and_loops_are_read_from_the_text() -> None:
    """By hand: an all-gather and a reduce-scatter in a loop of five among four, an all-reduce of two arrays among two."""
    gather, scatter, reduce = collectives(TEXT)
    assert gather == Collective("all-gather", 5 * 64 * 16 * 2 * 3 / 4, "bf16[64,16]", 5, 4)
    assert scatter == Collective("reduce-scatter", 5 * 16 * 16 * 2 * 3, "bf16[16,16]", 5, 4)
    assert reduce == Collective("all-reduce", (10 + 4) * 4 * 2 / 2, "f32[10], f32[2,2]", 1, 2)


def test_a_real_program_is_read_too() -> None:
    """A sharded sum, compiled here: one all-reduce of the result among eight."""
    mesh = make_mesh(MeshOptions(), jax.devices())
    x = jax.ShapeDtypeStruct((8, 5), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
    whole = NamedSharding(mesh, PartitionSpec())
    text = jax.jit(lambda x: jnp.sum(x, axis=0), out_shardings=whole).lower(x).compile().as_text()
    (found,) = collectives(text)
    assert (found.kind, found.group, found.bytes) == ("all-reduce", 8, 5 * 4 * 2 * 7 / 8)


ROWS, LENGTH, PAIRS = 8, 64, 2


@pytest.fixture(scope="module", params=[(1, 4096), (2, 4096), (1, 96)], ids=["vocabulary", "two copies", "rows"])
def dpo_step(request: pytest.FixtureRequest, golden: Path) -> tuple[list[tuple[int, ...]], int, int]:
    """Sizes of every array that a compiled DPO step sends, its vocabulary and the model's width.

    The first two split a vocabulary that is far larger than the model, the third splits rows.
    """
    data, vocab = request.param
    rules = ShardingRules(make_mesh(MeshOptions(data=data), jax.devices()))
    options = ModelOptions(path=str(golden / "models" / "gqa"), compute_dtype="float32")
    shape = replace(find_model(options).model_config, vocab_size=vocab)
    assert Chunking.choose(16, False, rules, ROWS * LENGTH, vocab).split_vocab == (vocab == 4096)
    model = abstract_of(shape, options, rules)
    optimizer = make_optimizer(OptimizerOptions(), 10)
    shardings = state_shardings(model.parameters, model.shardings, optimizer, rules)
    objective = make_objective(dpo_loss, model.definition, DpoOptions(), segments=2 * PAIRS, chunk=16)
    step = make_step(objective, optimizer, learning_rate(OptimizerOptions(), 10), shardings, PairAnomalyOptions())

    def array(width: int, dtype: type) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, ROWS, width), dtype, sharding=rules.sharding("microbatch", "batch", None))

    ids = array(LENGTH, jnp.int32)
    rows = TokenBatch(ids, ids, ids, array(LENGTH, jnp.bool_))
    batch = PairBatch(rows, array(2 * PAIRS, jnp.float32), array(PAIRS, jnp.bool_))
    limits = StepLimits(
        *(jax.ShapeDtypeStruct((), dtype, sharding=shardings.step) for dtype in (jnp.float32, jnp.bool_))
    )
    text = step.lower(abstract_state(model.parameters, optimizer, shardings), batch, limits).compile().as_text()
    sent = [name for each in collectives(text) for name in each.result.split(", ")]
    sizes = [tuple(int(size) for size in name[name.index("[") + 1 : -1].split(",") if size) for name in sent]
    return sizes, shape.vocab_size, shape.d_model


def test_logits_never_travel(dpo_step: tuple[list[tuple[int, ...]], int, int]) -> None:
    """Whatever has a side as long as the vocabulary, or a device's part of it, is the embedding or the unembedding."""
    sent, vocab, model = dpo_step
    parts = {vocab, vocab // 4, vocab // 8} - {12, 24}  # 96 // 8 and 96 // 4 are other sizes here too
    assert vocab == 96 or any(parts & set(sizes) for sizes in sent)
    for sizes in sent:
        assert prod(sizes) <= max(vocab * model, ROWS * LENGTH * model), sizes
        assert not parts & set(sizes) or {model, model // 4, model // 8} & set(sizes), sizes


def test_the_pair_difference_needs_no_wire(dpo_step: tuple[list[tuple[int, ...]], int, int]) -> None:
    """Both answers of a pair share a row: between single numbers and whole hidden states or weights nothing is sent."""
    sent, _, _ = dpo_step
    assert () in sent  # the loss
    per_pair = {PAIRS, 2 * PAIRS}
    assert not [sizes for sizes in sent if sizes and sizes[-1] in per_pair and prod(sizes) <= ROWS * 2 * PAIRS]
