"""Steps compile for real TPUs, in a process of their own; skipped where libtpu is not installed."""

import json
import os
import re
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


@pytest.mark.parametrize("step", ["sft", "dpo"])
def test_steps_with_split_rows_compile_for_a_tpu(shape_only: Path, step: str) -> None:
    """The splash kernel for a part of the queries, by the device's number; with shared prompts for a part of un-shared rows."""
    words = ("--mesh.context", "2", "--batch.microbatch_rows", "2", "--batch.rows", "None", "--batch.examples", "16")
    said = plan("--config", f"{CARDS}/{step}.yaml", "--step", step, "--model.path", str(shape_only), *COMMON, *words)
    assert said.returncode == 0, said.stderr
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
    assert "expected a TPU topology" in said.stderr
    assert "Traceback" not in said.stderr


def test_a_batch_that_does_not_divide_is_refused(shape_only: Path) -> None:
    said = plan(
        "--config", f"{CARDS}/sft.yaml", "--model.path", str(shape_only), *COMMON, "--batch.microbatch_rows", "2"
    )
    assert said.returncode == 2
    assert "batch.microbatch_rows (or batch.rows): expected a multiple of 4, got 2" in said.stderr


def test_generation_is_planned_too(shape_only: Path) -> None:
    """The decoding loop compiles, and gathering all weights for every token is called what it is."""
    words = ("--config", f"{CARDS}/dpo.yaml", "--step", "generate", "--model.path", str(shape_only), *COMMON)
    said = plan(*words, "--data.max_prompt_length", "128")
    assert said.returncode == 0, said.stderr
    assert "a cache of 512 tokens a row" in said.stdout
    assert "--mesh.fsdp 1 --mesh.tensor -1" in said.stdout


def test_fit_prints_what_to_paste_and_the_pasted_fits(shape_only: Path) -> None:
    """The search ends with overrides; the same command with them in place of --fit compiles to the same peak."""
    card = (
        "--config",
        f"{CARDS}/sft.yaml",
        "--model.path",
        str(shape_only),
        *COMMON,
        "--model.compute_dtype",
        "bfloat16",
    )
    said = plan(*card, "--fit")
    assert said.returncode == 0, said.stderr
    pasted = plan(*card, *said.stdout.splitlines()[-1].split())
    assert pasted.returncode == 0, pasted.stderr
    peaks = [[line for line in each.stdout.splitlines() if line.startswith("| peak")] for each in (said, pasted)]
    assert peaks[0] == peaks[1] != []
    ((slower, unit),) = re.findall(r"fits, and is not faster: (\S+) (\S+) a step", said.stdout)
    ((chosen, same_unit),) = re.findall(r"step at the roofline \(the longest\) \| (\S+) (\S+),", said.stdout)
    assert float(chosen) <= float(slower) and unit == same_unit


def test_what_cannot_fit_says_by_how_much() -> None:
    """7B in float32 throughout on four small chips: refused by arithmetic or compiler, with what would help."""
    said = plan("--config", f"{CARDS}/dpo.yaml", "--model.path", "nobody/nothing", "--topology", "v5e:2x2", "--fit")
    assert said.returncode == 2
    assert "no settings fit v5e:2x2 (4 chips)" in said.stderr
    assert re.search(r"at least 2\d\.\d GiB \(estimated\) of a chip's 15.75", said.stderr)
    assert "larger topology" in said.stderr


def test_fit_is_for_training(shape_only: Path) -> None:
    said = plan("--config", f"{CARDS}/dpo.yaml", "--step", "reference", "--model.path", str(shape_only), "--fit")
    assert said.returncode == 2
    assert "`fit`: expected a training step" in said.stderr


def test_any_vocabulary_and_too_few_positions_are_planned(shape_only: Path, tmp_path: Path) -> None:
    """A vocabulary that `tensor` does not divide compiles for TPUs; positions that rows may exceed are named."""
    config = json.loads((shape_only / "config.json").read_text())
    odd = {**config, "num_key_value_heads": 2, "vocab_size": config["vocab_size"] + 1, "max_position_embeddings": 128}
    (tmp_path / "config.json").write_text(json.dumps(odd))
    words = ("--config", f"{CARDS}/sft.yaml", "--model.path", str(tmp_path), *COMMON)
    said = plan(*words, "--mesh.fsdp", "2", "--mesh.tensor", "2")
    assert said.returncode == 0, said.stderr
    assert "| verdict | fits" in said.stdout
    assert "no sequence longer than the model's 128 positions: data.max_length allows 256 tokens" in said.stdout
