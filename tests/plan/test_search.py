"""The memory estimates of `plan --fit` against the TPU compiler: its recorded figures, and a small model compiled here."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from math import prod
from pathlib import Path

import pytest

from zephyr_jax.config.plan import PlanConfig
from zephyr_jax.config.sections import Remat
from zephyr_jax.config.yaml_file import load_card
from zephyr_jax.plan.plan import plan
from zephyr_jax.plan.search import Candidate, candidates, estimate_memory
from zephyr_jax.plan.topology import chip_of

ROOT = Path(__file__).parents[2]
TOLERANCE = 0.15
FLOAT32 = ("float32", "float32")


def recorded() -> Iterator[tuple[str, PlanConfig, int, float]]:
    """Name, settings, chips and compiled peak (GiB) of Mistral-7B's training steps in benchmarks/plan_*.md."""
    cards = {step: load_card(PlanConfig, ROOT / f"configs/zephyr-7b-beta/{step}.yaml") for step in ("sft", "dpo")}
    for path in sorted((ROOT / "benchmarks").glob("plan_*.md")):
        for line in path.read_text().splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if cells[0] not in cards or len(cells) != 18:
                continue
            card, rows, (length, tensor) = cards[cells[0]], int(cells[2].split()[0]), map(int, cells[14:16])
            config = replace(
                card,
                topology=cells[1],
                data=replace(card.data, row_length=length),
                batch=replace(card.batch, examples=None, rows=rows, microbatch_rows=rows),
                mesh=replace(card.mesh, tensor=tensor),
                model=replace(
                    card.model, path="none", remat=Remat.FULL_OFFLOAD if "inputs" in cells[16] else Remat.FULL
                ),
                optimizer=replace(card.optimizer, offload_moments="moments" in cells[16]),
            )
            chips = prod(map(int, cells[1].split(":")[1].split("x")))
            yield " ".join([cells[0], cells[1], f"{rows} rows", cells[16]]), config, chips, float(cells[7])


@pytest.mark.parametrize(("config", "chips", "peak"), [pytest.param(*case[1:], id=case[0]) for case in recorded()])
def test_estimates_of_7b_are_those_of_the_compiler(config: PlanConfig, chips: int, peak: float) -> None:
    assert estimate_memory(config, chips) == pytest.approx(peak, rel=TOLERANCE)


def test_estimates_grow_with_what_is_saved() -> None:
    """Every policy that is searched has its own estimate, so that candidates that cannot fit are never compiled."""
    card = load_card(PlanConfig, ROOT / "configs/zephyr-7b-beta/dpo.yaml")
    config = replace(card, topology="v5e:2x4", model=replace(card.model, path="none"))
    by_rows: dict[tuple[int | None, int], list[Candidate]] = {}
    for candidate in candidates(config, 8, FLOAT32):
        by_rows.setdefault((candidate.config.batch.microbatch_rows, candidate.config.mesh.tensor), []).append(candidate)
    for group in by_rows.values():
        assert [one.config.model.remat for one in group] == [Remat.FULL, Remat.SAVE_ATTENTION, Remat.SAVE_DOTS]
        assert group[0].gib < group[1].gib < group[2].gib
    too_large = [one for group in by_rows.values() for one in group if one.gib > 1.15 * chip_of("v5e:2x4").hbm]
    assert any(one.config.model.remat == Remat.SAVE_DOTS for one in too_large)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> PlanConfig:
    """A model of 120M parameters on four chips, with eight rows in a step."""
    folder = tmp_path_factory.mktemp("small")
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 8}
    rest = {"num_key_value_heads": 1, "head_dim": 128, "vocab_size": 1024, "rms_norm_eps": 1e-5}
    (folder / "config.json").write_text(json.dumps(sizes | rest | {"model_type": "mistral"}))
    card = load_card(PlanConfig, ROOT / "configs/tiny/sft.yaml")
    return replace(
        card,
        topology="v5e:2x2",
        model=replace(card.model, path=str(folder), compute_dtype="bfloat16", logprob_chunk=512),
        data=replace(card.data, row_length=1024, max_length=1024),
        batch=replace(card.batch, examples=None, rows=8),
    )


@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed: uv run --extra tpu pytest")
@pytest.mark.parametrize(
    ("policy", "rows"),
    [(Remat.FULL, 4), (Remat.SAVE_ATTENTION, 4), (Remat.SAVE_DOTS, 4), (Remat.SAVE_ATTENTION, 8)],
)
def test_estimates_of_candidates_are_those_of_the_compiler(small: PlanConfig, policy: Remat, rows: int) -> None:
    """Under every policy with gradient accumulation, and once without: that adds or removes one buffer of gradients."""
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}
    searched = {
        (one.config.batch.microbatch_rows, one.config.model.remat): one for one in candidates(small, 4, FLOAT32)
    }
    policies = (Remat.FULL, Remat.SAVE_ATTENTION, Remat.SAVE_DOTS)
    assert searched.keys() == {(count, each) for count in (4, 8) for each in policies}
    candidate = searched[rows, policy]
    assert candidate.gib == pytest.approx(plan(candidate.config).peak, rel=TOLERANCE)
