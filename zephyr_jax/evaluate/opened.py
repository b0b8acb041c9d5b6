"""What the evaluations of a checkpoint on rows share: its model and settings, its examples, and their reference."""

import logging
from dataclasses import dataclass, replace

import jax

from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.checkpoint.inheritance import resolve_settings
from zephyr_jax.checkpoint.model_source import ModelSource
from zephyr_jax.checkpoint.opened import OpenedModel, open_model
from zephyr_jax.config.models import EvaluateConfig
from zephyr_jax.data.examples import Examples, load_examples
from zephyr_jax.data.segments import ExampleKind
from zephyr_jax.data.splits import check_positions
from zephyr_jax.parallel.sharding import ShardingRules
from zephyr_jax.reference.table import recorded_template_dates

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenedEvaluation[C: EvaluateConfig]:
    """A checkpoint that is evaluated, before its weights are loaded."""

    config: C
    """The settings with every inherited value."""
    model: OpenedModel
    tokenizer: ChatTokenizer

    @property
    def source(self) -> ModelSource:
        """The checkpoint."""
        return self.model.source

    @property
    def rules(self) -> ShardingRules:
        """The mesh."""
        return self.model.rules

    def fitted(self, kind: ExampleKind) -> "OpenedEvaluation[C]":
        """The same with a row length that holds an example of this kind, where none is set."""
        return replace(self, config=replace(self.config, data=self.config.data.fitted(kind.segments_per_example)))

    def load_examples(self, kind: ExampleKind) -> Examples:
        """Tokenize the split; logs, on host 0, their number and what was truncated and skipped. Raises InputError."""
        data = self.config.data
        self.rules.check_row_length(data.row_length)
        examples = load_examples(kind, data, self.tokenizer, data.path, data.split)
        if jax.process_index() == 0:
            logger.info("%s", examples.summary(data.path))
            if warning := examples.stats.warning(data.max_skipped_fraction):
                logger.warning("%s", warning)
        check_positions(examples, data.path, self.source.model_config.max_positions, self.source.asked)
        return examples


def open_evaluation[C: EvaluateConfig](command: str, config: C, rules: ShardingRules) -> OpenedEvaluation[C]:
    """Open the checkpoint and fill in the settings that it hands on. Raises InputError.

    Args:
        command: `evaluate` or `evaluate preferences`.
        config: Its settings.
        rules: The mesh.
    """
    rules.check_divides("batch", config.batch_size, "batch_size")
    opened = open_model(config.model, rules)
    opened.check_weights()
    tables = recorded_template_dates(config.reference)
    return OpenedEvaluation(*resolve_settings(command, config, opened, tables=tables))
