"""Whole configs: defaults that work, bounds on fields, rules between fields, and what a resumed run may change."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from zephyr_jax.cli import parse, split_command
from zephyr_jax.commands import COMMANDS
from zephyr_jax.config.constraints import RESUMABLE, Fraction, PositiveInt
from zephyr_jax.config.models import EvaluateConfig
from zephyr_jax.config.sections import DataOptions
from zephyr_jax.config.training import DpoConfig, SftConfig
from zephyr_jax.config.training_sections import BatchOptions
from zephyr_jax.config.validation import convert, resumable_settings, validate
from zephyr_jax.errors import InputError
from zephyr_jax.plan.plan import fit_lengths


def config_of(words: str) -> Any:
    """The checked config of a command line."""
    name, options = split_command(words.split())
    config: Any = parse(COMMANDS[name].config_type(), name, options)
    validate(config)
    return config


# ---- defaults ----


@pytest.mark.parametrize(
    "words",
    [
        "sft --model m --data d --output o",
        "reference --model m --data d --reference r",
        "reference verify --model m --data d --reference r",
        "dpo --model m --data d --reference r --output o",
        "evaluate --model m --data d",
        "evaluate preferences --model m --data d",
        "generate --model m --prompts Hi",
        "chat --model m",
        "serve --model m",
        "export --model m --output o",
        "preview --model m --data d",
        "feedback rate --data d --output o --judge m",
        "prepare ultrachat --data d --output o",
        "plan",
        "demo",
    ],
)
def test_a_command_runs_with_its_paths_alone(words: str) -> None:
    """Law: defaults do not contradict each other, and each path that is missing is named."""
    config_of(words)
    name, options = split_command(words.split())
    for index in range(0, len(options), 2):
        with pytest.raises(InputError):
            config_of(" ".join([name, *options[:index], *options[index + 2 :]]))


def test_batch_size_has_a_default_that_examples_replace() -> None:
    assert (config_of("sft --model m --data d --output o").batch.rows) == 16
    batch = config_of("sft --model m --data d --output o --batch.examples 32 --batch.microbatch_rows 8").batch
    assert (batch.rows, batch.examples) == (None, 32)
    assert replace(batch, examples=None).rows == 16
    assert BatchOptions(rows=16, examples=None) == BatchOptions()
    with pytest.raises(InputError, match="batch.rows is 16 and batch.examples 32"):
        config_of("sft --model m --data d --output o --batch.rows 16 --batch.examples 32 --batch.microbatch_rows 8")


@pytest.mark.parametrize(
    ("words", "row", "prompt"),
    [
        ("sft --output o", 2048, 512),
        ("sft --output o --data.max_length 4096", 4096, 512),
        ("dpo --output o --reference r", 4096, 512),
        ("dpo --output o --reference r --data.max_length 1024", 2048, 512),
        ("dpo --output o --reference r --data.max_length 400", 2048, 200),
        ("reference --reference r --data.max_length 4096", 8192, 512),
    ],
)
def test_lengths_that_are_not_set_fit(words: str, row: int, prompt: int) -> None:
    """Law: a row holds the longest example, a prompt leaves room for an answer; a length that is set stays."""
    data = config_of(f"{words} --model m --data d").data
    assert (data.row_length, data.max_prompt_length) == (row, prompt)


@pytest.mark.parametrize(("step", "row"), [("sft", 2048), ("dpo", 4096)])
def test_a_plan_fits_its_row_to_the_method(step: str, row: int) -> None:
    """Parsing does not know the method of a plan, so `fit_lengths` does."""
    data = fit_lengths(config_of(f"plan --step {step} --model m --data d")).data
    assert (data.row_length, data.max_prompt_length) == (row, 512)


def test_a_length_that_a_card_implies_does_not_outlive_it(tmp_path: Path) -> None:
    """Law: an unset prompt length goes by the final `max_length`, not by that of the card."""
    (tmp_path / "card.yaml").write_text("data: {max_length: 400}")
    words = f"dpo --config {tmp_path}/card.yaml --model m --data d --output o --reference r"
    assert config_of(words).data.max_prompt_length == 200
    assert config_of(f"{words} --data.max_length 2048").data.max_prompt_length == 512


def test_a_class_variable_is_no_setting_of_a_card(tmp_path: Path) -> None:
    (tmp_path / "card.yaml").write_text("REQUIRED: {a: b}")
    with pytest.raises(InputError, match="`REQUIRED` is not a setting") as refused:
        config_of(f"sft --config {tmp_path}/card.yaml --model m --data d --output o")
    assert "Known here: REQUIRED" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        ("--data.row_length 3000 --data.no_share_prompts", "data.row_length"),
        ("--data.max_prompt_length 2048", "data.max_prompt_length"),
        ("--data.max_length 5000 --data.row_length 4096", "data.row_length"),
    ],
)
def test_lengths_that_are_set_are_not_changed(words: str, setting: str) -> None:
    with pytest.raises(InputError, match=f"^{setting}: expected"):
        config_of(f"dpo --model m --data d --output o --reference r {words}")


# ---- fields ----


@dataclass(frozen=True)
class Inner:
    """A section."""

    count: PositiveInt = 1
    share: Fraction = field(default=0.5, metadata=RESUMABLE)


@dataclass(frozen=True)
class Outer:
    """A config."""

    REQUIRED: ClassVar[dict[str, str]] = {"path": "a folder"}

    path: str = "p"
    inner: Inner = field(default_factory=Inner)
    free: Inner = field(default_factory=Inner, metadata=RESUMABLE)

    def check(self) -> None:
        """A rule between fields."""
        if self.inner.count > 9:
            raise InputError("inner.count is too large")


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (Outer(path=""), "path"),
        (Outer(inner=Inner(count=0)), "inner.count"),
        (Outer(inner=Inner(count=2**31)), "inner.count"),
        (Outer(free=Inner(share=1.5)), "free.share"),
        (Outer(free=Inner(share=math.nan)), "free.share"),
        (Outer(inner=Inner(count=10)), "inner.count"),
    ],
)
def test_the_message_has_the_full_name(config: Outer, name: str) -> None:
    """Law: required settings, bounds of fields and rules between them are checked, in sections too."""
    with pytest.raises(InputError, match=name):
        validate(config)
    validate(Outer())


@pytest.mark.parametrize(("value", "expected"), [(True, "int"), (1.5, "a valid integer"), ("x", "a valid integer")])
def test_a_value_of_another_type_is_refused(value: Any, expected: str) -> None:
    with pytest.raises(InputError, match=f"`inner.count`: expected {expected}, got"):
        convert(Inner, "count", value, "inner.")
    assert convert(Inner, "share", "0.25") == 0.25


# ---- resumed runs ----


def test_a_resumed_run_may_change_the_fields_that_say_so() -> None:
    """Law: metadata decides, of a setting or of a whole section; nothing is matched by the beginning of its name."""
    assert resumable_settings(Outer) == ("inner.share", "free")
    names = resumable_settings(DpoConfig)
    assert {"output", "mesh", "model.remat", "schedule.keep_last", "reference", "anomaly"} <= set(names)
    assert not {"seed", "model", "data.max_length", "optimizer.learning_rate", "schedule.epochs"} & set(names)
    assert set(resumable_settings(SftConfig)) == set(names) - {"reference"}


def test_a_command_that_reads_one_split_refuses_another() -> None:
    with pytest.raises(InputError, match="data.eval_split set .* Pass `--data.eval_split None`"):
        EvaluateConfig(data=DataOptions(path="d", eval_split="test")).check()
