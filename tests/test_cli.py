"""The command line: commands, cards, overrides and errors. Commands are replaced by one that records its arguments."""

import logging
import subprocess
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from zephyr_jax import cli
from zephyr_jax.commands import COMMANDS, Command
from zephyr_jax.config import validation
from zephyr_jax.config.models import GenerateConfig, ServeConfig
from zephyr_jax.config.training import DpoConfig, SftConfig
from zephyr_jax.errors import InputError, TrainingError

type Called = list[tuple[Any, str]]


@dataclass(frozen=True)
class Stub(Command):
    """A command that notes its arguments and does nothing else; its config is not checked."""

    called: Called = field(default_factory=list)
    fail: BaseException | None = None

    def function(self) -> Any:
        def note(config: Any, command: str) -> None:
            self.called.append((config, command))
            if self.fail is not None:
                raise self.fail

        return note


def stub(monkeypatch: pytest.MonkeyPatch, name: str, fail: BaseException | None = None) -> Called:
    """Replace a command by a Stub; returns its notes."""
    monkeypatch.setattr(validation, "validate", lambda config: None)
    command = COMMANDS[name]
    replacement = Stub(command.help, command.config, command.module, positional=command.positional, fail=fail)
    monkeypatch.setitem(COMMANDS, name, replacement)
    return replacement.called


def exit_code(call: Callable[[], None]) -> int | str | None:
    with pytest.raises(SystemExit) as stopped:
        call()
    return stopped.value.code


def test_help_starts_no_device() -> None:
    """Law: the command line imports no jax, no openai and no recipe until a verb runs, and so answers at once."""
    code = """if True:
        import sys
        from zephyr_jax.cli import main
        for words in [], ["sft", "--help"]:
            try:
                main(words)
            except SystemExit:
                pass
        sys.exit(len({"jax", "openai", "transformers", "datasets"} & set(sys.modules)))
    """
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_a_config_and_a_function_of_it(name: str) -> None:
    """Law: each row of the table names a dataclass of settings and a module whose function takes it."""
    command = COMMANDS[name]
    hints = typing.get_type_hints(command.function())
    assert issubclass(command.config_type(), hints["config"])
    assert hints["command"] is str
    assert hints["return"] in (str, str | None, type(None))


def test_the_log_level_is_an_option_of_every_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: `--log_level` sets the level of this package's messages; another value exits 2."""
    stub(monkeypatch, "export")
    cli.main(["export", "--log_level", "warning"])
    assert logging.getLogger("zephyr_jax").level == logging.WARNING
    cli.main(["export"])
    assert logging.getLogger("zephyr_jax").level == logging.INFO
    assert exit_code(lambda: cli.main(["export", "--log_level=loud"])) == 2
    assert "log_level" in capsys.readouterr().err


# ---- mistakes ----


def test_an_unknown_verb_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    """Law: a verb that is none exits 2 with a suggestion, or with all verbs where nothing is near."""
    assert exit_code(lambda: cli.main(["sfft"])) == 2
    assert capsys.readouterr().err == "error: Unknown command `sfft`. Did you mean `sft`?\n"
    assert exit_code(lambda: cli.main(["xyz"])) == 2
    shown = capsys.readouterr().err
    assert all(name in shown for name in COMMANDS)


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("--optimizer.learning_rat", "Did you mean `--optimizer.learning_rate`?"),
        ("--data.max_lenght", "Did you mean `--data.max_length`?"),
        ("--epochs", "Did you mean `--schedule.epochs`?"),
        ("--revision", "Did you mean `--model.revision` or `--data.revision`?"),
        ("--wandb", "Did you mean `--report.wandb_project`?"),
        ("-o", "To list the settings: zephyr-jax sft --help"),
    ],
)
def test_an_unknown_setting_is_answered_with_the_nearest(
    option: str, hint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: an unknown setting exits 2, runs nothing, and suggests settings of this name or of one like it."""
    called = stub(monkeypatch, "sft")
    for words in ([option, "1"], [f"{option}=1"]):
        assert exit_code(partial(cli.main, ["sft", *words])) == 2
        assert capsys.readouterr().err == f"error: Unknown setting `{option}`. {hint}\n"
    assert called == []


@pytest.mark.parametrize(
    ("words", "suggestion"),
    [
        ("preview rows.jsonl --num_examples 1", "`--model rows.jsonl` or `--data rows.jsonl`"),
        ("generate --limit 1 runs/tiny", "`--model runs/tiny`"),
        ("evaluate my-zephyr", "`--model my-zephyr` or `--data my-zephyr`"),
        ("evaluate table runs/mt-bench", "`--results runs/mt-bench`"),
        ("feedback rate rows.jsonl", "`--data rows.jsonl` or `--judge rows.jsonl`"),
        ("sft card.yaml", "`--config card.yaml`"),
        ("demo a b", "`--output a`"),
    ],
)
def test_an_unexpected_argument_is_answered_with_its_option(
    words: str, suggestion: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: a command without positional argument exits 2 for one in any position, and prints how to write it."""
    assert exit_code(lambda: cli.main(words.split())) == 2
    printed = capsys.readouterr().err
    assert "Unexpected argument" in printed
    assert printed.endswith(f"Did you mean {suggestion}?\n")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--seed many", "`--seed`: expected an integer, got 'many'."),
        ("--seed=1.0", "`--seed`: expected an integer, got '1.0'."),
        ("--optimizer.name sgd", "`--optimizer.name`: expected adamw or rmsprop, got 'sgd'."),
        (
            "--model.remat some",
            "`--model.remat`: expected full or full_offload or save_attention or save_dots or none, got 'some'.",
        ),
        ("--batch.rows", "`--batch.rows`: expected a value (INT|None), got none."),
        ("--batch.rows --output o", "`--batch.rows`: expected a value (INT|None), got none."),
        ("--optimizer.learning_rate None", "`--optimizer.learning_rate`: expected a number, got 'None'."),
        ("--config", "`--config`: expected a value, got none."),
    ],
)
def test_a_value_that_a_setting_cannot_hold_is_refused(
    words: str, error: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: such an override exits 2 with one line: the option, what it expects, and what it got."""
    called = stub(monkeypatch, "sft")
    assert exit_code(lambda: cli.main(["sft", *words.split()])) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"error: {error}\n")
    assert called == []


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("No rows. Give some."), 2, "error: No rows. Give some.\n"),
        (TrainingError("Step 3 has loss nan."), 3, "stopped: Step 3 has loss nan.\n"),
        (
            KeyboardInterrupt(),
            130,
            "interrupted: run the same command again to resume from what was saved.\n",
        ),
    ],
    ids=["input", "training", "interrupt"],
)
def test_exit_codes(
    error: BaseException,
    code: int,
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Law: bad input exits 2, a run that had to stop 3, an interrupt 130; each with one line on stderr."""
    stub(monkeypatch, "sft", error)
    assert exit_code(lambda: cli.main(["sft"])) == code
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", line)


def test_a_bug_is_not_dressed_up_as_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: errors that are not the user's keep their traceback."""
    stub(monkeypatch, "sft", ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        cli.main(["sft"])


# ---- cards and overrides ----


@pytest.mark.parametrize("spelling", [["--config", "{}"], ["--config={}"]], ids=["two words", "one word"])
@pytest.mark.parametrize("first", [True, False], ids=["card first", "card last"])
def test_overrides_win_over_the_card(
    spelling: list[str], first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: defaults, then the card, then the command line, wherever `--config` stands."""
    card = tmp_path / "card.yaml"
    card.write_text("seed: 5\noptimizer:\n  learning_rate: 1.0e-3\n  b1: 0.5\ndpo:\n  beta: 0.7\n")
    called = stub(monkeypatch, "dpo")
    words = [word.format(card) for word in spelling]
    overrides = ["--optimizer.learning_rate", "2e-3", "--output", "here"]
    cli.main(["dpo", *words, *overrides] if first else ["dpo", *overrides, *words])
    ((config, _),) = called
    assert isinstance(config, DpoConfig)
    assert (config.seed, config.dpo.beta, config.optimizer.b1) == (5, 0.7, 0.5)
    assert (config.optimizer.learning_rate, config.output) == (2e-3, "here")
    assert config.data == DpoConfig().data


@pytest.mark.parametrize("option", ["--report.{}progress_bar", "--report.{}progress-bar"])
def test_booleans_are_flags(option: str, tmp_path: Path) -> None:
    """Law: `--x` and `--no_x` win over the card in any place, with underscores or hyphens, and the last one holds."""
    for value in (True, False):
        card = tmp_path / "card.yaml"
        card.write_text(f"report:\n  progress_bar: {str(value).lower()}\n")
        words = ["--config", str(card), "--seed", "1"]
        on, off = option.format(""), option.format("no_" if "_" in option else "no-")
        assert cli.parse(SftConfig, "sft", words).report.progress_bar is value
        assert cli.parse(SftConfig, "sft", [on, *words]).report.progress_bar is True
        assert cli.parse(SftConfig, "sft", [*words, off]).report.progress_bar is False
        assert cli.parse(SftConfig, "sft", [off, *words, on]).report.progress_bar is True


@pytest.mark.parametrize(
    ("words", "got"),
    [
        ("sft --resume False", "`--resume`: expected no value, got `False`. Write `--resume`"),
        ("sft --no_resume=true", "`--no_resume`: expected no value, got `true`. Write `--resume`"),
        ("sft --data.packing perhaps", "`--data.packing`: expected no value, got `perhaps`. Write `--data.packing`"),
        ("reference gc --apply True", "`--apply`: expected no value, got `True`. Write `--apply`"),
    ],
)
def test_a_flag_takes_no_value(words: str, got: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Law: `--x True` exits 2 and prints both forms of the flag."""
    assert exit_code(lambda: cli.main(words.split())) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {got} to turn it on and `--")
    assert "no_" in printed


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.positional])
def test_a_positional_argument_sets_the_setting_of_the_table(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Law: it is equal to the named option; two arguments, or both forms, exit 2."""
    command = COMMANDS[name]
    setting = attrgetter(command.positional)
    named = cli.parse(command.config_type(), name, [f"--{command.positional}", "a path"])
    assert setting(named) == "a path"
    assert cli.parse(command.config_type(), name, ["a path"]) == named
    metavar = command.positional.removesuffix(".path").upper()
    for words, message in [
        (["a", "b c"], f"`{name}`: expected one {metavar}, got 2: a 'b c'."),
        (
            ["a", f"--{command.positional}=b"],
            f"`{name}`: expected one {metavar}, got `a` and also `--{command.positional}`.",
        ),
    ]:
        assert exit_code(partial(cli.main, [*name.split(), *words])) == 2
        assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_positional_argument_may_stand_anywhere() -> None:
    config = cli.parse(ServeConfig, "serve", ["--port", "1", "my-zephyr", "--host", "0.0.0.0"])
    assert (config.port, config.model.path, config.host) == (1, "my-zephyr", "0.0.0.0")


def test_without_a_card_the_defaults_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: a verb without words gets the config type's defaults."""
    called = stub(monkeypatch, "sft")
    cli.main(["sft"])
    assert called[0][0] == SftConfig()


@pytest.mark.parametrize(
    ("words", "read", "value"),
    [
        (["--no_resume"], lambda config: config.resume, False),
        (["--data.no_packing"], lambda config: config.data.packing, False),
        (["--optimizer.max_grad_norm", "None"], lambda config: config.optimizer.max_grad_norm, None),
        (["--batch.examples", "32"], lambda config: config.batch.examples, 32),
        (["--data.eval_split", "test"], lambda config: config.data.eval_split, "test"),
        (["--mesh.data", "-1"], lambda config: config.mesh.data, -1),
    ],
)
def test_overrides_of_every_type(
    words: list[str], read: Callable[[SftConfig], Any], value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: truths, nothing, numbers and text are typed as they are shown in the help."""
    called = stub(monkeypatch, "sft")
    cli.main(["sft", *words])
    assert read(called[0][0]) == value


def test_template_args_are_given_one_by_one(tmp_path: Path) -> None:
    """Law: values are JSON or else text, they add to the card's, and the help names the form."""
    card = tmp_path / "card.yaml"
    card.write_text(
        "data:\n  template_args:\n    enable_thinking: true\n    date_string: 26 Jul 2024\n    sizes: [1, 2]\n"
    )
    words = ["--config", str(card), "--data.template_args.enable_thinking", "false", "--data.template-args.effort=0.5"]
    words += [
        "--data.template_args.mode",
        "on",
        "--data.template_args.level",
        "-3",
        "--data.template_args.names",
        '["a"]',
    ]
    config = cli.parse(SftConfig, "sft", words)
    assert config.data.template_args == {
        "enable_thinking": False,
        "date_string": "26 Jul 2024",
        "sizes": [1, 2],
        "effort": 0.5,
        "mode": "on",
        "level": -3,
        "names": ["a"],
    }
    assert cli.parse(SftConfig, "sft", ["--config", str(card)]).data.template_args["enable_thinking"] is True
    assert cli.parse(GenerateConfig, "generate", ["--template_args.x", "True"]).template_args == {"x": True}
    for wrong in (
        ["--data.template_args", "x", "1"],
        ["--data.template_args.x"],
        ["--data.template_args.x", "--seed", "1"],
    ):
        with pytest.raises(InputError, match=r"--data.template_args.NAME VALUE"):
            cli.parse(SftConfig, "sft", wrong)
    card.write_text("data:\n  template_args:\n    x: {a: 1}\n")
    with pytest.raises(InputError, match="data.template_args"):
        cli.parse(SftConfig, "sft", ["--config", str(card)])


def test_several_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: `--prompts` takes any number of texts."""
    called = stub(monkeypatch, "generate")
    cli.main(["generate", "--prompts", "Hello!", "How are you?", "--batch_size", "4"])
    config = called[0][0]
    assert isinstance(config, GenerateConfig)
    assert config.prompts == ("Hello!", "How are you?")
    cli.main(["generate", "--prompts", "--- a-b=c", "-1"])
    assert called[1][0].prompts == ("--- a-b=c", "-1")


def test_the_recipe_gets_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: the command handed on can be pasted into a shell."""
    called = stub(monkeypatch, "dpo")
    cli.main(["dpo", "--output", "a folder", "--reference", "it's"])
    assert called[0][1] == "zephyr-jax dpo --output 'a folder' --reference 'it'\"'\"'s'"


def test_dpo_names_the_reference_command_with_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: for `dpo` the command that fills the table is the same one with the other verb."""
    import zephyr_jax.train_command as pipeline

    commands: list[str] = []
    monkeypatch.setattr(pipeline, "train", lambda config, command: commands.append(command))
    pipeline.main(DpoConfig(), "zephyr-jax dpo --output 'zephyr-jax dpo'")
    assert commands == ["zephyr-jax reference --output 'zephyr-jax dpo'"]


def test_a_reader_that_has_had_enough_is_no_error() -> None:
    """`zephyr-jax ... | head -1`: nothing is said of a broken pipe."""
    command = f"{sys.executable} -m zephyr_jax dpo --help | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.count("\n") == 1
    assert not done.stderr


def test_a_path_is_short_for_the_section_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--model` and `--data` where they are sections, in both spellings; elsewhere `--data` is what it is."""
    called = stub(monkeypatch, "sft")
    cli.main(["sft", "--model", "base", "--data=chats.jsonl", "--data.split", "train_sft"])
    config: SftConfig = called[0][0]
    assert (config.model.path, config.data.path, config.data.split) == ("base", "chats.jsonl", "train_sft")
    called = stub(monkeypatch, "generate")
    cli.main(["generate", "--model", "run", "--data", "prompts.jsonl"])
    asked: GenerateConfig = called[0][0]
    assert (asked.model.path, asked.data) == ("run", "prompts.jsonl")
