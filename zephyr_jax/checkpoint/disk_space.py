"""Whether the checkpoints of a run fit on its disk, asked before anything is trained."""

import math
import pathlib
import shutil
from typing import Any

import jax

from zephyr_jax.checkpoint.steps import steps_in
from zephyr_jax.config.training_sections import ScheduleOptions
from zephyr_jax.errors import InputError
from zephyr_jax.storage.files import Path, is_remote

_GIB = 2**30


def state_bytes(state: Any) -> int:
    """Bytes of a pytree of arrays or of their shapes, as they are written, uncompressed."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def check_disk_space(run: Path, schedule: ScheduleOptions, state: Any, parameters: Any, evaluates: bool) -> None:
    """Raise InputError where the checkpoints that a run keeps, and the one being written, exceed the free disk space.

    An error, not a warning, even where the first of them would fit: the run would certainly end when a later one does not.
    Steps that are saved already take no more space. Cloud Storage has no limit that could be asked for.

    Args:
        run: The run's folder, which need not exist.
        schedule: What is saved, when, and how much is kept.
        state: Weights and optimizer state, or their shapes.
        parameters: The weights alone, or their shapes.
        evaluates: Whether evaluations decide which checkpoints are best.
    """
    if is_remote(run):
        return
    if schedule.save == "weights":
        size, copies, kept = 2 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameters)), 1, "at the end"
    else:
        size = state_bytes(state)
        copies, kept = _copies(schedule, evaluates)
    missing = max(copies - len(steps_in(run)), 1)
    free = shutil.disk_usage(_existing(pathlib.Path(run))).free
    if missing * size > free:
        raise InputError(
            f"The checkpoints of {run} need {_gib(missing * size)} of disk space ({missing} x {_gib(size)}: {kept}), and "
            f"{_gib(free)} are free. Free space, choose another output, or {_advice(schedule)}."
        )


def _copies(schedule: ScheduleOptions, evaluates: bool) -> tuple[int, str]:
    """The most checkpoints that exist at one time, and what they are."""
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
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())


def _gib(size: float) -> str:
    return f"{size / _GIB:,.1f} GiB" if size >= _GIB / 10 else f"{size / 2**20:,.1f} MiB"
