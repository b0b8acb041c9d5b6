"""Settings of shared cards that a command accepts and does not use; the command line prints a note when they are given."""

import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch

_TRAINING = (
    "output",
    "resume",
    "schedule.*",
    "optimizer.*",
    "anomaly.*",
    "report.*",
    "profile",
    "expected",
    "expected_settings",
    "model.remat",
    "model.save_logits",
    "batch.examples",
    "data.packing_window",
    "dpo.*",
)
CARRIED: dict[str, tuple[str, ...]] = {
    "reference": _TRAINING,
    "reference verify": _TRAINING,
    "plan": (
        "output",
        "seed",
        "resume",
        "report.*",
        "profile",
        "expected",
        "expected_settings",
        "mesh.emulated_devices",
        "model.revision",
        "data.split",
        "data.eval_path",
        "data.eval_split",
        "data.revision",
        "data.limit",
        "data.chat_template",
        "data.template_args*",
        "data.multi_turn",
        "data.targets",
        "data.max_prompt_length",
        "data.packing",
        "data.packing_window",
        "data.on_bad_row",
        "data.num_workers",
        "schedule.evaluate_every",
        "schedule.save_every",
        "schedule.keep_last",
        "schedule.keep_best",
        "schedule.grace_seconds",
        "schedule.log_every",
        "optimizer.learning_rate",
        "optimizer.b1",
        "optimizer.b2",
        "optimizer.eps",
        "optimizer.weight_decay",
    ),
    "preview": ("data.packing", "data.packing_window"),
}
"""By command. One card serves all stages, and `dpo` names the `reference` command by its own words, so they are accepted."""


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether the full name of a setting is one of these names or patterns."""
    return any(fnmatch(name, pattern) for pattern in patterns)


def unused(command: str, options: Iterable[str]) -> Iterator[str]:
    """The options of a command line that this command accepts and does not use."""
    for option in options:
        name = re.sub(r"(^|\.)no_(?=\w+$)", r"\1", option.removeprefix("--"))  # `--report.no_progress_bar`
        if matches(name, CARRIED.get(command, ())):
            yield option
