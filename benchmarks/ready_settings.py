"""Searches the settings of `configs/zephyr-7b-beta` for common TPU slices with `zephyr-jax plan --fit`: `ready_settings.md`.

    uv run --extra tpu python -m benchmarks.ready_settings                         # all; about an hour on 2 cores
    uv run --extra tpu python -m benchmarks.ready_settings --accelerator v6e-8

DPO is searched; SFT takes the same settings if its compiled step fits with them, as `launch/zephyr.sh` passes its arguments to
all stages, and is searched otherwise. A run replaces the sections of the accelerators that it plans and keeps the others.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

from zephyr_jax.cli import parse
from zephyr_jax.config.plan import PlanConfig
from zephyr_jax.errors import InputError
from zephyr_jax.plan.plan import DoesNotFitError, StepPlan, plan
from zephyr_jax.plan.search import Fit, fit, searched_settings
from zephyr_jax.plan.table import run_hours

FOLDER = Path(__file__).parent
OUTPUT = FOLDER / "ready_settings.md"
CARDS = FOLDER.parent / "configs" / "zephyr-7b-beta"
TOPOLOGIES = {
    "v5litepod-8": "v5e:2x4",
    "v5litepod-16": "v5e:4x4",
    "v6e-8": "v6e:2x4",
    "v5p-8": "v5p:2x2x1",
    "v5p-128": "v5p:4x4x4",
}
"""Topology of each accelerator; the number in Google's name of a v5p counts cores, two a chip."""
PREAMBLE = """# Settings of the 7B cards for common TPU slices

`configs/zephyr-7b-beta` with the fastest settings whose step fits, by `zephyr-jax plan --fit`: full parameters, rows of 2,048
tokens, shared prompts, the cards' batches of 128. The TPU compiler reports the memory. Times are rooflines at published peak
rates; nothing ran on a TPU. `run h` counts the matmuls of all rows at an assumed 40 % of the peak and no collectives. "as the
card is" is the plan without the settings. Append the settings to the command.

`uv run --extra tpu python -m benchmarks.ready_settings`
"""
COLUMNS = "step | settings | rows x accumulation | peak GiB | chip | matmuls s | collectives s | roofline s | run h"
HEADER = f"| {COLUMNS} |\n{'|---' * len(COLUMNS.split('|'))}|"


def card(step: str, topology: str, settings: str = "") -> PlanConfig:
    """The card of the step, planned for the topology with settings as they stand on a command line."""
    words = f"--config {CARDS / step}.yaml --step {step} --topology {topology} {settings}"
    return parse(PlanConfig, "plan", words.split())


def changes(config: PlanConfig, base: PlanConfig) -> str:
    """The searched settings in which a plan differs from the card, as they stand on a command line."""
    before = searched_settings(base)
    changed = {name: value for name, value in searched_settings(config).items() if value != before[name]}
    return " ".join(f"--{name} {value}" for name, value in changed.items())


def line(compiled: StepPlan, label: str) -> str:
    """A line of the table."""
    cells = [
        compiled.config.planned_step,
        label,
        f"{compiled.microbatch_rows} x {compiled.num_microbatches}",
        f"{compiled.peak:.2f}",
        f"{compiled.chip.hbm:g}",
        f"{compiled.compute_seconds:.2f}",
        f"{compiled.ici_seconds:.2f}",
        f"{compiled.seconds:.2f}",
        f"{run_hours(compiled):.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def as_the_card_is(step: str, topology: str) -> str:
    """The line of the card without changes."""
    try:
        return line(plan(card(step, topology)), "as the card is")
    except DoesNotFitError:
        return f"| {step} | as the card is | the compiler ran out of memory | | | | | | |"
    except InputError as error:  # fewer rows in a microbatch than chips
        return f"| {step} | as the card is | refused: {str(error).partition(': the mesh')[0]} | | | | | | |"


def with_settings(step: str, topology: str, settings: str) -> Fit | None:
    """The step with given settings, if it fits."""
    try:
        compiled = plan(card(step, topology, settings))
    except DoesNotFitError:
        return None
    return Fit(compiled, ()) if compiled.fits else None


def section(accelerator: str) -> str:
    """The settings and tables of one accelerator."""
    topology = TOPOLOGIES[accelerator]
    lines, settings, rejected = [], {}, []
    for step in ("dpo", "sft"):
        best = with_settings(step, topology, settings["dpo"]) if settings else None
        best = best or fit(card(step, topology))
        settings[step] = changes(best.plan.config, card(step, topology))
        lines += [line(best.plan, f"`{settings[step]}`" if settings[step] else "as the card is")]
        lines += [as_the_card_is(step, topology)] if settings[step] else []
        rejected += [f"- {step}, rejected: `{text.replace(': ', '`: ', 1)}" for text in best.rejected]
    if settings["sft"] == settings["dpo"]:
        advice = ["All stages:", "", f"    launch/zephyr.sh {settings['dpo']}".rstrip()]
    else:
        advice = [f"    zephyr-jax {step} {settings[step]}" for step in ("sft", "dpo")]
    return "\n".join(
        [f"## {accelerator} ({topology})", "", *advice, "", HEADER, *lines, *([""] * bool(rejected)), *rejected]
    )


def main() -> None:
    """Plan and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerator", choices=TOPOLOGIES, nargs="+", default=list(TOPOLOGIES))
    for accelerator in parser.parse_args().accelerator:
        text = section(accelerator)
        print(text, flush=True)
        old = OUTPUT.read_text().split("\n## ")[1:] if OUTPUT.exists() else []
        sections = {part.split(" ", 1)[0]: f"## {part.rstrip()}" for part in old} | {accelerator: text}
        ordered = [sections[name] for name in TOPOLOGIES if name in sections]
        OUTPUT.write_text("\n\n".join([PREAMBLE.rstrip(), *ordered]) + "\n")


if __name__ == "__main__":
    main()
