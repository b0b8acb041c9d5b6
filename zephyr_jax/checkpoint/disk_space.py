"""Check before training that the checkpoints of a run fit on its disk."""

import math
import pathlib
import shutil
from typing import Any

import jax

from zephyr_jax.config.training_sections import ScheduleOptions
from zephyr_jax.errors import InputError
from zephyr_jax.storage.cloud import is_remote
from zephyr_jax.storage.files import Path

_GIB = 2**30


def state_bytes(state: Any) -> int:
    """Bytes of a pytree of arrays or of their shapes, as they are written, uncompressed."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def check_disk_space(
    run: Path, schedule: ScheduleOptions, state: Any, parameters: Any, evaluates: bool, num_saved: int = 0
) -> None:
    """Raise InputError when the checkpoints that a run keeps, and the one being written, exceed the free disk space.

    An error, not a warning, even when the first of them would fit: a later save would certainly end the run. Cloud Storage has
    no quota to query.

    Args:
        run: The run's folder, which need not exist.
        schedule: What is saved, when, and how much is kept.
        state: Weights and optimizer state, or their shapes.
        parameters: The weights alone, or their shapes.
        evaluates: Whether evaluations decide which checkpoints are best.
        num_saved: Steps that are saved already and take no more space.
    """
    if is_remote(run):
        return
    if schedule.save == "weights":
        size, copies, kept = 2 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameters)), 1, "at the end"
    else:
        size = state_bytes(state)
        copies, kept = _copies(schedule, evaluates)
    missing = max(copies - num_saved, 1)
    free = shutil.disk_usage(_existing(pathlib.Path(run))).free
    if missing * size > free:
        raise InputError(
            f"checkpoints of {run}: expected {_gib(missing * size)} of free disk space ({missing} x {_gib(size)}: {kept}), got "
            f"{_gib(free)}. Free space, choose another output, or {_advice(schedule)}."
        )


def _copies(schedule: ScheduleOptions, evaluates: bool) -> tuple[int, str]:
    """Maximum number of checkpoints that exist at one time, and which ones these are."""
    best = schedule.keep_best if evaluates else 0
    saves = math.inf
    if not schedule.save_every:
        saves = 1
    elif schedule.max_steps:
        saves = -(-schedule.max_steps // schedule.save_every)
    if saves <= schedule.keep_last:
        return int(saves), f"all {int(saves)} that are saved"
    copies = min(schedule.keep_last + best + 1, saves)
    return int(copies), f"schedule.keep_last {schedule.keep_last}, keep_best {best} and one being written"


def _advice(schedule: ScheduleOptions) -> str:
    if schedule.save == "weights":
        return "train a smaller model"
    return "lower schedule.keep_last or schedule.keep_best, or keep only the final weights: `--schedule.save weights`"


def _existing(folder: pathlib.Path) -> pathlib.Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _gib(size: float) -> str:
    return f"{size / _GIB:,.1f} GiB" if size >= _GIB / 10 else f"{size / 2**20:,.1f} MiB"
