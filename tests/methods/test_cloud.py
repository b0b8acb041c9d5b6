"""Everything on Cloud Storage: the same files, numbers and errors as on a disk."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load

from tests.conftest import write_rows
from tests.gcs import Gcs
from tests.methods.small import dpo_config, sft_config
from tests.train.test_resume import Killed, kill_after
from zephyr_jax.checkpoint.provenance import FILE
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.checkpoint.steps import restore_parameters
from zephyr_jax.cli import main
from zephyr_jax.config.models import EvaluateConfig, ExportConfig, GenerateConfig
from zephyr_jax.config.sections import ModelOptions
from zephyr_jax.data.sources import open_rows
from zephyr_jax.demo.corpus import conversations, preferences
from zephyr_jax.errors import InputError, Stopped, TrainingError
from zephyr_jax.evaluate.held_out import evaluate
from zephyr_jax.export.export import export
from zephyr_jax.generate.generate import generate
from zephyr_jax.reference.fill import reference
from zephyr_jax.storage import cloud
from zephyr_jax.storage.cloud import translate_cloud_errors
from zephyr_jax.train.metrics import CLOCK_METRICS
from zephyr_jax.train_command import train

CLOUD = epath.Path("gs://bucket")


def curve(run: epath.Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCK_METRICS} for line in lines]


def weights(run: epath.Path) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(restore_parameters(run, None, None))]


def upload(folder: Path, to: epath.Path) -> None:
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())


def recipe(model: Any, data: Any, out: Any) -> dict[str, float]:
    """SFT, reference, DPO, export and evaluation; every path is below `out`."""
    train(sft_config(model, data / "chats.jsonl", out / "sft", epochs=1))
    config = dpo_config(out / "sft", data / "pairs.jsonl", out / "dpo", out / "reference")
    config = replace(
        config, data=replace(config.data, eval_path=f"{data}/pairs.jsonl"), schedule=replace(config.schedule, epochs=1)
    )
    reference(config)
    train(config)
    export(ExportConfig(model=ModelOptions(path=f"{out}/dpo"), output=f"{out}/hf", max_shard_gib=0.001))
    one_split = replace(config.data, eval_path=None)
    model_there = ModelOptions(path=f"{out}/hf", compute_dtype="float32")
    return evaluate(EvaluateConfig(model=model_there, data=one_split, batch_size=8, output=f"{out}/numbers"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "chats.jsonl", list(conversations(0, 24, "train")))
    write_rows(folder / "pairs.jsonl", list(preferences(0, 16, "train")))
    return folder


def test_the_whole_recipe_is_the_same_there(bucket: Gcs, tiny_model: Path, data: Path, tmp_path: Path) -> None:
    """Model, rows, runs, table, export and numbers on gs://: metrics, weights and files are bit for bit the disk's."""
    upload(tiny_model, CLOUD / "base")
    upload(data, CLOUD / "rows")
    there = recipe(CLOUD / "base", CLOUD / "rows", CLOUD / "out")
    here = recipe(tiny_model, data, tmp_path)
    assert there == here
    assert json.loads((CLOUD / "out" / "numbers").read_text()) == {**here, "examples": 16}
    for run in ("sft", "dpo"):
        assert curve(CLOUD / "out" / run) == curve(epath.Path(tmp_path) / run)
        for left, right in zip(weights(CLOUD / "out" / run), weights(epath.Path(tmp_path) / run), strict=True):
            np.testing.assert_array_equal(left, right)
    local = {file.name: file.read_bytes() for file in (tmp_path / "hf").iterdir()}
    assert len([name for name in local if name.endswith(".safetensors")]) > 1
    cloud = {path.name: path.read_bytes() for path in (CLOUD / "out" / "hf").iterdir()}
    assert cloud.keys() == local.keys()
    assert all(cloud[name] == local[name] for name in local if name not in ("README.md", FILE))  # these name paths


def test_a_killed_run_goes_on_there(
    bucket: Gcs, tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed once between checkpoints: curve and weights are those of a run on disk that was never killed."""
    config = sft_config(tiny_model, data / "chats.jsonl", tmp_path / "run")
    train(config)
    there = replace(config, output="gs://bucket/run", report=replace(config.report, tensorboard=True))
    with monkeypatch.context() as patch:
        kill_after(patch, 3)
        with pytest.raises(Killed):
            train(there)
    train(there)
    assert curve(CLOUD / "run") == curve(epath.Path(tmp_path) / "run")
    for left, right in zip(weights(CLOUD / "run"), weights(epath.Path(tmp_path) / "run"), strict=True):
        np.testing.assert_array_equal(left, right)
    assert len(bucket.names("bucket", "run/tensorboard/")) == 2


def test_a_step_that_was_not_finished_is_none(bucket: Gcs, tiny_model: Path, data: Path) -> None:
    """Without orbax's last object a step's folder is there and is not read."""
    train(sft_config(tiny_model, data / "chats.jsonl", CLOUD / "run", epochs=1))
    steps = sorted(int(path.name) for path in (CLOUD / "run/checkpoints").iterdir())
    (CLOUD / f"run/checkpoints/{steps[-1]}/commit_success.txt").unlink()
    with pytest.raises(InputError, match=f"expected step {steps[-1]}, got"):
        restore_parameters(CLOUD / "run", steps[-1], None)


def test_an_export_that_was_cut_short_is_made_again(bucket: Gcs, tiny_model: Path) -> None:
    """The network goes in the middle: one paragraph, no config.json; the same command makes it whole, another is refused."""
    config = ExportConfig(model=ModelOptions(path=str(tiny_model)), output="gs://bucket/hf", max_shard_gib=0.001)
    bucket.state.fault = lambda method, path: 403 if "model-00002" in path else None
    with (
        pytest.raises(InputError, match="this account may not do that.*Storage Object Admin"),
        translate_cloud_errors(),
    ):
        export(config)
    bucket.state.fault = None
    assert "hf/config.json" not in bucket.names("bucket")
    (CLOUD / "hf/export-unfinished").write_text("")  # as if the process had been killed
    (CLOUD / "hf/model-00001-of-00009.safetensors").write_text("of another try")
    export(config)
    names = {path.name for path in (CLOUD / "hf").iterdir()}
    assert {"config.json", "model.safetensors.index.json"} <= names
    assert not names & {"export-unfinished", "model-00001-of-00009.safetensors"}
    with pytest.raises(InputError, match="gs://bucket/hf already exists"):
        export(replace(config, dtype="float32"))


def test_generate_reads_and_writes_there(bucket: Gcs, tiny_model: Path) -> None:
    upload(tiny_model, CLOUD / "base")
    generate(
        GenerateConfig(
            model=ModelOptions(path="gs://bucket/base"), prompts=["Hello"], batch_size=8, max_new_tokens=4,
            output="gs://bucket/answers.jsonl",
        )
    )  # fmt: skip
    assert json.loads((CLOUD / "answers.jsonl").read_text())["prompt"] == "Hello"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda *_: 401, "no credentials.*application-default login"),
        (lambda *_: 403, "this account may not do that.*Storage Object Viewer"),
        (lambda *_: "drop", "cannot be reached.*run the same command again"),
        (lambda *_: 503, "cannot be reached.*run the same command again"),
    ],
)
@pytest.mark.parametrize("what", ["model", "rows", "output", "reference"])
def test_refusals_are_one_paragraph(
    bucket: Gcs, tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], what: str, fault: Callable[[str, str], Any], words: str,
) -> None:  # fmt: skip
    """No credentials, no permission, no network: said at once, before any weights are read."""
    patient_no_longer(monkeypatch)
    bucket.state.fault = fault
    places = {"model": tiny_model, "rows": data / "pairs.jsonl", "output": tmp_path / "o", "reference": tmp_path / "r"}
    places[what] = f"gs://bucket/{what}"
    verb = "reference" if what == "reference" else "dpo"
    with pytest.raises(SystemExit) as stop:
        main(
            f"{verb} --model.path {places['model']} --data.path {places['rows']} --output {places['output']} "
            f"--reference {places['reference']} --batch.rows 8 "
            "--data.max_length 256 --data.max_prompt_length 64 --data.row_length 512".split()
        )
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    [paragraph] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert f"gs://bucket/{what}" in paragraph
    assert re.search(words, paragraph)


@pytest.mark.parametrize("path", ["gs://nowhere/x", "gs://bucket/nothing", "gs:///x"])
def test_what_is_not_there_is_named(bucket: Gcs, path: str) -> None:
    for attempt in (lambda: open_rows(path, "train"), lambda: find_model(ModelOptions(path=path))):
        with pytest.raises(InputError, match="does not exist|No such"):
            attempt()


def patient_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trying again costs half a minute each; here it costs nothing."""

    async def at_once(_: float) -> None:
        return None

    monkeypatch.setattr("gcsfs.retry.asyncio", type("Asyncio", (), {"sleep": at_once}))


def test_waiting_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cloud, "_WARN_EVERY", 0.05)
    with cloud.slow_io_warning("gs://bucket/run", "saving step 3 to"):
        time.sleep(0.2)
    assert "still saving step 3 to gs://bucket/run after 0 s" in capsys.readouterr().err


def test_two_sizes_of_export_hold_the_same_bytes(bucket: Gcs, tiny_model: Path) -> None:
    """A file larger than one upload's buffer arrives whole."""
    upload(tiny_model, CLOUD / "base")
    export(ExportConfig(model=ModelOptions(path="gs://bucket/base"), output="gs://bucket/a", dtype="float32"))
    left, right = (load((CLOUD / name / "model.safetensors").read_bytes()) for name in ("base", "a"))
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])


def test_a_save_that_is_refused_is_one_paragraph(bucket: Gcs, tiny_model: Path, data: Path) -> None:
    """Permission goes away in the middle of a run: orbax's threads meet it, and no traceback is printed."""
    bucket.state.fault = lambda method, path: 403 if method == "POST" and "ocdbt" in path else None
    words = (
        f"sft --model.path {tiny_model} --data.path {data}/chats.jsonl --output gs://bucket/run --data.max_length 256 "
        "--data.row_length 256 --batch.rows 8 --schedule.max_steps 1 --report.no_progress_bar"
    ).split()
    said = subprocess.run([sys.executable, "-m", "zephyr_jax", *words], capture_output=True, text=True, check=False)
    assert said.returncode == 2
    assert "Traceback" not in said.stderr
    last = said.stderr.splitlines()[-1]
    assert re.search(
        "error: Cloud Storage, gs://bucket/run.*: this account may not do that.*Storage Object Admin", last
    )
    assert "tensorstore_spec" not in last


@pytest.mark.parametrize("error", [TrainingError, Stopped])
def test_errors_of_training_on_a_bucket_are_not_those_of_the_bucket(error: type[Exception]) -> None:
    """Their texts name the run's path, which must not make them errors of Cloud Storage."""
    with pytest.raises(error), translate_cloud_errors("gs://bucket/run"):
        raise error("step 3: non-finite loss; batch saved to gs://bucket/run/bad_batches/step-000003.safetensors")
