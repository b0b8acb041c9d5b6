"""`zephyr-jax plan`: compile a card's real step for a TPU topology that is not here, and say what it needs.

Memory is the TPU compiler's own word for the whole program at full depth. Times are arithmetic from the chip's peak.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from zephyr_jax.batch import PairBatch, TokenBatch, token_rows
from zephyr_jax.checkpoint.source import AbstractModel, abstract_of, find_model
from zephyr_jax.errors import InputError
from zephyr_jax.model.shape import ModelShape
from zephyr_jax.objective.dpo import dpo_objective
from zephyr_jax.objective.logprob import sequence_logprob
from zephyr_jax.objective.sft import sft_objective
from zephyr_jax.parallel.mesh import make_mesh
from zephyr_jax.parallel.rules import Rules
from zephyr_jax.parallel.topology import GIB, Chip, chip_of, topology_devices
from zephyr_jax.recipes.run import microbatch_rows
from zephyr_jax.train.optimizer import learning_rate, make_optimizer
from zephyr_jax.train.state import abstract_state, state_shardings
from zephyr_jax.train.step import make_step
from zephyr_jax.verbs import PlanConfig

MISTRAL_7B = ModelShape(32000, 4096, 14336, 32, 32, 8, 128, 1e-5, 1e4, 4096, False, 32768)
_PAIRS_PER_ROW = 2  # UltraFeedback pairs have about 1,000 tokens, rows 2,048; decides only the accumulation
_SEGMENTS = 16
_MFU = 0.4


@dataclass(frozen=True)
class Plan:
    """What the compiler and the arithmetic say."""

    config: PlanConfig
    chip: Chip
    chips: int
    shape: ModelShape
    rows: int
    microbatches: int
    arguments: float
    """GiB a chip: weights, moments and batch."""
    temporaries: float
    """GiB a chip: gradients, activations, buffers of collectives."""
    peak: float
    """GiB a chip at the worst moment."""
    compile_seconds: float

    @property
    def fits(self) -> bool:
        """Whether the program fits the chip."""
        return self.peak <= self.chip.hbm

    @property
    def tokens(self) -> int:
        """Token slots of a step."""
        return self.microbatches * self.rows * self.config.data.row_length

    @property
    def flops_per_token(self) -> float:
        """Matmul operations a token: 6 (forward and backward; 2 for the reference pass) a weight, and attention's."""
        shape, length = self.shape, self.config.data.row_length
        passes = 2 if self.config.planned_step == "reference" else 6
        lookup = 0 if shape.tied else shape.vocab * shape.model  # the embedding is looked up, not multiplied
        attention = 2 * shape.layers * shape.heads * shape.head_dim * min(length, self.config.data.max_length) / 2
        return passes * (shape.parameters - lookup + attention)

    def table(self) -> str:
        """For people: what is compiled, what is estimated, and what to do when it does not fit."""
        config, chip = self.config, self.chip
        seconds = self.tokens * self.flops_per_token / (self.chips * chip.flops)
        left = chip.hbm - self.peak
        verdict = f"fits, {left:.2f} GiB to spare" if self.fits else f"DOES NOT FIT: {-left:.2f} GiB too much"
        assumed = [] if config.batch.rows else [f"{_PAIRS_PER_ROW} examples a row (a guess; the data decide)"]
        if self.shape == MISTRAL_7B and not Path(config.model.path).is_dir():
            assumed.append("Mistral-7B's sizes, since model.path is no folder here")
        lines = [
            f"{config.planned_step} step of {self.shape.parameters / 1e9:.2f}B parameters on {config.topology} "
            f"({self.chips} chips of {chip.hbm:g} GiB), {self.microbatches} x {self.rows} rows of {config.data.row_length}, "
            f"moments {config.optimizer.first_moment_dtype} and {config.optimizer.second_moment_dtype}",
            *[f"assumed: {each}" for each in assumed],
            "",
            "| compiled, full depth | GiB a chip |",
            "|---|---|",
            f"| arguments (weights, moments, batch) | {self.arguments:.2f} |",
            f"| temporaries | {self.temporaries:.2f} |",
            f"| peak | {self.peak:.2f} |",
            f"| verdict | {verdict} |",
            "",
            "| estimated | |",
            "|---|---|",
            f"| operations a token | {self.flops_per_token / 1e9:.1f} G |",
            f"| step at the chips' peak | {seconds:.2f} s |",
            f"| step at {_MFU:.0%} MFU | {seconds / _MFU:.2f} s |",
            f"| tokens/s/chip at {_MFU:.0%} MFU | {self.tokens * _MFU / seconds / self.chips:,.0f} |",
            "",
            f"compiled in {self.compile_seconds:.0f} s",
        ]
        if not self.fits:
            lines.append(
                "What helps, most first: a larger topology; --optimizer.first_moment_dtype bfloat16 (and second_); a smaller "
                "--batch.microbatch_rows; --model.remat full; a smaller --model.logprob_chunk."
            )
        return "\n".join(lines)


def plan(config: PlanConfig) -> Plan:
    """Compile the step. Raises InputError for an unknown topology, or sizes that do not divide into the mesh."""
    config.check()
    rules = Rules(make_mesh(config.mesh, topology_devices(config.topology)))
    rows = microbatch_rows(config)
    rules.check_divides("batch", rows, "batch.microbatch_rows (or batch.rows)")
    shape = _shape(config)
    model = abstract_of(shape, config.model, rules)
    start = time.perf_counter()
    try:
        compiled = _lower(config, model, rules, rows).compile()
    except jax.errors.JaxRuntimeError as error:
        raise InputError(_out_of_memory(str(error), config)) from error
    memory = compiled.memory_analysis()
    return Plan(
        config,
        chip_of(config.topology),
        rules.mesh.size,
        shape,
        rows,
        _microbatches(config, rows),
        memory.argument_size_in_bytes / GIB,
        memory.temp_size_in_bytes / GIB,
        memory.peak_memory_in_bytes / GIB,
        time.perf_counter() - start,
    )


def _shape(config: PlanConfig) -> ModelShape:
    if config.shape is None and Path(config.model.path).is_dir():
        return find_model(config.model).shape
    return MISTRAL_7B


def _microbatches(config: PlanConfig, rows: int) -> int:
    if config.planned_step == "reference":
        return 1
    total = config.batch.rows or -(-(config.batch.examples or 1) // _PAIRS_PER_ROW)
    return -(-total // rows)


def _lower(config: PlanConfig, model: AbstractModel, rules: Rules, rows: int) -> Any:
    batch = _abstract_batch(config, rules, rows)
    chunk = config.model.logprob_chunk
    if config.planned_step == "reference":
        microbatch = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=rules.sharding("batch", None)),
            token_rows(batch),
        )
        traced = sequence_logprob.trace(
            model.definition, model.parameters, microbatch, segments=2 * _SEGMENTS, chunk=chunk
        )
        return traced.lower(lowering_platforms=("tpu",))
    if config.planned_step == "dpo":
        objective: Any = dpo_objective(model.definition, config.dpo, 2 * _SEGMENTS, chunk)
    else:
        objective = sft_objective(model.definition, _SEGMENTS, chunk)
    optimizer = make_optimizer(config.optimizer, 1000)
    shardings = state_shardings(model.parameters, model.shardings, optimizer, rules)
    rate = learning_rate(config.optimizer, 1000)
    step = make_step(objective, optimizer, rate, shardings, config.optimizer.gradient_dtype)
    state = abstract_state(model.parameters, optimizer, shardings)
    return step.trace(state, batch).lower(lowering_platforms=("tpu",))


def _abstract_batch(config: PlanConfig, rules: Rules, rows: int) -> TokenBatch | PairBatch:
    size = (_microbatches(config, rows), rows)
    sharding = rules.sharding("microbatch", "batch", None)

    def array(width: int, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*size, width), dtype, sharding=sharding)

    length = config.data.row_length
    ids = array(length, jnp.int32)
    tokens = TokenBatch(ids, ids, ids, array(length, jnp.bool_))
    if config.planned_step == "sft":
        return tokens
    return PairBatch(tokens, array(2 * _SEGMENTS, jnp.float32), array(_SEGMENTS, jnp.bool_))


def _out_of_memory(message: str, config: PlanConfig) -> str:
    reason = " ".join(message.split())[:400]
    return (
        f"The TPU compiler refuses the {config.planned_step} step on {config.topology}: {reason} "
        "What helps: a larger topology, bfloat16 moments, a smaller batch.microbatch_rows."
    )
