"""Kill a run after any step and start it again: the same curve and the same weights, bit for bit."""

import json
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from tests.conftest import write_rows
from tests.methods.small import dpo_config, sft_config
from tests.models import load, resized
from zephyr_jax.checkpoint.fingerprint import weights_fingerprint
from zephyr_jax.checkpoint.steps import list_steps, read_progress, restore_parameters, saved_fingerprint
from zephyr_jax.config.models import ExportConfig
from zephyr_jax.config.sections import MeshOptions, ModelOptions
from zephyr_jax.config.training import SftConfig
from zephyr_jax.config.training_sections import BatchOptions
from zephyr_jax.demo.corpus import conversations, preferences
from zephyr_jax.errors import InputError
from zephyr_jax.export.export import export
from zephyr_jax.reference.fill import reference
from zephyr_jax.train import fit as training
from zephyr_jax.train.loop import Loop
from zephyr_jax.train.metrics import CLOCK_METRICS
from zephyr_jax.train_command import train


class Killed(Exception):
    """Stands for SIGKILL: nothing after it runs but what has been saved."""


def kill_after(monkeypatch: pytest.MonkeyPatch, steps: int | None) -> None:
    """Let the loop die when it has drawn `steps` batches; None: let it live."""
    run = Loop.run

    def dying(self: Loop, state: Any, start: int, halted: Any) -> Any:
        def batches():
            yield from islice(self.batches, steps)
            raise Killed

        return run(replace(self, batches=batches()), state, start, halted)

    monkeypatch.setattr(training, "Loop", Loop)
    monkeypatch.setattr(Loop, "run", run if steps is None else dying)


def curve(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCK_METRICS} for line in lines]


def weights(folder: Path) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(restore_parameters(folder, None, None))]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "chats.jsonl", list(conversations(0, 40, "train")))
    write_rows(folder / "pairs.jsonl", list(preferences(0, 24, "train")))
    return folder


def equal(one: Path, other: Path) -> None:
    assert curve(one) == curve(other)
    for left, right in zip(weights(one), weights(other), strict=True):
        np.testing.assert_array_equal(left, right)


def run_with_kills(monkeypatch: pytest.MonkeyPatch, config: SftConfig, kills: list[int]) -> None:
    for steps in kills:
        with monkeypatch.context() as patch:
            kill_after(patch, steps)
            with pytest.raises(Killed):
                train(config)
    train(config)


def test_sft_goes_on_as_if_nothing_had_happened(
    monkeypatch: pytest.MonkeyPatch, data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Killed before the first save, right after one, and between two; two epochs, accumulation, a partial last step."""
    config = sft_config(tiny_model, data / "chats.jsonl", tmp_path / "whole")
    train(config)
    killed = replace(config, output=str(tmp_path / "killed"))
    run_with_kills(monkeypatch, killed, [1, 3, 2])
    equal(tmp_path / "whole", tmp_path / "killed")


def test_dpo_goes_on_as_if_nothing_had_happened(
    monkeypatch: pytest.MonkeyPatch, data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """The reference stays that of the start, though the policy has moved on."""
    config = dpo_config(tiny_model, data / "pairs.jsonl", tmp_path / "whole", tmp_path / "reference")
    reference(config)
    train(config)
    killed = replace(config, output=str(tmp_path / "killed"))
    run_with_kills(monkeypatch, killed, [3, 2])
    equal(tmp_path / "whole", tmp_path / "killed")
    first = next(line for line in curve(tmp_path / "whole") if "loss" in line)
    # The reference pass packed these pairs in other rows, so sums differ in float32's last digits here; where the rows
    # are the same (evaluation, test_pipeline), the first loss is ln 2 to 1e-6.
    np.testing.assert_allclose(first["loss"], np.log(2), atol=5e-6)
    assert abs(first["rewards/margins"]) < 1e-5


def test_a_run_is_not_resumed_with_another_layout_of_prompts(
    monkeypatch: pytest.MonkeyPatch, data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Law: a run goes on with the value of `data.share_prompts` that it started with; one from before the setting, whose rows
    repeat prompts, counts as off. The curves of both layouts agree to rounding."""
    shared = dpo_config(tiny_model, data / "pairs.jsonl", tmp_path / "shared", tmp_path / "reference")
    shared = replace(shared, schedule=replace(shared.schedule, epochs=1))
    plain = replace(shared, output=str(tmp_path / "plain"), data=replace(shared.data, share_prompts=False))
    reference(shared)
    for config, other in ((shared, plain), (plain, shared)):
        with monkeypatch.context() as patch:
            kill_after(patch, 2)
            with pytest.raises(Killed):
                train(config)
        was, now = config.data.share_prompts, other.data.share_prompts
        with pytest.raises(InputError, match=f"data.share_prompts was {was}, now {now}"):
            train(replace(config, data=other.data))
    for file in (tmp_path / "plain" / "checkpoints").glob("*/progress/metadata"):
        content = json.loads(file.read_text())
        del content["config"]["data"]["share_prompts"]
        file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="data.share_prompts was False, now True"):
        train(replace(plain, data=shared.data))
    for config in (shared, plain):
        train(config)
    for one, other in zip(curve(tmp_path / "shared"), curve(tmp_path / "plain"), strict=True):
        same = {name for name in one if name not in ("padding", "rewards/accuracies")}
        assert {name: one[name] for name in same} == pytest.approx(
            {name: other[name] for name in same}, rel=1e-4, abs=1e-4
        )
    assert curve(tmp_path / "shared") != curve(tmp_path / "plain")


def seen(folder: Path) -> list[tuple[int, list[str]]]:
    lines = [json.loads(line) for line in (folder / "examples.jsonl").read_text().splitlines()]
    return [(line["step"], line["ids"]) for line in lines]


def test_a_run_goes_on_on_other_meshes(
    monkeypatch: pytest.MonkeyPatch, data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """After each kill on other devices: the same examples in the same steps, each once an epoch; losses equal to 1e-5."""
    config = sft_config(tiny_model, data / "chats.jsonl", tmp_path / "whole")
    config = replace(config, report=replace(config.report, log_example_ids=True))
    train(config)
    moved = replace(config, output=str(tmp_path / "moved"))
    meshes = [
        MeshOptions(data=2, fsdp=2, tensor=2),
        MeshOptions(data=1, fsdp=4, tensor=2),
        MeshOptions(data=4, fsdp=1, tensor=2),
    ]
    for mesh, steps in zip(meshes, (3, 2, None), strict=True):
        with monkeypatch.context() as patch:
            kill_after(patch, steps)
            with pytest.raises(Killed) if steps else nullcontext():
                train(replace(moved, mesh=mesh))
    assert seen(tmp_path / "moved") == seen(tmp_path / "whole")
    ids = [each for _, step in seen(tmp_path / "moved") for each in step]
    assert Counter(ids) == dict.fromkeys(set(ids), 2)
    assert len(set(ids)) == 40
    for one, other in zip(curve(tmp_path / "moved"), curve(tmp_path / "whole"), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_a_vocabulary_that_no_mesh_divides_trains_moves_and_exports(
    monkeypatch: pytest.MonkeyPatch, data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """1,025 rows of the embedding: losses are equal to 1e-5 whether `tensor` splits it or not, before a kill and after it on
    another mesh; checkpoints and exports hold 1,025 rows, and their fingerprints are one."""
    folder = resized(tiny_model, tmp_path / "odd", 1025)
    config = sft_config(folder, data / "chats.jsonl", tmp_path / "whole", epochs=1)
    config = replace(config, batch=BatchOptions(rows=8, microbatch_rows=8), mesh=MeshOptions(fsdp=8))
    train(config)
    moved = replace(config, output=str(tmp_path / "moved"))
    meshes = [MeshOptions(data=2, fsdp=2, tensor=2), MeshOptions(data=1, fsdp=4, tensor=2)]
    for mesh, steps in zip(meshes, (2, None), strict=True):
        with monkeypatch.context() as patch:
            kill_after(patch, steps)
            with pytest.raises(Killed) if steps else nullcontext():
                train(replace(moved, mesh=mesh))
    for one, other in zip(curve(tmp_path / "moved"), curve(tmp_path / "whole"), strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    model = ModelOptions(path=str(tmp_path / "moved"))
    out = export(ExportConfig(output=str(tmp_path / "hf"), dtype="float32", model=model))
    exported = load(Path(out))
    assert exported.parameters["embedding"].shape[0] == 1025
    saved = saved_fingerprint(epath.Path(tmp_path / "moved"), None)
    assert weights_fingerprint(exported.parameters) == saved


def test_a_damaged_newest_step_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, data: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run says so, keeps what is damaged, goes on from the step before, and ends as if nothing had happened."""
    config = sft_config(tiny_model, data / "chats.jsonl", tmp_path / "whole")
    train(config)
    killed = replace(config, output=str(tmp_path / "killed"))
    with monkeypatch.context() as patch:
        kill_after(patch, 5)
        with pytest.raises(Killed):
            train(killed)
    damage_a_tensor(tmp_path / "killed", 4)
    capsys.readouterr()
    train(killed)
    said = capsys.readouterr().err
    assert f"step 4 of {tmp_path}/killed is damaged: " in said
    assert f"moved damaged step 4 to {tmp_path}/killed/damaged; resuming at step 2" in said
    assert [path.name.split("-")[0] for path in (tmp_path / "killed" / "damaged").iterdir()] == ["4"]
    equal(tmp_path / "whole", tmp_path / "killed")


def test_a_run_whose_every_step_is_damaged_stops(
    monkeypatch: pytest.MonkeyPatch, data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """That is no accident of one file, so nothing is moved, and a person is asked."""
    config = sft_config(tiny_model, data / "chats.jsonl", tmp_path / "run")
    with monkeypatch.context() as patch:
        kill_after(patch, 5)
        with pytest.raises(Killed):
            train(config)
    for step in (2, 4):
        damage_a_tensor(tmp_path / "run", step)
    with pytest.raises(InputError, match="all checkpoints of .* are damaged: steps 4, 2"):
        train(config)
    assert not (tmp_path / "run" / "damaged").exists()


def damage_a_tensor(run: Path, step: int) -> None:
    """Flip a bit in the largest file."""
    files = [path for path in (run / "checkpoints" / str(step) / "parameters").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(bytes(content))


def test_a_finished_run_does_nothing_and_a_changed_one_is_refused(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Same command again: no step. Another learning rate, or other rows under the same path: refused with both values."""
    rows = write_rows(tmp_path / "chats.jsonl", list(conversations(0, 12, "train")))
    config = sft_config(tiny_model, rows, tmp_path / "run", epochs=1)
    train(config)
    before = curve(tmp_path / "run")
    train(config)
    assert curve(tmp_path / "run") == before
    changed = replace(config, optimizer=replace(config.optimizer, learning_rate=0.5))
    with pytest.raises(InputError, match="optimizer.learning_rate was 0.001, now 0.5"):
        train(changed)
    write_rows(rows, list(conversations(1, 12, "train")))
    with pytest.raises(InputError, match="data: expected"):
        train(config)
    with pytest.raises(InputError, match="resume"):
        train(replace(config, resume=False))


def test_the_newest_and_the_best_checkpoints_are_kept(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Two newest and the one with the lowest evaluation loss; the config and iterator state are inside."""
    config = sft_config(tiny_model, data / "chats.jsonl", tmp_path / "run")
    schedule = replace(config.schedule, save_every=1, evaluate_every=1, keep_last=2, keep_best=1)
    held_out = replace(config.data, eval_path=str(data / "chats.jsonl"))
    train(replace(config, schedule=schedule, data=held_out, optimizer=replace(config.optimizer, learning_rate=1e-6)))
    losses = {
        line["step"]: line["eval/loss"] for line in curve(tmp_path / "run") if line.get("step") and "eval/loss" in line
    }
    last = max(losses)
    assert set(list_steps(epath.Path(tmp_path / "run"))) == {last - 1, last, min(losses, key=lambda step: losses[step])}
    progress = read_progress(epath.Path(tmp_path / "run"), last)
    assert progress["config"]["seed"] == config.seed
    assert progress["data"]
