"""Steps compile for real TPUs, in a process of their own; skipped where libtpu is not installed."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    find_spec("libtpu") is None, reason="libtpu is not installed: uv run --extra tpu pytest"
)
COMMON = [
    "--topology",
    "v5e:2x2",
    "--batch.microbatch_rows",
    "4",
    "--data.row_length",
    "512",
    "--data.max_length",
    "256",
]
CARDS = Path(__file__).parents[2] / "configs" / "tiny"


def plan(*words: str) -> subprocess.CompletedProcess[str]:
    """`zephyr-jax plan` with these arguments."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}
    command = [sys.executable, "-m", "zephyr_jax", "plan", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(("card", "step"), [("sft", "sft"), ("dpo", "dpo"), ("dpo", "reference")])
def test_every_step_compiles_for_a_tpu(shape_only: Path, card: str, step: str) -> None:
    """The splash kernel with its fused backward pass, sharded over four chips: the real step of a small model."""
    said = plan("--config", f"{CARDS}/{card}.yaml", "--step", step, "--model.path", str(shape_only), *COMMON)
    assert said.returncode == 0, said.stderr
    assert f"{step} step of" in said.stdout
    assert "| verdict | fits" in said.stdout


def test_what_is_assumed_is_said() -> None:
    """No model folder here: Mistral-7B's sizes, and it says so; nothing is looked up or downloaded."""
    said = plan("--config", f"{CARDS}/dpo.yaml", "--step", "reference", "--model.path", "nobody/nothing", *COMMON)
    assert said.returncode == 0, said.stderr
    assert "7.24B parameters" in said.stdout
    assert "assumed: Mistral-7B's sizes" in said.stdout


def test_an_unknown_topology_is_refused() -> None:
    said = plan("--config", f"{CARDS}/sft.yaml", "--topology", "v9z:2x2")
    assert said.returncode == 2
    assert "'v9z:2x2' names no TPU topology" in said.stderr
    assert "Traceback" not in said.stderr


def test_a_batch_that_does_not_divide_is_refused(shape_only: Path) -> None:
    said = plan(
        "--config", f"{CARDS}/sft.yaml", "--model.path", str(shape_only), *COMMON, "--batch.microbatch_rows", "2"
    )
    assert said.returncode == 2
    assert "batch.microbatch_rows (or batch.rows) is 2" in said.stderr


@pytest.fixture(scope="module")
def shape_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but a config.json: planning reads no weights."""
    folder = tmp_path_factory.mktemp("shape")
    (folder / "config.json").write_text(
        '{"model_type": "mistral", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, '
        '"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128, "vocab_size": 1024, "rms_norm_eps": 1e-5}'
    )
    return folder
