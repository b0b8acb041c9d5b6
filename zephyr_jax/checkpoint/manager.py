"""Checkpoints of a run: weights, optimizer state, data iterator and config in one atomic orbax step, saved async."""

import logging
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from zephyr_jax.config import ScheduleOptions
from zephyr_jax.errors import InputError
from zephyr_jax.storage.files import Path, absolute, is_remote, names_in, patience

FOLDER = "checkpoints"
_ITEMS = ("parameters", "optimizer", "progress")


def _eval_loss(metrics: dict[str, float]) -> float:
    return metrics.get("loss", float("inf"))


class CheckpointManager:
    """Steps under `<run>/checkpoints`. A step is readable only when all of it is written."""

    def __init__(self, run: Path, options: ScheduleOptions):
        self._folder = absolute(run) / FOLDER
        keep: list[Any] = [policies.LatestN(options.keep_last)]
        if options.keep_best:
            keep.append(policies.BestN(get_metric_fn=_eval_loss, reverse=True, n=options.keep_best))
        settings = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep), enable_async_checkpointing=True
        )
        if is_remote(self._folder):  # orbax and its threads would log tracebacks of what we explain
            for name in ("absl", "asyncio", "concurrent.futures"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
        with patience(self._folder, "opening"):
            self._manager = ocp.CheckpointManager(self._folder, item_names=_ITEMS, options=settings)

    def newest(self) -> int | None:
        """The last complete step, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Every complete step."""
        return sorted(self._manager.all_steps())

    def save(
        self, step: int, parameters: Any, optimizer: Any, progress: dict[str, Any], metrics: dict[str, float] | None
    ) -> None:
        """Start writing a step in the background; arrays are copied off the device before this returns.

        `progress` is plain JSON: the data iterator's state and what identifies the run. `metrics` are those of an
        evaluation at this step, if there was one; they decide which checkpoints are best.
        """
        items = ocp.args.Composite(
            parameters=ocp.args.StandardSave(parameters),
            optimizer=ocp.args.StandardSave(optimizer),
            progress=ocp.args.JsonSave(progress),
        )
        with patience(self._folder, f"saving step {step} to"):
            self._manager.save(step, args=items, metrics=metrics, force=True)

    def progress(self, step: int) -> dict[str, Any]:
        """The `progress` saved with a step."""
        args = ocp.args.Composite(progress=ocp.args.JsonRestore())
        with patience(self._folder, f"reading step {step} from"):
            return self._manager.restore(step, args=args)["progress"]

    def restore(self, step: int, parameters: Any, optimizer: Any) -> tuple[Any, Any]:
        """Weights and optimizer state of a step, placed as the abstract ones given say, on whatever mesh that is."""
        args = ocp.args.Composite(
            parameters=ocp.args.StandardRestore(parameters), optimizer=ocp.args.StandardRestore(optimizer)
        )
        with patience(self._folder, f"reading step {step} from"):
            found = self._manager.restore(step, args=args)
        return found["parameters"], found["optimizer"]

    def close(self) -> None:
        """Wait until every started save is complete."""
        with patience(self._folder, "finishing the checkpoints in"):
            self._manager.wait_until_finished()
            self._manager.close()


def restore_parameters(run: Path, step: int | None, abstract: Any) -> Any:
    """Weights of one step (newest by default) of a run, placed as `abstract` (shapes with shardings) says.

    Raises InputError when the run has no such step.
    """
    folder = absolute(run) / FOLDER
    with patience(folder, "looking at"):
        steps = [int(name) for name in names_in(folder) if name.isdigit()]
        steps = sorted(each for each in steps if ocp.utils.is_checkpoint_finalized(folder / str(each)))
    if not steps or (step is not None and step not in steps):
        wanted = "checkpoint" if step is None else f"step {step}"
        raise InputError(f"{run} has no {wanted}; it has steps {steps}. Train it first or choose another.")
    path = folder / str(steps[-1] if step is None else step) / "parameters"
    with patience(folder, "reading"), ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, abstract)
