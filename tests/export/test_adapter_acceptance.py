"""Acceptance: SFT, reference and DPO with adapters on stories260k, exported; peft and transformers compute the same."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.adapter_runs import TOKENS, Runs, export, logits_of

CHECK = Path(__file__).parents[1] / "golden" / "check_adapter_export.py"


def exported(runs: Runs, out: Path) -> list[dict[str, Any]]:
    """The cases of one base format: its adapter on the base, except on a quantized one, and its merged weights."""
    run, name = runs.folder / "dpo", runs.base_format
    merge = "original" if name == "float32" else "stored"
    merged = export(f"--model.path {run} --dtype float32 --merge_into {merge}", out / f"{name}-merged")
    cases = [{"name": f"{name}-merged", "model": str(merged), "adapter": None, "rounded": False}]
    if name != "nf4":
        adapter = export(f"--model.path {run} --format adapter", out / f"{name}-adapter")
        base = str(runs.base)
        cases.append({"name": name, "model": base, "adapter": str(adapter), "rounded": name == "bfloat16"})
    return [{**case, "tokens": TOKENS.tolist(), "expected": logits_of(run)} for case in cases]


@pytest.mark.slow
def test_peft_computes_what_was_trained(
    adapter_runs: Runs, shared: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """Run with ZEPHYR_TORCH_PYTHON=<a Python with torch, transformers and peft>.

    Logits within 1e-4 of the run's: of the adapter on a float32 base and on one in bfloat16, and of the weights that training
    stored in nf4 with the adapter merged. Merged weights are those of `merge_and_unload` within 1e-5. The card's code runs.
    """
    python = os.environ.get("ZEPHYR_TORCH_PYTHON")
    if not python or subprocess.run([python, "-c", "import peft"], capture_output=True, check=False).returncode:
        pytest.skip("ZEPHYR_TORCH_PYTHON names no Python with torch and peft")
    cases = exported(adapter_runs, tmp_path)
    for base_format in ("bfloat16", "nf4"):
        runs = Runs(tmp_path_factory.mktemp(base_format), shared / "models" / "stories260k", base_format)
        runs.sft()
        runs.dpo()
        cases += exported(runs, tmp_path)
    theirs = [{name: value for name, value in case.items() if name != "expected"} for case in cases]
    (tmp_path / "cases.json").write_text(json.dumps(theirs))
    subprocess.run([python, CHECK, tmp_path / "cases.json", tmp_path], check=True)
    for case in cases:
        result = np.load(tmp_path / f"{case['name']}.npy")
        np.testing.assert_allclose(result, case["expected"], atol=1e-4, rtol=1e-5, err_msg=case["name"])
    for name in ("float32", "bfloat16"):
        unloaded, merged = (
            load_file(tmp_path / f"{name}.safetensors"),
            load_file(tmp_path / f"{name}-merged/model.safetensors"),
        )
        assert merged.keys() <= unloaded.keys()
        for tensor, value in merged.items():
            np.testing.assert_allclose(value, unloaded[tensor], atol=1e-5, err_msg=f"{name} {tensor}")
        assert "Hello!" in (tmp_path / f"{name}.txt").read_text()
