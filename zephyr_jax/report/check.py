"""`zephyr-jax check`: a finished run's last evaluation against the ranges that its card expects."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from zephyr_jax.checkpoint.provenance import read_record
from zephyr_jax.checkpoint.steps import list_steps
from zephyr_jax.config.inspect import CheckConfig
from zephyr_jax.config.yaml_file import from_dict, load_card, to_dict
from zephyr_jax.errors import InputError, join_items, terminal_text
from zephyr_jax.methods.registry import METHODS, method_names
from zephyr_jax.storage.files import open_path
from zephyr_jax.train.metric_writers import last_evaluation


@dataclass(frozen=True)
class MetricCheck:
    """A metric and its expected range."""

    name: str
    value: float
    low: float
    high: float

    @property
    def deviation(self) -> float:
        """Distance from the range; 0 inside."""
        return max(self.low - self.value, self.value - self.high, 0.0)

    def __str__(self) -> str:
        verdict = f"OFF by {self.deviation:.4g}" if self.deviation else "pass"
        return f"{self.name:<20} {self.value:<10.4g} expected {self.low:g} to {self.high:g}: {verdict}"


@dataclass(frozen=True)
class CheckResult:
    """The checks of all expected metrics."""

    metrics: tuple[MetricCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether every metric is in its range."""
        return not any(metric.deviation for metric in self.metrics)

    def report(self) -> str:
        """One line per metric, and the verdict."""
        return "\n".join([*map(str, self.metrics), "passed" if self.passed else "NOT passed"])


def check(config: CheckConfig) -> CheckResult:
    """Compare. Raises InputError for an unfinished run, a card without ranges, or a run with other settings than the ranges."""
    run = open_path(config.run)
    record = read_record(run) if run.is_dir() else None
    if record is None or record.get("made_by") not in METHODS:
        raise InputError(
            f"{config.run} is not a training run: expected a provenance.json of {method_names()} in it. Name its output folder."
        )
    kind = METHODS[record["made_by"]].config
    settings = from_dict(kind, record.get("config", {}), f"{config.run}/provenance.json")
    card = load_card(kind, config.card) if config.card else settings
    if not card.expected:
        raise InputError(
            f"expected ranges in {config.card or config.run}, got none. Pass `--card` with a card that contains, for example, "
            "`expected: {loss: [LOW, HIGH]}`."
        )
    for name, expected, actual in differing_settings(card.expected_settings, to_dict(settings)):
        raise InputError(
            f"cannot compare {config.run} with its card: the card's ranges hold for {name} {expected!r}, the run has {actual!r}."
        )
    newest = list_steps(run)[-1:] or [0]
    steps = record.get("steps")
    if steps is None or newest[0] < steps:
        raise InputError(
            f"{config.run} is not finished: step {newest[0]} of {steps or 'an unknown number'}. Run its command to the end."
        )
    metrics = last_evaluation(run)
    missing = sorted(card.expected.keys() - metrics.keys())
    if missing:
        raise InputError(
            f"The last evaluation of {config.run} has no {join_items(missing)}; it has {join_items(sorted(metrics)) or 'none'}. "
            "Give the run data to evaluate on (data.eval_split)."
        )
    return CheckResult(
        tuple(MetricCheck(name, metrics[name], low, high) for name, (low, high) in card.expected.items())
    )


def differing_settings(expected: dict[str, str], settings: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Name, expected and actual value of each setting whose value is not the one that the expected ranges hold for.

    Args:
        expected: Expected values as text, by full name (`expected_settings` of a card).
        settings: All settings of the run, nested by section.
    """
    for name, value in expected.items():
        actual: Any = settings
        for part in name.split("."):
            actual = actual.get(part) if isinstance(actual, dict) else None
        if str(actual) != value:
            yield name, value, actual


def main(config: CheckConfig, command: str) -> None:
    """`zephyr-jax check`; exits 1 where a number is outside its range."""
    result = check(config)
    print(terminal_text(result.report()))
    if not result.passed:
        raise SystemExit(1)
