"""Every policy of `model.remat` changes the program as its help describes, on every kernel, and costs what `plan` counts."""

import re
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models import random_segments, whole_rows
from zephyr_jax.batch import TokenBatch
from zephyr_jax.checkpoint.opened import abstract_of
from zephyr_jax.config.sections import MeshOptions, ModelOptions, Remat
from zephyr_jax.model.attention.dense import SegmentInfo
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.decoder import Compute, Decoder, abstract_model
from zephyr_jax.model.remat import recomputed_flops, saved_bytes
from zephyr_jax.objective.example_loss import make_objective
from zephyr_jax.objective.sft import sft_loss
from zephyr_jax.parallel.mesh import make_mesh
from zephyr_jax.parallel.sharding import ShardingRules
from zephyr_jax.train.step import accumulate

SHAPE = ModelConfig(
    model_type="llama",
    vocab_size=512,
    d_model=256,
    d_ff=1024,
    num_layers=6,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    norm_eps=1e-5,
    rope_theta=1e4,
    sliding_window=None,
    tie_embeddings=False,
    max_positions=2048,
)
ROW = 128  # one block of attention, so that every loop of the CPU's kernel runs once, as the compiler counts it
ON_CHIP: tuple[Remat, ...] = (Remat.FULL, Remat.SAVE_ATTENTION, Remat.SAVE_DOTS, Remat.NONE)
"""Policies by growing memory."""


@dataclass(frozen=True)
class Cost:
    """What the compiler counts for the gradient of one row."""

    flops: float
    temporaries: int
    dots: int


@pytest.fixture(scope="module")
def costs() -> dict[Remat, Cost]:
    """Compiled for one CPU device, by policy."""
    return {remat: compile_gradient(remat) for remat in tuple(Remat)}


def lower_gradient(remat: Remat, save_logits: bool = False, logprob_chunk: int = ROW) -> Any:
    rules = ShardingRules(make_mesh(MeshOptions(), jax.devices()[:1]))
    options = ModelOptions(
        "none", compute_dtype="float32", remat=remat, save_logits=save_logits, logprob_chunk=logprob_chunk
    )
    model = abstract_of(SHAPE, options, rules)
    objective = make_objective(sft_loss, model.definition, None, segments=1, chunk=options.logprob_chunk)
    ids = jax.ShapeDtypeStruct((1, 1, ROW), jnp.int32)
    batch = TokenBatch(ids, ids, ids, jax.ShapeDtypeStruct(ids.shape, jnp.bool_))
    gradient = jax.jit(lambda weights, batch: accumulate(objective, weights, batch, model.shardings))
    return gradient.lower(model.parameters, batch)


def compile_gradient(remat: Remat, save_logits: bool = False) -> Cost:
    compiled = lower_gradient(remat, save_logits).compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    return Cost(compiled.cost_analysis()["flops"], memory.temp_size_in_bytes, len(re.findall(r" dot\(", text)))


def test_each_policy_computes_less_and_holds_more_than_the_one_before(costs: dict[Remat, Cost]) -> None:
    """Law: from `inputs` to `everything`, operations fall and temporaries grow; `projections` spares products with weights."""
    for less, more in pairwise(ON_CHIP):
        assert costs[more].flops < costs[less].flops
        assert costs[more].temporaries > 1.05 * costs[less].temporaries
    # query, key, value, output, gate and up; the down projection is never repeated
    assert costs[Remat.SAVE_ATTENTION].dots - costs[Remat.SAVE_DOTS].dots == 6
    assert costs[Remat.FULL_OFFLOAD].flops == costs[Remat.FULL].flops


@pytest.mark.parametrize("remat", tuple(Remat))
def test_recomputed_operations_are_what_the_compiler_counts(costs: dict[Remat, Cost], remat: Remat) -> None:
    """Law: `recomputed_flops` of one layer (the compiler counts a loop's body once) is the compiler's difference to within 5 %
    of a forward pass."""
    one = replace(SHAPE, num_layers=1)
    expected = ROW * recomputed_flops(one, remat, ROW)
    forward = ROW * recomputed_flops(one, Remat.FULL, ROW)
    assert costs[remat].flops - costs[Remat.NONE].flops == pytest.approx(expected, abs=0.05 * forward)


def test_save_logits_spares_one_product_with_the_unembedding(costs: dict[Remat, Cost]) -> None:
    """Law: what `plan` adds for recomputed logits, 2 x vocab x model a token, is what `save_logits` saves."""
    saved = costs[Remat.NONE].flops - compile_gradient(Remat.NONE, save_logits=True).flops
    assert saved == pytest.approx(2 * ROW * SHAPE.vocab_size * SHAPE.d_model, rel=0.02)


def test_logprob_chunk_bounds_the_logits() -> None:
    """Law: no logits of more than `logprob_chunk` tokens are in the program (`test_logprob` has what that means for memory)."""
    for chunk in (16, 32):
        text = lower_gradient(Remat.FULL, logprob_chunk=chunk).as_text()
        assert {int(size) for size in re.findall(rf"tensor<1x(\d+)x{SHAPE.vocab_size}xf32>", text)} - {
            SHAPE.d_model
        } == {chunk}


def test_saved_bytes_are_the_residuals_of_the_backward_pass() -> None:
    """Law: `saved_bytes` is, to the byte, what JAX carries from the forward to the backward pass for each layer and token."""
    for remat in ON_CHIP[:-1]:
        weights, loss = traced_loss(remat, "xla")
        residuals = jax.eval_shape(lambda weights, loss=loss: jax.vjp(loss, weights)[1], weights)
        stacked = [leaf for leaf in jax.tree.leaves(residuals) if leaf.ndim > 2 and leaf.shape[0] == SHAPE.num_layers]
        held = weights["decoder"]["attention"] | weights["decoder"]["feed_forward"]
        known = {leaf.shape for leaf in held.values()}
        saved = sum(leaf.size * leaf.dtype.itemsize for leaf in stacked if leaf.shape not in known)
        assert saved / SHAPE.num_layers / ROW == saved_bytes(SHAPE, remat, 2)


def traced_loss(remat: Remat, kernel: Any) -> tuple[Any, Any]:
    """Abstract weights and a loss of them over one row, in bfloat16."""
    definition, state = abstract_model(SHAPE, Compute(remat=remat, kernel=kernel))
    batch = whole_rows(np.zeros((1, ROW), np.int32))

    def loss(weights: Any) -> jax.Array:
        hidden = nnx.merge(definition, weights)(batch.tokens, SegmentInfo(batch.segments, batch.positions))
        return jnp.sum(hidden.astype(jnp.float32) ** 2)

    return nnx.to_pure_dict(state), loss


@pytest.mark.parametrize("remat", tuple(Remat))
def test_the_tpu_kernel_runs_forward_once_where_attention_is_saved(remat: Remat) -> None:
    """Law: under `attention` and above, splash runs forward and backward; under `inputs` it runs forward once more."""
    weights, loss = traced_loss(remat, "splash")
    lowered = jax.jit(jax.grad(loss)).trace(weights).lower(lowering_platforms=("tpu",))
    assert lowered.as_text().count("tpu_custom_call") == (3 if remat.startswith(Remat.FULL) else 2)


@pytest.mark.parametrize("remat", tuple(Remat))
def test_the_gpu_kernel_runs_forward_once_where_attention_is_saved(
    remat: Remat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: the same for cuDNN, whose softmax statistics must be saved with its output. Lowered for CUDA; only the question
    which cuDNN is installed is answered here."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91300)
    weights, loss = traced_loss(remat, "cudnn")
    text = jax.jit(jax.grad(loss)).trace(weights).lower(lowering_platforms=("cuda",)).as_text()
    assert len(re.findall(r"__cudnn\$fmhaScaleBiasSoftmax\b", text)) == (2 if remat.startswith(Remat.FULL) else 1)
    assert text.count("__cudnn$fmhaScaleBiasSoftmaxBackward") == 1


def test_gradients_are_equal_under_every_policy() -> None:
    """Law: a policy moves work and memory; gradients agree to 1e-6. For splash, interpreted; `test_mistral` has XLA's blocks."""
    shape = replace(SHAPE, vocab_size=96, num_layers=2, d_model=64, d_ff=128, head_dim=128, num_heads=2, num_kv_heads=1)
    batch = whole_rows(np.stack(random_segments([ROW])))
    gradients = []
    for remat in (Remat.FULL, Remat.SAVE_ATTENTION, Remat.SAVE_DOTS):
        compute = Compute(dtype=jnp.dtype("float32"), remat=remat, kernel="splash-interpreted")
        definition, state = nnx.split(Decoder(shape, compute, nnx.Rngs(0)), nnx.Param)

        def loss(state: Any, definition: Any = definition) -> jax.Array:
            return jnp.mean(
                nnx.merge(definition, state)(batch.tokens, SegmentInfo(batch.segments, batch.positions)) ** 2
            )

        gradients.append(jax.jit(jax.grad(loss))(state))
    for other in gradients[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradients[0], other)


def test_the_policies_have_one_list() -> None:
    """Law: setting, model and search share `config.Remat`; no other module spells the names of the heavier policies."""
    assert get_type_hints(ModelOptions)["remat"] is Remat
    package = Path(__file__).parents[2] / "zephyr_jax"
    spelled = [path.relative_to(package) for path in package.rglob("*.py") if '"save_dots"' in path.read_text()]
    assert sorted(map(str, spelled)) == ["config/sections.py"]
