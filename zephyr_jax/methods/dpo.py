"""`zephyr-jax dpo`: preferences and a filled reference table in, an aligned run out. One model is in memory."""

from dataclasses import asdict
from functools import partial

from zephyr_jax.checkpoint.fingerprint import weights_fingerprint
from zephyr_jax.config.training import DpoConfig
from zephyr_jax.objective.logprob import Parameters
from zephyr_jax.reference.fill import identity_of, preference_splits
from zephyr_jax.reference.table import Identity, ReferenceTable, require_complete
from zephyr_jax.report.report import add_samples
from zephyr_jax.storage.files import Path, check_readable, open_path
from zephyr_jax.train import setup as runs
from zephyr_jax.train.fit import fit


def dpo(config: DpoConfig, command: str = "zephyr-jax reference, with the arguments given to dpo") -> Path:
    """Train, or go on training, and return the run's folder. Raises InputError or TrainingError.

    `command` is the command line that fills the reference table, for the error that says it is missing.
    """
    folder = _train(config, command)
    add_samples(config, folder)  # when nothing of the training is in memory any more
    return folder


def _train(config: DpoConfig, command: str) -> Path:
    run = runs.open_run(config)
    if run.finished:
        return run.folder
    config = run.config
    check_readable(config.reference)
    splits = preference_splits(config, run.tokenizer, run.opened.source)
    model, load = run.opened.abstract, run.opened.load_weights
    if run.start:  # the policy has moved on; the reference is the one that the run started with
        table_identity = Identity(**run.progress["identity"]["reference"])
    else:
        parameters: Parameters = load()
        load = partial(_loaded, parameters)
        table_identity = identity_of(config, run.tokenizer, weights_fingerprint(parameters))
    root = open_path(config.reference)
    table = ReferenceTable(root, table_identity, command, config.data.template_date)
    sums = {
        name: require_complete(root, table, examples.keys(), examples.ids(), command)
        for name, examples in splits.items()
    }

    training = runs.training_split(config, splits["training"], sums["training"])
    evaluation = None
    if "evaluation" in splits:
        evaluation = runs.evaluation_split(config, splits["evaluation"], sums["evaluation"])
    training, evaluation = runs.align(training, evaluation)
    objective = runs.make_objective(model, config.dpo, training.plan.examples_per_row, config.model.logprob_chunk)
    identity = {
        "tokenizer": run.tokenizer.fingerprint,
        "data": runs.data_identity(splits["training"]),
        "reference": asdict(table_identity),
    }
    fit(config, run, model, load, objective, training, evaluation, identity)
    return run.folder


def _loaded(parameters: Parameters) -> Parameters:
    return parameters


def main(config: DpoConfig, command: str) -> str:
    """`zephyr-jax dpo`; the command that fills the table is the same one, of `reference`."""
    return str(dpo(config, command.replace("zephyr-jax dpo", "zephyr-jax reference", 1)))
