"""What lm-eval's own Hugging Face backend says of the demo's base on the tasks of this folder.

Needs torch, transformers, accelerate, peft and lm-eval:  python tests/golden/lm_eval/make_golden.py
"""

import json
import os
from pathlib import Path

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

HERE = Path(__file__).resolve().parent
BASE = HERE.parents[2] / "zephyr_jax/demo/assets/base"
TASKS = ("zephyr_choice", "zephyr_end", "zephyr_whole", "zephyr_text")


def main() -> None:
    """Write golden.json: results, and every sample's responses in the documents' order."""
    os.chdir(HERE)
    found = simple_evaluate(
        "hf",
        model_args={"pretrained": str(BASE), "dtype": "float32"},
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(HERE)),
        device="cpu",
        batch_size=4,
        log_samples=True,
        bootstrap_iters=0,
    )
    samples = {
        task: [row["filtered_resps"] for row in sorted(rows, key=lambda row: row["doc_id"])]
        for task, rows in found["samples"].items()
    }
    text = json.dumps({"results": found["results"], "samples": samples}, indent=1)
    (HERE / "golden.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
