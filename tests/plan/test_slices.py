"""Two TPU slices on paper: what the compiled step sends from one to the other. Skipped where libtpu is not installed."""

import os
from dataclasses import replace
from importlib.util import find_spec
from math import prod
from pathlib import Path

import pytest

from zephyr_jax.config.plan import PlanConfig
from zephyr_jax.config.yaml_file import load_card
from zephyr_jax.plan.plan import StepPlan, plan

pytestmark = pytest.mark.skipif(
    find_spec("libtpu") is None, reason="libtpu is not installed: uv run --extra tpu pytest"
)
CARD = Path(__file__).parents[2] / "configs" / "tiny" / "dpo.yaml"
CHIPS = 4


@pytest.fixture(scope="module")
def planned(shape_only: Path) -> StepPlan:
    """The DPO step of a small model on two slices of four chips: one copy of the weights in each."""
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}
    card = load_card(PlanConfig, CARD)
    return plan(
        replace(
            card,
            topology="v5e:2x2",
            num_slices=2,
            model=replace(card.model, path=str(shape_only)),
            data=replace(card.data, row_length=512, max_length=256),
            batch=replace(card.batch, examples=None, rows=8, microbatch_rows=8),
        )
    )


def sizes(result: str) -> int:
    """Elements of `f32[2,3]`."""
    return prod(int(each) for each in result[result.index("[") + 1 : -1].split(",") if each)


def test_only_sums_of_gradients_and_metrics_cross(planned: StepPlan) -> None:
    """A chip sends its quarter of the gradients once, the norms' whole, and a handful of numbers; nothing is gathered.

    One of the two vocabulary tables crosses before it is scattered, split in two instead of four: since a step can leave its
    update out, the compiler orders the two sums so (benchmarks/LOG.md).
    """
    between_slices = [each for each in planned.collectives if each.between_slices]
    assert {each.kind for each in between_slices} == {"all-reduce"}
    assert {each.group for each in between_slices} == {2}
    shape = planned.model
    norms = (2 * shape.num_layers + 1) * shape.d_model
    gradients = (shape.num_parameters - norms) // CHIPS + norms
    crossing = sum(sizes(each.result) * each.runs for each in between_slices)
    table = shape.vocab_size * shape.d_model
    assert gradients <= crossing <= gradients * 1.01 + 100 + (table // 2 - table // CHIPS)


def test_all_else_stays_inside_a_slice(planned: StepPlan) -> None:
    """Weights are gathered and gradients scattered among the four chips of a slice."""
    inside = [each for each in planned.collectives if not each.between_slices]
    assert {each.kind for each in inside} >= {"all-gather"}
    assert {each.group for each in inside} <= {2, CHIPS}
    assert planned.num_chips == 2 * CHIPS
    assert planned.dcn_seconds > 0
