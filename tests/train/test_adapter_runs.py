"""Runs with adapters: what their checkpoints hold, killed and resumed, continued on other meshes, and what is refused."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copytree
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from tests.conftest import write_rows
from tests.methods.small import dpo_config, sft_config
from tests.models import load
from tests.train.test_resume import Killed, curve, equal, kill_after, seen
from zephyr_jax.checkpoint.frozen import FROZEN
from zephyr_jax.checkpoint.steps import find_checkpoint, list_steps, read_progress
from zephyr_jax.config.adapter import AdapterOptions
from zephyr_jax.config.sections import MeshOptions
from zephyr_jax.config.training import DebugStepConfig, DpoConfig, SftConfig
from zephyr_jax.config.training_sections import PairAnomalyOptions
from zephyr_jax.config.yaml_file import load_card
from zephyr_jax.demo.corpus import conversations, preferences
from zephyr_jax.errors import InputError, TrainingError
from zephyr_jax.reference.fill import reference
from zephyr_jax.train.debug_step import debug_step
from zephyr_jax.train_command import train

QLORA = AdapterOptions(rank=4, base_format="nf4", block_size=16)
NUM_ADAPTED = 4 * 4 * (3 * 128 + 2 * 64 + 2 * 128 + 3 * (128 + 352) + 128)
"""Numbers in A and B: layers x rank x (inputs + outputs of the seven projections of the tiny model)."""


@dataclass(frozen=True)
class Runs:
    """A copy of the tiny model, conversations, and a finished QLoRA run."""

    base: Path
    rows: Path
    whole: Path

    def config(self, output: Path, **adapter: Any) -> SftConfig:
        config = sft_config(self.base, self.rows, output)
        report = replace(config.report, log_example_ids=True)
        return replace(config, adapter=replace(QLORA, **adapter), report=report)


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("adapters")
    base = Path(copytree(tiny_model, folder / "base"))
    made = Runs(base, write_rows(folder / "chats.jsonl", list(conversations(0, 40, "train"))), folder / "whole")
    train(made.config(made.whole))
    yield made


def kill(config: SftConfig, steps: int) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, steps)
        train(config)


def test_checkpoints_hold_adapters_and_their_moments_only(runs: Runs) -> None:
    """Float32 A and B and two moments of them; the frozen weights are named with their fingerprint."""
    newest = find_checkpoint(epath.Path(runs.whole))
    saved = newest.restore_item("parameters", None)
    leaves = jax.tree_util.tree_leaves_with_path(saved)
    assert {path[-1].key for path, _ in leaves} == {"lora_a", "lora_b"}
    assert sum(leaf.size for _, leaf in leaves) == NUM_ADAPTED
    moments = [leaf.size for leaf in jax.tree.leaves(newest.restore_item("optimizer", None)) if np.size(leaf) > 1]
    assert sum(moments) == 2 * NUM_ADAPTED
    frozen = newest.progress[FROZEN]["names"]
    assert {name.rpartition(".")[2] for name in frozen} >= {"codes", "scales", "lora_scale", "embedding", "norm"}
    assert not any(name.endswith(("lora_a", "lora_b")) for name in frozen)
    files = [file for file in (runs.whole / "checkpoints" / str(newest.step)).rglob("*") if file.is_file()]
    # A checkpoint of all weights has three times the base; orbax may leave parts in two files, by timing.
    assert sum(file.stat().st_size for file in files) < (runs.base / "model.safetensors").stat().st_size / 2


def test_a_killed_run_ends_with_the_same_bits(runs: Runs, tmp_path: Path) -> None:
    """Killed before the first save, right after one, and between two."""
    config = runs.config(tmp_path / "killed")
    for steps in (1, 3):
        kill(config, steps)
    train(config)
    equal(runs.whole, tmp_path / "killed")
    assert seen(runs.whole) == seen(tmp_path / "killed")
    train(load_card(SftConfig, tmp_path / "killed" / "config.yaml"))  # the card that the run wrote is the same run


def test_a_run_moves_to_another_mesh(runs: Runs, tmp_path: Path) -> None:
    """The same examples in the same steps, each once an epoch; losses equal to 1e-5."""
    config = runs.config(tmp_path / "moved")
    kill(config, 3)
    train(replace(config, mesh=MeshOptions(data=1, fsdp=4, tensor=2)))
    assert seen(tmp_path / "moved") == seen(runs.whole)
    ids = [identity for _, step in seen(runs.whole) for identity in step]
    assert Counter(ids) == dict.fromkeys(set(ids), 2) and len(set(ids)) == 40
    for one, other in zip(curve(tmp_path / "moved"), curve(runs.whole), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


CHANGED = [
    ({"rank": 8}, "adapter.rank was 4, now 8"),
    ({"alpha": 8.0}, "adapter.alpha was 16.0, now 8.0"),
    ({"targets": ("q_proj",)}, "adapter.targets was"),
    ({"base_format": "int8"}, "adapter.base_format was 'nf4', now 'int8'"),
    ({"block_size": 8}, "adapter.block_size was 16, now 8"),
]


@pytest.mark.parametrize(("adapter", "message"), CHANGED)
def test_a_run_resumes_with_its_own_adapter_only(runs: Runs, adapter: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(runs.config(runs.whole, **adapter))


def test_a_base_that_changed_in_place_is_refused(runs: Runs, tmp_path: Path) -> None:
    """Neither a loader nor a resumed run takes another base than the adapter was trained on."""
    config = runs.config(tmp_path / "killed")
    kill(config, 3)
    file = runs.base / "model.safetensors"
    before, tensors = file.read_bytes(), load_file(file)
    name = "model.layers.1.mlp.down_proj.weight"
    save_file(tensors | {name: -tensors[name]}, file)
    try:
        for use in (lambda: load(runs.whole), lambda: train(config)):
            with pytest.raises(InputError, match=r"frozen weights of .*expected weights .*, got .*Put the model"):
                use()
    finally:
        file.write_bytes(before)


def test_final_weights_alone_are_an_adapter(runs: Runs, tmp_path: Path) -> None:
    """`save: weights` keeps A and B in bfloat16; a later run continues from them, and its card names the adapter's settings."""
    config = runs.config(tmp_path / "weights")
    train(replace(config, schedule=replace(config.schedule, save="weights")))
    (step,) = list_steps(epath.Path(tmp_path / "weights"))
    saved = find_checkpoint(epath.Path(tmp_path / "weights")).restore_item("parameters", None)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(saved)} == {"bfloat16"}
    assert sum(leaf.size for leaf in jax.tree.leaves(saved)) == NUM_ADAPTED
    on = replace(
        config, model=replace(config.model, path=str(tmp_path / "weights")), output=str(tmp_path / "on"),
        adapter=AdapterOptions(), schedule=replace(config.schedule, max_steps=2),
    )  # fmt: skip
    train(on)
    adapter = read_progress(epath.Path(tmp_path / "on"), 2)["config"]["adapter"]
    assert (adapter["rank"], adapter["base_format"], adapter["block_size"]) == (4, "nf4", 16)
    assert len(adapter["targets"]) == 7
    train(load_card(SftConfig, tmp_path / "on" / "config.yaml"))
    losses = [line["loss"] for line in curve(tmp_path / "on") if "loss" in line]
    assert losses[0] < 0.99 * next(line["loss"] for line in curve(runs.whole) if "loss" in line)


def test_dpo_with_adapters_is_debugged_from_any_step(tiny_model: Path, tmp_path: Path) -> None:
    """A table serves adapters of every rank on the same base and format; the saved batch is recomputed with the weights of the
    last step, and with those of step 0, whose loss is ln 2."""
    pairs = write_rows(tmp_path / "pairs.jsonl", list(preferences(0, 24, "train")))
    config = dpo_config(tiny_model, pairs, tmp_path / "run", tmp_path / "reference")
    config = replace(config, adapter=QLORA, anomaly=PairAnomalyOptions(margin_limit=1e-3))
    assert reference(config).computed == 24
    assert reference(replace(config, adapter=replace(QLORA, rank=8))).reused == 24
    with pytest.raises(InputError, match=r"weights: table has 'nf4-16:.*'int8-16:.*zephyr-jax reference"):
        train(replace(config, adapter=replace(QLORA, base_format="int8")))
    with pytest.raises(TrainingError, match="margin out of range") as stopped:
        train(config)
    step = int(str(stopped.value).split()[1].rstrip(":"))
    assert step > 1
    kept = str(tmp_path / "run" / "bad_batches" / f"step-{step:06}.safetensors")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = {line["step"]: line for line in lines if "loss" in line}
    latest = debug_step(DebugStepConfig(batch_file=kept, mesh=config.mesh))
    np.testing.assert_allclose(latest.loss, logged[step]["loss"], rtol=1e-6)
    np.testing.assert_allclose(latest.grad_norm, logged[step]["grad_norm"], rtol=1e-4)
    first = debug_step(DebugStepConfig(batch_file=kept, step=0, mesh=config.mesh))
    np.testing.assert_allclose(first.loss, np.log(2), atol=5e-6)  # the table packed these pairs in other rows
    assert isinstance(config, DpoConfig) and first.loss != latest.loss
