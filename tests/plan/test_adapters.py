"""Plans of cards with an adapter: compiled programs, the search, and the recorded figures. Compiling needs libtpu."""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from math import prod
from pathlib import Path

import pytest

from tests.plan.test_plan import plan as plan_command
from tests.plan.test_plan_bad_input import refused
from zephyr_jax.config.adapter import AdapterOptions
from zephyr_jax.config.plan import PlanConfig
from zephyr_jax.config.sections import BaseFormat
from zephyr_jax.config.yaml_file import load_card
from zephyr_jax.plan.estimates import estimate_memory
from zephyr_jax.plan.plan import plan
from zephyr_jax.plan.search import candidates, fit, search_order
from zephyr_jax.plan.shape import MISTRAL_7B
from zephyr_jax.plan.topology import GIB, chip_of

ROOT = Path(__file__).parents[2]
RANK = 8
TOLERANCE = 0.15
needs_libtpu = pytest.mark.skipif(
    find_spec("libtpu") is None, reason="libtpu is not installed: uv run --extra tpu pytest"
)


def small(folder: Path, topology: str, base: BaseFormat, step: str = "dpo") -> PlanConfig:
    """A step of the small model with one row of 512 tokens per chip."""
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}
    card = load_card(PlanConfig, ROOT / "configs/tiny/dpo.yaml")
    rows = {"v5e:1x1": 1, "v5e:2x2": 4, "v2:2x2": 8}[topology]
    return replace(
        card,
        topology=topology,
        step=step,
        model=replace(card.model, path=str(folder), compute_dtype="bfloat16"),
        data=replace(card.data, row_length=512, max_length=256),
        batch=replace(card.batch, examples=None, rows=rows, microbatch_rows=rows),
        adapter=AdapterOptions(rank=RANK, base_format=base),
    )


def count_bytes(base: BaseFormat) -> float:
    """Weights and moments of the small model by definition: codes and scales of its projections, the rest, the adapters."""
    D, F, H, V, layers = 256, 512, 128, 1024, 2
    sizes = [(D, 2 * H), (D, H), (D, H), (2 * H, D), (D, F), (D, F), (F, D)]
    projections = layers * sum(inputs * outputs for inputs, outputs in sizes)
    per_weight = {"bfloat16": 2, "int8": 1 + 2 / 64, "int4": 0.5 + 2 / 64, "nf4": 0.5 + 2 / 64}[base]
    adapters = layers * RANK * sum(inputs + outputs for inputs, outputs in sizes)
    return per_weight * projections + 2 * 2 * V * D + 4 * (2 * layers + 1) * D + 12 * adapters


@needs_libtpu
@pytest.mark.parametrize("base", ["int4", "nf4", "int8", "bfloat16"])
def test_one_chip_holds_the_base_in_its_format(shape_only: Path, base: BaseFormat) -> None:
    """Law: arguments are codes, scales, adapters, two float32 moments of these, and the batch. No second copy of the base."""
    planned = plan(small(shape_only, "v5e:1x1", base))
    batch = 512 * (3 * 4 + 1)
    assert planned.arguments * GIB == pytest.approx(count_bytes(base) + batch, rel=0.05)
    assert planned.num_chips == 1
    assert planned.fits
    assert planned.adapter_weights == 2 * RANK * 4096


@needs_libtpu
def test_slices_share_the_base(shape_only: Path) -> None:
    """Four chips hold less than half of it each; the factors of an adapter lie on one mesh axis each."""
    planned = plan(small(shape_only, "v5e:2x2", "nf4"))
    assert planned.num_chips == 4
    assert planned.arguments * GIB < 0.5 * count_bytes("nf4")


@needs_libtpu
@pytest.mark.parametrize("step", ["reference", "generate"])
def test_steps_that_do_not_train_store_the_base_as_training_does(shape_only: Path, step: str) -> None:
    """The reference has no new adapter, generation has the trained one."""
    planned = plan(small(shape_only, "v5e:1x1", "int8", step))
    assert planned.weight_format.base_format == "int8"
    assert (planned.weight_format.lora is None) == (step == "reference")


@needs_libtpu
def test_old_tpus_compile_with_their_own_attention(shape_only: Path) -> None:
    """Colab's v2-8: eight cores, whose Pallas kernels have no bfloat16 matmul."""
    planned = plan(small(shape_only, "v2:2x2", "bfloat16"))
    assert (planned.num_chips, planned.fits) == (8, True)


@needs_libtpu
def test_fit_takes_the_most_exact_base_that_fits(shape_only: Path) -> None:
    """The small model fits in bfloat16; the printed flags on the same card compile to the same peak."""
    config = small(shape_only, "v5e:1x1", "nf4")
    found = fit(config)
    assert found.plan.weight_format.base_format == "bfloat16"
    assert "--adapter.base_format bfloat16 --adapter.block_size 64 --adapter.rank 8" in found.report()


@needs_libtpu
def test_the_table_names_base_and_adapter(shape_only: Path) -> None:
    """`zephyr-jax plan` with the flags of an adapter on a full-parameter card."""
    words = (
        f"--config {ROOT}/configs/tiny/sft.yaml --topology v5e:1x1 --batch.examples None --batch.rows 1 "
        "--batch.microbatch_rows 1 --data.row_length 512 --data.max_length 256 --adapter.rank 8 --adapter.base_format nf4"
    )
    said = plan_command(*words.split(), "--model.path", str(shape_only))
    assert said.returncode == 0, said.stderr
    assert "base nf4-64, adapter of rank 8 (0.1M weights)" in said.stdout
    assert "step at 30% MFU" in said.stdout


def mistral(topology: str, rows: int, **adapter: object) -> PlanConfig:
    card = load_card(PlanConfig, ROOT / "configs/zephyr-7b-beta/dpo.yaml")
    return replace(
        card,
        topology=topology,
        model=replace(card.model, path="none"),
        data=replace(card.data, row_length=2048),
        batch=replace(card.batch, examples=None, rows=rows, microbatch_rows=rows),
        adapter=AdapterOptions(**adapter),
    )


def test_the_search_tries_exact_formats_and_large_ranks_first() -> None:
    """A card with unusual blocks: bfloat16 has none, so that the printed flags are accepted."""
    order = search_order(mistral("v5e:1x1", 8, rank=16, base_format="nf4", block_size=32))
    settings = [(one.adapter.rank, one.adapter.base_format, one.adapter.block_size) for one, _ in order]
    formats = [("bfloat16", 64), ("int8", 32), ("nf4", 32)]
    assert settings == [(rank, *storage) for rank in (16, 8, 4) for storage in formats]
    for one, _ in order:
        one.adapter.check()


def test_a_7b_model_in_bfloat16_has_few_candidates_on_16_gb() -> None:
    """By the estimates: with 8 rows none fits one v5e chip in bfloat16, and some do in nf4."""
    fitting = {}
    for one, moments in search_order(mistral("v5e:1x1", 8, rank=16))[:3]:
        found = list(candidates(one, 1, moments))
        fitting[one.adapter.base_format] = max(
            (c.config.batch.microbatch_rows or 0 for c in found if c.gib <= chip_of("v5e:1x1").hbm), default=0
        )
    assert fitting["bfloat16"] <= 1 < fitting["int8"] <= fitting["nf4"]
    assert all(c.config.optimizer.grad_dtype == "bfloat16" for c in found)


def test_the_search_skips_meshes_that_cut_blocks() -> None:
    """Blocks of 1,024 inputs: a feed-forward of 14,336 has 14 of them, which four chips in `tensor` cannot share."""
    config = mistral("v5e:2x4", 8, rank=16, base_format="int8", block_size=1024)
    tensor = {one.config.mesh.tensor for one in candidates(config, 8, ("bfloat16", "float32"))}
    assert MISTRAL_7B.d_ff // 1024 == 14
    assert tensor == {2}  # 8 chips in `fsdp` would cut the 4 blocks of d_model, and 4 in `tensor` the 14


def recorded() -> Iterator[tuple[str, PlanConfig, int, float]]:
    """Name, settings, chips and compiled peak (GiB) of the lines of benchmarks.adapter_plans about Mistral-7B."""
    for path in sorted((ROOT / "benchmarks").glob("plan_*.md")):
        for line in path.read_text().splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if len(cells) != 16 or cells[1] != "Mistral-7B":
                continue
            base, _, block = cells[4].partition(", blocks of ")
            rank = int(cells[5])
            adapter = {"rank": rank, "base_format": base, "block_size": int(block or 64)} if rank else {}
            config = mistral(cells[2], int(cells[3]), **adapter)
            chips = prod(map(int, cells[2].split(":")[1].split("x")))
            yield " ".join(cells[:7]), config, chips, float(cells[9])


@pytest.mark.parametrize(("config", "chips", "peak"), [pytest.param(*case[1:], id=case[0]) for case in recorded()])
def test_estimates_of_7b_are_those_of_the_compiler(config: PlanConfig, chips: int, peak: float) -> None:
    assert estimate_memory(config, chips) == pytest.approx(peak, rel=TOLERANCE)


BAD = {
    "blocks of a chip": ("--adapter.block_size 128 --adapter.base_format int8", r"block_size|multiple of 4"),
    "blocks of a weight": ("--adapter.block_size 96 --adapter.base_format nf4", r"block_size: expected a divisor"),
    "target": ("--adapter.targets lm_head", r"Invalid target 'lm_head'.*not supported"),
    "block without codes": ("--adapter.block_size 128", r"adapter\.block_size is 128.*only int8, int4 and nf4"),
}


@needs_libtpu
@pytest.mark.parametrize("case", BAD)
def test_adapters_that_do_not_fit_are_refused(case: str, shape_only: Path, capsys: pytest.CaptureFixture[str]) -> None:

    words, expected = BAD[case]
    common = "--topology v5e:2x2 --batch.microbatch_rows 4 --data.row_length 512 --data.max_length 256 --adapter.rank 8"
    assert re.search(expected, refused(f"{common} {words}", shape_only, capsys), re.DOTALL)
