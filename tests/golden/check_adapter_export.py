"""Exported adapters by torch: `python check_adapter_export.py cases.json results` (needs torch, transformers and peft).

cases.json: [{"name": ..., "model": folder, "adapter": folder or null, "rounded": bool, "tokens": [[...]]}]. The model is
loaded in float32, its matrices rounded to bfloat16 where `rounded` is set. Writes NAME.npy, the logits, and, with an adapter,
NAME.safetensors, the weights after `merge_and_unload`, and NAME.txt, what the code in the adapter's README.md prints.
"""

import contextlib
import io
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM


def check(case: dict, results: Path) -> None:
    """One case."""
    model = AutoModelForCausalLM.from_pretrained(case["model"], dtype=torch.float32)
    for weight in model.parameters():
        if case["rounded"] and weight.ndim > 1:  # norms stay as they are, as in training
            weight.data = weight.data.to(torch.bfloat16).to(torch.float32)
    if case["adapter"]:
        model = PeftModel.from_pretrained(model, case["adapter"])
    model.eval()
    with torch.no_grad():
        np.save(results / f"{case['name']}.npy", model(torch.tensor(case["tokens"])).logits.numpy())
    if case["adapter"]:
        merged = model.merge_and_unload().state_dict()
        save_file(
            {name: value.contiguous().clone() for name, value in merged.items()},
            results / f"{case['name']}.safetensors",
        )
        (results / f"{case['name']}.txt").write_text(run_card(Path(case["adapter"])))


def run_card(folder: Path) -> str:
    """What the Python code of a model card prints."""
    snippet = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    os.chdir(folder.parent)  # the card names the folder as it is named there
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(snippet[1].replace("max_new_tokens=256", "max_new_tokens=16"), {})
    return printed.getvalue()


if __name__ == "__main__":
    for item in json.loads(Path(sys.argv[1]).read_text()):
        check(item, Path(sys.argv[2]))
