"""Exported folders by torch: `python check_round_trip.py cases.json results.json` (needs torch and transformers).

cases.json: [{"folder": ..., "chats": [[messages, asks], ...], "tokens": [[...]], "prompts": [messages, ...], "new": 16}].
"""

import contextlib
import io
import json
import os
import re
import sys
from pathlib import Path

import torch
from check_chat_ids import ids_of
from transformers import AutoModelForCausalLM, AutoTokenizer


def result_of(case: dict) -> dict:
    """Ids, logits, greedy ids of each prompt, and what the snippet in README.md prints."""
    folder = Path(case["folder"])
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    found = ids_of(case)
    with torch.no_grad():
        found["logits"] = model(torch.tensor(case["tokens"])).logits.tolist()
    found["greedy"] = []
    for messages in case["prompts"]:
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        made = model.generate(**inputs, max_new_tokens=case["new"], do_sample=False)[0]
        found["greedy"].append(made[inputs["input_ids"].shape[1] :].tolist())
    snippet = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    os.chdir(folder.parent)  # the snippet names the folder as it is named there
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(snippet[1], {})
    found["snippet"] = printed.getvalue().removesuffix("\n")
    return found


if __name__ == "__main__":
    cases = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps([result_of(case) for case in cases]))
