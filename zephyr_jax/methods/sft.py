"""`zephyr-jax sft`: conversations in, a fine-tuned run out."""

from zephyr_jax.config.training import SftConfig
from zephyr_jax.data.examples import load_conversations
from zephyr_jax.report.report import add_samples
from zephyr_jax.storage.files import Path
from zephyr_jax.train import setup as runs
from zephyr_jax.train.fit import fit


def sft(config: SftConfig) -> Path:
    """Train, or go on training, and return the run's folder. Raises InputError or TrainingError."""
    folder = _train(config)
    add_samples(config, folder)  # when nothing of the training is in memory any more
    return folder


def _train(config: SftConfig) -> Path:
    run = runs.open_run(config)
    if run.finished:
        return run.folder
    config = run.config
    splits = runs.checked_splits(load_conversations, config.data, run.tokenizer, run.opened.source)
    examples, held_out = splits["training"], splits.get("evaluation")
    evaluation = None if held_out is None else runs.evaluation_split(config, held_out)
    training, evaluation = runs.align(runs.training_split(config, examples), evaluation)

    model = run.opened.abstract
    objective = runs.make_objective(model, None, training.plan.examples_per_row, config.model.logprob_chunk)
    identity = {"tokenizer": run.tokenizer.fingerprint, "data": runs.data_identity(examples)}
    fit(config, run, model, run.opened.load_weights, objective, training, evaluation, identity)
    return run.folder


def main(config: SftConfig, command: str) -> str:
    """`zephyr-jax sft`."""
    return str(sft(config))
