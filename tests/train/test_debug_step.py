"""Steps that go wrong in real runs: named, kept, left out where that is asked for, and replayed alone."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from tests.conftest import write_rows
from tests.methods.small import dpo_config, sft_config
from zephyr_jax.checkpoint.steps import list_steps, saved_fingerprint
from zephyr_jax.cli import main
from zephyr_jax.config.training import DebugStepConfig, SftConfig
from zephyr_jax.config.training_sections import AnomalyOptions, PairAnomalyOptions
from zephyr_jax.demo.corpus import conversations, preferences
from zephyr_jax.errors import InputError, TrainingError
from zephyr_jax.reference.fill import reference
from zephyr_jax.train.debug_step import debug_step
from zephyr_jax.train_command import train


def metrics(run: Path) -> dict[int, dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "loss" in line}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    chats = [{**row, "prompt_id": f"chat-{index}"} for index, row in enumerate(conversations(0, 200, "train"))]
    write_rows(folder / "chats.jsonl", chats)
    write_rows(folder / "pairs.jsonl", list(preferences(0, 24, "train")))
    return folder


def with_health(config: SftConfig, **options: Any) -> SftConfig:
    kind = PairAnomalyOptions if isinstance(config.anomaly, PairAnomalyOptions) else AnomalyOptions
    return replace(config, anomaly=kind(**options))


def test_a_loss_that_explodes_stops_the_run_right_before_it(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """The batch is kept and the state from before is saved; the same command meets it again, `skip` passes it."""
    config = sft_config(tiny_model, rows / "chats.jsonl", tmp_path / "run", epochs=1)
    config = replace(config, optimizer=replace(config.optimizer, learning_rate=1e9, warmup_ratio=0, max_grad_norm=None))
    config = replace(config, schedule=replace(config.schedule, save_every=100, max_steps=6))
    with pytest.raises(TrainingError, match=r"step (\d+): non-finite (?:loss|gradient)") as stopped:
        train(config)
    step = int(str(stopped.value).split()[1].rstrip(":"))
    run = epath.Path(tmp_path / "run")
    assert f"Step {step - 1} is saved" in str(stopped.value)
    assert list_steps(run) == [step - 1]
    assert "chat-" in str(stopped.value)
    before = saved_fingerprint(run, None)
    found = debug_step(
        DebugStepConfig(batch_file=str(run / "bad_batches" / f"step-{step:06}.safetensors"), mesh=config.mesh)
    )
    assert not np.isfinite(found.loss + found.grad_norm)
    assert found.non_finite
    assert f"with step {step - 1} of" in found.report()
    with pytest.raises(TrainingError, match=f"step {step}: "):
        train(config)
    assert list_steps(run) == [step - 1]
    train(with_health(config, non_finite="skip"))
    assert sorted(metrics(tmp_path / "run")) == list(range(1, 7))
    assert saved_fingerprint(run, None) == before  # every later step was as anomalous, and left out


def test_a_spike_is_reproduced_alone(
    tiny_model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The replay's loss and gradient are those that the run logged, from the weights that the run had then."""
    config = sft_config(tiny_model, rows / "chats.jsonl", tmp_path / "run", epochs=2)
    shuffled = replace(config, optimizer=replace(config.optimizer, learning_rate=1e-6))
    with pytest.raises(TrainingError, match=r"step (\d+): loss spike") as stopped:
        train(with_health(shuffled, spike="stop", spike_factor=1.0001, spike_window=10))
    step = int(str(stopped.value).split()[1].rstrip(":"))
    assert step > 11
    logged = metrics(tmp_path / "run")[step]
    kept = tmp_path / "run" / "bad_batches" / f"step-{step:06}.safetensors"
    capsys.readouterr()
    main(f"debug-step --batch_file {kept} --mesh.data 2 --mesh.fsdp 2 --mesh.tensor 2".split())
    output = capsys.readouterr().out
    found = debug_step(DebugStepConfig(batch_file=str(kept), mesh=config.mesh))
    np.testing.assert_allclose([found.loss, found.grad_norm], [logged["loss"], logged["grad_norm"]], rtol=1e-5)
    assert f"loss {found.loss:g}, gradient norm {found.grad_norm:g}" in output
    weights = [float(more.split()[0]) for _, _, more in found.examples]
    mean = np.average([loss for _, loss, _ in found.examples], weights=weights)
    np.testing.assert_allclose(mean, found.loss, rtol=1e-5)
    assert [loss for _, loss, _ in found.examples] == sorted((loss for _, loss, _ in found.examples), reverse=True)
    assert (
        debug_step(DebugStepConfig(batch_file=str(kept), compute_dtype="bfloat16", mesh=config.mesh)).loss != found.loss
    )
    with pytest.raises(InputError, match="has no step 7; it has 0, "):
        debug_step(DebugStepConfig(batch_file=str(kept), step=7, mesh=config.mesh))


def test_a_margin_that_explodes_is_named_by_its_pairs(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    config = dpo_config(tiny_model, rows / "pairs.jsonl", tmp_path / "run", tmp_path / "reference")
    reference(config)
    with pytest.raises(TrainingError, match="margin out of range") as stopped:
        train(with_health(config, margin_limit=1e-4))
    step = int(str(stopped.value).split()[1].rstrip(":"))
    kept = tmp_path / "run" / "bad_batches" / f"step-{step:06}.safetensors"
    found = debug_step(DebugStepConfig(batch_file=str(kept), mesh=config.mesh))
    margins = [float(details.split("margin ")[1]) for _, _, details in found.examples]
    np.testing.assert_allclose(np.mean(margins), metrics(tmp_path / "run")[step]["rewards/margins"], rtol=1e-3)
    assert len(found.examples) == 8


def test_a_learning_rate_that_does_nothing_stops_the_run(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    config = sft_config(tiny_model, rows / "chats.jsonl", tmp_path / "run", epochs=1)
    dead = replace(config, optimizer=replace(config.optimizer, learning_rate=1e-14))
    with pytest.raises(TrainingError, match="stalled weights .*in each of 4 steps.* newest checkpoint is kept"):
        train(with_health(dead, stalled_steps=4))
    shutil.rmtree(tmp_path / "run")
    train(with_health(replace(dead, schedule=replace(dead.schedule, max_steps=5)), stalled_steps=4, stalled="continue"))


@pytest.mark.parametrize("content", [b"", b"no batch", b"\x08\0\0\0\0\0\0\0{}      "])
def test_what_is_no_batch_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="is not a saved batch"):
        debug_step(DebugStepConfig(batch_file=str(tmp_path / "x.safetensors")))
    with pytest.raises(InputError, match="Cannot read .*RUN/bad_batches"):
        debug_step(DebugStepConfig(batch_file=str(tmp_path / "y.safetensors")))
