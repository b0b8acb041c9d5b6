"""Fill a reference table, align the small base model in the package on a few preference pairs (dDPO), and export the run.

Run:    uv run python examples/reference_and_dpo.py [OUTPUT]
OUTPUT: folder for rows, table, run and export; default: runs/examples. The same command resumes an interrupted run.
"""

import json
import sys
from pathlib import Path

import zephyr_jax as zj
from zephyr_jax import log

BASE = Path(zj.__file__).parent / "demo" / "assets" / "base"
ANIMALS, THINGS = ["cat", "fox", "hen", "owl"], ["kite", "drum"]
ROWS = [
    {
        "prompt": f"Tell a story about a {animal} and a {thing}.",
        "chosen": f"Once a small {animal} found a {thing}. They played all day.",
        "rejected": "It was a happy ending for everyone.",
    }
    for animal in ANIMALS
    for thing in THINGS
]


def main(output: str = "runs/examples") -> Path:
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    config = zj.DpoConfig(
        output=str(folder / "dpo"),
        reference=str(folder / "reference"),
        model=zj.ModelOptions(path=str(BASE), compute_dtype="float32", remat=zj.Remat.NONE),
        data=zj.DataOptions(path=str(folder / "pairs.jsonl"), max_length=128, row_length=256),
        batch=zj.BatchOptions(rows=8),
        optimizer=zj.OptimizerOptions(learning_rate=1e-4),
        schedule=zj.ScheduleOptions(epochs=4),
        dpo=zj.DpoOptions(beta=0.1),
        report=zj.ReportOptions(num_samples=0, progress_bar=False),
    )
    table = zj.fill_reference(config)
    print(f"reference log-probs: {table.computed} computed, {table.reused} reused")
    run = Path(zj.train_model(config))
    steps, losses = zj.read_metrics(run).series("loss")
    print(f"loss: {losses[0]:.4f} at step {steps[0]} (ln 2: the policy is the reference)")
    print(f"loss: {losses[-1]:.4f} at step {steps[-1]}")
    export = zj.export_model(zj.ExportConfig(model=zj.WeightsOptions(path=str(run)), output=str(folder / "export")))
    print(f"exported to {export}")
    return run


if __name__ == "__main__":
    log.configure("info")
    main(*sys.argv[1:])
