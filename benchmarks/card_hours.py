"""Hours of the 7B cards with adapters, by the arithmetic of `zephyr-jax plan`; prints their texts.

    uv run python -m benchmarks.card_hours

Prints the table of `docs/single-chip.md`, that of `launch/colab.ipynb`, and the lines on time of each card's header. Nothing is
compiled: hours depend on sizes and on assumed rates only. `tests/benchmarks/test_card_figures.py` compares all three with these.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from zephyr_jax.config.plan import PlanConfig
from zephyr_jax.config.yaml_file import load_card
from zephyr_jax.plan.estimates import stored_bytes
from zephyr_jax.plan.plan import StepPlan, fit_lengths, shares_prompts, total_rows
from zephyr_jax.plan.shape import planned_format, planned_shape
from zephyr_jax.plan.table import run_hours
from zephyr_jax.plan.topology import CORES, chip_of

CONFIGS = Path(__file__).parents[1] / "configs"
EVALUATED = {"HuggingFaceH4/ultrachat_200k": 23_110, "HuggingFaceH4/ultrafeedback_binarized": 2_000}
"""Rows of the evaluation splits that the cards name; `data.limit` bounds them, too."""
METHOD = (
    "by the arithmetic of `zephyr-jax plan` (30 % MFU in training, 40 % in forward passes), without download, compilation "
    "and saving; not measured"
)
"""How the hours of a card come about, as its header has it."""
STAGES = ("sft", "dpo")


@dataclass(frozen=True)
class Runtime:
    """A pair of cards on a chip or slice."""

    cards: str
    """Path of the cards below `configs`, without `sft.yaml` and `dpo.yaml`."""
    chip: str
    description: str
    topology: str

    def card(self, stage: str) -> Path:
        """The file of a stage."""
        return CONFIGS / f"{self.cards}{stage}.yaml"

    def config(self, stage: str) -> PlanConfig:
        """What `plan` reads for it; a folder of that name on this machine does not matter."""
        config = load_card(PlanConfig, self.card(stage))
        return replace(config, topology=self.topology, model_preset="Mistral-7B")


RUNTIMES = (
    Runtime("zephyr-7b-beta-qlora/", "v5e-1", "one v5e", "v5e:1x1"),
    Runtime("zephyr-7b-beta-qlora/", "v6e-1", "one v6e", "v6e:1x1"),
    Runtime("colab/v5e-1-", "v5e-1", "one v5e (Colab v5e-1)", "v5e:1x1"),
    Runtime("colab/v6e-1-", "v6e-1", "one v6e (Colab v6e-1)", "v6e:1x1"),
    Runtime("colab/v2-8-", "v2-8", "eight v2 cores (Colab v2-8)", "v2:2x2"),
    Runtime("colab/v2-8-", "v3-8", "eight v3 cores (Kaggle v3-8)", "v3:2x2"),
    Runtime("colab/v5e-8-", "v5e-8", "eight v5e (Kaggle v5e-8)", "v5e:2x4"),
)


@dataclass(frozen=True)
class CardHours:
    """Hours of a card's commands."""

    reference: float
    """Of the reference pass over training and evaluation pairs; 0 for SFT."""
    training: float
    """The hours of `plan`."""
    evaluation: float
    """Of all evaluations together."""
    num_evaluations: int

    @property
    def total(self) -> float:
        """Hours of all commands."""
        return self.reference + self.training + self.evaluation

    def describe(self) -> str:
        """`12 h (reference 2.5, training 8.7, 9 evaluations 0.73)`."""
        parts = [f"reference {short(self.reference)}"] if self.reference else []
        parts += [f"training {short(self.training)}", f"{self.num_evaluations} evaluations {short(self.evaluation)}"]
        return f"{short(self.total)} h ({', '.join(parts)})"


def uncompiled(config: PlanConfig) -> StepPlan:
    """A plan whose compiled figures are 0; its steps and hours are those of `plan`."""
    config = fit_lengths(config)
    sizes, weight_format = planned_shape(config), planned_format(config)
    kind, _, grid = config.topology.partition(":")
    rows = config.batch.rows_per_forward
    return StepPlan(
        config=config,
        chip=chip_of(config.topology),
        num_chips=math.prod(map(int, grid.split("x"))) * (2 if kind in CORES else 1) * config.num_slices,
        model=sizes,
        microbatch_rows=rows,
        num_microbatches=-(-total_rows(config) // rows) if config.plans_training else 1,
        arguments=0,
        temporaries=0,
        peak=0,
        host_memory=0,
        host_traffic=0,
        compile_seconds=0,
        collectives=(),
        weight_format=weight_format,
        adapter_weights=round(stored_bytes(sizes, weight_format, 1, 1)[0] / 4),  # float32
    )


def forward_hours(plan: StepPlan, num_examples: int) -> float:
    """Hours to score examples of the plan's data, as the reference pass does."""
    data = replace(plan.config.data, limit=num_examples, share_prompts=shares_prompts(plan.config))
    config = replace(plan.config, step="reference", data=data)
    return run_hours(replace(plan, config=config, num_microbatches=1))


def card_hours(config: PlanConfig) -> CardHours:
    """Hours of a card with one of the data sets of `EVALUATED`, on its topology."""
    plan = uncompiled(config)
    limit, interval = config.data.limit, config.schedule.evaluate_every
    num_evaluated = min(EVALUATED[config.data.path], limit or math.inf)
    # Before the first step, every `interval` steps, and at the end.
    num_evaluations = 1 + (math.ceil((plan.steps or 0) / interval) if interval else 1)
    reference = 0.0
    if config.planned_step == "dpo":
        scoring = uncompiled(replace(config, step="reference"))
        reference = run_hours(scoring) + forward_hours(scoring, int(num_evaluated))
    evaluation = num_evaluations * forward_hours(plan, int(num_evaluated))
    return CardHours(reference, run_hours(plan), evaluation, num_evaluations)


def time_text(cards: str, stage: str) -> str:
    """The text on time in the header of a card."""
    chips = [runtime for runtime in RUNTIMES if runtime.cards == cards]
    hours = [f"{runtime.chip}: {card_hours(runtime.config(stage)).describe()}" for runtime in chips]
    return f"{'; '.join(hours)}, {METHOD}"


def docs_table() -> str:
    """The table of cards in `docs/single-chip.md`."""
    lines = [
        "| cards | chip | base | rows at a time | data | hours, `sft` / `reference` and `dpo` |",
        "|---|---|---|---|---|---|",
    ]
    for runtime in RUNTIMES:
        sft, dpo = (runtime.config(stage) for stage in STAGES)
        rows = sft.batch.rows_per_forward, dpo.batch.rows_per_forward
        cells = [
            f"`{runtime.cards}*.yaml`",
            runtime.description,
            sft.adapter.base_format,
            f"{rows[0]}" if rows[0] == rows[1] else f"{rows[0]} (SFT), {rows[1]} (DPO)",
            _data(sft, dpo),
            " / ".join(short(card_hours(config).total) for config in (sft, dpo)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def notebook_table() -> str:
    """The table of runtimes in `launch/colab.ipynb`."""
    lines = ["| runtime | base | data | dSFT | reference and dDPO |", "|---|---|---|---|---|"]
    for runtime in RUNTIMES:
        name = runtime.description.partition("(")[2].rstrip(")")
        if name:
            sft, dpo = (runtime.config(stage) for stage in STAGES)
            hours = [f"{short(card_hours(config).total)} h" for config in (sft, dpo)]
            lines.append(f"| {' | '.join([name, sft.adapter.base_format, _data(sft, dpo), *hours])} |")
    return "\n".join(lines)


def _data(sft: PlanConfig, dpo: PlanConfig) -> str:
    if sft.data.limit is None or dpo.data.limit is None:
        return "all"
    return f"{sft.data.limit:,} conversations, {dpo.data.limit:,} pairs"


def short(hours: float) -> str:
    """44, 9.4 or 0.69."""
    return f"{hours:.{0 if hours >= 10 else 1 if hours >= 1 else 2}f}"


def main() -> None:
    """Print tables and texts."""
    print(f"{docs_table()}\n\n{notebook_table()}\n")
    for cards in dict.fromkeys(runtime.cards for runtime in RUNTIMES):
        for stage in STAGES:
            print(f"{cards}{stage}.yaml: {time_text(cards, stage)}")


if __name__ == "__main__":
    main()
