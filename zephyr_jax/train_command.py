"""`zephyr-jax sft`, `zephyr-jax dpo` and every other registered method: rows in, an aligned run out. One model is in memory."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from zephyr_jax.config.training import SftConfig
from zephyr_jax.data.examples import Examples
from zephyr_jax.data.splits import load_splits
from zephyr_jax.methods.registry import method_of
from zephyr_jax.objective.logprob import Parameters
from zephyr_jax.reference.fill import identity_of
from zephyr_jax.reference.table import Identity, ReferenceTable, require_complete
from zephyr_jax.report.report import add_samples, log_report, run_report
from zephyr_jax.storage.files import Path, check_readable, open_path
from zephyr_jax.train.fit import fit
from zephyr_jax.train.setup import Run, data_identity, open_run, plan_splits


def train(config: SftConfig, command: str = "zephyr-jax reference, with the same arguments") -> Path:
    """Train, or resume training, with the method whose settings these are.

    Args:
        config: Settings of a registered method.
        command: The command line that fills the reference table, for the error about missing entries.

    Returns:
        The run's folder.

    Raises:
        InputError: Settings, rows, weights or the reference table cannot be used.
        TrainingError: The run had to stop.
    """
    folder = _train(config, command)
    add_samples(config, folder)  # when nothing of the training is in memory any more
    log_report(folder)
    return folder


def _train(config: SftConfig, command: str) -> Path:
    run = open_run(config)
    if run.finished:
        return run.folder
    config, method = run.config, run.method
    reference = method.reference_folder(config)
    if reference:
        check_readable(reference)
    source, model = run.opened.source, run.opened.abstract
    examples = load_splits(method.examples, config.data, run.tokenizer, source.model_config.max_positions, source.asked)
    load: Callable[[], Parameters] = run.opened.load_weights
    identity: dict[str, Any] = {"tokenizer": run.tokenizer.fingerprint, "data": data_identity(examples["training"])}
    sums: dict[str, np.ndarray] = {}
    if reference:
        if not run.start:  # loaded once: they are the reference, and the policy to start from
            load = partial(_identity, load())
        table = _reference_table(run, reference, load, command)
        identity["reference"] = asdict(table.identity)
        sums = {name: _reference_sums(table, split, reference, command) for name, split in examples.items()}
    splits = plan_splits(config, method, examples, sums)
    slots = splits["training"].plan.examples_per_row
    objective = method.objective(model.definition, config, examples_per_row=slots, chunk=model.logprob_chunk)
    with run_report(run.folder, examples["training"]) as on_start:
        fit(
            run,
            model,
            load=load,
            objective=objective,
            training=splits["training"],
            evaluation=splits.get("evaluation"),
            identity=identity,
            on_start=on_start,
            is_trainable=run.is_trainable,
        )
    return run.folder


def _reference_table(run: Run, folder: str, load: Callable[[], Parameters], command: str) -> ReferenceTable:
    """The table of the weights that the run started from; a resumed policy has moved on from them."""
    config = run.config
    if run.start:
        table_identity = Identity(**run.progress["identity"]["reference"])
    else:
        table_identity = identity_of(config, run.tokenizer, run.opened.reference_fingerprint(load()))
    return ReferenceTable(open_path(folder), table_identity, command, config.data.template_date)


def _reference_sums(table: ReferenceTable, examples: Examples, folder: str, command: str) -> np.ndarray:
    return require_complete(open_path(folder), table, examples.keys(), examples.ids(), command)


def _identity(parameters: Parameters) -> Parameters:
    return parameters


def main(config: SftConfig, command: str) -> str:
    """`zephyr-jax sft` or `dpo`; the method's reference command takes the same options."""
    method = method_of(config)
    return str(train(config, command.replace(f"zephyr-jax {method.name}", f"zephyr-jax {method.reference_command}", 1)))
