"""The adapter of a training run: what the run's record holds about it, and the model that it was started from."""

from collections.abc import Callable
from typing import Any

from zephyr_jax.checkpoint.model_source import INITIAL_ADAPTER, AdapterSource, ModelSource, split_step
from zephyr_jax.checkpoint.provenance import FILE, Record, read_record
from zephyr_jax.config.sections import BaseFormat, WeightsOptions
from zephyr_jax.errors import InputError, join_items
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.targets import projections_of
from zephyr_jax.model.lora import LoraSpec
from zephyr_jax.storage.files import Path, open_path


def adapter_record(spec: LoraSpec, base_format: BaseFormat, block_size: int, start: str) -> dict[str, Any]:
    """What the record of a run holds about its adapter.

    Args:
        spec: The adapter.
        base_format: How the run stores the weights below it.
        block_size: Of the base format.
        start: `new`, `continue` (the adapter of the model that the run started from) or `merge` (a new one on top of that).
    """
    values = {"rank": spec.rank, "alpha": spec.alpha, "use_rslora": spec.use_rslora, "targets": list(spec.targets)}
    return {**values, "base_format": base_format, "block_size": block_size, "start": start}


def run_adapter(run: Path, config: ModelConfig, find_base: Callable[[Record], ModelSource]) -> AdapterSource | None:
    """The adapter that a run trained; None for a run that trained all weights. Raises InputError.

    Args:
        run: The run.
        config: Of its model.
        find_base: The run's record -> the model below the adapter.
    """
    record = read_record(run) or {}
    facts = record.get("adapter")
    if facts is None:
        return None
    projections = projections_of(config)
    unknown = [target for target in facts["targets"] if target not in projections]
    if unknown:
        raise InputError(
            f"{run / FILE}: `adapter.targets`: expected names of {join_items(projections)}, got {join_items(unknown)}. Restore "
            "the file from a backup, or copy it again from its source."
        )
    spec = LoraSpec(
        rank=facts["rank"], alpha=facts["alpha"], use_rslora=facts["use_rslora"], targets=tuple(facts["targets"])
    )
    return AdapterSource(
        spec,
        find_base(record),
        base_format=facts["base_format"],
        block_size=facts["block_size"],
        initial=_initial_adapter(run, record),
    )


def started_from(run: Path, record: Record) -> WeightsOptions:
    """The model that a run was started from, by its record. Raises InputError where the record does not name it."""
    model = record.get("config", {}).get("model", {})
    if not model.get("path"):
        raise InputError(
            f"{run / FILE}: `config.model.path`: expected the model that the run was started from, got "
            f"{model.get('path')!r}. Restore the file from a backup, or copy it again from its source."
        )
    names = ("path", "revision", "adapter", "adapter_revision")
    return WeightsOptions(**{name: model[name] for name in names if name in model})


def _initial_adapter(run: Path, record: Record) -> Path | None:
    """Folder of the initial adapter that a run, or the one whose adapter it continues, subtracted from its base (PiSSA)."""
    visited: list[Path] = []
    while run not in visited:  # a run that was moved to where it was started from would be its own predecessor
        folder = run / INITIAL_ADAPTER
        if folder.is_dir():
            return folder
        if record.get("adapter", {}).get("start") != "continue":
            return None
        visited.append(run)
        model = started_from(run, record)
        run, _ = split_step(open_path(model.adapter or model.path))
        record = read_record(run) or {}
    return None
