"""The memory arithmetic of `docs/single-chip.md`: its table is on the page, and its formulas agree with compiled programs."""

import math
from pathlib import Path

import pytest

from benchmarks.single_chip import (
    HARDWARE,
    MODELS,
    Hardware,
    Training,
    cell,
    compiled_peaks,
    num_adapter_weights,
    peak_gib,
    table,
)
from zephyr_jax.plan.shape import MISTRAL_7B

ROOT = Path(__file__).parents[2]
V5E_4X4 = Hardware(hbm=15.75, devices=16)
MOMENT_BYTES = 2
"""The compiled steps with adapters have a bfloat16 first moment: two bytes less for each of their weights."""


def test_the_page_has_the_table_and_the_readme_its_first_rows() -> None:
    """Law: both tables are what the script prints."""
    assert table() in (ROOT / "docs" / "single-chip.md").read_text()
    assert f"\n\n{table(['Mistral-7B'])}\n\n" in (ROOT / "README.md").read_text()


def test_refused_programs_are_read_as_such(tmp_path: Path) -> None:
    """Law: a program without room is `no`, one that is refused for another reason has no value, others have their peak."""
    (tmp_path / "plan_v5e_1x1.md").write_text(
        "| dpo | Mistral-7B | v5e:1x1 | 1 | bfloat16 | 16 | full | 13.88 | 0.96 | 14.84 | 15.75 | 0.42 | 73% | 6.7 | 97 |  |\n"
        "| dpo | Llama-3.1-8B | v5e:1x1 | 1 | bfloat16 | 16 | full | refused: RESOURCE_EXHAUSTED: no room |\n"
        "| dpo | Qwen3-8B | v5e:1x1 | 1 | bfloat16 | 16 | full | the mesh does not divide the heads |\n"
    )
    training: Training = "LoRA, bfloat16 base"
    expected = {("Mistral-7B", training, "v5e:1x1"): 14.84, ("Llama-3.1-8B", training, "v5e:1x1"): math.inf}
    assert compiled_peaks(tmp_path) == expected
    assert [cell(peak, HARDWARE["v5e-1"], True) for peak in expected.values()] == ["**14.8**", "**no**"]


def test_the_models_have_the_published_sizes() -> None:
    """Parameters in billions from the model cards; Mistral-7B is the model that `plan` compiles."""
    billions = {name: round(sizes.num_parameters / 1e9, 2) for name, sizes in MODELS.items()}
    assert billions == {"Mistral-7B": 7.24, "Llama-3.1-8B": 8.03, "Qwen3-8B": 8.19, "Qwen3-14B": 14.77}
    assert MODELS["Mistral-7B"].num_parameters == MISTRAL_7B.num_parameters


@pytest.mark.parametrize(
    ("hardware", "rows", "compiled"),
    [(HARDWARE["v5e-8"], 1, 11.60), (HARDWARE["v5e-8"], 2, 12.53), (HARDWARE["v5e-8"], 4, 14.23), (V5E_4X4, 1, 6.36)],
)
def test_all_parameters_as_compiled(hardware: Hardware, rows: int, compiled: float) -> None:
    """Within 5 % of `benchmarks/plan_v5e_2x4.md` and `benchmarks/plan_v5e_4x4.md`, at rows per device."""
    assert peak_gib(MODELS["Mistral-7B"], "full", hardware, rows) == pytest.approx(compiled, rel=0.05)


@pytest.mark.parametrize(
    ("training", "chip", "rows", "rank", "compiled"),
    [
        ("QLoRA, nf4 base", "v5e-1", 1, 16, 5.55),
        ("QLoRA, nf4 base", "v5e-1", 4, 16, 8.23),
        ("QLoRA, nf4 base", "v5e-1", 2, 128, 10.38),
        ("LoRA, bfloat16 base", "v5e-1", 1, 16, 15.15),
        ("LoRA, bfloat16 base", "v6e-1", 4, 16, 17.82),
    ],
)
def test_adapters_as_compiled(training: Training, chip: str, rows: int, rank: int, compiled: float) -> None:
    """Within 5 % of steps with adapters that the TPU compiler compiled in November 2026."""
    sizes = MODELS["Mistral-7B"]
    peak = peak_gib(sizes, training, HARDWARE[chip], rows, rank)
    assert peak - MOMENT_BYTES * num_adapter_weights(sizes, rank) / 2**30 == pytest.approx(compiled, rel=0.05)
