"""One picture of a recipe's curves, from the metrics files of its runs."""

import json
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def draw_curves(path: Path, sft_metrics: Path, dpo_metrics: Path) -> Path:
    """Four panels: SFT loss, DPO loss, rewards of chosen and rejected, preference accuracy. Returns `path`."""
    sft, dpo = _read(sft_metrics), _read(dpo_metrics)
    figure = Figure(figsize=(16, 3.6), layout="constrained")
    panels = figure.subplots(1, 4)
    _curve(panels[0], sft, {"loss": "training", "eval/loss": "held out"}, "dSFT loss (nats per target token)")
    _curve(panels[1], dpo, {"loss": "training", "eval/loss": "held out"}, "dDPO loss (nats per pair)")
    panels[1].axhline(0.6931, color="0.7", linewidth=1, linestyle=":")
    rewards = {"eval/rewards/chosen": "chosen", "eval/rewards/rejected": "rejected", "eval/rewards/margins": "margin"}
    _curve(panels[2], dpo, rewards, "held-out rewards")
    accuracy = {"rewards/accuracies": "training", "eval/rewards/accuracies": "held out"}
    _curve(panels[3], dpo, accuracy, "chosen preferred (share)")
    panels[3].set_ylim(0, 1)
    figure.savefig(path, dpi=110)
    return path


def _read(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _curve(panel: Axes, lines: list[dict[str, float]], series: dict[str, str], title: str) -> None:
    for name, label in series.items():
        points = [(line["step"], line[name]) for line in lines if name in line]
        marker = "o" if name.startswith("eval/") else ""
        panel.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=3, linewidth=1.5)
    panel.set_title(title, fontsize=10)
    panel.set_xlabel("step")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
