"""The memory table of `docs/single-chip.md`, and its first rows in `README.md`: which training fits which chip; prints Markdown.

    uv run python -m benchmarks.single_chip

Values of compiled programs are read from the files that `benchmarks.adapter_plans` writes; others are arithmetic. The page has
the formulas. `tests/benchmarks/test_single_chip.py` compares them with compiled programs.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zephyr_jax.model.config import ModelConfig
from zephyr_jax.plan.presets import preset

GIB = 2**30
LENGTH = 2048
"""Tokens of a row; every device holds one row at a time."""
RANK = 16
LOGPROB_CHUNK = 256
KEY_CELLS, PEAK_CELL = 7, 9
"""Cells that name a case in a line of `benchmarks.adapter_plans`, and the index of its peak."""
TIGHT = 0.75
"""GiB to spare below which a fit is called tight: compiled programs differ from the formulas by about that much."""

type Training = Literal["full", "LoRA, bfloat16 base", "QLoRA, nf4 base"]
TRAININGS: tuple[Training, ...] = ("full", "LoRA, bfloat16 base", "QLoRA, nf4 base")


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Devices that share a model."""

    hbm: float
    """GiB of one device that a program may use."""
    devices: int = 1
    packs_4_bits: bool = True
    """Whether two 4-bit codes share a byte; TPU v2 and v3 give each a byte."""
    compute_bytes: int = 2
    """Bytes of the compute dtype: float32 on TPU v2 and v3, as in their cards."""
    topology: str = ""
    """Name of a topology that the TPU compiler knows."""


HARDWARE = {
    "v5e-1": Hardware(hbm=15.75, topology="v5e:1x1"),
    "v6e-1": Hardware(hbm=31.25, topology="v6e:1x1"),
    "v2-8": Hardware(hbm=7.48, devices=8, packs_4_bits=False, compute_bytes=4),
    "v3-8": Hardware(hbm=15.48, devices=8, packs_4_bits=False, compute_bytes=4),
    "v5e-4": Hardware(hbm=15.75, devices=4, topology="v5e:2x2"),
    "v5e-8": Hardware(hbm=15.75, devices=8, topology="v5e:2x4"),
    "GPU 16 GB": Hardware(hbm=0.92 * 16),
    "GPU 24 GB": Hardware(hbm=0.92 * 24),
    "GPU 80 GB": Hardware(hbm=0.92 * 80),
}
"""TPUs: the compiler's limit. GPUs: an assumption, 92 % of nominal."""


MODELS = {name: preset(name) for name in ("Mistral-7B", "Llama-3.1-8B", "Qwen3-8B", "Qwen3-14B")}


def num_projection_weights(sizes: ModelConfig) -> int:
    """Weights of the seven projections of all layers: all but embeddings and norms."""
    return sizes.num_parameters - 2 * sizes.vocab_size * sizes.d_model - (2 * sizes.num_layers + 1) * sizes.d_model


def num_adapter_weights(sizes: ModelConfig, rank: int = RANK) -> int:
    """Weights of A and B of the seven projections: rank x (inputs + outputs) of each."""
    heads, kv_heads = sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
    attention = 2 * (sizes.d_model + heads) + 2 * (sizes.d_model + kv_heads)
    return sizes.num_layers * rank * (attention + 3 * (sizes.d_model + sizes.d_ff))


def state_bytes(sizes: ModelConfig, training: Training, hardware: Hardware, rank: int = RANK) -> float:
    """Bytes of weights, gradients and moments of all devices together."""
    if training == "full":  # float32 weights and second moment, bfloat16 gradients and first moment
        return (4 + 4 + 2 + 2) * sizes.num_parameters
    projections = num_projection_weights(sizes)
    code = 2.0 if training == "LoRA, bfloat16 base" else (0.5 if hardware.packs_4_bits else 1.0) + 2 / 64
    base = code * projections + 2 * (sizes.num_parameters - projections)
    return base + (4 + 4 + 4 + 4) * num_adapter_weights(sizes, rank)  # float32 weights, gradients and moments


def row_bytes(sizes: ModelConfig, hardware: Hardware) -> float:
    """Bytes that one row needs: the input of every layer, and the activations of the layer that is recomputed."""
    return LENGTH * hardware.compute_bytes * (sizes.num_layers * sizes.d_model + 9 * sizes.d_ff)


def temporary_bytes(sizes: ModelConfig, hardware: Hardware) -> float:
    """Bytes of dense weights in use (one layer where weights are sharded, else one projection) and of a chunk of logits."""
    dense = num_projection_weights(sizes) / sizes.num_layers if hardware.devices > 1 else sizes.d_model * sizes.d_ff
    return hardware.compute_bytes * dense + 4 * LOGPROB_CHUNK * sizes.vocab_size


def peak_gib(sizes: ModelConfig, training: Training, hardware: Hardware, rows: int = 1, rank: int = RANK) -> float:
    """GiB of one device.

    Args:
        sizes: Model.
        training: What is trained, and how the frozen weights are stored.
        hardware: Devices; weights, gradients and moments are sharded over them (fsdp).
        rows: Rows per device of one forward and backward pass.
        rank: Rank of the adapters.
    """
    state = state_bytes(sizes, training, hardware, rank) / hardware.devices
    return (state + rows * row_bytes(sizes, hardware) + temporary_bytes(sizes, hardware)) / GIB


def compiled_peaks(folder: Path = Path(__file__).parent) -> dict[tuple[str, Training, str], float]:
    """GiB of one chip of DPO steps with one row per chip, by model, training and topology; infinite for refused programs."""
    trainings: dict[tuple[str, str], Training] = {
        ("0", "float32"): "full",
        (str(RANK), "bfloat16"): "LoRA, bfloat16 base",
        (str(RANK), "nf4, blocks of 64"): "QLoRA, nf4 base",
    }
    devices = {hardware.topology: hardware.devices for hardware in HARDWARE.values() if hardware.topology}
    peaks = {}
    for file in sorted(folder.glob("plan_*.md")):
        for line in file.read_text().splitlines():
            cells = [cell.strip() for cell in line.strip("| ").split("|")]
            if len(cells) <= KEY_CELLS or cells[0] != "dpo" or cells[1] not in MODELS:
                continue
            _, name, topology, rows, base, rank = cells[:6]
            if (rank, base) not in trainings or rows != str(devices.get(topology)):
                continue
            key = name, trainings[rank, base], topology
            if "RESOURCE_EXHAUSTED" in cells[KEY_CELLS]:
                peaks[key] = math.inf
            elif len(cells) > PEAK_CELL:  # else the compiler refused the step for another reason than memory
                peaks[key] = float(cells[PEAK_CELL])
    return peaks


def cell(peak: float, hardware: Hardware, is_compiled: bool) -> str:
    """Peak of one device, marked where it does not fit; bold where it is that of a compiled program, `**no**` if refused."""
    if math.isinf(peak):
        return "**no**"
    value = f"**{peak:.1f}**" if is_compiled else f"{peak:.1f}"
    verdict = "no, " if peak > hardware.hbm else "tight, " if peak > hardware.hbm - TIGHT else ""
    return f"{verdict}{value}"


def table(models: Iterable[str] = tuple(MODELS)) -> str:
    """The table of the page, or its rows for some models."""
    lines = [
        f"| GiB per device | {' | '.join(HARDWARE)} | a further row |",
        f"|---|{'---|' * len(HARDWARE)}---|",
        f"| *may use* | {' | '.join(f'*{hardware.hbm:.4g}*' for hardware in HARDWARE.values())} | |",
    ]
    compiled = compiled_peaks()
    for name in models:
        sizes = MODELS[name]
        for training in TRAININGS:
            cells = []
            for hardware in HARDWARE.values():
                key = (name, training, hardware.topology)
                peak = compiled.get(key, peak_gib(sizes, training, hardware))
                cells.append(cell(peak, hardware, key in compiled))
            more = f"{row_bytes(sizes, HARDWARE['v5e-1']) / GIB:.1f}"
            lines.append(f"| {name}, {training} | {' | '.join(cells)} | {more} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
