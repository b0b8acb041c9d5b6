"""Save a run: weights, optimizer state, data iterator and config as one atomic orbax step, in the background."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from zephyr_jax.checkpoint.fingerprint import weights_fingerprint
from zephyr_jax.checkpoint.steps import FOLDER, SAVED
from zephyr_jax.config.training_sections import ScheduleOptions
from zephyr_jax.errors import InputError
from zephyr_jax.log import silence_library_logs
from zephyr_jax.storage.cloud import slow_io_warning
from zephyr_jax.storage.files import Path, absolute_path

_ITEMS = ("parameters", "optimizer", "progress")
_MIN_SLICE_BYTES = 2**24
"""Replicas share the writing of an array if each writes at least this much. Every slice is one more program to compile."""


def _evaluation_loss(metrics: dict[str, float]) -> float:
    return metrics.get("loss", float("inf"))


class CheckpointManager:
    """Steps under `<run>/checkpoints`. A step becomes readable when all of it is written."""

    def __init__(self, run: Path, options: ScheduleOptions):
        self._folder = absolute_path(run) / FOLDER
        keep: list[Any] = [policies.LatestN(options.keep_last)]
        if options.keep_best:
            keep.append(policies.BestN(get_metric_fn=_evaluation_loss, reverse=True, n=options.keep_best))
        settings = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep), enable_async_checkpointing=True
        )
        silence_library_logs()
        handler = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_MIN_SLICE_BYTES)
        ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
        with _save_errors(self._folder, "open"):
            self._manager = ocp.CheckpointManager(self._folder, item_names=_ITEMS, options=settings)

    def save(
        self, step: int, parameters: Any, optimizer: Any, progress: dict[str, Any], metrics: dict[str, float] | None
    ) -> None:
        """Start writing a step in the background; arrays are copied off the device before this returns.

        Args:
            step: Number of completed steps.
            parameters: Trainable weights.
            optimizer: Pytree of the optimizer state.
            progress: JSON: data iterator state, config and identity of the run. Fingerprints of the arrays are added.
            metrics: Of an evaluation at this step; they decide which checkpoints are best.
        """
        fingerprints = {"parameters": weights_fingerprint(parameters), "optimizer": weights_fingerprint(optimizer)}
        self._save(step, {"parameters": parameters, "optimizer": optimizer}, progress, fingerprints, metrics)

    def save_weights(
        self, step: int, parameters: Any, progress: dict[str, Any], metrics: dict[str, float] | None
    ) -> None:
        """Start writing a step with weights only, in bfloat16; a run cannot be resumed from it. Arguments as in `save`."""
        rounded = jax.tree.map(_bfloat16, parameters)
        fingerprints = {"parameters": weights_fingerprint(rounded)}
        self._save(step, {"parameters": rounded}, {**progress, SAVED: "weights"}, fingerprints, metrics)

    def _save(
        self,
        step: int,
        arrays: dict[str, Any],
        progress: dict[str, Any],
        fingerprints: dict[str, str],
        metrics: dict[str, float] | None,
    ) -> None:
        items = ocp.args.Composite(
            **{name: ocp.args.StandardSave(tree) for name, tree in arrays.items()},
            progress=ocp.args.JsonSave({**progress, "fingerprints": fingerprints}),
        )
        with _save_errors(self._folder, f"save step {step} to"):
            self._manager.save(step, args=items, metrics=metrics, force=True)

    def close(self) -> None:
        """Wait until every save has finished."""
        with _save_errors(self._folder, "finish saving to"):
            self._manager.wait_until_finished()
            self._manager.close()


@jax.jit
def _bfloat16(leaf: jax.Array) -> jax.Array:
    return leaf.astype(jnp.bfloat16)


@contextmanager
def _save_errors(folder: Path, action: str) -> Iterator[None]:
    """Turn errors of the operating system, which orbax and tensorstore wrap in many ways, into InputError."""
    fix = "run the same command again: earlier checkpoints are kept"
    with slow_io_warning(folder, f"trying to {action}"):
        try:
            yield
        except InputError:
            raise
        except TimeoutError as error:
            raise InputError(f"could not {action} {folder}: timeout ({error}). To continue, {fix}.") from None
        except Exception as error:
            wrapped = re.search(r"([^:]*)\s*\[os_error_code='(\d+)'", str(error))
            if not (wrapped or isinstance(error, OSError)):
                raise
            reason = wrapped[1].strip() if wrapped else getattr(error, "strerror", None) or str(error)
            raise InputError(
                f"could not {action} {folder}: {reason}. Free disk space or fix permissions, then {fix}."
            ) from None
