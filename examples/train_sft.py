"""Fine-tune the small base model in the package on a few conversations (dSFT), and let the run answer.

Run:    uv run python examples/train_sft.py [OUTPUT]
OUTPUT: folder for the rows and the run; default: runs/examples. The same command resumes an interrupted run.
"""

import json
import sys
from pathlib import Path

import zephyr_jax as zj
from zephyr_jax import log

BASE = Path(zj.__file__).parent / "demo" / "assets" / "base"
ANIMALS, THINGS = ["cat", "fox", "hen", "owl"], ["kite", "drum", "ball", "lamp"]
ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"Tell a story about a {animal} and a {thing}."},
            {"role": "assistant", "content": f"Once a small {animal} found a {thing}. They played all day."},
        ]
    }
    for animal in ANIMALS
    for thing in THINGS
]


def main(output: str = "runs/examples") -> Path:
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    config = zj.SftConfig(
        output=str(folder / "sft"),
        model=zj.ModelOptions(path=str(BASE), compute_dtype="float32", remat=zj.Remat.NONE),
        data=zj.DataOptions(path=str(folder / "chats.jsonl"), max_length=128, row_length=128),
        batch=zj.BatchOptions(rows=8),
        optimizer=zj.OptimizerOptions(learning_rate=2e-3),
        schedule=zj.ScheduleOptions(epochs=4),
        report=zj.ReportOptions(num_samples=0, progress_bar=False),
    )
    run = Path(zj.train_model(config))
    steps, losses = zj.read_metrics(run).series("loss")
    print(f"loss: {losses[0]:.3f} at step {steps[0]}, {losses[-1]:.3f} at step {steps[-1]}")
    sampling = zj.TopKSamplingOptions(max_new_tokens=32)
    (answer,) = zj.generate_text(zj.load_model(run), ["Tell a story about a hen and a kite."], sampling)
    print(answer.text)
    return run


if __name__ == "__main__":
    log.configure("info")
    main(*sys.argv[1:])
