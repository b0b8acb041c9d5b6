"""Compiles full-size LoRA and QLoRA steps for TPU topologies: `plan_v5e_1x1.md`, `plan_v6e_1x1.md`, `plan_<slice>_adapters.md`.

    uv run --extra tpu python -m benchmarks.adapter_plans                                # all; about an hour on 2 cores
    uv run --extra tpu python -m benchmarks.adapter_plans --topology v5e:1x1 --base nf4 int4

Every line is one `zephyr-jax plan` at full depth; nothing is downloaded. A run replaces the lines of the cases that it compiles
and keeps the others.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, replace
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

from benchmarks.single_chip import KEY_CELLS, MODELS
from zephyr_jax.config.adapter import DEFAULT_BLOCK, AdapterOptions
from zephyr_jax.config.plan import PlanConfig
from zephyr_jax.config.sections import BaseFormat, Remat
from zephyr_jax.config.yaml_file import load_card
from zephyr_jax.errors import InputError
from zephyr_jax.model.quantize import CODE_DTYPES
from zephyr_jax.plan.plan import plan
from zephyr_jax.plan.table import run_hours

FOLDER = Path(__file__).parent
CARDS = FOLDER.parent / "configs" / "zephyr-7b-beta"
MISTRAL = "Mistral-7B"
HEADER = (
    "| step | model | topology | rows | base | rank | remat | arguments | temporaries | peak | chip | roofline s | MFU | "
    "run h | compile s | bar |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Case:
    """One step to compile; `rows` go through one forward, and `bar` is what it may need in GiB a chip."""

    step: str
    topology: str
    base: BaseFormat
    rows: int
    bar: float | None = None
    rank: int = 16
    block: int = 64
    model: str = MISTRAL
    remat: Remat = Remat.FULL

    def config(self) -> PlanConfig:
        """The card with the case's settings."""
        config = load_card(PlanConfig, CARDS / ("sft.yaml" if self.step == "sft" else "dpo.yaml"))
        block_size = self.block if self.base in CODE_DTYPES else DEFAULT_BLOCK
        adapter = AdapterOptions(rank=self.rank, base_format=self.base, block_size=block_size)
        if not self.rank:
            adapter = AdapterOptions()
        return replace(
            config,
            topology=self.topology,
            model_preset=self.model,
            step=self.step,
            data=replace(config.data, row_length=2048, max_length=2048 if self.step == "sft" else 1024),
            batch=replace(config.batch, examples=None, rows=self.rows, microbatch_rows=self.rows),
            model=replace(config.model, remat=self.remat),
            adapter=adapter,
        )

    @property
    def key(self) -> list[str]:
        """The cells that identify the case."""
        base = f"{self.base}, blocks of {self.block}" if self.base in CODE_DTYPES else self.base
        return [self.step, self.model, self.topology, str(self.rows), base, str(self.rank), str(self.remat)]

    @property
    def path(self) -> Path:
        """The file with the case's line."""
        name = self.topology.replace(":", "_")
        return FOLDER / (f"plan_{name}.md" if name.endswith("_1x1") else f"plan_{name}_adapters.md")


def one_row(model: str) -> list[Case]:
    """Steps with one row per chip: a line of the table in `docs/single-chip.md`."""
    formats: tuple[BaseFormat, ...] = ("bfloat16", "nf4")
    chips = {"v5e:1x1": 1, "v6e:1x1": 1, "v5e:2x2": 4, "v5e:2x4": 8}
    full = [Case("dpo", "v5e:2x4", "float32", 8, rank=0, model=model)]
    return full + [
        Case("dpo", topology, base, rows, model=model) for topology, rows in chips.items() for base in formats
    ]


CASES = [
    Case("dpo", "v5e:1x1", "int4", 1, 5.6),
    Case("dpo", "v5e:1x1", "int4", 4, 8.0),
    Case("sft", "v5e:1x1", "int4", 4, 8.0),
    Case("sft", "v5e:1x1", "nf4", 4, 8.0),
    Case("dpo", "v5e:1x1", "int8", 1, 8.6, block=128),
    Case("dpo", "v5e:1x1", "nf4", 4, 8.0),
    Case("dpo", "v6e:1x1", "bfloat16", 4, 17.5),
    Case("sft", "v6e:1x1", "bfloat16", 4, 17.5),
    *(case for model in MODELS for case in one_row(model)),
]


def main() -> None:
    """Compile and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("step", "topology", "base", "rows", "model"):
        parser.add_argument(f"--{name}", nargs="+", help="only these")
    asked = {name: values for name, values in vars(parser.parse_args()).items() if values}
    for case in CASES:
        if all(str(getattr(case, name)) in values for name, values in asked.items()):
            line = measure(case)
            print(line, flush=True)
            write(case, line)


def measure(case: Case) -> str:
    """The case's line of the table."""
    try:
        compiled = plan(case.config())
    except InputError as error:
        return f"| {' | '.join(case.key)} | {error} |"
    hours = run_hours(compiled)
    verdict = "" if case.bar is None else f"{case.bar:g}, {'met' if compiled.peak <= case.bar else 'MISSED'}"
    cells = [
        *case.key,
        f"{compiled.arguments:.2f}",
        f"{compiled.temporaries:.2f}",
        f"{compiled.peak:.2f}",
        f"{compiled.chip.hbm:g}",
        f"{compiled.seconds:.2f}",
        f"{compiled.mfu:.0%}",
        f"{hours:.1f}" if hours else "",
        f"{compiled.compile_seconds:.0f}",
        verdict,
    ]
    return f"| {' | '.join(cells)} |"


def write(case: Case, line: str) -> None:
    """Put the line of a case into its file, in the order of `CASES`."""
    path = case.path
    lines = {key: f"| {' | '.join(cells)} |" for key, cells in read_cells(path).items()} | {tuple(case.key): line}
    keys = [tuple(one.key) for one in CASES if one.path == path and tuple(one.key) in lines]
    path.write_text("\n".join([*preamble(case.topology), *(lines[key] for key in keys), ""]))


def read_cells(path: Path) -> dict[tuple[str, ...], list[str]]:
    """The cells of each line of a file, by those that identify its case; empty for a file that does not exist."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [[cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")] for line in lines]
    return {tuple(row[:KEY_CELLS]): row for row in rows if row[0] in ("sft", "dpo") and len(row) > KEY_CELLS}


def preamble(topology: str) -> list[str]:
    """What stands above the table."""
    return [
        f"# LoRA and QLoRA on {topology}, by the TPU compiler",
        "",
        "Adapters on all seven projections with float32 weights (rank 0: all weights train), moments bfloat16 and float32,",
        "splash attention, rows of 2,048 tokens (two pairs of about 1,000, or conversations), compiled at full depth with no",
        "hardware. GiB a chip; `roofline` is the longest of matmuls (with recomputation) and collectives at the published peaks:",
        "a bound, no forecast; `run h` one epoch of UltraFeedback (dpo) or UltraChat (sft) at an assumed 30 % MFU (rank 0: 40",
        "%), without reference pass and evaluation.",
        "",
        f"`uv run --extra tpu python -m benchmarks.adapter_plans --topology {topology}`",
        "",
        *HEADER.split("\n"),
    ]


if __name__ == "__main__":
    main()
