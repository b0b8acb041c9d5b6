"""`zephyr-jax plan --fit`: search the fastest settings whose training step fits the chip.

Candidates are ordered by predicted time per token. Those whose estimated memory is over the chip's are dropped; the others are
compiled, fastest first, until one fits.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from zephyr_jax.config.plan import PlanConfig
from zephyr_jax.config.sections import Remat
from zephyr_jax.errors import InputError
from zephyr_jax.model.remat import saved_bytes
from zephyr_jax.plan.plan import (
    DoesNotFitError,
    StepPlan,
    fit_lengths,
    plan,
    planned_shape,
    recomputed_per_token,
    total_rows,
)
from zephyr_jax.plan.table import table
from zephyr_jax.plan.topology import GIB, chip_of, topology_devices

_MAX_COMPILES = 6  # per choice of moment dtypes
_ESTIMATE_MARGIN = 1.2  # candidates estimated above this multiple of the chip's memory are not compiled
_VMEM_BUFFERS = 2**26  # bytes of small buffers outside HBM: half of a chip's VMEM, fitted

type Dtype = Literal["float32", "bfloat16"]
type Moments = tuple[Dtype, Dtype]
_MOMENTS: tuple[Moments, ...] = (("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16"))
_SEARCHED = tuple(remat for remat in Remat if remat not in (Remat.FULL_OFFLOAD, Remat.NONE))
"""`full_offload` is slower than all others, and `none` computes as much as `save_dots` with more memory."""


@dataclass(frozen=True)
class Candidate:
    """Settings with their estimated cost."""

    config: PlanConfig
    seconds: float
    """Roofline time of a token on one chip."""
    gib: float
    """Peak memory of one chip."""


@dataclass(frozen=True)
class Fit:
    """The first plan that fits, and a line for each candidate compiled before it."""

    plan: StepPlan
    rejected: tuple[str, ...]

    def report(self) -> str:
        """The rejected candidates, and the settings to paste."""
        chosen = self.plan
        verdict = f"fastest settings that fit ({chosen.peak:.2f} of {chosen.chip.hbm:g} GiB); paste:"
        return "\n".join([*(f"rejected {line}" for line in self.rejected), verdict, f"  {overrides(chosen.config)}"])


def overrides(config: PlanConfig) -> str:
    """The searched settings as command-line arguments."""
    batch, model, mesh, optimizer = config.batch, config.model, config.mesh, config.optimizer
    settings = {
        "batch.microbatch_rows": batch.microbatch_rows,
        "model.remat": model.remat,
        "mesh.data": mesh.data,
        "mesh.fsdp": mesh.fsdp,
        "mesh.tensor": mesh.tensor,
        "optimizer.grad_dtype": optimizer.grad_dtype,
        "optimizer.first_moment_dtype": optimizer.first_moment_dtype,
        "optimizer.second_moment_dtype": optimizer.second_moment_dtype,
    }
    return " ".join(f"--{name} {value}" for name, value in settings.items())


def fit(config: PlanConfig) -> Fit:
    """Search settings. Moments keep the card's dtypes unless nothing fits with them. Raises InputError if nothing fits at all."""
    config = fit_lengths(config)
    num_chips = len(topology_devices(config.topology, config.num_slices))
    limit = _ESTIMATE_MARGIN * chip_of(config.topology).hbm
    rejected: list[str] = []
    for moments in _moment_choices(config):
        possible = [candidate for candidate in candidates(config, num_chips, moments) if candidate.gib <= limit]
        for candidate in sorted(possible, key=lambda candidate: candidate.seconds)[:_MAX_COMPILES]:
            try:
                compiled = plan(candidate.config)
            except DoesNotFitError:
                rejected.append(f"{overrides(candidate.config)}: the compiler ran out of memory")
                continue
            if compiled.fits:
                return Fit(compiled, tuple(rejected))
            excess = compiled.peak - compiled.chip.hbm
            rejected.append(f"{overrides(candidate.config)}: {compiled.peak:.2f} GiB, {excess:.2f} over the limit")
    raise InputError(_failure(config, num_chips, rejected))


def candidates(config: PlanConfig, num_chips: int, moments: Moments) -> Iterator[Candidate]:
    """Settings whose sizes divide into the mesh: tensor parallelism, rows of a microbatch and rematerialization policies."""
    total, kv_heads = total_rows(config), planned_shape(config).num_kv_heads
    optimizer = replace(
        config.optimizer,
        grad_dtype="bfloat16" if config.model.compute_dtype == "bfloat16" else "float32",
        first_moment_dtype=moments[0],
        second_moment_dtype=moments[1],
    )
    for tensor, rows_per_group, remat in product((1, 2, 4), (1, 2, 4, 8, 16), _SEARCHED):
        rows = num_chips // tensor * rows_per_group
        divides = total % rows == 0 if config.batch.rows else rows <= total or rows_per_group == 1
        if num_chips % tensor or kv_heads % tensor or not divides:
            continue
        settings = replace(
            config,
            fit=False,
            mesh=replace(config.mesh, data=1, fsdp=-1, tensor=tensor),
            batch=replace(config.batch, microbatch_rows=rows),
            model=replace(config.model, remat=remat),
            optimizer=optimizer,
        )
        yield Candidate(settings, _seconds_per_token(settings, num_chips), estimate_memory(settings, num_chips))


def _failure(config: PlanConfig, num_chips: int, rejected: list[str]) -> str:
    hbm = chip_of(config.topology).hbm
    least = min((candidate.gib for candidate in candidates(config, num_chips, _moment_choices(config)[-1])), default=0)
    reason = "; ".join(rejected) or f"a step needs at least {least:.1f} GiB (estimated) of a chip's {hbm:g}"
    return (
        f"no settings fit {config.topology} ({num_chips} chips): {reason}. Choose a larger topology (twice the chips hold half "
        "of weights, moments and gradients each), a smaller data.row_length, or --optimizer.offload_moments."
    )


def _moment_choices(config: PlanConfig) -> list[Moments]:
    """The card's dtypes, then smaller ones; RMSprop has only a second moment."""
    optimizer = config.optimizer
    first, second = optimizer.first_moment_dtype, optimizer.second_moment_dtype
    if optimizer.name == "rmsprop":
        return [(first, second), (first, "bfloat16")]
    return [(first, second), *(moments for moments in _MOMENTS if _bytes(*moments) < _bytes(first, second))]


def _bytes(*dtypes: Dtype) -> int:
    return sum({"float32": 4, "bfloat16": 2}[dtype] for dtype in dtypes)


def _seconds_per_token(config: PlanConfig, num_chips: int) -> float:
    """Roofline time of a token on one chip."""
    chip, model, tensor = chip_of(config.topology), planned_shape(config), config.mesh.tensor
    tokens = _tokens_per_chip(config, num_chips)
    compute = (6 * model.num_parameters + recomputed_per_token(config, model)) * tokens / chip.flops
    gathers = 4 * 2 * model.num_parameters / tensor  # forward, recomputation, backward, reduction of gradients
    # six all-reduces of [tokens, d_model] in a layer, shared by the tensor-parallel chips and not overlapped with compute
    all_reduces = 6 * 2 * (tensor - 1) * 2 * model.num_layers * tokens * model.d_model
    sharded = model.num_parameters * config.num_slices / num_chips
    dcn = 2 * (1 - 1 / config.num_slices) * _bytes(config.optimizer.grad_dtype) * sharded / chip.dcn
    padding = _num_microbatches(config) * (config.batch.microbatch_rows or 1) / total_rows(config)
    return padding * (max(compute, gathers / chip.ici, dcn) + all_reduces / chip.ici) / tokens


def estimate_memory(config: PlanConfig, num_chips: int) -> float:
    """Estimated peak memory of one chip in a training step, in GiB.

    The peak is in the backward pass of a layer: the sharded state and gradients, the activations that all layers saved, the
    intermediates of one layer, and the gathered weights of one layer. Small buffers of these lie in VMEM instead of HBM.
    Moments in host memory pass through HBM one weight at a time. The factors of the intermediates and the share of VMEM are
    fitted to the compiler's figures in benchmarks/plan_*.md and of a small model.
    """
    model, optimizer, tensor = planned_shape(config), config.optimizer, config.mesh.tensor
    tokens = _tokens_per_chip(config, num_chips)
    itemsize = _bytes(config.model.compute_dtype)
    moments = _bytes(optimizer.first_moment_dtype, optimizer.second_moment_dtype)
    gradients = 4 if _num_microbatches(config) > 1 else _bytes(optimizer.grad_dtype)  # accumulated in float32
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


def _tokens_per_chip(config: PlanConfig, num_chips: int) -> float:
    """Token slots of a microbatch divided by all chips; a chip holds `mesh.tensor` times as many, with its share of features."""
    return (config.batch.microbatch_rows or 1) * config.data.row_length / num_chips


def _num_microbatches(config: PlanConfig) -> int:
    return -(-total_rows(config) // (config.batch.microbatch_rows or 1))


def main(config: PlanConfig, command: str) -> str:
    """`zephyr-jax plan`."""
    if not config.fit:
        return table(plan(config))
    result = fit(config)
    return f"{table(result.plan)}\n\n{result.report()}"
