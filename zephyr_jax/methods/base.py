"""What a training method is: everything that training, evaluation, reports, plans and exports must know of it, as one value."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import nnx

from zephyr_jax.batch import Batch
from zephyr_jax.config.training import SftConfig
from zephyr_jax.data.segments import ExampleKind
from zephyr_jax.objective.example_loss import LossFunction, Objective, make_objective

type Options = Mapping[str, Any]
"""The settings of a method's loss, as a run's record has them."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One chart of a run's metrics over its steps; it is left out where the run measured none of them."""

    title: str
    unit: str
    metrics: tuple[tuple[str, str], ...]
    """(metric, name of its line): the name may be empty where there is one."""
    percent: bool = False
    """Whether values are shares, shown in percent."""
    unit_range: bool = False
    """Whether the axis goes from 0 to 1 whatever the values are."""
    level: tuple[str, float] | None = None
    """A horizontal line: its name and value."""
    color: int = 0
    """Index of the first line's color."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A training method. Frozen; register it in `methods.registry.METHODS` under its name.

    The loss is a pure function of the policy's log-probs; summing over examples, microbatches and hosts, the reference pass,
    checkpoints and evaluation are the same for all methods.
    """

    name: str
    """The command that trains, and `made_by` in the records of its runs."""
    title: str
    """Name in reports, such as dSFT."""
    description: str
    """What it does, for model cards."""
    config: type[SftConfig]
    """Settings of the command. No two methods share one type."""
    examples: ExampleKind
    """How rows become examples."""
    row_column: str | None = None
    """A column that only rows of this method have; None: rows that no other method claims."""
    batch: type[Batch]
    """Arrays that the loss reads; its fields name the columns that the loader lays out."""
    loss: LossFunction
    options: str | None = None
    """Section of the settings that the loss reads; None: the loss has no settings."""
    uses_reference: bool = False
    """Whether `batch` has `reference`, log-prob sums of a frozen model from the table in the setting `reference`."""
    reference_command: str = "reference"
    """The command that fills the table with this method's settings."""
    reference_free_metrics: Callable[[dict[str, float], Any], dict[str, float]] | None = None
    """(metrics against a reference of zeros, options) -> what these are without a reference. Only for `uses_reference`."""
    curves: Callable[[Options], tuple[Curve, ...]]
    """Charts of the loss and of the method's own metrics; those of the learning rate and the like are added to every run's."""
    metric_titles: Mapping[str, str]
    """Metrics -> their names in tables, in the order of the table."""
    headline_metrics: tuple[str, ...] = ()
    """Metrics in the step line and in `debug-step`'s line of an example."""
    card_settings: tuple[str, ...] = ()
    """Settings of `options` in model cards."""
    inherited_settings: tuple[str, ...] = ()
    """Settings, besides those of every method, that `evaluate` takes from a run of this method."""

    def options_of(self, config: Any) -> Any:
        """The section of a config that the loss reads: the defaults where the config has no such section."""
        if self.options is None:
            return None
        return getattr(config, self.options, None) or getattr(self.config(), self.options)

    def reference_folder(self, config: Any) -> str | None:
        """Folder of the reference tables that the settings name; None for a method without a reference."""
        return (getattr(config, "reference", None) or None) if self.uses_reference else None

    def objective(self, definition: nnx.GraphDef[Any], config: Any, *, examples_per_row: int, chunk: int) -> Objective:
        """The loss over a microbatch, see `make_objective`.

        Args:
            definition: The decoder's graph.
            config: Settings with the section `options`.
            examples_per_row: Example slots of a row.
            chunk: Target tokens of a device whose logits exist at one time.
        """
        segments = self.examples.segments_per_example * examples_per_row
        return make_objective(self.loss, definition, self.options_of(config), segments=segments, chunk=chunk)

    def reference_columns(self, sums: np.ndarray | None, num_examples: int) -> dict[str, np.ndarray]:
        """The column `reference`, float32 [N, segments per example], zeros without `sums`; empty if unused."""
        if not self.uses_reference:
            return {}
        shape = (num_examples, self.examples.segments_per_example)
        return {"reference": np.zeros(shape, np.float32) if sums is None else sums}
