"""`zephyr-jax check`: a finished run's last evaluation against the numbers that its card expects."""

from dataclasses import dataclass
from typing import Any

from zephyr_jax.checkpoint.provenance import read_record
from zephyr_jax.checkpoint.steps import steps_in
from zephyr_jax.config.inspect import CheckConfig
from zephyr_jax.config.training import DpoConfig, SftConfig
from zephyr_jax.config.yaml_file import from_dict, load_card, to_dict
from zephyr_jax.errors import InputError, join_items, terminal_text
from zephyr_jax.storage.files import open_path
from zephyr_jax.train.metrics import last_evaluation


@dataclass(frozen=True)
class Line:
    """One number: what it is and what it should be."""

    name: str
    value: float
    low: float
    high: float

    @property
    def off(self) -> float:
        """How far outside of the range; 0 inside."""
        return max(self.low - self.value, self.value - self.high, 0.0)

    def told(self) -> str:
        """In words."""
        verdict = f"OFF by {self.off:.4g}" if self.off else "pass"
        return f"{self.name:<20} {self.value:<10.4g} expected {self.low:g} to {self.high:g}: {verdict}"


@dataclass(frozen=True)
class Checked:
    """All of them."""

    lines: tuple[Line, ...]

    @property
    def passed(self) -> bool:
        """Whether every number is in its range."""
        return not any(line.off for line in self.lines)

    def report(self) -> str:
        """For people."""
        return "\n".join([*(line.told() for line in self.lines), "passed" if self.passed else "NOT passed"])


def check(config: CheckConfig) -> Checked:
    """Compare. Raises InputError for a run that is unfinished, that nothing is expected of, or that was run otherwise."""
    run = open_path(config.run)
    record = read_record(run) if run.is_dir() else None
    if record is None or "config" not in record:
        raise InputError(
            f"{config.run} is no run of ours: it has no provenance.json of `sft` or `dpo`. Name its folder."
        )
    kind = DpoConfig if record["made_by"] == "dpo" else SftConfig
    settings = from_dict(kind, record["config"], f"{config.run}/provenance.json")
    card = load_card(kind, config.card) if config.card else settings
    if not card.expected:
        raise InputError(
            f"{config.card or config.run} expects nothing, so there is nothing to compare. Name a card that does with `--card`: "
            "it has `expected: {loss: [LOW, HIGH]}`, say, in it."
        )
    _check_settings(card.expected_settings, to_dict(settings), config.run)
    newest = steps_in(run)[-1:] or [0]
    if newest[0] < record["steps"]:
        raise InputError(
            f"{config.run} is not finished: step {newest[0]} of {record['steps']}. Run its command to the end."
        )
    found = last_evaluation(run)
    missing = sorted(card.expected.keys() - found.keys())
    if missing:
        raise InputError(
            f"The last evaluation of {config.run} has no {join_items(missing)}; it has {join_items(sorted(found)) or 'none'}. "
            "Give the run data to evaluate on (data.eval_split)."
        )
    return Checked(tuple(Line(name, found[name], low, high) for name, (low, high) in card.expected.items()))


def _check_settings(wanted: dict[str, str], settings: dict[str, Any], run: str) -> None:
    """Raise InputError where the run's settings are not those with which the numbers can be expected."""
    for name, value in wanted.items():
        there: Any = settings
        for part in name.split("."):
            there = there.get(part) if isinstance(there, dict) else None
        if str(there) != value:
            raise InputError(
                f"{run} was run with {name} {there!r}, and its card's numbers are those of {value!r}: they cannot be compared."
            )


def main(config: CheckConfig, command: str) -> None:
    """`zephyr-jax check`; exits 1 where a number is outside its range."""
    result = check(config)
    print(terminal_text(result.report()))
    if not result.passed:
        raise SystemExit(1)
