"""The settings of `plan`."""

from dataclasses import dataclass
from typing import ClassVar

from zephyr_jax.config.constraints import PositiveInt
from zephyr_jax.config.training import DpoConfig, SftConfig
from zephyr_jax.errors import InputError


@dataclass(frozen=True)
class PlanConfig(DpoConfig):
    """Memory and time of a card's step on a TPU topology, from the TPU compiler, without TPUs."""

    REQUIRED: ClassVar[dict[str, str]] = {}

    topology: str = "v5e:2x4"
    """TPU topology of a slice: kind and grid, such as v5e:1x1 (Colab), v5e:2x4, v6e:2x4, v5p:2x2x1; v2-8 and v3-8 are v2:2x2
    and v3:2x2."""
    num_slices: PositiveInt = 1
    """Number of slices of that topology, connected by the data center network; each holds copies of the weights."""
    step: str | None = None
    """Step to compile: a training method (`sft`, `dpo`), `reference` or `generate`. Default: `dpo` if the card has a
    reference table, else `sft`."""
    fit: bool = False
    """Search for the fastest settings that fit into memory: `batch.microbatch_rows`, `model.remat`, mesh, and dtypes of
    gradients and moments; of adapters the base format, then the rank."""
    model_preset: str | None = None
    """Published model whose sizes are planned, such as llama-3.1-8b. Default: the local folder `model.path`, else the preset
    that its last part names, else Mistral-7B."""

    def check(self) -> None:
        """Raise InputError for settings that contradict each other."""
        SftConfig.check(self)
        if self.fit and not self.plans_training:
            raise InputError(
                f"`fit`: expected a training step, got the {self.planned_step} step. Remove `--fit`, or set `--step` to a method."
            )

    @property
    def segments_per_example(self) -> int:
        """A row holds at least one sequence; `plan` knows the method, and with it how many more an example has."""
        return 1

    @property
    def planned_step(self) -> str:
        """The step to compile."""
        return self.step or ("dpo" if self.reference else "sft")

    @property
    def plans_training(self) -> bool:
        """Whether the step is a training step."""
        return self.planned_step not in ("reference", "generate")
