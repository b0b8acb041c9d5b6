"""The command line: verbs, help, cards and overrides. Recipes are replaced by one that takes notes."""

import logging
import subprocess
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.settings import setting_names
from zephyr_jax import cli
from zephyr_jax.commands import COMMANDS, Command
from zephyr_jax.config import validation
from zephyr_jax.config.models import GenerateConfig
from zephyr_jax.config.plan import PlanConfig
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
    replacement = Stub(command.help, command.config, command.module, fail=fail)
    monkeypatch.setitem(COMMANDS, name, replacement)
    return replacement.called


def exit_code(call: Callable[[], None]) -> int | str | None:
    with pytest.raises(SystemExit) as stopped:
        call()
    return stopped.value.code


# ---- help ----


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_without_a_verb_all_verbs_are_explained(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Law: plain `zephyr-jax` lists every verb with a few words each."""
    cli.main(arguments)
    shown = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in shown
        assert command.help in shown


@pytest.mark.parametrize("verb", COMMANDS)
def test_help_explains_every_setting(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: `VERB --help` exits 0, runs nothing, and names each setting as it is typed."""
    monkeypatch.setenv("COLUMNS", "200")
    called = stub(monkeypatch, verb)
    kind = COMMANDS[verb].config_type()
    assert exit_code(lambda: cli.main([verb, "--help"])) == 0
    shown = capsys.readouterr().out
    assert f"zephyr-jax {verb}" in shown
    assert [name for name in setting_names(kind) if f"--{name}" not in shown] == []
    assert called == []


def test_help_with_a_card_shows_the_values_of_the_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: the defaults in the help are the card's, with `--config`."""
    monkeypatch.setenv("COLUMNS", "200")
    card = tmp_path / "card.yaml"
    card.write_text("seed: 271828\n")
    assert exit_code(lambda: cli.main(["sft", "--config", str(card), "--help"])) == 0
    assert "271828" in capsys.readouterr().out


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
    assert hints["return"] in (str, type(None))


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
    ("word", "meant"),
    [("--optimizer.learning_rat", "--optimizer.learning_rate"), ("--data.max-lenght", "--data.max_length")],
)
def test_a_misspelt_override_is_answered_with_the_right_name(
    word: str, meant: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: an unknown setting exits 2, runs nothing, and suggests the one that was meant."""
    called = stub(monkeypatch, "sft")
    assert exit_code(lambda: cli.main(["sft", word, "1"])) == 2
    shown = capsys.readouterr()
    assert meant in shown.out + shown.err
    assert "Traceback" not in shown.out + shown.err
    assert called == []


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("lineage my-zephyr", "Did you mean `--path my-zephyr`?"),
        ("report runs/tiny", "Did you mean `--run runs/tiny`?"),
        ("reference ls runs/table", "Did you mean `--reference runs/table`?"),
        ("chat runs/tiny", "Did you mean `--model runs/tiny`?"),
        ("preview rows.jsonl --num_examples 1", "Did you mean `--model rows.jsonl` or `--data rows.jsonl`?"),
        ("demo here", "Every value needs its setting before it."),
    ],
)
def test_a_value_without_a_setting_is_answered_with_the_setting(
    words: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: a word where a setting should be exits 2 and shows how to write it."""
    assert exit_code(lambda: cli.main(words.split())) == 2
    printed = capsys.readouterr().err
    assert "Unexpected argument" in printed
    assert printed.endswith(f"{meant}\n")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--seed", "many"], "seed"),
        (["--optimizer.name", "sgd"], "rmsprop"),
        (["--batch.rows"], "batch.rows"),
        (["--resume", "perhaps"], "resume"),
    ],
)
def test_a_value_of_another_type_is_refused(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: an override that its setting cannot hold exits 2 and names the setting or its choices."""
    called = stub(monkeypatch, "sft")
    assert exit_code(lambda: cli.main(["sft", *words])) == 2
    shown = capsys.readouterr()
    assert named in shown.out + shown.err
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


def test_a_switch_without_a_value_is_on() -> None:
    """At the end, before another option, and in a section; a value still wins."""
    assert cli.parse(PlanConfig, "plan", ["--fit"]).fit
    assert cli.parse(PlanConfig, "plan", ["--fit", "--topology", "v5e:2x2"]).fit
    assert not cli.parse(PlanConfig, "plan", ["--fit", "False"]).fit
    assert not cli.parse(SftConfig, "sft", ["--data.packing", "False", "--report.tensorboard"]).data.packing
    assert cli.parse(SftConfig, "sft", ["--data.packing", "False", "--report.tensorboard"]).report.tensorboard


def test_without_a_card_the_defaults_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: a verb without words gets the config type's defaults."""
    called = stub(monkeypatch, "sft")
    cli.main(["sft"])
    assert called[0][0] == SftConfig()


@pytest.mark.parametrize(
    ("words", "read", "value"),
    [
        (["--resume", "False"], lambda config: config.resume, False),
        (["--data.packing", "False"], lambda config: config.data.packing, False),
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


def test_several_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: `--prompts` takes any number of texts."""
    called = stub(monkeypatch, "generate")
    cli.main(["generate", "--prompts", "Hello!", "How are you?", "--batch_size", "4"])
    config = called[0][0]
    assert isinstance(config, GenerateConfig)
    assert config.prompts == ("Hello!", "How are you?")


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
