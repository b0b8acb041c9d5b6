"""What `plan` estimates against what the TPU compiler counts. Skipped where libtpu is not installed."""

import json
import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from zephyr_jax.card import load_card
from zephyr_jax.checkpoint.source import abstract_of
from zephyr_jax.config import ModelOptions
from zephyr_jax.parallel.mesh import make_mesh
from zephyr_jax.parallel.rules import Rules
from zephyr_jax.parallel.topology import chip_of, topology_devices
from zephyr_jax.recipes.plan import Plan, lower, planned_shape
from zephyr_jax.verbs.planning import PlanConfig

pytestmark = pytest.mark.skipif(
    find_spec("libtpu") is None, reason="libtpu is not installed: uv run --extra tpu pytest"
)
CARD = Path(__file__).parents[2] / "configs" / "tiny" / "sft.yaml"
ROWS, LENGTH = 8, 512


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without loops over layers: the compiler counts the body of a loop once, however often it runs."""
    folder = tmp_path_factory.mktemp("one-layer")
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 1, "num_attention_heads": 4}
    rest = {
        "num_key_value_heads": 2,
        "head_dim": 128,
        "vocab_size": 1024,
        "rms_norm_eps": 1e-5,
        "model_type": "mistral",
    }
    (folder / "config.json").write_text(json.dumps(shape | rest))
    return folder


@pytest.mark.parametrize("step", ["sft", "reference"])
def test_operations_a_token_are_what_the_compiler_counts(one_layer: Path, step: str) -> None:
    """Within 6 %: all matmuls forward and backward, attention by its kernel's own estimate, the rest small."""
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}
    card = load_card(PlanConfig, CARD)
    config = replace(
        card,
        step=step,
        topology="v5e:2x2",
        model=ModelOptions(str(one_layer), keep="everything", logprob_chunk=ROWS * LENGTH),
        data=replace(card.data, row_length=LENGTH, max_length=LENGTH),
        batch=replace(card.batch, examples=None, rows=ROWS, microbatch_rows=ROWS),
    )
    rules = Rules(make_mesh(config.mesh, topology_devices(config.topology)))
    shape = planned_shape(config)
    counted = lower(config, abstract_of(shape, config.model, rules), rules, ROWS).compile().cost_analysis()["flops"]
    planned = Plan(config, chip_of(config.topology), 4, shape, ROWS, 1, 0, 0, 0, 0, 0, 0, ())
    assert planned.flops_per_token * planned.tokens == pytest.approx(4 * counted, rel=0.06)
