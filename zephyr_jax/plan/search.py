"""`zephyr-jax plan --fit`: search the fastest settings whose training step fits the chip.

Candidates are ordered by predicted time per token. Those whose estimated memory is over the chip's are dropped; the others are
compiled, fastest first, until two fit; the compiler's roofline chooses between these.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from zephyr_jax.config.adapter import DEFAULT_BLOCK
from zephyr_jax.config.plan import PlanConfig
from zephyr_jax.config.sections import BaseFormat, Remat
from zephyr_jax.errors import InputError
from zephyr_jax.model.quantize import CODE_DTYPES
from zephyr_jax.plan.estimates import Dtype, blocks_divide, dtype_bytes, estimate_memory, seconds_per_token
from zephyr_jax.plan.plan import (
    DoesNotFitError,
    StepPlan,
    fit_lengths,
    plan,
    total_rows,
)
from zephyr_jax.plan.shape import has_own_adapter, planned_format, planned_shape
from zephyr_jax.plan.table import step_time, table
from zephyr_jax.plan.topology import chip_of, topology_devices

_MAX_COMPILES = 6  # per choice of moment dtypes
_COMPARED = 2  # plans that fit; the estimate of collectives may be a factor off
_ESTIMATE_MARGIN = 1.2  # candidates estimated above this multiple of the chip's memory are not compiled
_SMALLEST_RANK = 4
type Moments = tuple[Dtype, Dtype]
_MOMENTS: tuple[Moments, ...] = (("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16"))
_SEARCHED = tuple(remat for remat in Remat if remat not in (Remat.FULL_OFFLOAD, Remat.NONE))
"""`full_offload` is slower than all others, and `none` computes as much as `save_dots` with more memory."""
_BASE_FORMATS: tuple[BaseFormat, ...] = ("bfloat16", "int8", "nf4")
"""Of the frozen weights below an adapter, the most exact first."""


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
    """The plan that is chosen, and a line for each other candidate that was compiled."""

    plan: StepPlan
    rejected: tuple[str, ...]

    def report(self) -> str:
        """The rejected candidates, and the settings to paste."""
        chosen = self.plan
        verdict = f"fastest settings that fit ({chosen.peak:.2f} of {chosen.chip.hbm:g} GiB); paste:"
        lines = [*(f"rejected {line}" for line in self.rejected), verdict, f"  {overrides(chosen.config)}"]
        if trains_adapter(chosen.config):
            lines.append("the reference table depends on the base format: pass the --adapter flags to `reference`, too")
        return "\n".join(lines)


def searched_settings(config: PlanConfig) -> dict[str, object]:
    """The settings that the search chooses, by their names on the command line."""
    batch, model, mesh, optimizer = config.batch, config.model, config.mesh, config.optimizer
    settings: dict[str, object] = {
        "batch.microbatch_rows": batch.microbatch_rows,
        "model.remat": model.remat,
        "mesh.data": mesh.data,
        "mesh.fsdp": mesh.fsdp,
        **({"mesh.context": mesh.context} if mesh.context > 1 else {}),
        "mesh.tensor": mesh.tensor,
        "optimizer.grad_dtype": optimizer.grad_dtype,
        "optimizer.first_moment_dtype": optimizer.first_moment_dtype,
        "optimizer.second_moment_dtype": optimizer.second_moment_dtype,
    }
    if trains_adapter(config):
        settings |= {"adapter.base_format": config.adapter.base_format, "adapter.block_size": config.adapter.block_size}
        if config.adapter.rank:
            settings["adapter.rank"] = config.adapter.rank
    return settings


def overrides(config: PlanConfig) -> str:
    """The searched settings as command-line arguments."""
    return " ".join(f"--{name} {value}" for name, value in searched_settings(config).items())


def fit(config: PlanConfig) -> Fit:
    """Search settings. Raises InputError if nothing fits at all.

    Moments keep the card's dtypes unless nothing fits with them. With an adapter they always do; its rank is the card's unless
    nothing fits with it, and the base format is the most exact one that fits.
    """
    config = fit_lengths(config)
    num_chips = len(topology_devices(config.topology, config.num_slices))
    limit = _ESTIMATE_MARGIN * chip_of(config.topology).hbm
    rejected: list[str] = []
    for choice, moments in search_order(config):
        fitting: list[StepPlan] = []
        possible = [candidate for candidate in candidates(choice, num_chips, moments) if candidate.gib <= limit]
        for candidate in sorted(possible, key=lambda candidate: candidate.seconds)[:_MAX_COMPILES]:
            try:
                compiled = plan(candidate.config)
            except DoesNotFitError:
                rejected.append(f"{overrides(candidate.config)}: the compiler ran out of memory")
                continue
            if compiled.fits:
                fitting.append(compiled)
            else:
                excess = compiled.peak - compiled.chip.hbm
                rejected.append(f"{overrides(candidate.config)}: {compiled.peak:.2f} GiB, {excess:.2f} over the limit")
            if len(fitting) == _COMPARED:
                break
        if fitting:
            chosen, *slower = sorted(fitting, key=lambda compiled: compiled.seconds)
            rejected += [
                f"{overrides(other.config)}: fits, and is not faster: {step_time(other.seconds)} a step"
                for other in slower
            ]
            return Fit(chosen, tuple(rejected))
    raise InputError(_failure(config, num_chips, rejected))


def candidates(config: PlanConfig, num_chips: int, moments: Moments) -> Iterator[Candidate]:
    """Settings whose sizes divide into the mesh: tensor parallelism, rows of a microbatch and rematerialization policies."""
    model, weight_format = planned_shape(config), planned_format(config)
    total = total_rows(config)
    grad_dtype: Dtype = "bfloat16" if config.model.compute_dtype == "bfloat16" else "float32"
    optimizer = replace(
        config.optimizer,
        grad_dtype=config.optimizer.grad_dtype if weight_format.lora else grad_dtype,
        first_moment_dtype=moments[0],
        second_moment_dtype=moments[1],
    )
    for tensor, rows_per_group, remat in product((1, 2, 4), (1, 2, 4, 8, 16), _SEARCHED):
        chips_per_row = tensor * config.mesh.context
        if num_chips % chips_per_row or model.num_kv_heads % tensor:
            continue
        rows = num_chips // chips_per_row * rows_per_group
        divides = total % rows == 0 if config.batch.rows else rows <= total or rows_per_group == 1
        if not divides or not blocks_divide(model, weight_format, num_chips // config.num_slices // tensor, tensor):
            continue
        settings = replace(
            config,
            fit=False,
            mesh=replace(config.mesh, data=1, fsdp=-1, tensor=tensor),
            batch=replace(config.batch, microbatch_rows=rows),
            model=replace(config.model, remat=remat),
            optimizer=optimizer,
        )
        yield Candidate(settings, seconds_per_token(settings, num_chips), estimate_memory(settings, num_chips))


def _failure(config: PlanConfig, num_chips: int, rejected: list[str]) -> str:
    hbm = chip_of(config.topology).hbm
    smallest, moments = search_order(config)[-1]
    least = min((candidate.gib for candidate in candidates(smallest, num_chips, moments)), default=0)
    reason = "; ".join(rejected) or f"a step needs at least {least:.1f} GiB (estimated) of a chip's {hbm:g}"
    return (
        f"no settings fit {config.topology} ({num_chips} chips): {reason}. Choose a larger topology (twice the chips hold half "
        "of weights, moments and gradients each), a smaller data.row_length, or --optimizer.offload_moments."
    )


def trains_adapter(config: PlanConfig) -> bool:
    """Whether the step trains an adapter."""
    return planned_format(config).lora is not None


def search_order(config: PlanConfig) -> list[tuple[PlanConfig, Moments]]:
    """Settings that are kept as long as something fits with them, in the order of the search."""
    if not trains_adapter(config):
        return [(config, moments) for moments in _moment_choices(config)]
    ranks = [config.adapter.rank]
    while not has_own_adapter(config) and ranks[-1] >= 2 * _SMALLEST_RANK:
        ranks.append(ranks[-1] // 2)
    moments = config.optimizer.first_moment_dtype, config.optimizer.second_moment_dtype
    choices = []
    for rank, base_format in product(ranks, _BASE_FORMATS):
        block_size = config.adapter.block_size if base_format in CODE_DTYPES else DEFAULT_BLOCK
        adapter = replace(config.adapter, rank=rank, base_format=base_format, block_size=block_size)
        choices.append((replace(config, adapter=adapter), moments))
    return choices


def _moment_choices(config: PlanConfig) -> list[Moments]:
    """The card's dtypes, then smaller ones; RMSprop has only a second moment."""
    optimizer = config.optimizer
    first, second = optimizer.first_moment_dtype, optimizer.second_moment_dtype
    if optimizer.name == "rmsprop":
        return [(first, second), (first, "bfloat16")]
    return [(first, second), *(moments for moments in _MOMENTS if dtype_bytes(*moments) < dtype_bytes(first, second))]


def main(config: PlanConfig, command: str) -> str:
    """`zephyr-jax plan`."""
    if not config.fit:
        return table(plan(config))
    result = fit(config)
    return f"{table(result.plan)}\n\n{result.report()}"
