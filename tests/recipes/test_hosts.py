"""Several real processes over loopback: they compute what one computes, and they end together."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load, load_file

from tests.conftest import write_rows
from tests.gcs import Gcs
from zephyr_jax.checkpoint.provenance import FILE
from zephyr_jax.cli import main
from zephyr_jax.demo.corpus import conversations, preferences

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
        f"--schedule.max_steps {steps} --schedule.evaluate_every 0 --report.progress False"
    ).split()


def test_two_processes_train_as_one(tiny_model: Path, tmp_path: Path) -> None:
    """Losses, gradient norms and the exported weights equal those of one process with eight devices."""
    rows = write_rows(tmp_path / "chats.jsonl", list(conversations(0, 37, "train")))
    run_all(2, sft_words(tiny_model, rows, tmp_path / "two"), tmp_path)
    main([*sft_words(tiny_model, rows, tmp_path / "one"), "--mesh.emulated_devices", "8"])
    assert len(curve(tmp_path / "one")) == 3
    np.testing.assert_allclose(curve(tmp_path / "two"), curve(tmp_path / "one"), rtol=1e-5)
    for name in ("one", "two"):
        main(f"export --model.path {tmp_path / name} --output {tmp_path / name}-hf --dtype float32".split())
    one, two = (load_file(tmp_path / f"{name}-hf" / "model.safetensors") for name in ("one", "two"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, two)


def test_four_processes_fill_the_table_and_two_align_with_it(tiny_model: Path, tmp_path: Path) -> None:
    """Each process writes its own rows of the reference table; DPO on another number of processes starts at ln 2."""
    pairs = write_rows(tmp_path / "pairs.jsonl", list(preferences(0, 21, "train")))
    words = (
        f"--config {CARDS}/dpo.yaml --model.path {tiny_model} --data.path {pairs} --output {tmp_path}/dpo "
        f"--reference {tmp_path}/reference --batch.examples 21 --batch.microbatch_rows 8 --schedule.epochs 2 "
        "--schedule.evaluate_every 0 --report.progress False"
    ).split()
    run_all(4, ["reference", *words], tmp_path)
    run_all(2, ["dpo", *words], tmp_path)
    losses = [loss for _, loss, _ in curve(tmp_path / "dpo")]
    np.testing.assert_allclose(losses[0], np.log(2), atol=5e-6)


@pytest.mark.parametrize("guilty", [0, 1])
def test_an_error_on_one_host_ends_all_with_its_message(tiny_model: Path, tmp_path: Path, guilty: int) -> None:
    """Whether the one that keeps the coordinator or another: no traceback, no hang, the guilty one's words everywhere."""
    rows = write_rows(tmp_path / "chats.jsonl", list(conversations(0, 37, "train")))
    words = [sft_words(tiny_model, rows, tmp_path / "run") for _ in range(2)]
    words[guilty] += ["--data.path", str(tmp_path / "nowhere.jsonl")]
    with processes(2, words, tmp_path) as started:
        said = [process.communicate(timeout=PATIENCE)[1] for process in started]
        codes = [process.returncode for process in started]
    assert codes[guilty] == 2
    assert codes[1 - guilty] == 4
    assert re.search(rf"process {guilty} stopped: error: .*nowhere.jsonl", said[1 - guilty])
    assert "Traceback" not in "".join(said)
    assert not (tmp_path / "run").exists()


def test_a_killed_host_ends_the_others_and_a_restart_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of training: the other process is gone within a minute; the same command finishes the run."""
    rows = write_rows(tmp_path / "chats.jsonl", list(conversations(0, 37, "train")))
    words = [*sft_words(tiny_model, rows, tmp_path / "run", steps=12), "--schedule.save_every", "2"]
    with processes(2, [words] * 2, tmp_path) as (first, second):
        assert first.stderr is not None
        for line in first.stderr:
            if line.startswith("step 4/"):
                break
        second.send_signal(signal.SIGKILL)
        first.communicate(timeout=60)
        assert first.returncode not in (0, None)
    seen = len(curve(tmp_path / "run"))
    assert 4 <= seen < 12
    run_all(2, words, tmp_path)
    assert [step for step, _, _ in curve(tmp_path / "run")] == list(range(1, 13))


def test_an_export_by_two_is_the_export_by_one(tiny_model: Path, tmp_path: Path) -> None:
    """Byte for byte, in several files; process 0 alone writes."""
    words = f"export --model.path {tiny_model} --dtype bfloat16 --max_file_gib 0.001 --output".split()
    run_all(2, [*words, str(tmp_path / "two"), "--mesh.tensor", "2"], tmp_path)
    main([*words, str(tmp_path / "one")])
    two, one = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("two", "one"))
    assert two.keys() == one.keys()
    assert all(two[name] == one[name] for name in one if name not in ("README.md", FILE))  # these name paths
    assert len([name for name in one if name.endswith(".safetensors")]) > 1


def test_an_export_that_fails_on_the_writer_ends_all(tiny_model: Path, tmp_path: Path) -> None:
    """Process 0 may not write: the other says so and does not wait for ever."""
    (tmp_path / "hf").mkdir()
    words = f"export --model.path {tiny_model} --output {tmp_path}/hf".split()
    with processes(2, [words] * 2, tmp_path) as started:
        said = [process.communicate(timeout=PATIENCE)[1] for process in started]
        codes = [process.returncode for process in started]
    assert codes == [2, 4]
    assert "process 0 stopped: error: " in said[1]
    assert "hf exists already" in said[1]


def test_two_processes_share_nothing_but_a_bucket(bucket: Gcs, tiny_model: Path, tmp_path: Path) -> None:
    """Model, rows, run, table and export on gs://, each process with a cache of its own: what one process makes there."""
    cloud = epath.Path("gs://bucket")
    for file in tiny_model.iterdir():
        (cloud / "base" / file.name).write_bytes(file.read_bytes())
    for name, rows in (("chats", conversations(0, 37, "train")), ("pairs", preferences(0, 21, "train"))):
        file = write_rows(tmp_path / f"{name}.jsonl", list(rows))
        (cloud / file.name).write_bytes(file.read_bytes())
    pairs = (
        f"--config {CARDS}/dpo.yaml --model.path {cloud}/two --data.path {cloud}/pairs.jsonl --output {cloud}/dpo "
        f"--reference {cloud}/reference --batch.examples 21 --batch.microbatch_rows 8 --schedule.epochs 1 "
        "--schedule.evaluate_every 0 --report.progress False"
    ).split()
    for name in ("two", "one"):
        train = sft_words(cloud / "base", cloud / "chats.jsonl", cloud / name, steps=2)
        export = f"export --model.path {cloud}/{name} --output {cloud}/{name}-hf --dtype float32".split()
        for words in (train, export, ["reference" if name == "two" else "dpo", *pairs]):
            if name == "two":
                run_all(2, words, tmp_path)
            else:
                main([*words, "--mesh.emulated_devices", "8"])
    np.testing.assert_allclose(curve(cloud / "two"), curve(cloud / "one"), rtol=1e-5)
    np.testing.assert_allclose(curve(cloud / "dpo")[0][1], np.log(2), atol=5e-6)
    assert len([name for name in bucket.names("bucket", "reference/") if "part-" in name]) == 2
    one, two = (load((cloud / f"{name}-hf" / "model.safetensors").read_bytes()) for name in ("one", "two"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, two)


def test_a_coordinator_that_is_not_there_is_named(tiny_model: Path, tmp_path: Path) -> None:
    """Numbers that are none: refused in one paragraph."""
    rows = write_rows(tmp_path / "chats.jsonl", list(conversations(0, 37, "train")))
    environment = {**os.environ, "JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "two"}
    command = [sys.executable, "-m", "zephyr_jax", *sft_words(tiny_model, rows, tmp_path / "run")]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert said.returncode == 2
    assert "JAX_NUM_PROCESSES is 'two'. It must be a whole number" in said.stderr


def test_processes_that_are_told_to_stop_save_one_step_together_and_go_on(tiny_model: Path, tmp_path: Path) -> None:
    """SIGTERM to one of two: both leave with code 75 after the same step; the same command then ends as if never stopped."""
    rows = write_rows(tmp_path / "chats.jsonl", list(conversations(0, 37, "train")))
    words = sft_words(tiny_model, rows, tmp_path / "run", steps=12)
    with processes(2, [words] * 2, tmp_path) as (first, second):
        assert first.stderr is not None
        for line in first.stderr:
            if line.startswith("step 3/"):
                break
        second.send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=60)[1] for process in (first, second)]
        assert [process.returncode for process in (first, second)] == [75, 75]
    stopped = [re.findall(r"Step (\d+) of 12 is saved", each) for each in said]
    assert stopped[0] == stopped[1]
    assert 3 <= int(stopped[0][0]) < 12
    run_all(2, words, tmp_path)
    run_all(2, sft_words(tiny_model, rows, tmp_path / "whole", steps=12), tmp_path)
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")
