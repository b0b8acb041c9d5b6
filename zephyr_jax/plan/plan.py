"""`zephyr-jax plan`: compile a card's real step for a TPU topology without the hardware, and report memory and traffic.

Memory and collectives are the TPU compiler's figures for the whole program at full depth. Times are computed from those and
the chip's published peak rates.
"""

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from zephyr_jax.batch import Array, Batch, TokenBatch, make_batch
from zephyr_jax.checkpoint.opened import AbstractModel, abstract_of
from zephyr_jax.config.plan import PlanConfig
from zephyr_jax.config.sections import settled
from zephyr_jax.errors import InputError
from zephyr_jax.generate.decode import decode, idle_state
from zephyr_jax.generate.engine import DECODE_STEPS, num_slots
from zephyr_jax.methods.base import Method
from zephyr_jax.methods.registry import METHODS, method_names, method_of
from zephyr_jax.model.cached import CACHE_AXES, CachedModel
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.lora import num_adapter_weights
from zephyr_jax.model.remat import recomputed_flops
from zephyr_jax.model.weight_format import PLAIN, WeightFormat
from zephyr_jax.objective.logprob import sequence_logprob
from zephyr_jax.parallel.mesh import make_mesh
from zephyr_jax.parallel.sharding import ShardingRules
from zephyr_jax.plan.collectives import Collective, collectives
from zephyr_jax.plan.shape import planned_format, planned_shape
from zephyr_jax.plan.topology import GIB, Chip, chip_of, topology_devices
from zephyr_jax.train.anomalies import StepLimits
from zephyr_jax.train.optimizer import learning_rate, make_optimizer
from zephyr_jax.train.state import abstract_state, state_shardings
from zephyr_jax.train.step import make_step
from zephyr_jax.train.throughput import flops_per_token, keys_seen

PER_ROW = 2  # UltraFeedback pairs have about 1,000 tokens, rows 2,048; decides only the accumulation
SHARED_PER_ROW = 2.5
"""The same where rows share prompts: benchmarks/workload.py's pairs fill 1,170 rows of 2,048 tokens with 3,000 pairs."""
_EXAMPLES_PER_ROW = 16
EXAMPLES = {"HuggingFaceH4/ultrachat_200k": 207_865, "HuggingFaceH4/ultrafeedback_binarized": 61_135}
"""Rows of the training splits that the cards name."""
TOKENS = {"HuggingFaceH4/ultrachat_200k": 1374, "HuggingFaceH4/ultrafeedback_binarized": 1000}
"""Mean tokens of an example: 285.7M over 207,865 conversations (the handbook's 1,090 steps); a pair is a guess."""
PROMPT_TOKENS = {"HuggingFaceH4/ultrafeedback_binarized": 210}
"""Mean tokens of the prompt of a pair, a guess."""


@dataclass(frozen=True)
class StepPlan:
    """Memory, traffic and time of one step."""

    config: PlanConfig
    chip: Chip
    num_chips: int
    model: ModelConfig
    microbatch_rows: int
    num_microbatches: int
    arguments: float
    """GiB a chip: weights, moments and batch."""
    temporaries: float
    """GiB a chip: gradients, activations, buffers of collectives."""
    peak: float
    """Peak GiB a chip."""
    host_memory: float
    """GiB of the host's memory for each of its chips: offloaded moments or activations."""
    host_traffic: float
    """GiB between a chip and its host in a step, both directions: moments once, activations for every microbatch."""
    compile_seconds: float
    collectives: tuple[Collective, ...]
    """Of one step."""
    weight_format: WeightFormat = PLAIN
    adapter_weights: int = 0
    """Trainable weights of the adapter; 0 without one."""

    @property
    def fits(self) -> bool:
        """Whether the program fits the chip."""
        return self.peak <= self.chip.hbm

    @property
    def tokens(self) -> int:
        """Token slots of a step; of generation, one new token of every row."""
        if self.config.planned_step == "generate":
            return self.microbatch_rows
        return self.num_microbatches * self.microbatch_rows * self.config.data.row_length

    @property
    def flops_per_token(self) -> float:
        """Useful matmul operations a token: those of MFU."""
        length, trains = segment_length(self.config), self.config.plans_training
        return flops_per_token(self.model, length, self.adapter_weights, has_backward=trains)

    @property
    def recomputed_per_token(self) -> float:
        """Matmul operations a token that are done again: by the backward pass, and by attention for copies of a prompt."""
        if not self.config.plans_training:
            return copied_attention(self.config, self.model)
        return recomputed_per_token(self.config, self.model, self.adapter_weights)

    @property
    def seconds(self) -> float:
        """Step time at the roofline: the longest of compute, interconnect, host transfers and memory."""
        return max(self.compute_seconds, self.ici_seconds, self.dcn_seconds, self.host_seconds, self.memory_seconds)

    @property
    def compute_seconds(self) -> float:
        """Matmuls at the chips' peak, recomputation included."""
        flops = self.flops_per_token + self.recomputed_per_token
        return self.tokens * flops / (self.num_chips * self.chip.flops)

    @property
    def memory_seconds(self) -> float:
        """Generation: weights and cache, read once for a token of every row. Elsewhere matmuls take longer."""
        return self.arguments * GIB / self.chip.bandwidth if self.config.planned_step == "generate" else 0.0

    @property
    def ici_seconds(self) -> float:
        """Collectives inside a slice, over all links of a chip."""
        return sum(collective.bytes for collective in self.collectives if not collective.between_slices) / self.chip.ici

    @property
    def dcn_seconds(self) -> float:
        """Collectives between slices, over a chip's share of its host's network."""
        return sum(collective.bytes for collective in self.collectives if collective.between_slices) / self.chip.dcn

    @property
    def host_seconds(self) -> float:
        """Offloaded arrays, in both directions over a chip's share of PCIe."""
        return self.host_traffic * GIB / self.chip.pcie

    @property
    def mfu(self) -> float:
        """Share of the peak that useful operations have at the roofline."""
        return self.tokens * self.flops_per_token / (self.num_chips * self.chip.flops * self.seconds)

    @property
    def num_examples(self) -> int | None:
        """Training examples: those of a known data set, up to `data.limit`; None for another data set."""
        examples = EXAMPLES.get(self.config.data.path)
        return min(examples, self.config.data.limit or examples) if examples else None

    @property
    def steps(self) -> int | None:
        """Steps of the whole run; None unless the schedule or a known dataset determines them."""
        config = self.config
        if config.schedule.max_steps:
            return config.schedule.max_steps
        examples, tokens = self.num_examples, TOKENS.get(config.data.path, 0)
        if shares_prompts(config):
            tokens -= PROMPT_TOKENS.get(config.data.path, 0)
        if examples is None:
            return None
        examples = min(examples, config.data.limit or examples)
        if config.planned_step == "reference":
            return -(-examples * tokens // (self.microbatch_rows * config.data.row_length))
        batch_size = config.batch.examples or (config.batch.rows or 1) * config.data.row_length / tokens
        return round(config.schedule.epochs * examples / batch_size)


def segment_length(config: PlanConfig) -> int:
    """Tokens of the longest segment."""
    return min(config.data.row_length, config.data.max_length)


def recomputed_per_token(config: PlanConfig, shape: ModelConfig, adapter_weights: int = 0) -> float:
    """Matmul operations a token that a training step repeats: of the layers, adapters and logits, under `model.remat` and
    `model.save_logits`; and attention of the copies of a shared prompt."""
    # With adapters the unembedding is frozen, and its backward pass needs no logits.
    logits = 0 if config.model.save_logits or adapter_weights else 2 * shape.vocab_size * shape.d_model
    keys = keys_seen(shape, segment_length(config))
    repeated = recomputed_flops(shape, config.model.remat, keys) + copied_attention(config, shape)
    return repeated + 2 * adapter_weights + logits


def shares_prompts(config: PlanConfig) -> bool:
    """Whether the rows of the planned step hold a prompt once for several segments."""
    if config.planned_step == "generate" or not config.data.share_prompts:
        return False
    return planned_method(config).examples.segments_per_example > 1


def copied_attention(config: PlanConfig, shape: ModelConfig) -> float:
    """Matmul operations a token of attention over the columns that un-shared rows have more than rows."""
    if not shares_prompts(config):
        return 0.0
    segments = planned_method(config).examples.segments_per_example
    more = config.data.unshared_row_length(segments) / config.data.row_length - 1
    attention = 2 * shape.num_layers * shape.num_heads * shape.head_dim * keys_seen(shape, segment_length(config))
    return more * attention * (6 if config.plans_training else 2)


class DoesNotFitError(InputError):
    """The compiler found no room for the program."""


def plan(config: PlanConfig) -> StepPlan:
    """Compile the step. Raises InputError for an unknown topology, sizes that do not divide into the mesh, or no room."""
    config = fit_lengths(config)
    rules = ShardingRules(make_mesh(config.mesh, topology_devices(config.topology, config.num_slices)))
    if config.planned_step == "generate":
        rules.check_unsplit_rows()
    rows = config.batch.rows_per_forward
    rules.check_divides("batch", rows, "batch.microbatch_rows (or batch.rows)")
    rules.check_row_length(config.data.row_length)
    shape = planned_shape(config)
    model = abstract_of(shape, config.model, rules, planned_format(config))
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            # A program for devices that are not here cannot be read back from JAX's cache: it is compiled again.
            warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
            compiled = lower(config, model, rules, rows).compile()
    except jax.errors.JaxRuntimeError as error:
        raise _refusal(str(error), config) from error
    memory, microbatches = compiled.memory_analysis(), _microbatches(config, rows)
    moments, activations = memory.host_argument_size_in_bytes / GIB, memory.host_temp_size_in_bytes / GIB
    return StepPlan(
        config=config,
        chip=chip_of(config.topology),
        num_chips=rules.mesh.size,
        model=shape,
        microbatch_rows=rows,
        num_microbatches=microbatches,
        arguments=memory.argument_size_in_bytes / GIB,
        temporaries=memory.temp_size_in_bytes / GIB,
        peak=memory.peak_memory_in_bytes / GIB - moments,  # the peak includes arguments in the host's memory
        host_memory=moments + activations,
        host_traffic=2 * (moments + microbatches * activations),
        compile_seconds=time.perf_counter() - start,
        collectives=tuple(collectives(compiled.as_text())),
        weight_format=model.weight_format,
        adapter_weights=num_adapter_weights(model.parameters),
    )


def _microbatches(config: PlanConfig, rows: int) -> int:
    if config.planned_step in ("reference", "generate"):
        return 1
    return -(-total_rows(config) // rows)


def planned_method(config: PlanConfig) -> Method:
    """The method to train with, or whose reference pass is planned. Raises InputError for an unknown step."""
    if config.plans_training and config.planned_step not in METHODS:
        raise InputError(
            f"Expected step to be {method_names()}, `reference` or `generate`, got `{config.planned_step}`."
        )
    return METHODS.get(config.planned_step, method_of(config))


def fit_lengths(config: PlanConfig) -> PlanConfig:
    """The settings with a row length that holds an example of the planned method, where none is set."""
    segments = 1 if config.planned_step == "generate" else planned_method(config).examples.segments_per_example
    data = config.data.fitted(segments)
    # As given values: `replace` would fit unset ones to one sequence again.
    data = replace(data, row_length=settled(data.row_length), max_prompt_length=settled(data.max_prompt_length))
    return replace(config, data=data)


def total_rows(config: PlanConfig) -> int:
    """Rows of one optimizer step; a guess where the card counts examples."""
    return config.batch.rows or math.ceil((config.batch.examples or 1) / examples_per_row(config))


def examples_per_row(config: PlanConfig) -> float:
    """A guess of how many examples share a row."""
    return SHARED_PER_ROW if shares_prompts(config) else PER_ROW


def lower(config: PlanConfig, model: AbstractModel, rules: ShardingRules, rows: int) -> Any:
    """The planned step, traced for the mesh of `rules` and ready to be compiled; nothing is computed."""
    if config.planned_step == "generate":
        return _lower_generate(config, model, rules, rows)
    method = planned_method(config)
    batch = _abstract_batch(config, method, rules, rows)
    chunk = model.logprob_chunk
    if config.planned_step == "reference":
        microbatch = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=rules.sharding("batch", None)),
            batch.rows,
        )
        segments = method.examples.segments_per_example * _EXAMPLES_PER_ROW
        traced = sequence_logprob.trace(model.definition, model.parameters, microbatch, segments=segments, chunk=chunk)
        return traced.lower(lowering_platforms=("tpu",))
    objective = method.objective(model.definition, config, examples_per_row=_EXAMPLES_PER_ROW, chunk=chunk)
    optimizer = make_optimizer(config.optimizer, 1000)
    offload = config.optimizer.offload_moments
    trains = model.weight_format.is_trainable
    shardings = state_shardings(model.parameters, model.shardings, optimizer, rules, offload, trains)
    rate = learning_rate(config.optimizer, 1000)
    step = make_step(objective, optimizer, rate, shardings, config.anomaly, config.optimizer.grad_dtype)
    state = abstract_state(model.parameters, optimizer, shardings)
    everywhere = shardings.step
    limits = StepLimits(*(jax.ShapeDtypeStruct((), dtype, sharding=everywhere) for dtype in (jnp.float32, jnp.bool_)))
    return step.trace(state, batch, limits).lower(lowering_platforms=("tpu",))


def _lower_generate(config: PlanConfig, model: AbstractModel, rules: ShardingRules, rows: int) -> Any:
    """One call of `decode` for every row, with a cache of `data.row_length` positions."""
    cached = CachedModel(model.config, model.compute, model.weight_format)

    def placed(leaf: Any, names: Sequence[str | None]) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rules.sharding(*names))

    weights = jax.tree.map(placed, jax.eval_shape(cached.flatten, model.parameters), cached.stored_axes())
    slots = num_slots(model.config, config.data.row_length)
    cache = jax.tree.map(
        lambda leaf: placed(leaf, CACHE_AXES[leaf.ndim]), jax.eval_shape(partial(cached.empty_cache, rows, slots))
    )
    state = jax.tree.map(lambda leaf: placed(leaf, ("batch", *[None] * (leaf.ndim - 1))), idle_state(rows))
    return decode.trace(cached, weights, cache, state, steps=DECODE_STEPS).lower(lowering_platforms=("tpu",))


def _abstract_batch(config: PlanConfig, method: Method, rules: ShardingRules, rows: int) -> Batch:
    """Shapes, dtypes and shardings of a batch with `_EXAMPLES_PER_ROW` example slots in each row, in the layout of the loader."""
    sharding = rules.sharding("microbatch", "batch", None)

    def array(width: int, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((_microbatches(config, rows), rows, width), dtype, sharding=sharding)

    slots, length, per_example = _EXAMPLES_PER_ROW, config.data.row_length, method.examples.segments_per_example
    segments = slots * per_example
    arrays: dict[str, Array] = {name: array(length, jnp.int32) for name in TokenBatch._fields}
    if shares_prompts(config):
        unshared = array(config.data.unshared_row_length(per_example), jnp.int32)
        arrays |= {"source": array(length, jnp.int32), "copies": array(per_example * length, jnp.int32)}
        arrays |= {"unshared_columns": unshared, "unshared_segments": unshared}
    arrays |= {"targets": array(length, jnp.bool_), "present": array(slots, jnp.bool_)}
    arrays |= {"reference": array(segments, jnp.float32)}
    columns = method.examples.column_types.items()
    return make_batch(method.batch, arrays | {name: array(slots * width, dtype) for name, (dtype, width) in columns})


def _refusal(message: str, config: PlanConfig) -> InputError:
    kind = DoesNotFitError if "RESOURCE_EXHAUSTED" in message else InputError
    reason = " ".join(message.split())[:400]
    return kind(
        f"The TPU compiler refuses the {config.planned_step} step on {config.topology}: {reason} "
        "What helps: a larger topology, bfloat16 moments, --optimizer.offload_moments, a smaller batch.microbatch_rows, with an "
        "adapter `--adapter.base_format nf4`; `--fit` searches all but the offload."
    )
