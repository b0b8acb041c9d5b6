"""Compiles full-size steps for TPU topologies and writes `benchmarks/plan_<topology>.md`, a table a topology.

    uv run --extra tpu python -m benchmarks.plans                 # the bars and the pods; about half an hour on 2 cores
    uv run --extra tpu python -m benchmarks.plans --topology v5e:2x4
    uv run python -m benchmarks.plans --summary                   # the table of docs/benchmarks.md, from the files

Every line is one `zephyr-jax plan`: Mistral-7B's sizes, full depth, nothing downloaded.
"""

from __future__ import annotations

import argparse
import os
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

from zephyr_jax.config.plan import PlanConfig
from zephyr_jax.config.sections import Remat
from zephyr_jax.config.yaml_file import load_card
from zephyr_jax.errors import InputError
from zephyr_jax.plan.plan import plan
from zephyr_jax.plan.table import HEADER, row

FOLDER = Path(__file__).parent
CARDS = FOLDER.parent / "configs" / "zephyr-7b-beta"


@dataclass(frozen=True)
class Case:
    """One step to compile; `rows` go through one forward, and `bar` is what it may need in GiB a chip."""

    step: str
    topology: str
    rows: int
    bar: float | None = None
    length: int = 2048
    tensor: int = 1
    remat: Remat = Remat.FULL
    offload_moments: bool = False

    def config(self) -> PlanConfig:
        card = CARDS / ("sft.yaml" if self.step == "sft" else "dpo.yaml")
        config = load_card(PlanConfig, card)
        return replace(
            config,
            topology=self.topology,
            step=self.step,
            data=replace(config.data, row_length=self.length, max_length=self.length if self.step == "sft" else 1024),
            batch=replace(config.batch, examples=None, rows=self.rows, microbatch_rows=self.rows),
            mesh=replace(config.mesh, tensor=self.tensor),
            model=replace(config.model, remat=self.remat),
            optimizer=replace(config.optimizer, offload_moments=self.offload_moments),
        )

    @property
    def title(self) -> str:
        """The step, and what differs from other cases."""
        differences = {
            f"tensor {self.tensor}": self.tensor > 1,
            f"rows of {self.length:,}": self.length != 2048,
            f"`remat: {self.remat}`": self.remat != Remat.FULL,
            "moments in host memory": self.offload_moments,
        }
        return ", ".join([f"`{self.step}`", *(text for text, differs in differences.items() if differs)])


CASES = [
    *(Case(step, "v5e:2x4", 8, 13.0) for step in ("dpo", "sft")),
    *(Case(step, "v5e:2x4", 16, 13.9) for step in ("dpo", "sft")),
    Case("reference", "v5e:2x4", 32, 6.0),
    *(Case(step, "v5e:4x4", 16, 7.2) for step in ("dpo", "sft")),
    *(Case(step, "v6e:2x4", 32, 16.0) for step in ("dpo", "sft")),
    *(Case(step, "v5p:2x2x1", 32, 31.0) for step in ("dpo", "sft")),
    Case("sft", "v6e:4x4", 16, length=8192),
    # less than eight small chips, and more rows on them
    Case("dpo", "v5e:2x2", 4, offload_moments=True),
    Case("dpo", "v5e:2x4", 32, remat=Remat.FULL_OFFLOAD),
    Case("dpo", "v5e:2x4", 32),
    # pods with the cards' own batches: 128 rows, and 128 pairs in about 64 rows
    Case("sft", "v5p:4x4x8", 128),
    Case("dpo", "v5p:4x4x8", 64, tensor=2),
    Case("sft", "v5e:16x16", 128, tensor=2),
    Case("dpo", "v5e:16x16", 64, tensor=4),
]


def main() -> None:
    """Compile and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", help="only this one")
    parser.add_argument(
        "--summary", action="store_true", help="compile nothing and print the table of docs/benchmarks.md"
    )
    options = parser.parse_args()
    if options.summary:
        print(summary())
        return
    only = options.topology
    lines: dict[str, list[str]] = defaultdict(list)
    for case in CASES:
        if only in (None, case.topology):
            lines[case.topology].append(measure(case))
            print(lines[case.topology][-1], flush=True)
    for topology, rows in lines.items():
        file_of(topology).write_text("\n".join([*preamble(topology), *rows, ""]))


def file_of(topology: str) -> Path:
    """The file with the lines of a topology."""
    return FOLDER / f"plan_{topology.replace(':', '_')}.md"


def summary() -> str:
    """A line for each case, with the peak and the times that its file has."""
    rows = [
        "| step | topology | rows | peak GiB | of | sent GiB | roofline s | run, h |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for topology in dict.fromkeys(case.topology for case in CASES):
        cases = [case for case in CASES if case.topology == topology]
        lines = [
            line for line in file_of(topology).read_text().splitlines() if line.startswith(("| sft", "| dpo", "| ref"))
        ]
        for case, line in zip(cases, lines, strict=True):
            cells = [cell.strip() for cell in line.strip("| ").split("|")]
            figures = [cells[index] for index in (7, 8, 9, 10, 12)]  # as in `table.HEADER`
            rows.append(f"| {' | '.join([case.title, topology, str(case.rows), *figures])} |")
    return "\n".join(rows)


def measure(case: Case) -> str:
    """The case's line of the table."""
    try:
        compiled = plan(case.config())
    except InputError as error:
        return f"| {case.step} | {case.topology} | {case.rows} rows of {case.length} | {error} |"
    verdict = "" if case.bar is None else f"{case.bar:g}, {'met' if compiled.peak <= case.bar else 'MISSED'}"
    kept = " and ".join(["moments"] * case.offload_moments + ["inputs"] * (case.remat == Remat.FULL_OFFLOAD))
    on_host = f"{kept}, {compiled.host_memory:.2f}" if kept else ""
    return f"{row(compiled)} {case.length} | {case.tensor} | {on_host} | {verdict} |"


def preamble(topology: str) -> list[str]:
    """What stands above the table."""
    head, rule = HEADER.split("\n")
    return [
        f"# Mistral-7B on {topology}, by the TPU compiler",
        "",
        "Full parameters, float32 weights, `remat: full`, splash attention, compiled at full depth with no hardware. GiB a",
        "chip; `sent` is what a chip sends in a step, `roofline` the longest of matmuls (with recomputation) and collectives at",
        "the published peaks: a bound, not a forecast; `run h` the card's whole run at 40 % MFU (paper: 1.7 h of SFT and 6.6 h",
        "of three epochs of DPO on 16 A100s). Two pairs of about 1,000 tokens share a row of 2,048, so n rows are 2n pairs.",
        "",
        f"`uv run --extra tpu python -m benchmarks.plans --topology {topology}`",
        "",
        f"{head} row length | tensor | on the host | bar |",
        f"{rule}---|---|---|---|",
    ]


if __name__ == "__main__":
    main()
