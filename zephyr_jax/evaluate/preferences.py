"""`zephyr-jax evaluate preferences`: what a model thinks of pairs, over all, by source and by length."""

import json
from dataclasses import asdict, dataclass

import jax
import numpy as np

from zephyr_jax.config.models import PreferencesConfig
from zephyr_jax.data.examples import Examples
from zephyr_jax.data.segments import PREFERENCE
from zephyr_jax.data.sources import open_rows
from zephyr_jax.errors import InputError, join_items
from zephyr_jax.evaluate.opened import open_evaluation
from zephyr_jax.evaluate.pair_reference import load_with_reference
from zephyr_jax.evaluate.preference_stats import Group, group_of, groups_by, groups_by_length, longer_wins
from zephyr_jax.parallel.hosts import require_single_process
from zephyr_jax.parallel.sharding import init_devices
from zephyr_jax.reference.score import Scorer
from zephyr_jax.storage.files import check_file_creatable, write_atomic


@dataclass(frozen=True)
class PreferenceResult:
    """How a model ranks a set of pairs."""

    overall: Group
    groups: list[Group]
    longer_preferred: float
    """Share of pairs whose longer answer the model prefers."""
    longer_chosen: float
    """Share of pairs whose longer answer is the chosen one."""

    def report(self) -> str:
        """A Markdown table and one line on length."""
        lines = ["| pairs | n | accuracy | reward margin | calibration error |", "|---|---|---|---|---|"]
        lines += [
            f"| {group.name} | {group.pairs:,} | {group.accuracy:.1%} ± {group.error:.1%} | {group.margin:+.3f} | "
            f"{group.calibration:.1%} |"
            for group in (self.overall, *self.groups)
        ]
        return "\n".join(
            [
                *lines,
                "",
                f"the longer answer is preferred in {self.longer_preferred:.1%} of pairs, and is the chosen one in "
                f"{self.longer_chosen:.1%}",
            ]
        )


def preferences(config: PreferencesConfig) -> PreferenceResult:
    """Score every pair. Raises InputError."""
    check_file_creatable(config.output)
    rules = init_devices(config.mesh)
    require_single_process("evaluate preferences")
    opened = open_evaluation("evaluate preferences", config, rules).fitted(PREFERENCE)
    config = opened.config
    examples = opened.load_examples(PREFERENCE)
    names = _names(config, examples) if config.group_by else None
    parameters, reference = load_with_reference(opened, examples)
    scorer = Scorer(
        model=opened.model.abstract,
        parameters=parameters,
        data=config.data,
        rules=rules,
        num_rows=config.batch_size,
    )
    sums, counts = _score(scorer, examples)
    rewards = config.dpo.beta * (sums - (0.0 if reference is None else reference))
    margins = rewards[:, 0] - rewards[:, 1]
    groups = [*(groups_by(names, margins) if names else []), *groups_by_length(counts[:, 0], margins)]
    always = np.ones(len(margins))
    result = PreferenceResult(
        overall=group_of("all", margins),
        groups=groups,
        longer_preferred=longer_wins(counts, margins),
        longer_chosen=longer_wins(counts, always),
    )
    if config.output and jax.process_index() == 0:
        write_atomic(config.output, json.dumps(asdict(result), indent=2) + "\n")
    return result


def _score(scorer: Scorer, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Log-prob sums, float64 [N, 2], and target counts, int [N, 2], in the examples' order."""
    sums, counts = np.zeros((len(examples), 2)), np.zeros((len(examples), 2), np.int64)
    for batch in scorer.score(examples, lambda done, total: None):
        sums[batch.examples], counts[batch.examples] = batch.sums, batch.counts
    return sums, counts


def _names(config: PreferencesConfig, examples: Examples) -> list[str]:
    """The value of the column `group_by` for each pair."""
    data, by = config.data, str(config.group_by)
    rows = open_rows(data.path, data.split, data.revision, data.limit, (by,))
    if by not in rows.fields:
        raise InputError(f"{data.path} has no column {by!r}; it has {join_items(rows.fields)}.")
    values = rows.values(by)
    return [str(values[index]) for index in examples.row_indices]


def main(config: PreferencesConfig, command: str) -> str:
    """`zephyr-jax evaluate preferences`."""
    return preferences(config).report()
