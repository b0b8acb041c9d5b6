"""The saved steps of a run: found, read and checked, and set aside when they are damaged.

Nothing here waits for other processes, so that a step that only one of them cannot read leaves none of them hanging.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import orbax.checkpoint as ocp

from zephyr_jax.checkpoint.fingerprint import weights_fingerprint
from zephyr_jax.errors import InputError, join_items
from zephyr_jax.log import silence_library_logs
from zephyr_jax.storage.cloud import is_unreachable
from zephyr_jax.storage.files import Path, absolute_path, list_names, move_folder, slow_io_warning

FOLDER = "checkpoints"
DAMAGED = "damaged"
"""Where a run keeps the saved steps that could not be read."""
SAVED = "saved"
"""In the progress of a step: `weights` where it holds no optimizer state."""


class DamagedStepError(InputError):
    """A saved step that is not as it was written."""


def fingerprints(parameters: Any, optimizer: Any) -> dict[str, str]:
    """What a saved step says of its arrays, to be found again in what is read from it."""
    return {"parameters": weights_fingerprint(parameters), "optimizer": weights_fingerprint(optimizer)}


def steps_in(run: Path) -> list[int]:
    """Every complete step of a run, in order."""
    folder = absolute_path(run) / FOLDER
    with slow_io_warning(folder, "looking at"):
        numbers = [int(name) for name in list_names(folder) if name.isdigit()]
        return sorted(step for step in numbers if ocp.utils.is_checkpoint_finalized(folder / str(step)))


def read_progress(run: Path, step: int) -> dict[str, Any]:
    """The `progress` that was saved with a step. Raises DamagedStepError."""
    with _reading(run, step) as folder:
        progress = ocp.JsonCheckpointHandler().restore(folder / "progress", args=ocp.args.JsonRestore())
        if missing := {"data", "config", "identity"} - progress.keys():
            raise ValueError(f"its progress lacks {join_items(sorted(missing))}")
        return progress


def restore_state(run: Path, step: int, parameters: Any, optimizer: Any) -> tuple[Any, Any]:
    """Weights and optimizer state of a step, placed as the abstract ones given say, on whatever mesh that is.

    Raises DamagedStepError.
    """
    said = read_progress(run, step).get("fingerprints", {})
    return _restored(run, step, "parameters", parameters, said), _restored(run, step, "optimizer", optimizer, said)


def check_step(run: Path, step: int | None) -> int:
    """The step itself, or the newest one for None. Raises InputError when the run has no such step."""
    steps = steps_in(run)
    if not steps or (step is not None and step not in steps):
        wanted = "checkpoint" if step is None else f"step {step}"
        raise InputError(f"{run} has no {wanted}; it has steps {steps}. Train it first or choose another.")
    return steps[-1] if step is None else step


def restore_parameters(run: Path, step: int | None, abstract: Any) -> Any:
    """Weights of one step (newest by default) of a run, placed as `abstract` (shapes with shardings) says.

    Raises InputError when the run has no such step, DamagedStepError.
    """
    chosen = check_step(run, step)
    return _restored(run, chosen, "parameters", abstract, read_progress(run, chosen).get("fingerprints", {}))


def saved_fingerprint(run: Path, step: int | None) -> str | None:
    """The fingerprint of a step's weights (newest by default) as it was saved; None where there is none."""
    steps = steps_in(run)
    chosen = steps[-1] if steps and step is None else step
    return read_progress(run, chosen).get("fingerprints", {}).get("parameters") if chosen in steps else None


def set_aside(run: Path, step: int) -> Path:
    """Move a damaged step out of the way of those to come; nothing is deleted. One process does this."""
    place = absolute_path(run) / DAMAGED / f"{step}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
    move_folder(absolute_path(run) / FOLDER / str(step), place)
    return place


def _restored(run: Path, step: int, item: str, abstract: Any, said: dict[str, str]) -> Any:
    with _reading(run, step) as folder:
        handler = ocp.StandardCheckpointHandler()
        found = handler.restore(folder / item, args=ocp.args.StandardRestore(abstract))
        if item in said and weights_fingerprint(found) != said[item]:
            raise ValueError(f"its {item} are not those that were saved")
    return found


@contextmanager
def _reading(run: Path, step: int) -> Iterator[Path]:
    folder = absolute_path(run) / FOLDER / str(step)
    with slow_io_warning(folder, "reading"):
        try:
            yield folder
        except InputError:
            raise
        except Exception as error:  # tensorstore, orbax and zstd raise many kinds for a file that is not as it was
            if is_unreachable(error) or "RESOURCE_EXHAUSTED" in str(error):
                raise
            silence_library_logs()
            reason = " ".join(str(error).split())[:200]
            raise DamagedStepError(
                f"Step {step} of {run} is damaged: {reason or type(error).__name__}. Choose an earlier one "
                f"(model.path {run}/{FOLDER}/STEP)."
            ) from None
