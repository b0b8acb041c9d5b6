"""Acceptance: SFT, reference and DPO with adapters on stories260k, exported; peft and transformers compute the same."""

import json
import math
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from tests.adapter_runs import CONFIGS, TOKENS, Runs, check_logits, export, logits_of, run_qlora_cards

CHECK = Path(__file__).parents[1] / "golden" / "check_adapter_export.py"


@pytest.fixture(scope="module")
def qlora_runs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The runs of the cards `configs/zephyr-7b-beta-qlora`."""
    return run_qlora_cards(tmp_path_factory.mktemp("qlora"), shared)


@pytest.fixture(scope="module")
def qlora_adapter(qlora_runs: Runs) -> Path:
    """Their adapter, which DPO continued from SFT."""
    return export(f"--model.path {qlora_runs.folder}/dpo --format adapter", qlora_runs.folder / "nf4-adapter")


def test_the_qlora_cards_run_from_sft_to_an_adapter(qlora_runs: Runs, qlora_adapter: Path) -> None:
    """Law: `sft`, `reference`, `dpo` and `export` keep the cards' settings, DPO starts at ln 2, and the adapter is the policy."""
    run = qlora_runs.folder / "dpo"
    used, card = (
        yaml.safe_load(path.read_text())
        for path in (run / "config.yaml", CONFIGS / "zephyr-7b-beta-qlora" / "dpo.yaml")
    )
    assert card["adapter"] == {name: used["adapter"][name] for name in card["adapter"]} | {"block_size": 64}
    assert (used["batch"]["examples"], used["dpo"]["beta"]) == (card["batch"]["examples"], card["dpo"]["beta"])
    first, last = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert last["loss"] != first["loss"]
    fields = json.loads((qlora_adapter / "adapter_config.json").read_text())
    assert (fields["r"], fields["lora_alpha"], len(fields["target_modules"])) == (16, 16, 7)
    policy = logits_of(run)
    assert np.array_equal(logits_of(qlora_adapter), policy)
    assert np.abs(logits_of(qlora_runs.base, base_format="nf4", block_size=4) - policy).max() > 0.1


def test_stored_weights_are_those_of_training(
    qlora_runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: `stored` has the outputs of the trained model, `original` the weights of the base outside the adapter."""
    run = qlora_runs.folder / "dpo"
    expected = logits_of(run)
    stored = export(f"--model.path {run} --dtype float32 --merge_into stored", tmp_path / "stored")
    assert "as training stored them, rounded to nf4-4; outputs are those of the trained model" in " ".join(
        capsys.readouterr().err.split()
    )
    original = export(f"--model.path {run} --dtype float32", tmp_path / "original")
    assert "training computed with these weights as nf4-4, so outputs differ by that rounding" in " ".join(
        capsys.readouterr().err.split()
    )
    check_logits(logits_of(stored), expected)
    assert np.abs(logits_of(original) - expected).max() > 0.01
    assert json.loads((stored / "provenance.json").read_text())["merge_into"] == "stored"
    base, kept = (load_file(folder / "model.safetensors") for folder in (qlora_runs.base, original))
    assert np.array_equal(base["model.embed_tokens.weight"], kept["model.embed_tokens.weight"])
    rounded = load_file(stored / "model.safetensors")["model.embed_tokens.weight"]
    assert not np.array_equal(base["model.embed_tokens.weight"], rounded)


def dense_base(adapter: Path, out: Path) -> Path:
    """The quantized weights below an adapter, made dense: they with the adapter merged, once its B is zero."""
    zero = Path(shutil.copytree(adapter, out.with_name(f"{out.name}-zero")))
    weights = load_file(zero / "adapter_model.safetensors")
    save_file(
        {name: value * (".lora_B." not in name) for name, value in weights.items()}, zero / "adapter_model.safetensors"
    )
    return export(f"--model.path {zero} --dtype float32 --merge_into stored", out)


def exported(runs: Runs, out: Path) -> list[dict[str, Any]]:
    """The cases of one base format: its adapter on the base as training stored it, and its merged weights."""
    run, name = runs.folder / "dpo", runs.base_format
    merge = "original" if name == "float32" else "stored"
    merged = export(f"--model.path {run} --dtype float32 --merge_into {merge}", out / f"{name}-merged")
    adapter = export(f"--model.path {run} --format adapter", out / f"{name}-adapter")
    base = dense_base(adapter, out / "nf4-base") if name == "nf4" else runs.base
    cases = [
        {"name": f"{name}-merged", "model": str(merged), "adapter": None, "rounded": False},
        {"name": name, "model": str(base), "adapter": str(adapter), "rounded": name == "bfloat16"},
    ]
    return [{**case, "tokens": TOKENS.tolist(), "expected": logits_of(run)} for case in cases]


@pytest.mark.slow
def test_peft_computes_what_was_trained(
    shared: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """Run with ZEPHYR_TORCH_PYTHON=<a Python with torch, transformers and peft>; `.ci/run` makes one.

    Logits within 1e-4 of the run's: of the adapter on a base in float32, in bfloat16, and in nf4 made dense, and of merged
    weights. These are the ones of `merge_and_unload` within 1e-5. The card's code runs.
    """
    python = os.environ.get("ZEPHYR_TORCH_PYTHON")
    if not python or subprocess.run([python, "-c", "import peft"], capture_output=True, check=False).returncode:
        pytest.skip("ZEPHYR_TORCH_PYTHON names no Python with torch and peft")
    half = Runs(tmp_path_factory.mktemp("bfloat16"), shared / "models" / "stories260k", "bfloat16")
    half.sft()
    half.dpo()
    full, quantized = (request.getfixturevalue(name) for name in ("adapter_runs", "qlora_runs"))  # not if skipped
    cases = [case for runs in (full, half, quantized) for case in exported(runs, tmp_path)]
    theirs = [{name: value for name, value in case.items() if name != "expected"} for case in cases]
    (tmp_path / "cases.json").write_text(json.dumps(theirs))
    subprocess.run([python, CHECK, tmp_path / "cases.json", tmp_path], check=True)
    for case in cases:
        result = np.load(tmp_path / f"{case['name']}.npy")
        np.testing.assert_allclose(result, case["expected"], atol=1e-4, rtol=1e-5, err_msg=case["name"])
    for name in ("float32", "bfloat16", "nf4"):
        unloaded, merged = (
            load_file(tmp_path / f"{name}.safetensors"),
            load_file(tmp_path / f"{name}-merged/model.safetensors"),
        )
        assert merged.keys() <= unloaded.keys()
        for tensor, value in merged.items():
            np.testing.assert_allclose(value, unloaded[tensor], atol=1e-5, err_msg=f"{name} {tensor}")
        assert "Hello!" in (tmp_path / f"{name}.txt").read_text()
