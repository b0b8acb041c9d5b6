"""`zephyr-jax plan --fit`: the fastest settings that fit, judged by arithmetic first and by the compiler in the end.

Candidates are put in order of a predicted time a token; those whose arithmetic is far over the chip's memory are left out,
and the others are compiled, fastest first, until one fits.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from zephyr_jax.config.plan import PlanConfig
from zephyr_jax.config.sections import Remat
from zephyr_jax.errors import InputError
from zephyr_jax.model.remat import saved_bytes
from zephyr_jax.plan.plan import DoesNotFitError, Plan, plan, planned_shape, recomputed_per_token, total_rows
from zephyr_jax.plan.table import table
from zephyr_jax.plan.topology import GIB, chip_of, topology_devices

_MOST_COMPILES = 6  # for each choice of moments
_HOPELESS = 1.15  # times the chip's memory, by arithmetic that leaves working space out

type Dtype = Literal["float32", "bfloat16"]
type Moments = tuple[Dtype, Dtype]
_MOMENTS: tuple[Moments, ...] = (("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16"))
_SEARCHED = tuple(remat for remat in Remat if remat not in (Remat.FULL_OFFLOAD, Remat.NONE))
"""Policies whose memory is arithmetic. `full_offload` gives up time, `none` computes as much as `save_dots`."""


@dataclass(frozen=True)
class Candidate:
    """Settings with what arithmetic says of them."""

    config: PlanConfig
    seconds: float
    """A token on one chip, roofline."""
    gib: float
    """State, gradients and kept activations of one chip."""


@dataclass(frozen=True)
class Fit:
    """The first plan that fits, and a line for each that was compiled before and does not."""

    plan: Plan
    tried: tuple[str, ...]

    def report(self) -> str:
        """What was tried, and what to paste."""
        chosen = self.plan
        verdict = f"the fastest that fits ({chosen.peak:.2f} of {chosen.chip.hbm:g} GiB); paste:"
        return "\n".join([*(f"tried {each}" for each in self.tried), verdict, f"  {overrides(chosen.config)}"])


def overrides(config: PlanConfig) -> str:
    """The settings that `fit` searches, as they go behind a command."""
    batch, model, mesh, optimizer = config.batch, config.model, config.mesh, config.optimizer
    words = {
        "batch.microbatch_rows": batch.microbatch_rows,
        "model.remat": model.remat,
        "mesh.data": mesh.data,
        "mesh.fsdp": mesh.fsdp,
        "mesh.tensor": mesh.tensor,
        "optimizer.grad_dtype": optimizer.grad_dtype,
        "optimizer.first_moment_dtype": optimizer.first_moment_dtype,
        "optimizer.second_moment_dtype": optimizer.second_moment_dtype,
    }
    return " ".join(f"--{name} {value}" for name, value in words.items())


def fit(config: PlanConfig) -> Fit:
    """Search. Moments are stored as the card says unless nothing fits so, and then smaller. Raises InputError if none does."""
    chips = len(topology_devices(config.topology, config.num_slices))
    tried: list[str] = []
    for moments in _moments(config):
        candidates = sorted(_candidates(config, chips, moments), key=lambda each: each.seconds)
        for candidate in candidates[:_MOST_COMPILES]:
            try:
                found = plan(candidate.config)
            except DoesNotFitError:
                tried.append(f"{overrides(candidate.config)}: refused for want of memory")
                continue
            if found.fits:
                return Fit(found, tuple(tried))
            over = found.peak - found.chip.hbm
            tried.append(f"{overrides(candidate.config)}: {found.peak:.2f} GiB, {over:.2f} too much")
    raise InputError(_nothing_fits(config, chips, tried))


def _nothing_fits(config: PlanConfig, chips: int, tried: list[str]) -> str:
    hbm = chip_of(config.topology).hbm
    least = min((each.gib for each in _all_candidates(config, chips, _moments(config)[-1])), default=0)
    found = "; ".join(tried) or f"by arithmetic the least that a step needs is {least:.1f} GiB of a chip's {hbm:g}"
    return (
        f"Nothing that was tried fits {config.topology} ({chips} chips): {found}. Choose a larger topology (with twice the chips "
        "each holds half of weights, moments and gradients), a smaller data.row_length, or --optimizer.offload_moments."
    )


def _moments(config: PlanConfig) -> list[Moments]:
    """As given, and those that are smaller; RMSprop has no first moment."""
    optimizer = config.optimizer
    first, second = optimizer.first_moment_dtype, optimizer.second_moment_dtype
    if optimizer.name == "rmsprop":
        return [(first, second), (first, "bfloat16")]
    smaller = [each for each in _MOMENTS if _bytes(*each) < _bytes(first, second)]
    return [(first, second), *smaller]


def _bytes(*dtypes: Dtype) -> int:
    return sum({"float32": 4, "bfloat16": 2}[dtype] for dtype in dtypes)


def _candidates(config: PlanConfig, chips: int, moments: Moments) -> list[Candidate]:
    limit = _HOPELESS * chip_of(config.topology).hbm
    return [each for each in _all_candidates(config, chips, moments) if each.gib <= limit]


def _all_candidates(config: PlanConfig, chips: int, moments: Moments) -> Iterator[Candidate]:
    total, kv_heads = total_rows(config), planned_shape(config).num_kv_heads
    gradients: Dtype = "bfloat16" if config.model.compute_dtype == "bfloat16" else "float32"
    optimizer = replace(
        config.optimizer, grad_dtype=gradients, first_moment_dtype=moments[0], second_moment_dtype=moments[1]
    )
    for tensor, each, remat in product((1, 2, 4), (1, 2, 4, 8, 16), _SEARCHED):
        rows = chips // tensor * each
        divides = total % rows == 0 if config.batch.rows else rows <= total or each == 1
        if chips % tensor or kv_heads % tensor or not divides:
            continue
        settled = replace(
            config,
            fit=False,
            mesh=replace(config.mesh, data=1, fsdp=-1, tensor=tensor),
            batch=replace(config.batch, microbatch_rows=rows),
            model=replace(config.model, remat=remat),
            optimizer=optimizer,
        )
        yield _judge(settled, chips, each / tensor)


def _judge(config: PlanConfig, chips: int, rows: float) -> Candidate:
    """Arithmetic: `rows` are the rows of a microbatch that fall on one chip."""
    chip, shape, tensor = chip_of(config.topology), planned_shape(config), config.mesh.tensor
    tokens = rows * config.data.row_length
    compute = (6 * shape.num_parameters + recomputed_per_token(config, shape)) * tokens / chip.flops
    gathered = 4 * 2 * shape.num_parameters / tensor  # forward, again, backward, and the gradients' reduction
    # six all-reduces of [tokens, model] a layer, by all chips that share them, and nothing to hide them behind
    exchanged = 6 * 2 * (tensor - 1) * 2 * shape.num_layers * tokens * shape.d_model
    microbatches = -(-total_rows(config) // (config.batch.microbatch_rows or 1))
    optimizer = config.optimizer
    state = 4
    if not optimizer.offload_moments:
        state += _bytes(optimizer.first_moment_dtype, optimizer.second_moment_dtype)
    gradients = _bytes(optimizer.grad_dtype) + (4 if microbatches > 1 else 0)
    kept = saved_bytes(shape, config.model.remat, _bytes(config.model.compute_dtype), tensor)
    sharded = shape.num_parameters * config.num_slices / chips
    size = (state + gradients) * sharded + shape.num_layers * kept * tokens
    abroad = 2 * (1 - 1 / config.num_slices) * _bytes(optimizer.grad_dtype) * sharded / chip.dcn
    waste = microbatches * (config.batch.microbatch_rows or 1) / total_rows(config)
    return Candidate(
        config, waste * (max(compute, gathered / chip.ici, abroad) + exchanged / chip.ici) / tokens, size / GIB
    )


def main(config: PlanConfig, command: str) -> str:
    """`zephyr-jax plan`."""
    if not config.fit:
        return table(plan(config))
    found = fit(config)
    return f"{table(found.plan)}\n\n{found.report()}"
