"""Print the metrics of a run as a table. Imports no JAX, so it works beside a run that holds the accelerator.

Run:    uv run python examples/read_metrics.py [RUN]
RUN:    the output folder of `sft` or `dpo`; default: runs/examples/sft, which examples/train_sft.py writes.
"""

import sys

import zephyr_jax as zj

COLUMNS = ("step", "loss", "grad_norm", "learning_rate", "eval/loss")


def main(run: str = "runs/examples/sft") -> zj.RunMetrics:
    metrics = zj.read_metrics(run)
    names = [name for name in COLUMNS if name in metrics.names]
    print("".join(f"{name:>15}" for name in names))
    for row in metrics.rows:
        print("".join(f"{row[name]:15.5g}" if name in row else " " * 15 for name in names))
    return metrics


if __name__ == "__main__":
    main(*sys.argv[1:])
