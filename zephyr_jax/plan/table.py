"""A plan as Markdown: compiled memory and traffic, estimated times, assumptions, and advice if it does not fit."""

from collections import defaultdict

from zephyr_jax.model.weight_format import PLAIN
from zephyr_jax.plan.plan import StepPlan, examples_per_row, shares_prompts
from zephyr_jax.plan.shape import planned_preset, reads_folder
from zephyr_jax.plan.topology import CORES, GIB

_MFU, _ADAPTER_MFU = 0.4, 0.3
"""Of a good run. With frozen weights recomputation and dequantization are a larger share of the operations, and not useful."""


def table(plan: StepPlan) -> str:
    """The whole plan as Markdown tables."""
    return "\n".join([_title(plan), *_assumed(plan), "", *_compiled(plan), "", *_estimated(plan), *_advice(plan)])


def row(plan: StepPlan) -> str:
    """One line of a Markdown table; `HEADER` stands above."""
    config, optimizer = plan.config, plan.config.optimizer
    moments = f"{_short(optimizer.first_moment_dtype)}, {_short(optimizer.second_moment_dtype)}"
    hours = run_hours(plan)
    cells = [
        config.planned_step,
        _where(plan),
        f"{plan.microbatch_rows} x {plan.num_microbatches}",
        _short(optimizer.grad_dtype),
        moments,
        f"{plan.arguments:.2f}",
        f"{plan.temporaries:.2f}",
        f"{plan.peak:.2f}",
        f"{plan.chip.hbm:g}",
        f"{_sent(plan) / GIB:.1f}",
        f"{plan.seconds:.2f}",
        f"{plan.mfu:.0%}",
        f"{hours:.2f}" if hours else "",
        f"{plan.compile_seconds:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


HEADER = (
    "| step | topology | rows x accumulation | gradients | moments | arguments | temporaries | peak | chip | sent GiB | "
    "roofline s | MFU | run h | compile s |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def _title(plan: StepPlan) -> str:
    config = plan.config
    text = (
        f"{config.planned_step} step of {plan.model.num_parameters / 1e9:.2f}B parameters on {_where(plan)} "
        f"({plan.num_chips} chips of {plan.chip.hbm:g} GiB), "
        f"{plan.num_microbatches} x {plan.microbatch_rows} rows of {config.data.row_length}"
    )
    lora = plan.weight_format.lora
    if plan.weight_format != PLAIN:
        text = f"{text}, base {plan.weight_format.name}"
    if lora:
        text = f"{text}, adapter of rank {lora.rank} ({plan.adapter_weights / 1e6:.1f}M weights)"
    if not config.plans_training:
        return text
    optimizer = config.optimizer
    moments = f"moments {optimizer.first_moment_dtype} and {optimizer.second_moment_dtype}"
    return f"{text}, gradients {optimizer.grad_dtype}, {moments}, remat {config.model.remat}"


def _where(plan: StepPlan) -> str:
    slices = plan.config.num_slices
    return plan.config.topology if slices == 1 else f"{slices} slices of {plan.config.topology}"


def _assumed(plan: StepPlan) -> list[str]:
    config, assumed = plan.config, []
    if not config.batch.rows and config.plans_training:
        shared = ", whose prompts are shared" if shares_prompts(config) else ""
        assumed.append(f"{examples_per_row(config):g} examples a row{shared} (a guess; the data decide)")
    if not reads_folder(config):
        assumed.append(f"{planned_preset(config)}'s sizes, since model.path is not a local folder")
    if plan.weight_format != PLAIN and not reads_folder(config):
        assumed.append("a new adapter with the card's settings, since model.path is not a local folder")
    if config.topology.partition(":")[0] in CORES:
        assumed.append("a chip stands for one of the two cores of a v2 or v3 chip: they are JAX's devices")
    if config.planned_step == "generate":
        assumed.append(f"a cache of {config.data.row_length} tokens a row; a step is one new token of every row")
    limit, length = plan.model.max_positions, config.data.max_length
    if config.planned_step == "generate":
        length = config.data.row_length
    if limit and length > limit:
        assumed.append(
            f"no sequence longer than the model's {limit:,} positions: data.max_length allows {length:,} tokens, but "
            "sequences longer than the positions are rejected"
        )
    return [f"assumed: {assumption}" for assumption in assumed]


def _compiled(plan: StepPlan) -> list[str]:
    left = plan.chip.hbm - plan.peak
    verdict = f"fits, {left:.2f} GiB to spare" if plan.fits else f"DOES NOT FIT: {-left:.2f} GiB over"
    by_kind: dict[str, float] = defaultdict(float)
    for collective in plan.collectives:
        by_kind[f"{collective.kind}{' between slices' if collective.between_slices else ''}"] += collective.bytes
    return [
        "| compiled, full depth | GiB a chip |",
        "|---|---|",
        f"| arguments (weights, moments, batch) | {plan.arguments:.2f} |",
        f"| temporaries | {plan.temporaries:.2f} |",
        f"| peak | {plan.peak:.2f} |",
        f"| verdict | {verdict} |",
        *([f"| in the host's memory, for each chip | {plan.host_memory:.2f} |"] if plan.host_memory else []),
        *[f"| sent in a step by {kind} | {size / GIB:.3g} |" for kind, size in sorted(by_kind.items())],
    ]


def _estimated(plan: StepPlan) -> list[str]:
    useful, mfu = _seconds(plan), _assumed_mfu(plan)
    lines = [
        "| estimated | |",
        "|---|---|",
        f"| operations a token | {plan.flops_per_token / 1e9:.1f} G |",
        f"| token slots a step | {plan.tokens:,} |",
        f"| matmuls of a step at peak, recomputation included | {step_time(plan.compute_seconds)} |",
        f"| collectives of a step (ICI) at peak | {step_time(plan.ici_seconds)} |",
        *([f"| transfers to and from the host at peak | {plan.host_seconds:.2f} s |"] if plan.host_memory else []),
        *(
            [f"| network between slices (DCN) at peak | {plan.dcn_seconds:.2f} s |"]
            if plan.config.num_slices > 1
            else []
        ),
        f"| step at the roofline (the longest) | {step_time(plan.seconds)}, {plan.mfu:.0%} MFU |",
    ]
    if plan.config.planned_step == "generate":
        lines[-1:] = [
            f"| weights and cache from HBM, once a step, at peak | {step_time(plan.memory_seconds)} |",
            f"| step at the roofline (the longest) | {step_time(plan.seconds)}, {plan.tokens / plan.seconds:,.0f} tokens/s |",
        ]
    if plan.config.planned_step != "generate":
        lines += [
            f"| step at {mfu:.0%} MFU | {useful:.2f} s |",
            f"| tokens/s/chip at {mfu:.0%} MFU | {plan.tokens / useful / plan.num_chips:,.0f} |",
        ]
    if plan.steps and plan.config.planned_step != "generate":
        hours = run_hours(plan)
        examples = plan.num_examples
        known = f" ({examples:,} examples)" if examples else ""
        lines.append(
            f"| whole run{known}: {plan.steps:,} steps at {mfu:.0%} MFU "
            f"| {hours:.1f} h, {hours * plan.num_chips:,.0f} chip-hours |"
        )
    return [*lines, "", f"compiled in {plan.compile_seconds:.0f} s"]


def step_time(seconds: float) -> str:
    """Seconds, or milliseconds below a tenth of one."""
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.2f} ms"


def _advice(plan: StepPlan) -> list[str]:
    if plan.config.planned_step == "generate" and plan.ici_seconds > plan.memory_seconds:
        return [
            "Every new token gathers all weights over `fsdp`: generate with --mesh.fsdp 1 --mesh.tensor -1 instead."
        ]
    if plan.fits:
        return []
    if plan.weight_format.lora:
        return [
            "To reduce memory, most effective first: a larger topology; --adapter.base_format nf4; a smaller "
            "--batch.microbatch_rows; --model.remat full; a smaller --adapter.rank. `--fit` searches base format, rows, mesh, "
            "remat and rank."
        ]
    return [
        "To reduce memory, most effective first: a larger topology; --optimizer.grad_dtype and first_moment_dtype bfloat16; a "
        "smaller --batch.microbatch_rows; --model.remat full; a smaller --model.logprob_chunk; --optimizer.offload_moments. "
        "`--fit` searches rows, mesh, dtypes and remat."
    ]


def _seconds(plan: StepPlan) -> float:
    """Step time at the MFU that a good run has."""
    return plan.tokens * plan.flops_per_token / (plan.num_chips * plan.chip.flops * _assumed_mfu(plan))


def run_hours(plan: StepPlan) -> float:
    """Hours of the whole run at the MFU that a good run has; 0 if the number of steps is unknown."""
    return (plan.steps or 0) * _seconds(plan) / 3600


def _assumed_mfu(plan: StepPlan) -> float:
    return _ADAPTER_MFU if plan.config.plans_training and plan.weight_format.lora else _MFU


def _sent(plan: StepPlan) -> float:
    return sum(collective.bytes for collective in plan.collectives)


def _short(dtype: str) -> str:
    return {"bfloat16": "bf16", "float32": "f32"}[dtype]
