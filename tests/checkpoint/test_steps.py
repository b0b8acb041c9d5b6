"""Saved steps: what is damaged is never read as if it were whole."""

import gc
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.gcs import Gcs
from zephyr_jax.checkpoint.fingerprint import weights_fingerprint
from zephyr_jax.checkpoint.manager import CheckpointManager
from zephyr_jax.checkpoint.steps import (
    DAMAGED,
    Checkpoint,
    DamagedStepError,
    find_checkpoint,
    list_steps,
    quarantine,
    read_progress,
    restore_parameters,
    saved_fingerprint,
)
from zephyr_jax.config.training_sections import ScheduleOptions
from zephyr_jax.errors import InputError

PROGRESS = {"data": {"next_index": 3}, "config": {"seed": 1}, "identity": {"data": "x"}}


@pytest.fixture(autouse=True)
def cleared() -> Iterator[None]:
    """What a failed reading leaves behind is cleared away here, where a word of it would fail the test at hand."""
    yield
    gc.collect()


def state(devices: int = 8) -> tuple[dict[str, Any], Any]:
    """Weights of some size, split over devices, and moments of two dtypes with a count."""
    mesh = Mesh(np.array(jax.devices()[:devices]), ("x",))

    def place(array: np.ndarray) -> jax.Array:
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec("x") if array.ndim else PartitionSpec()))

    draw = np.random.default_rng(0)
    weights = {name: place(draw.normal(size=(16, 24)).astype(np.float32)) for name in ("one", "two")}
    moments = (place(draw.normal(size=(16, 24)).astype(jnp.bfloat16)), place(np.int32(3)))
    return weights, moments


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)


def write(run: Any, steps: tuple[int, ...] = (3,)) -> epath.Path:
    manager = CheckpointManager(epath.Path(run), ScheduleOptions(keep_last=5))
    for step in steps:
        manager.save(step, *state(), PROGRESS, None)
    manager.close()
    return epath.Path(run)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write(tmp_path_factory.mktemp("run")))


def flip(file: Path, place: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1 << 4
    file.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "first byte": lambda file: flip(file, 0),
    "middle": lambda file: flip(file, 0.5),
    "three quarters": lambda file: flip(file, 0.75),
    "last byte": lambda file: flip(file, 1),
    "cut in half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "emptied": lambda file: file.write_bytes(b""),
    "deleted": lambda file: file.unlink(),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_noticed_or_does_not_matter(sound: Path, tmp_path: Path, damage: str) -> None:
    """Law, for every file of a step: either DamagedStepError, or the very bits that were saved."""
    weights, moments = state()
    saved = [np.asarray(leaf) for leaf in jax.tree.leaves((weights, moments))]
    names = [path.relative_to(sound) for path in sound.rglob("*") if path.is_file() and path.stat().st_size]
    noticed = []
    for name in names:
        run = tmp_path / "run"
        shutil.copytree(sound, run)
        DAMAGES[damage](run / name)
        try:
            progress = read_progress(epath.Path(run), 3)
            checkpoint = Checkpoint(epath.Path(run), 3, progress)
            found = checkpoint.restore(shapes(weights), shapes(moments))
        except DamagedStepError as error:
            assert f"step 3 of {run} is damaged" in str(error)
            noticed.append(name)
        else:
            for one, other in zip(saved, jax.tree.leaves(found), strict=True):
                np.testing.assert_array_equal(one, np.asarray(other))
            assert {key: progress[key] for key in PROGRESS} == PROGRESS
        shutil.rmtree(run)
    assert len(noticed) > 4, noticed


def test_weights_that_are_not_those_that_were_saved_are_refused(sound: Path, tmp_path: Path) -> None:
    """One step's arrays under another's progress: every file is whole, and the fingerprint shows."""
    run = tmp_path / "run"
    shutil.copytree(sound, run)
    other, (moment, count) = state()
    manager = CheckpointManager(epath.Path(run), ScheduleOptions(keep_last=5))
    other["two"] = other["two"].at[3, 3].add(1e-6)
    manager.save(4, other, (moment, count), PROGRESS, None)
    manager.close()
    shutil.rmtree(run / "checkpoints" / "3" / "parameters")
    shutil.copytree(run / "checkpoints" / "4" / "parameters", run / "checkpoints" / "3" / "parameters")
    with pytest.raises(DamagedStepError, match="fingerprint mismatch of parameters"):
        restore_parameters(epath.Path(run), 3, shapes(other))
    restore_parameters(epath.Path(run), 4, shapes(other))


def test_a_step_says_its_weights_fingerprint_on_every_mesh(sound: Path) -> None:
    """It is that of the weights however they lie, so no one has to read them to know it."""
    weights, _ = state(2)
    assert saved_fingerprint(epath.Path(sound), None) == weights_fingerprint(weights)
    again = restore_parameters(epath.Path(sound), 3, shapes(weights))
    assert weights_fingerprint(again) == weights_fingerprint(weights)


@pytest.mark.parametrize("place", ["disk", "cloud"])
def test_a_damaged_step_is_moved_and_nothing_is_deleted(bucket: Gcs, tmp_path: Path, place: str) -> None:
    run = write(tmp_path / "run" if place == "disk" else "gs://bucket/run", (2, 4))
    before = (run / "checkpoints/4/progress/metadata").read_bytes()
    there = quarantine(run, 4)
    assert list_steps(run) == [2]
    assert there.parent == run / DAMAGED
    assert (there / "progress/metadata").read_bytes() == before
    again = CheckpointManager(run, ScheduleOptions())
    again.save(4, *state(), PROGRESS, None)
    again.close()
    assert list_steps(run) == [2, 4]


def test_a_cloud_that_cannot_be_asked_is_no_damage(bucket: Gcs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: only what was read and found wrong is damaged; without permission nothing is known."""
    run = write("gs://bucket/run")
    weights, moments = state()
    bucket.state.fault = lambda method, path: 403 if "ocdbt" in path or "/d/" in path else None
    with pytest.raises(InputError, match="this account may not do that") as refused:
        find_checkpoint(run).restore(shapes(weights), shapes(moments))
    assert not isinstance(refused.value, DamagedStepError)
