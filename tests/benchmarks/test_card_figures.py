"""Hours and GiB that cards, documentation and notebook state are those that `plan` computes or compiled."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import adapter_plans
from benchmarks.card_hours import (
    CONFIGS,
    RUNTIMES,
    STAGES,
    Runtime,
    card_hours,
    docs_table,
    notebook_table,
    time_text,
    uncompiled,
)
from benchmarks.single_chip import HARDWARE, MODELS, Training, peak_gib
from zephyr_jax.config.plan import PlanConfig
from zephyr_jax.config.yaml_file import load_card
from zephyr_jax.model.families.registry import config_from_hf
from zephyr_jax.plan.table import run_hours

ROOT = CONFIGS.parent
PREFIXES = sorted({runtime.cards for runtime in RUNTIMES})
MEMORY = re.compile(
    r"(\d+) rows? (?:at a time|a chip|a core)[^:]*: (?:about )?([\d.]+) GiB of ([\d.]+), "
    r"by (?:the TPU compiler \((.+?)\)|arithmetic)"
)
RUN_HOURS = adapter_plans.HEADER.split("\n")[0].strip("| ").split(" | ").index("run h")
PEAK = RUN_HOURS - 4
TRAINING: dict[str, Training] = {"bfloat16": "LoRA, bfloat16 base", "nf4": "QLoRA, nf4 base"}
SMOLLM2_135M = {
    "model_type": "llama",
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}


def header(card: Path) -> str:
    """The comment at the top of a card, in one line."""
    lines = card.read_text().splitlines()
    return " ".join(" ".join(line.lstrip("#") for line in lines if line.startswith("#")).split())


def notebook_text() -> str:
    notebook = json.loads((ROOT / "launch" / "colab.ipynb").read_text())
    return "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")


# ---- hours ----


def test_every_card_with_adapters_of_the_7b_is_checked() -> None:
    """Law: a new card of `configs/colab` or `configs/zephyr-7b-beta-qlora` has a runtime here, or trains a small model."""
    cards = [*(CONFIGS / "colab").glob("*.yaml"), *(CONFIGS / "zephyr-7b-beta-qlora").glob("*.yaml")]
    checked = {runtime.card(stage) for runtime in RUNTIMES for stage in STAGES}
    assert {card for card in cards if not card.name.startswith("smollm2")} == checked


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("cards", PREFIXES)
def test_headers_state_the_hours(cards: str, stage: str) -> None:
    """Law: the parts and the sum, for each chip of the card; no other hours."""
    text = header(CONFIGS / f"{cards}{stage}.yaml")
    expected = time_text(cards, stage)
    assert f"Time {expected}" in text
    assert not re.search(r"\d h\b", text.replace(expected, ""))


def test_the_page_has_the_hours() -> None:
    """Law: the table of `docs/single-chip.md` is what the script prints; saves on one v5e chip are minutes apart."""
    page = (ROOT / "docs" / "single-chip.md").read_text()
    assert docs_table() in page
    config = RUNTIMES[2].config("sft")
    plan = uncompiled(config)
    minutes = 60 * run_hours(plan) / (plan.steps or 0) * config.schedule.save_every
    assert f"every {config.schedule.save_every} steps (200 rows, about {minutes:.1f} minutes on one v5e chip)" in page


def test_the_notebook_has_the_hours() -> None:
    """Law: its table, and the range of both stages together."""
    text = notebook_text()
    assert notebook_table() in text
    sums = [
        sum(card_hours(runtime.config(stage)).total for stage in STAGES)
        for runtime in RUNTIMES
        if runtime.cards.startswith("colab")
    ]
    assert f"{min(sums):.1f} to {max(sums):.1f} hours" in text


def test_the_tpu_page_has_the_hours_of_full_training() -> None:
    """Law: steps, seconds a step and hours of `configs/zephyr-7b-beta` on v5e:2x4, and their sum here and in the README."""
    page, sum_of_hours = (ROOT / "docs" / "tpu.md").read_text(), 0.0
    for step, batch, rows in (
        ("sft", "128 rows a step", None),
        ("reference", "32 rows a pass", 32),
        ("dpo", "128 pairs a step", None),
    ):
        card = load_card(PlanConfig, CONFIGS / "zephyr-7b-beta" / ("sft.yaml" if step == "sft" else "dpo.yaml"))
        batch_options = replace(card.batch, microbatch_rows=rows or card.batch.microbatch_rows)
        plan = uncompiled(replace(card, topology="v5e:2x4", step=step, batch=batch_options, model_preset="Mistral-7B"))
        steps, hours = plan.steps or 0, run_hours(plan)
        assert f"| `{step}`, {batch} | {steps:,} | {3600 * hours / steps:.1f} | {hours:.1f} |" in page
        sum_of_hours += hours
    assert f"about {sum_of_hours:.0f} hours or {8 * sum_of_hours:.0f} chip-hours" in page
    assert f"{8 * sum_of_hours:.0f} chip-hours on v5e:2x4" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("topology", ["v5e:1x1", "v6e:1x1"])
def test_compiled_plans_have_the_same_hours(topology: str) -> None:
    """Law: hours do not depend on compiled figures, so that lines from before a change of the arithmetic are found here. A
    refused step has a message instead of figures."""
    cases = [case for case in adapter_plans.CASES if case.topology == topology]
    cells = adapter_plans.read_cells(cases[0].path)
    compiled = [case for case in cases if len(cells.get(tuple(case.key), [])) > RUN_HOURS]
    assert {case.step for case in compiled} == {"sft", "dpo"}
    for case in compiled:
        assert cells[tuple(case.key)][RUN_HOURS] == f"{run_hours(uncompiled(case.config())):.1f}", case.key


def test_hours_are_operations_over_rates() -> None:
    """Law, within 2 %: 3,000 pairs of 790 tokens train at 30 % of 197 TFLOP/s, with four operations a frozen weight and six an
    adapter's; forward passes take two at 40 %. Attention sees half of 1,024 keys. The reference pass scores 5,000 pairs, two
    evaluations 2,000 each."""
    hours = card_hours(Runtime("colab/v5e-1-", "v5e-1", "", "v5e:1x1").config("dpo"))
    frozen, adapter, attention = 7.11e9, 41.9e6, 2 * 32 * 32 * 128 * 512
    training = 3000 * 790 * (4 * frozen + 6 * adapter + 6 * attention) / (0.3 * 197e12)
    pair = 790 * 2 * (frozen + attention) / (0.4 * 197e12)
    assert hours.training * 3600 == pytest.approx(training, rel=0.02)
    assert hours.reference * 3600 == pytest.approx(5000 * pair, rel=0.02)
    assert hours.evaluation * 3600 == pytest.approx(2 * 2000 * pair, rel=0.02)


def test_evaluations_are_counted() -> None:
    """Law: before the first of 3,821 steps, after 500, 1,000 to 3,500, and at the end."""
    config = RUNTIMES[0].config("dpo")
    assert (uncompiled(config).steps, config.schedule.evaluate_every) == (3821, 500)
    assert card_hours(config).num_evaluations == len(range(0, 3821, 500)) + 1 == 9


# ---- memory ----


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "runtime",
    [
        runtime for runtime in RUNTIMES if runtime.cards.startswith("colab") and runtime.chip != "v3-8"
    ],  # its card has v2-8
    ids=lambda runtime: runtime.chip,
)
def test_headers_state_the_memory(runtime: Runtime, stage: str) -> None:
    """Law: GiB and limit are those of the compiled step that the header names, or of the arithmetic of the page. The compiled
    step has one microbatch, so a card with several adds the sum of the adapter's gradients."""
    config = runtime.config(stage)
    stated = MEMORY.search(header(runtime.card(stage)))
    assert stated is not None
    rows, peak, limit, path = stated.groups()
    hardware = HARDWARE[runtime.chip]
    assert (int(rows) * hardware.devices, float(limit)) == (config.batch.rows_per_forward, hardware.hbm)
    if path:
        adapter = config.adapter
        case = adapter_plans.Case(
            stage,
            runtime.topology,
            adapter.base_format,
            config.batch.rows_per_forward,
            rank=adapter.rank,
            block=adapter.block_size,
        )
        assert (ROOT / path) == case.path
        expected = float(adapter_plans.read_cells(case.path)[tuple(case.key)][PEAK])
        plan = uncompiled(config)
        sums = f"and {4 * plan.adapter_weights / 2**30:.2f} GiB for gradients in float32, summed over {plan.num_microbatches} "
        assert sums in header(runtime.card(stage))
    else:
        expected = peak_gib(
            MODELS["Mistral-7B"], TRAINING[config.adapter.base_format], hardware, int(rows), config.adapter.rank
        )
    assert peak == f"{expected:.1f}"


@pytest.mark.parametrize("stage", STAGES)
def test_the_small_cards_state_about_the_arithmetic(stage: str) -> None:
    """Law: within half a GiB of the page's formulas for eight rows of all parameters of SmolLM2-135M."""
    card = CONFIGS / "colab" / f"smollm2-135m-{stage}.yaml"
    stated = re.search(r"about (\d+) GiB on one device, by arithmetic", header(card))
    assert stated is not None
    rows = load_card(PlanConfig, card).batch.rows_per_forward
    peak = peak_gib(config_from_hf(SMOLLM2_135M), "full", HARDWARE["v5e-1"], rows)
    assert float(stated[1]) == pytest.approx(peak, abs=0.5)
