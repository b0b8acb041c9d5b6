"""Saving a run: weights, optimizer state, data iterator and config in one atomic orbax step, in the background."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from zephyr_jax.checkpoint.fingerprint import weights_fingerprint
from zephyr_jax.checkpoint.steps import FOLDER, SAVED, fingerprints
from zephyr_jax.config.training_sections import ScheduleOptions
from zephyr_jax.errors import InputError
from zephyr_jax.log import silence_library_logs
from zephyr_jax.storage.files import Path, absolute_path, slow_io_warning

_ITEMS = ("parameters", "optimizer", "progress")


def _eval_loss(metrics: dict[str, float]) -> float:
    return metrics.get("loss", float("inf"))


class CheckpointManager:
    """Steps under `<run>/checkpoints`. A step is readable only when all of it is written."""

    def __init__(self, run: Path, options: ScheduleOptions):
        self._folder = absolute_path(run) / FOLDER
        keep: list[Any] = [policies.LatestN(options.keep_last)]
        if options.keep_best:
            keep.append(policies.BestN(get_metric_fn=_eval_loss, reverse=True, n=options.keep_best))
        settings = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep), enable_async_checkpointing=True
        )
        silence_library_logs()
        with _explained(self._folder, "opening"):
            self._manager = ocp.CheckpointManager(self._folder, item_names=_ITEMS, options=settings)

    def save(
        self, step: int, parameters: Any, optimizer: Any, progress: dict[str, Any], metrics: dict[str, float] | None
    ) -> None:
        """Start writing a step in the background; arrays are copied off the device before this returns.

        `progress` is plain JSON: the data iterator's state and what identifies the run. Fingerprints of the arrays are
        added to it. `metrics` are those of an evaluation at this step, if there was one; they decide which checkpoints
        are best.
        """
        said = {**progress, "fingerprints": fingerprints(parameters, optimizer)}
        items = ocp.args.Composite(
            parameters=ocp.args.StandardSave(parameters),
            optimizer=ocp.args.StandardSave(optimizer),
            progress=ocp.args.JsonSave(said),
        )
        with _explained(self._folder, f"saving step {step} to"):
            self._manager.save(step, args=items, metrics=metrics, force=True)

    def save_weights(
        self, step: int, parameters: Any, progress: dict[str, Any], metrics: dict[str, float] | None
    ) -> None:
        """Start writing a step that holds weights only, rounded to bfloat16; a run cannot be resumed from it.

        The arguments are those of `save`.
        """
        rounded = jax.tree.map(_bfloat16, parameters)
        said = {**progress, SAVED: "weights", "fingerprints": {"parameters": weights_fingerprint(rounded)}}
        items = ocp.args.Composite(parameters=ocp.args.StandardSave(rounded), progress=ocp.args.JsonSave(said))
        with _explained(self._folder, f"saving the weights of step {step} to"):
            self._manager.save(step, args=items, metrics=metrics, force=True)

    def close(self) -> None:
        """Wait until every started save is complete."""
        with _explained(self._folder, "finishing the checkpoints in"):
            self._manager.wait_until_finished()
            self._manager.close()


@jax.jit
def _bfloat16(leaf: jax.Array) -> jax.Array:
    return leaf.astype(jnp.bfloat16)


@contextmanager
def _explained(folder: Path, doing: str) -> Iterator[None]:
    """The system's refusals, which orbax and tensorstore wrap in many ways, as InputError."""
    with slow_io_warning(folder, doing):
        try:
            yield
        except InputError:
            raise
        except TimeoutError as error:
            raise InputError(
                f"It takes too long: {doing} {folder} ({error}). Run the same command again: the steps that were complete "
                "before stay."
            ) from None
        except Exception as error:
            found = re.search(r"([^:]*)\s*\[os_error_code='(\d+)'", str(error))
            if not (found or isinstance(error, OSError)):
                raise
            reason = found[1].strip() if found else getattr(error, "strerror", None) or str(error)
            raise InputError(
                f"The system refuses while {doing} {folder}: {reason}. Make room or check permissions, then run the same "
                "command again: the steps that were complete before stay."
            ) from None
