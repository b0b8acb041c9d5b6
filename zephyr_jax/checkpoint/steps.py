"""Saved steps of a run: find, read and verify them, and quarantine damaged ones.

Only `restore_latest_valid` synchronizes processes, so that a step that one process alone cannot read blocks none of them.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import jax
import orbax.checkpoint as ocp

from zephyr_jax.checkpoint.fingerprint import joint_fingerprint, weights_fingerprint
from zephyr_jax.checkpoint.frozen import FROZEN
from zephyr_jax.errors import InputError, join_items
from zephyr_jax.log import silence_library_logs
from zephyr_jax.parallel.hosts import all_hosts_agree
from zephyr_jax.storage.cloud import is_unreachable, slow_io_warning
from zephyr_jax.storage.files import Path, absolute_path, list_names, move_folder

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
DAMAGED = "damaged"
"""Folder of a run with the saved steps that could not be read."""
SAVED = "saved"
"""Key of a step's progress: `weights` when the step has no optimizer state."""


class DamagedStepError(InputError):
    """A saved step differs from what was written."""


@dataclass(frozen=True)
class Checkpoint:
    """A saved step of a run; step 0 with empty progress when the run has none."""

    run: Path
    step: int = 0
    progress: dict[str, Any] = field(default_factory=dict)
    """Data iterator state, config, identity and fingerprints, as saved with the step."""
    steps: tuple[int, ...] = ()
    """All saved steps of the run when it was listed, in order."""

    def restore(self, parameters: Any, optimizer: Any) -> tuple[Any, Any]:
        """Weights and optimizer state, for any mesh.

        Args:
            parameters: Shapes with shardings of the weights.
            optimizer: The same of the optimizer state.

        Raises:
            DamagedStepError: An array cannot be read, or its fingerprint differs from the saved one.
        """
        return self.restore_item("parameters", parameters), self.restore_item("optimizer", optimizer)

    def restore_parameters(self, abstract: Any) -> Any:
        """Weights alone; as `restore`, and the error names the run's other steps."""
        with _other_steps(self.run):
            return self.restore_item("parameters", abstract)

    def restore_item(self, item: str, abstract: Any) -> Any:
        """One item, placed as `abstract` (shapes with shardings) describes. Raises DamagedStepError."""
        expected = self.progress.get("fingerprints", {}).get(item)
        with _damage_errors(self.run, self.step) as folder:
            restored = ocp.StandardCheckpointHandler().restore(folder / item, args=ocp.args.StandardRestore(abstract))
            if expected is not None and weights_fingerprint(restored) != expected:
                raise ValueError(f"fingerprint mismatch of {item}")
        return restored


def list_steps(run: Path) -> list[int]:
    """Every complete step of a run, in order."""
    folder = absolute_path(run) / FOLDER
    with slow_io_warning(folder, "looking at"):
        numbers = [int(name) for name in list_names(folder) if name.isdigit()]
        return sorted(step for step in numbers if ocp.utils.is_checkpoint_finalized(folder / str(step)))


def find_checkpoint(run: Path) -> Checkpoint:
    """The newest step whose progress can be read; step 0 when the run has no such step. Arrays are not read yet."""
    steps = tuple(list_steps(run))
    for step in reversed(steps):
        try:
            return Checkpoint(run=run, step=step, progress=read_progress(run, step), steps=steps)
        except DamagedStepError:
            continue
    return Checkpoint(run=run, steps=steps)


def restore_latest_valid(newest: Checkpoint, parameters: Any, optimizer: Any) -> tuple[Checkpoint, Any, Any] | None:
    """Restore the newest step that every process can read; newer ones are quarantined. Called by all processes.

    Args:
        newest: Of `find_checkpoint`; its progress is not read again.
        parameters: Shapes with shardings of the weights.
        optimizer: The same of the optimizer state.

    Returns:
        The step, its weights and its optimizer state; None for a run without a step, or whose only one is damaged.

    Raises:
        InputError: Several steps are damaged and none is valid.
    """
    damaged: list[int] = []
    for step in reversed(newest.steps):
        restored = None
        try:
            progress = newest.progress if step == newest.step else read_progress(newest.run, step)
            checkpoint = Checkpoint(run=newest.run, step=step, progress=progress, steps=newest.steps)
            restored = (checkpoint, *checkpoint.restore(parameters, optimizer))
        except DamagedStepError as error:
            logger.warning("%s", error)
        if all_hosts_agree(restored is not None) and restored is not None:
            _quarantine_all(newest.run, damaged, f"resuming at step {step}")
            return restored
        damaged.append(step)
    if len(damaged) > 1:
        raise InputError(
            f"all checkpoints of {newest.run} are damaged: steps {join_items(damaged)}. Check the disk, and the versions of jax "
            "and orbax-checkpoint. To train from the start, choose another output."
        )
    _quarantine_all(newest.run, damaged, "no earlier step exists: starting from step 0")
    return None


def read_progress(run: Path, step: int) -> dict[str, Any]:
    """The `progress` that was saved with a step. Raises DamagedStepError."""
    with _damage_errors(run, step) as folder:
        progress: dict[str, Any] = ocp.JsonCheckpointHandler().restore(folder / "progress", args=ocp.args.JsonRestore())
        if missing := {"data", "config", "identity"} - progress.keys():
            raise ValueError(f"its progress lacks {join_items(sorted(missing))}")
        return progress


def check_step(run: Path, step: int | None) -> int:
    """The step itself, or the newest one for None. Raises InputError when the run has no such step."""
    steps = list_steps(run)
    if not steps or (step is not None and step not in steps):
        expected = "a checkpoint" if step is None else f"step {step}"
        got = f"got steps {steps}. Choose one of them" if steps else "got no finished checkpoint. Train it first"
        raise InputError(f"{run}: expected {expected}, {got}.")
    return steps[-1] if step is None else step


def open_step(run: Path, step: int | None) -> Checkpoint:
    """A saved step of a run, or the newest one for None; arrays are not read yet. Errors as `restore_parameters`."""
    chosen = check_step(run, step)
    with _other_steps(run):
        return Checkpoint(run=run, step=chosen, progress=read_progress(run, chosen))


def restore_parameters(run: Path, step: int | None, abstract: Any) -> Any:
    """Weights that one step of a run has saved.

    Args:
        run: Folder of the run.
        step: None: the newest.
        abstract: Shapes with shardings of the weights; None: as saved.

    Raises:
        InputError: The run has no such step.
        DamagedStepError: It is damaged.
    """
    return open_step(run, step).restore_parameters(abstract)


def saved_fingerprint(run: Path, step: int | None) -> str | None:
    """The fingerprint of the weights of a step (None: the newest), as saved; None when the run has no such step."""
    steps = list_steps(run)
    chosen = steps[-1] if steps and step is None else step
    if chosen not in steps:
        return None
    progress = read_progress(run, chosen)
    saved, frozen = progress.get("fingerprints", {}).get("parameters"), progress.get(FROZEN)
    return joint_fingerprint([saved, frozen["weights"]]) if saved and frozen else saved


def quarantine(run: Path, step: int) -> Path:
    """Move a damaged step out of the checkpoints folder, and return its new folder. Called by one process."""
    folder = absolute_path(run) / DAMAGED / f"{step}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
    move_folder(absolute_path(run) / FOLDER / str(step), folder)
    return folder


def _quarantine_all(run: Path, damaged: list[int], consequence: str) -> None:
    if damaged and jax.process_index() == 0:
        for step in damaged:
            quarantine(run, step)
        steps = f"step{'s' if len(damaged) > 1 else ''} {join_items(damaged)}"
        logger.warning("moved damaged %s to %s; %s", steps, run / DAMAGED, consequence)


@contextmanager
def _other_steps(run: Path) -> Iterator[None]:
    """Add to an error about a damaged step how to choose another one."""
    try:
        yield
    except DamagedStepError as error:
        raise DamagedStepError(f"{error} To use another step: model.path {run}/{FOLDER}/STEP.") from error


@contextmanager
def _damage_errors(run: Path, step: int) -> Iterator[Path]:
    """Yield a step's folder, and turn any error of reading it into DamagedStepError."""
    folder = absolute_path(run) / FOLDER / str(step)
    with slow_io_warning(folder, "reading"):
        try:
            yield folder
        except InputError:
            raise
        except Exception as error:  # tensorstore, orbax and zstd raise many kinds for a damaged file
            if is_unreachable(error) or "RESOURCE_EXHAUSTED" in str(error):
                raise
            silence_library_logs()
            reason = " ".join(str(error).split())[:200]
            raise DamagedStepError(f"step {step} of {run} is damaged: {reason or type(error).__name__}.") from None
