"""Real processes over loopback that pose as hosts."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from etils import epath

CARDS = Path(__file__).parents[2] / "configs" / "tiny"
PATIENCE = 240


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@contextmanager
def processes(count: int, words: list[list[str]], scratch: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """`count` processes that share eight emulated devices, each with its own words; none outlives the block."""
    address, started = f"localhost:{free_port()}", []
    for index in range(count):
        environment = {
            **os.environ,
            "HF_HOME": str(scratch / f"cache-{index}"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # many small programs, the same in every test
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
        }
        command = [sys.executable, "-m", "zephyr_jax", *words[index], "--mesh.emulated_devices", str(8 // count)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=environment, **pipes))
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def run_all(count: int, words: list[str], scratch: Path) -> None:
    """All processes with the same words, to a good end."""
    with processes(count, [words] * count, scratch) as started:
        for process in started:
            _, said = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, said


def curve(run: Path | epath.Path) -> list[tuple[int, float, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines if "loss" in line]


def sft_words(model: Any, rows: Any, output: Any, steps: int = 3) -> list[str]:
    """37 conversations in rows of 256: rows a step that no number of processes divides, so the last microbatch is padded."""
    return (
        f"sft --config {CARDS}/sft.yaml --model.path {model} --data.path {rows} --output {output} --data.max_length 256 "
        f"--data.row_length 256 --batch.examples 37 --batch.rows None --batch.microbatch_rows 8 --schedule.epochs {steps} "
        f"--schedule.max_steps {steps} --schedule.evaluate_every 0 --report.no_progress_bar --report.num_samples 0"
    ).split()
