"""A step with adapters computes no gradient of the base, counted by the compiler."""

import re
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model.test_remat import ROW, SHAPE
from tests.models import make_rules
from zephyr_jax.batch import TokenBatch
from zephyr_jax.checkpoint.opened import abstract_of
from zephyr_jax.config.sections import ModelOptions, Remat
from zephyr_jax.config.training_sections import AnomalyOptions, OptimizerOptions
from zephyr_jax.model.families.targets import resolve_targets
from zephyr_jax.model.lora import LoraSpec, is_adapter
from zephyr_jax.model.remat import recomputed_flops
from zephyr_jax.model.weight_format import PLAIN, WeightFormat
from zephyr_jax.objective.example_loss import make_objective
from zephyr_jax.objective.sft import sft_loss
from zephyr_jax.train.anomalies import StepLimits
from zephyr_jax.train.optimizer import learning_rate, make_optimizer
from zephyr_jax.train.state import abstract_state, state_shardings
from zephyr_jax.train.step import make_step

MODEL = replace(SHAPE, num_layers=4)
ADAPTED = WeightFormat(
    base_format="float32", lora=LoraSpec(rank=8, alpha=16, targets=resolve_targets(("*_proj",), MODEL))
)
D, F, V = MODEL.d_model, MODEL.d_ff, MODEL.vocab_size
HEADS, KV_HEADS = MODEL.num_heads * MODEL.head_dim, MODEL.num_kv_heads * MODEL.head_dim
# Per token, for one layer: the compiler counts the body of a loop once.
BASE = 2 * D * (HEADS + KV_HEADS) + 3 * D * F + D * V
ADAPTER = 8 * (2 * (D + HEADS) + 2 * (D + KV_HEADS) + 3 * (D + F))
ATTENTION = 12 * HEADS * ROW  # two products forward and four backward; the CPU's kernel computes masked keys, too


@dataclass(frozen=True)
class StepCost:
    """What the compiler counts for one step on a row."""

    flops_per_token: float
    dots: int


def compile_step(weight_format: WeightFormat, remat: Remat = Remat.NONE) -> StepCost:
    rules, optimizer_options = make_rules(), OptimizerOptions()
    options = ModelOptions("none", compute_dtype="float32", remat=remat, save_logits=remat == Remat.NONE)
    model = abstract_of(MODEL, options, rules, weight_format)
    optimizer = make_optimizer(optimizer_options, 10)
    is_trainable = is_adapter if weight_format.lora else lambda _: True
    shardings = state_shardings(model.parameters, model.shardings, optimizer, rules, is_trainable=is_trainable)
    objective = make_objective(sft_loss, model.definition, None, segments=1, chunk=ROW)
    step = make_step(objective, optimizer, learning_rate(optimizer_options, 10), shardings, AnomalyOptions())
    ids = jax.ShapeDtypeStruct((1, 1, ROW), jnp.int32)
    batch = TokenBatch(ids, ids, ids, jax.ShapeDtypeStruct(ids.shape, jnp.bool_))
    state: Any = abstract_state(model.parameters, optimizer, shardings)
    compiled = step.lower(state, batch, StepLimits(np.float32(np.inf), np.bool_(False))).compile()
    return StepCost(compiled.cost_analysis()["flops"] / ROW, len(re.findall(r" dot\(", compiled.as_text())))


@pytest.fixture(scope="module")
def adapted() -> StepCost:
    return compile_step(ADAPTED)


def test_a_full_step_takes_six_operations_per_weight() -> None:
    """For comparison: forward, gradient by the input and gradient by the weight, two each."""
    flops = compile_step(PLAIN).flops_per_token
    assert 6 * BASE + ATTENTION < flops < 8 * BASE


def test_an_adapter_step_takes_four_operations_per_weight_of_the_base(adapted: StepCost) -> None:
    """To 5 % of the count, which adds six per weight of the adapter: no product of a gradient by a weight of the base."""
    expected = 4 * BASE + 6 * ADAPTER + ATTENTION
    assert adapted.flops_per_token == pytest.approx(expected, rel=0.05)
    assert expected < 4.7 * BASE


def test_recomputation_repeats_the_forward_pass_only() -> None:
    """`remat` full: the same and one more forward pass, with the adapter but without the down projection's products."""
    recomputed = recomputed_flops(replace(MODEL, num_layers=1), Remat.FULL, ROW) + 2 * D * V
    expected = 4 * BASE + 6 * ADAPTER + ATTENTION + recomputed + 2 * ADAPTER
    assert compile_step(ADAPTED, Remat.FULL).flops_per_token == pytest.approx(expected, rel=0.05)


def test_a_quantized_base_has_the_same_products(adapted: StepCost) -> None:
    """Dequantizing is elementwise: no further product with weights."""
    assert compile_step(replace(ADAPTED, base_format="nf4")).dots == adapted.dots
