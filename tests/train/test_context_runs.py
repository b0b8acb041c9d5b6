"""Runs whose rows several devices share."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import write_rows
from tests.methods.small import dpo_config, sft_config
from tests.train.test_resume import Killed, curve, kill_after
from zephyr_jax.config.models import EvaluateConfig
from zephyr_jax.config.sections import MeshOptions, ScoringOptions
from zephyr_jax.config.training import SftConfig
from zephyr_jax.demo.corpus import conversations, preferences
from zephyr_jax.evaluate.held_out import evaluate
from zephyr_jax.reference.fill import reference
from zephyr_jax.train_command import train

SPLIT = MeshOptions(data=1, fsdp=2, context=2, tensor=2)


def moved(monkeypatch: pytest.MonkeyPatch, config: SftConfig, meshes: tuple[MeshOptions, MeshOptions]) -> None:
    """Train on the first mesh until killed after three steps, and on the second one to the end."""
    with monkeypatch.context() as patch:
        kill_after(patch, 3)
        with pytest.raises(Killed):
            train(replace(config, mesh=meshes[0]))
    train(replace(config, mesh=meshes[1]))


def test_a_run_splits_its_rows_or_does_not(monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path) -> None:
    """Law: losses equal to 1e-5 with packed rows on a mesh that splits them, before a kill and after it on one that does not;
    `evaluate` gives the same numbers on both."""
    data = write_rows(tmp_path / "chats.jsonl", list(conversations(0, 64, "train")))
    config = sft_config(tiny_model, data, tmp_path / "whole")
    config = replace(config, data=replace(config.data, row_length=512), batch=replace(config.batch, rows=4))
    train(config)
    other = replace(config, output=str(tmp_path / "moved"))
    moved(monkeypatch, other, (SPLIT, config.mesh))
    for one, expected in zip(curve(tmp_path / "moved"), curve(tmp_path / "whole"), strict=True):
        assert one == pytest.approx(expected, rel=1e-5)
    losses = [
        evaluate(
            EvaluateConfig(
                model=ScoringOptions(path=other.output, compute_dtype="float32"),
                data=config.data,
                batch_size=4,
                mesh=mesh,
            )
        )["loss"]
        for mesh in (SPLIT, config.mesh)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_preferences_split_their_rows(monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path) -> None:
    """Law: the same for DPO with shared prompts, whose reference table was filled with split rows."""
    data = write_rows(tmp_path / "pairs.jsonl", list(preferences(0, 32, "train")))
    config = dpo_config(tiny_model, data, tmp_path / "whole", tmp_path / "reference")
    config = replace(config, schedule=replace(config.schedule, epochs=1))
    assert reference(replace(config, mesh=SPLIT)).computed == 32
    assert reference(config).reused == 32
    train(config)
    moved(monkeypatch, replace(config, output=str(tmp_path / "moved")), (config.mesh, SPLIT))
    for one, expected in zip(curve(tmp_path / "moved"), curve(tmp_path / "whole"), strict=True):
        assert one == pytest.approx(expected, rel=1e-5, abs=1e-6)
