"""How many steps `plan` expects of a run, from the card alone: no TPU compiler is needed."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.card_hours import uncompiled
from zephyr_jax.config.plan import PlanConfig
from zephyr_jax.config.yaml_file import load_card
from zephyr_jax.plan.plan import EXAMPLES, StepPlan

CONFIGS = Path(__file__).parents[2] / "configs"


def planned(card: str) -> StepPlan:
    """A plan without its compiled part."""
    return uncompiled(replace(load_card(PlanConfig, CONFIGS / card), topology="v5e:1x1"))


@pytest.mark.parametrize(("card", "tokens"), [("colab/v5e-1-sft.yaml", 1374), ("colab/v5e-1-dpo.yaml", 1000 - 210)])
def test_a_card_for_a_part_of_the_data_plans_that_part(card: str, tokens: int) -> None:
    """Law: `data.limit` bounds the examples of a run, and with them its steps; 8 rows of 2,048 tokens a step."""
    plan = planned(card)
    assert plan.config.data.limit is not None
    assert plan.num_examples == plan.config.data.limit < EXAMPLES[plan.config.data.path]
    assert plan.steps == round(plan.config.data.limit * tokens / (8 * 2048))


def test_without_a_limit_a_run_has_the_whole_split() -> None:
    """Law: the full-size card plans all 61,135 pairs."""
    assert planned("zephyr-7b-beta/dpo.yaml").num_examples == 61_135
