"""Configs of runs that take seconds."""

from pathlib import Path

from zephyr_jax.config.sections import DataOptions, MeshOptions, ModelOptions
from zephyr_jax.config.training import DpoConfig, SftConfig
from zephyr_jax.config.training_sections import (
    BatchOptions,
    DpoOptions,
    OptimizerOptions,
    ReportOptions,
    ScheduleOptions,
)

MODEL = {"compute_dtype": "float32", "remat": "none", "logprob_chunk": 64}
MESH = MeshOptions(data=2, fsdp=2, tensor=2)
REPORT = ReportOptions(progress_bar=False, num_samples=0)


def sft_config(model: Path, rows: Path, output: Path, epochs: int = 2) -> SftConfig:
    """Rows of 256 tokens, eight a step in two microbatches; saves every two steps."""
    return SftConfig(
        output=str(output),
        model=ModelOptions(path=str(model), **MODEL),
        data=DataOptions(path=str(rows), max_length=256, row_length=256),
        batch=BatchOptions(rows=8, microbatch_rows=4),
        schedule=ScheduleOptions(epochs=epochs, save_every=2, evaluate_every=0),
        optimizer=OptimizerOptions(learning_rate=1e-3),
        mesh=MESH,
        report=REPORT,
    )


def dpo_config(model: Path, rows: Path, output: Path, reference: Path) -> DpoConfig:
    """Eight pairs a step, rows of 512 tokens, four a microbatch; saves every two steps."""
    return DpoConfig(
        output=str(output),
        reference=str(reference),
        model=ModelOptions(path=str(model), **MODEL),
        data=DataOptions(path=str(rows), max_length=256, max_prompt_length=64, row_length=512),
        batch=BatchOptions(examples=8, microbatch_rows=4),
        schedule=ScheduleOptions(epochs=2, save_every=2, evaluate_every=0),
        optimizer=OptimizerOptions(learning_rate=1e-4),
        dpo=DpoOptions(beta=0.1),
        mesh=MESH,
        report=REPORT,
    )
