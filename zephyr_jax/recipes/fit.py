"""`zephyr-jax plan --fit`: the fastest settings that fit, judged by arithmetic first and by the compiler in the end.

Candidates are put in order of a predicted time a token; those whose arithmetic is far over the chip's memory are left out,
and the others are compiled, fastest first, until one fits.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from zephyr_jax.errors import InputError
from zephyr_jax.parallel.topology import GIB, Chip, chip_of, topology_devices
from zephyr_jax.recipes.plan import Plan, plan, planned_shape, total_rows
from zephyr_jax.verbs import PlanConfig

_MOST_COMPILES = 8
_HOPELESS = 1.15  # times the chip's memory, by arithmetic that leaves working space out
_RECOMPUTED = {"full": 8 / 6, "dots": 6.4 / 6}
type Dtype = Literal["float32", "bfloat16"]
type Moments = tuple[Dtype, Dtype]
_MOMENTS: tuple[Moments, ...] = (("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16"))
_REMAT: tuple[Literal["full", "dots"], ...] = ("full", "dots")


@dataclass(frozen=True)
class Candidate:
    """Settings with what arithmetic says of them."""

    config: PlanConfig
    seconds: float
    """A token on one chip, roofline."""
    gib: float
    """State, gradients and kept activations of one chip."""

    @property
    def overrides(self) -> str:
        """To paste behind a command."""
        config = self.config
        return (
            f"--batch.microbatch_rows {config.batch.microbatch_rows} --model.remat {config.model.remat} "
            f"--mesh.tensor {config.mesh.tensor} --optimizer.gradient_dtype {config.optimizer.gradient_dtype} "
            f"--optimizer.first_moment_dtype {config.optimizer.first_moment_dtype} "
            f"--optimizer.second_moment_dtype {config.optimizer.second_moment_dtype}"
        )


def fit(config: PlanConfig) -> tuple[Plan, Candidate, list[str]]:
    """The first plan that fits, its candidate, and a line for each that was compiled before. Raises InputError if none does.

    Moments are never stored finer or coarser than the card says, unless nothing fits otherwise.
    """
    config.check()
    chips = len(topology_devices(config.topology))
    tried: list[str] = []
    for moments in _MOMENTS[_rank(config) :]:
        for candidate in sorted(_candidates(config, chips, moments), key=lambda each: each.seconds):
            if len(tried) == _MOST_COMPILES:
                break
            try:
                found = plan(candidate.config)
            except InputError as error:
                if "refuses" not in str(error):
                    raise
                tried.append(f"{candidate.overrides}: the compiler refuses it for want of memory")
                continue
            if found.fits:
                return found, candidate, tried
            tried.append(f"{candidate.overrides}: {found.peak:.2f} GiB, {found.peak - found.chip.hbm:.2f} too much")
    listed = "; ".join(tried) or "by arithmetic all are far too large"
    raise InputError(
        f"Nothing that was tried fits {config.topology} ({chips} chips): {listed}. Choose a larger topology, or fewer tokens in "
        "data.row_length."
    )


def _rank(config: PlanConfig) -> int:
    given = (config.optimizer.first_moment_dtype, config.optimizer.second_moment_dtype)
    return _MOMENTS.index(given) if given in _MOMENTS else len(_MOMENTS) - 1


def _candidates(config: PlanConfig, chips: int, moments: Moments) -> Iterator[Candidate]:
    chip, total = chip_of(config.topology), total_rows(config)
    gradients: Dtype = "bfloat16" if config.model.compute_dtype == "bfloat16" else "float32"
    for tensor, each, remat in product((1, 2, 4), (1, 2, 4, 8, 16), _REMAT):
        rows = chips // tensor * each
        if chips % tensor or planned_shape(config).kv_heads % tensor or (rows > total and each > 1):
            continue
        settled = replace(
            config,
            fit=False,
            mesh=replace(config.mesh, data=1, fsdp=-1, tensor=tensor),
            batch=replace(config.batch, microbatch_rows=rows, rows=config.batch.rows and -(-total // rows) * rows),
            model=replace(config.model, remat=remat),
            optimizer=replace(
                config.optimizer,
                gradient_dtype=gradients,
                first_moment_dtype=moments[0],
                second_moment_dtype=moments[1],
            ),
        )
        found = _judge(settled, chip, chips, each / tensor)
        if found.gib <= _HOPELESS * chip.hbm:
            yield found


def _judge(config: PlanConfig, chip: Chip, chips: int, rows: float) -> Candidate:
    """Arithmetic: `rows` are the rows of a microbatch that fall on one chip."""
    shape, tensor = planned_shape(config), config.mesh.tensor
    width = {"float32": 4, "bfloat16": 2}
    tokens = rows * config.data.row_length
    compute = _RECOMPUTED[config.model.remat] * 6 * shape.parameters * tokens / chip.flops
    gathered = 4 * 2 * shape.parameters / tensor  # forward, again, backward, and the gradients' reduction
    # six all-reduces of [tokens, model] a layer, by all chips that share them, and nothing to hide them behind
    exchanged = 6 * 2 * (tensor - 1) * 2 * shape.layers * tokens * shape.model
    microbatches = -(-total_rows(config) // (config.batch.microbatch_rows or 1))
    optimizer = config.optimizer
    state = 4 + width[optimizer.first_moment_dtype] + width[optimizer.second_moment_dtype]
    gradients = width[optimizer.gradient_dtype] + (4 if microbatches > 1 else 0)
    kept = 2.0 * shape.model
    if config.model.remat == "dots":
        attention = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
        kept += 2 * (attention + 2 * shape.mlp) / tensor + 4 * shape.model
    size = (state + gradients) * shape.parameters / chips + shape.layers * kept * tokens
    waste = microbatches * (config.batch.microbatch_rows or 1) / total_rows(config)
    return Candidate(config, waste * (max(compute, gathered / chip.ici) + exchanged / chip.ici) / tokens, size / GIB)


def report(found: Plan, candidate: Candidate, tried: list[str]) -> str:
    """What was tried and what to paste."""
    lines = [f"tried {each}" for each in tried]
    verdict = f"the fastest that fits ({found.peak:.2f} of {found.chip.hbm:g} GiB); paste:"
    return "\n".join([*lines, verdict, f"  {candidate.overrides}"])
