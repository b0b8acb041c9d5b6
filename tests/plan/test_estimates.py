"""What `plan` estimates against what the TPU compiler counts. Skipped where libtpu is not installed."""

import json
import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from zephyr_jax.batch import TokenBatch
from zephyr_jax.checkpoint.opened import abstract_of
from zephyr_jax.config.adapter import AdapterOptions
from zephyr_jax.config.plan import PlanConfig
from zephyr_jax.config.sections import MeshOptions, ModelOptions, Remat
from zephyr_jax.config.yaml_file import load_card
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.lora import num_adapter_weights
from zephyr_jax.model.remat import recomputed_flops
from zephyr_jax.objective.example_loss import make_objective
from zephyr_jax.objective.sft import sft_loss
from zephyr_jax.parallel.mesh import make_mesh
from zephyr_jax.parallel.sharding import ShardingRules
from zephyr_jax.plan.plan import StepPlan, lower
from zephyr_jax.plan.shape import planned_format, planned_shape
from zephyr_jax.plan.topology import chip_of, topology_devices
from zephyr_jax.train.step import accumulate
from zephyr_jax.train.throughput import keys_seen

pytestmark = pytest.mark.skipif(
    find_spec("libtpu") is None, reason="libtpu is not installed: uv run --extra tpu pytest"
)
CARD = Path(__file__).parents[2] / "configs" / "tiny" / "sft.yaml"
ROWS, LENGTH = 8, 512


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without loops over layers: the compiler counts the body of a loop once, however often it runs."""
    folder = tmp_path_factory.mktemp("one-layer")
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 1, "num_attention_heads": 4}
    rest = {
        "num_key_value_heads": 2,
        "head_dim": 128,
        "vocab_size": 1024,
        "rms_norm_eps": 1e-5,
        "model_type": "mistral",
    }
    (folder / "config.json").write_text(json.dumps(shape | rest))
    return folder


@pytest.mark.parametrize(("step", "rank"), [("sft", 0), ("reference", 0), ("sft", 8)])
def test_operations_a_token_are_what_the_compiler_counts(one_layer: Path, step: str, rank: int) -> None:
    """Within 2 %: all matmuls forward and backward except those inside attention's kernel, which the compiler does not see. With
    an adapter nothing computes the gradient of a frozen weight, which would be half as many operations again, and logits are
    not computed twice."""
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}
    card = load_card(PlanConfig, CARD)
    config = replace(
        card,
        step=step,
        topology="v5e:2x2",
        model=ModelOptions(str(one_layer), remat=Remat.NONE, logprob_chunk=ROWS * LENGTH),
        data=replace(card.data, row_length=LENGTH, max_length=LENGTH),
        batch=replace(card.batch, examples=None, rows=ROWS, microbatch_rows=ROWS),
        adapter=AdapterOptions(rank=rank) if rank else AdapterOptions(),
    )
    rules = ShardingRules(make_mesh(config.mesh, topology_devices(config.topology)))
    shape = planned_shape(config)
    model = abstract_of(shape, config.model, rules, planned_format(config))
    counted = lower(config, model, rules, ROWS).compile().cost_analysis()["flops"]
    planned = StepPlan(
        config=config,
        chip=chip_of(config.topology),
        num_chips=4,
        model=shape,
        microbatch_rows=ROWS,
        num_microbatches=1,
        arguments=0,
        temporaries=0,
        peak=0,
        host_memory=0,
        host_traffic=0,
        compile_seconds=0,
        collectives=(),
        adapter_weights=num_adapter_weights(model.parameters),
    )
    # A frozen embedding needs no gradient, so the first layer's query, key and value compute none for their input.
    spared = 2 * shape.d_model * shape.head_dim * (shape.num_heads + 2 * shape.num_kv_heads) if rank else 0
    per_token = planned.flops_per_token - spared
    if step == "sft":
        per_token += planned.recomputed_per_token
    per_token -= (6 if step == "sft" else 2) * 2 * shape.num_heads * shape.head_dim * keys_seen(shape, LENGTH)
    assert per_token * planned.tokens == pytest.approx(4 * counted, rel=0.02)


SMALL = ModelConfig(
    model_type="llama",
    vocab_size=1024,
    d_model=512,
    d_ff=2048,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=128,
    norm_eps=1e-5,
    rope_theta=1e4,
    sliding_window=None,
    tie_embeddings=False,
    max_positions=2048,
)


@dataclass(frozen=True)
class Cost:
    """What the TPU compiler counts for a gradient on one chip; it counts the body of a loop once, and no kernel's operations."""

    flops: float
    temporaries: int
    on_host: int
    kernels: int


@pytest.fixture(scope="module")
def costs() -> dict[Remat, Cost]:
    """The gradient of two rows, by policy."""
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}
    rules = ShardingRules(make_mesh(MeshOptions(), topology_devices("v5e:2x2")[:1]))
    ids, targets = (
        jax.ShapeDtypeStruct((1, 2, LENGTH), dtype, sharding=rules.sharding("microbatch", "batch", None))
        for dtype in (jnp.int32, jnp.bool_)
    )
    batch = TokenBatch(ids, ids, ids, targets)
    found = {}
    for remat in tuple(Remat):
        model = abstract_of(SMALL, ModelOptions("none", remat=remat, logprob_chunk=2 * LENGTH), rules)
        objective = make_objective(sft_loss, model.definition, None, segments=1, chunk=2 * LENGTH)

        def gradient(weights, batch, objective=objective, model=model):
            return accumulate(objective, weights, batch, model.shardings, "bfloat16")

        lowered = jax.jit(gradient).trace(model.parameters, batch).lower(lowering_platforms=("tpu",))
        compiled = lowered.compile()
        memory, kernels = compiled.memory_analysis(), lowered.as_text().count("tpu_custom_call")
        found[remat] = Cost(
            compiled.cost_analysis()["flops"], memory.temp_size_in_bytes, memory.host_temp_size_in_bytes, kernels
        )
    return found


def test_every_policy_changes_the_program_for_a_tpu(costs: dict[Remat, Cost]) -> None:
    """Law: `attention` and above run splash forward once instead of twice; `projections` repeats no product; memory grows."""
    assert {remat: cost.kernels for remat, cost in costs.items()} == {
        Remat.FULL: 3, Remat.FULL_OFFLOAD: 3, Remat.SAVE_ATTENTION: 2, Remat.SAVE_DOTS: 2, Remat.NONE: 2,
    }  # fmt: skip
    assert (
        costs[Remat.FULL].flops
        == costs[Remat.SAVE_ATTENTION].flops
        > costs[Remat.SAVE_DOTS].flops
        >= costs[Remat.NONE].flops
    )
    assert costs[Remat.SAVE_ATTENTION].temporaries < costs[Remat.SAVE_DOTS].temporaries < costs[Remat.NONE].temporaries
    assert costs[Remat.FULL].temporaries < costs[Remat.SAVE_DOTS].temporaries
    assert costs[Remat.FULL_OFFLOAD].on_host == SMALL.num_layers * 2 * LENGTH * SMALL.d_model * 2
    assert not any(cost.on_host for remat, cost in costs.items() if remat != Remat.FULL_OFFLOAD)


@pytest.mark.parametrize("remat", tuple(Remat))
def test_recomputed_operations_are_what_the_compiler_counts(costs: dict[Remat, Cost], remat: Remat) -> None:
    """Law: between a policy and `everything` lie the operations of `recomputed_flops`, to within 3 % of a forward pass; the
    kernel's are left out on both sides."""
    layer = replace(SMALL, num_layers=1)
    forward, expected = (2 * LENGTH * recomputed_flops(layer, each, keys_seen=0) for each in (Remat.FULL, remat))
    assert costs[remat].flops - costs[Remat.NONE].flops == pytest.approx(expected, abs=0.03 * forward)
