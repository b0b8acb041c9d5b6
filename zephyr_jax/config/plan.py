"""`plan`: a card on a TPU topology, without one."""

from dataclasses import dataclass
from typing import Literal

from zephyr_jax.config.checks import (
    check_batch,
    check_data,
    check_dpo,
    check_model,
    check_optimizer,
    check_positive,
    refuse,
)
from zephyr_jax.config.training import DpoConfig


@dataclass(frozen=True)
class PlanConfig(DpoConfig):
    """What a card's step needs on a TPU topology, from the TPU compiler, with no hardware."""

    topology: str = "v5e:2x4"
    """Chips of a slice to plan for: kind and grid, such as v5e:2x4, v5e:4x4, v6e:2x4, v5p:2x2x1."""
    num_slices: int = 1
    """Slices of that topology, joined by the data centre's network; each holds copies of the weights."""
    step: str | None = None
    """What to compile: a training method (`sft`, `dpo`), `reference` or `generate`;
    default: `dpo` where the card names a reference table, else `sft`."""
    fit: bool = False
    """Search the fastest settings that fit: rows of a microbatch, `model.remat`, mesh, and dtypes of gradients and moments."""
    model_preset: Literal["mistral-7b"] | None = None
    """Plan for this model's sizes; default: those of the folder model.path, or Mistral-7B's (and it is said) when that is no
    folder here. Nothing is downloaded."""

    def check(self) -> None:
        """Raise InputError for settings that cannot hold together; model, data and output may be unset or absent."""
        check_data(self.data)
        check_model(self.model)
        check_batch(self.batch)
        check_optimizer(self.optimizer, self.schedule, self.model)
        check_dpo(self.dpo)
        check_positive(num_slices=self.num_slices)
        if self.fit and not self.plans_training:
            refuse(f"`fit` is on for the {self.planned_step} step.", "It searches training steps: plan sft or dpo.")

    @property
    def planned_step(self) -> str:
        """The step to compile."""
        return self.step or ("dpo" if self.reference else "sft")

    @property
    def plans_training(self) -> bool:
        """Whether the step is a training step."""
        return self.planned_step not in ("reference", "generate")
