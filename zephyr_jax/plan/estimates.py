"""Estimated time and memory of a training step, from sizes alone: the order and the filter of `plan --fit`."""

import math
from functools import cache
from typing import Literal

import jax
import jax.numpy as jnp

from zephyr_jax.config.plan import PlanConfig
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.decoder import Compute, abstract_model
from zephyr_jax.model.lora import is_adapter
from zephyr_jax.model.quantize import CODE_DTYPES
from zephyr_jax.model.remat import saved_bytes
from zephyr_jax.model.weight_format import WeightFormat, stored_weights
from zephyr_jax.parallel.sharding import RULES
from zephyr_jax.plan.plan import recomputed_per_token, segment_length, total_rows
from zephyr_jax.plan.shape import planned_format, planned_shape
from zephyr_jax.plan.topology import GIB, chip_of
from zephyr_jax.train.throughput import flops_per_token

_VMEM_BUFFERS = 2**26  # bytes of small buffers outside HBM: half of a chip's VMEM, fitted

type Dtype = Literal["float32", "bfloat16"]


def dtype_bytes(*dtypes: Dtype) -> int:
    """Bytes of one number of each dtype, together."""
    return sum({"float32": 4, "bfloat16": 2}[dtype] for dtype in dtypes)


def seconds_per_token(config: PlanConfig, num_chips: int) -> float:
    """Roofline time of a token on one chip."""
    chip, model, tensor = chip_of(config.topology), planned_shape(config), config.mesh.tensor
    context = config.mesh.context
    weight_format = planned_format(config)
    tokens = _tokens_per_chip(config, num_chips)
    sharded = model.num_parameters * config.num_slices / num_chips
    if weight_format.lora:
        trained, frozen = stored_bytes(model, weight_format, 1, 1)
        adapter_weights = round(trained / 4)
        useful = flops_per_token(model, segment_length(config), adapter_weights)
        compute = (useful + recomputed_per_token(config, model, adapter_weights)) * tokens / chip.flops
        # forward and backward pass; a chip alone gathers nothing
        gathers = 2 * frozen / tensor if num_chips > tensor else 0.0
        sharded = adapter_weights
    else:
        compute = (6 * model.num_parameters + recomputed_per_token(config, model)) * tokens / chip.flops
        gathers = 4 * 2 * model.num_parameters / tensor  # forward, recomputation, backward, reduction of gradients
    # six all-reduces of [tokens, d_model] in a layer, shared by the tensor-parallel chips and not overlapped with compute
    all_reduces = 6 * 2 * (tensor - 1) * 2 * model.num_layers * tokens * model.d_model
    # keys and values of all columns, gathered in the forward pass and the recomputation, and their gradients
    heads = 2 * model.num_kv_heads * model.head_dim * model.num_layers
    all_gathers = 3 * 2 * (context - 1) * heads * tokens
    dcn = 2 * (1 - 1 / config.num_slices) * dtype_bytes(config.optimizer.grad_dtype) * sharded / chip.dcn
    padding = num_microbatches(config) * (config.batch.microbatch_rows or 1) / total_rows(config)
    return padding * (max(compute, gathers / chip.ici, dcn) + (all_reduces + all_gathers) / chip.ici) / tokens


def estimate_memory(config: PlanConfig, num_chips: int) -> float:
    """Estimated peak memory of one chip in a training step, in GiB.

    The peak is in the backward pass of a layer: the sharded state and gradients, the activations that all layers saved, the
    intermediates of one layer, and the gathered weights of one layer. Small buffers of these lie in VMEM instead of HBM.
    Moments in host memory pass through HBM one weight at a time. The factors of the intermediates and the share of VMEM are
    fitted to the compiler's figures in benchmarks/plan_*.md and of a small model.
    """
    model, optimizer, tensor = planned_shape(config), config.optimizer, config.mesh.tensor
    weight_format = planned_format(config)
    tokens = _tokens_per_chip(config, num_chips)
    itemsize = dtype_bytes(config.model.compute_dtype)
    moments = dtype_bytes(optimizer.first_moment_dtype, optimizer.second_moment_dtype)
    accumulates = num_microbatches(config) > 1
    gradients = 4 if accumulates else dtype_bytes(optimizer.grad_dtype)  # accumulated in float32
    if weight_format.lora:
        trained, frozen = stored_bytes(model, weight_format, num_chips // config.num_slices // tensor, tensor)
        gradients = dtype_bytes(optimizer.grad_dtype) + (4 if accumulates else 0)
        sharded = frozen + trained * (4 + gradients + (0 if optimizer.offload_moments else moments)) / 4
    else:
        largest = max(model.num_layers * model.d_ff, model.vocab_size) * model.d_model
        state = (4 + gradients) * model.num_parameters + moments * (
            largest if optimizer.offload_moments else model.num_parameters
        )
        sharded = state * config.num_slices / num_chips
    saved = saved_bytes(model, config.model.remat, itemsize, tensor) * model.num_layers * tokens * tensor
    # hidden states are not split by `tensor`, feed-forward activations are
    intermediates = itemsize * tokens * (10 * model.d_model * tensor + 6 * model.d_ff)
    tables = model.vocab_size * model.d_model * (1 if model.tie_embeddings else 2)
    gathered = itemsize * (model.num_parameters - tables) / model.num_layers / tensor
    return (sharded + saved + max(intermediates + gathered - _VMEM_BUFFERS, 0)) / GIB


@cache
def stored_bytes(model: ModelConfig, weight_format: WeightFormat, fsdp: int, tensor: int) -> tuple[float, float]:
    """Bytes of a chip's trainable and frozen weights on a mesh of these sizes; `fsdp` stands for `context`, too."""
    shards = {"fsdp": fsdp, "tensor": tensor}
    totals = {True: 0.0, False: 0.0}
    weights = stored_weights(model, abstract_model(model, Compute())[1], weight_format)
    for path, weight in jax.tree_util.tree_leaves_with_path(weights):
        number = math.prod(shards.get(name, 1) for axis in weight.axes if axis for name in RULES[axis])
        bits = 4 if weight.dtype in (jnp.int4, jnp.uint4) else 8 * jnp.dtype(weight.dtype).itemsize
        totals[is_adapter(path[-1].key)] += math.prod(weight.shape) * bits / 8 / number
    return totals[True], totals[False]


def blocks_divide(model: ModelConfig, weight_format: WeightFormat, fsdp: int, tensor: int) -> bool:
    """Whether every chip of the mesh has whole blocks of a quantized base."""
    if weight_format.base_format not in CODE_DTYPES:
        return True
    block = weight_format.block_size
    inputs = ((model.d_model, fsdp), (model.num_heads * model.head_dim, tensor), (model.d_ff, tensor))
    return all(size % (block * shards) == 0 for size, shards in inputs)


def _tokens_per_chip(config: PlanConfig, num_chips: int) -> float:
    """Token slots of a microbatch divided by all chips; a chip holds `mesh.tensor` times as many, with its share of features."""
    return (config.batch.microbatch_rows or 1) * config.data.row_length / num_chips


def num_microbatches(config: PlanConfig) -> int:
    """Microbatches of one optimizer step."""
    return -(-total_rows(config) // (config.batch.microbatch_rows or 1))
