"""The help of every command: what it lists, how it is wrapped, and examples that parse."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.settings import setting_names
from zephyr_jax import cli
from zephyr_jax.commands import COMMANDS, GROUPS
from zephyr_jax.config import validation
from zephyr_jax.config.help_text import paragraphs
from zephyr_jax.config.settings import Setting, settings_of

type Capture = pytest.CaptureFixture[str]
WIDTHS = (60, 80, 120)


def printed_help(words: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch, width: int = 80) -> str:
    """What `zephyr-jax WORDS` prints on a terminal of this width."""
    monkeypatch.setenv("COLUMNS", str(width))
    cli.main(words)
    return capsys.readouterr().out


def settings(name: str) -> list[Setting]:
    """The settings of a command, with their defaults."""
    return list(settings_of(COMMANDS[name].config_type()()))


def joined(text: str) -> str:
    """Text on one line."""
    return " ".join(text.split())


# ---- the list of commands ----


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_without_a_command_all_commands_are_listed(
    arguments: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: plain `zephyr-jax` lists every command with its help, under its purpose."""
    printed = printed_help(arguments, capsys, monkeypatch, 120)
    for purpose, commands in GROUPS.items():
        block = printed.partition(f"\n{purpose}:\n")[2].partition("\n\n")[0]
        assert [line.split("  ")[1] for line in block.splitlines()] == list(commands)
        assert all(command.help in block for command in commands.values())


# ---- the help of a command ----


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_every_setting(name: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: `COMMAND --help` runs nothing, names each setting as it is typed, and prints the text of those that are used."""
    printed = printed_help([*name.split(), "--help"], capsys, monkeypatch)
    used, _, unused = printed.partition("\nsettings of other stages:\n")
    assert [full for full in setting_names(COMMANDS[name].config_type()) if f"--{full}" not in printed] == []
    for setting in settings(name):
        first = joined(setting.doc).split(" - `")[0]
        assert first in joined(used) or re.search(rf"--{re.escape(setting.name)}\b", unused), setting.name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_setting_has_help(name: str) -> None:
    """Law: at most three lines of text on a terminal of 80 columns, full sentences, and each enumerated value."""
    for setting in settings(name):
        text, *items = re.split(r"\n\n?(?=- )", setting.doc)
        assert re.match(r"[A-Z0-9`]", text), f"{setting.name} has no help, or does not begin like a sentence"
        assert text.endswith((".", ":")), setting.name
        assert len(paragraphs(text, 80, 6)) <= 3, setting.name
        if not setting.choices:
            continue
        described = [re.findall(r"`([^`]+)`", item.partition(":")[0]) for item in items]
        assert [value for values in described for value in values] == list(setting.choices), setting.name


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_is_wrapped_to_the_terminal(
    name: str, width: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: no line is longer than the terminal is wide, and none of a paragraph is broken where the next word would fit."""
    lines = printed_help([*name.split(), "--help"], capsys, monkeypatch, width).splitlines()
    assert max(map(len, lines)) <= width
    for line, following in zip(lines, lines[1:], strict=False):
        paragraph = line.startswith("      ") and following.startswith("      ") and "\\" not in line
        enumerated = re.match(r" +(`|\(default: )", following) and re.search(r"[.:)]$", line)
        if paragraph and not enumerated:
            assert len(line) + 1 + len(following.split()[0]) > width, f"{line!r} is broken before {following!r}"


def test_enumerated_values_stand_one_per_line(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: each value begins a line below its setting, at every width."""
    for name in COMMANDS:
        for width in WIDTHS:
            lines = printed_help([*name.split(), "--help"], capsys, monkeypatch, width)
            for setting in settings(name):
                block = re.search(rf"\n  (--\S+, )*--{re.escape(setting.name)} (.*\n)+?(?=  -|\n)", lines)
                if block and setting.choices:
                    assert all(re.search(rf"\n +(`\S+, )*`{value}`", block[0]) for value in setting.choices), (
                        setting.name
                    )


def test_common_settings_come_before_advanced_ones(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: required settings first, then the common ones of each section, then the advanced ones."""
    printed = printed_help(["dpo", "--help"], capsys, monkeypatch)
    titles = re.findall(r"^(\S.*):$", printed, re.M)
    assert titles[0] == "required settings"
    advanced = [title.startswith("advanced ") for title in titles[1:-2]]
    assert advanced == sorted(advanced)
    assert True in advanced
    for setting in settings("dpo"):
        before = re.split(rf"^  (?:--\S+, )?--{re.escape(setting.name)}\b(?!_)", printed, flags=re.M)[0]
        title = re.findall(r"^(\S.*):$", before, re.M)[-1]
        assert title == "required settings" or title.startswith("advanced ") is setting.advanced


def test_help_with_a_card_has_its_values(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: the defaults in the help are the card's, with `--config`."""
    card = tmp_path / "card.yaml"
    card.write_text("seed: 271828\nreport: {progress_bar: false}\nexpected: {loss: [1.5, 2.5]}\n")
    printed = joined(printed_help(["sft", "--config", str(card), "--help"], capsys, monkeypatch))
    for value in ("271828", "off", "loss 1.5 2.5"):
        assert f"(default: {value})" in printed


# ---- examples ----


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_a_command_parse(name: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: help ends with two command lines that the parser accepts as they are printed, without missing settings."""
    monkeypatch.chdir(Path(__file__).parents[1])  # of the cards
    printed = printed_help([*name.split(), "--help"], capsys, monkeypatch, 60)  # most lines are continued
    examples = printed.partition("\nexamples:\n")[2].replace("\\\n", "").splitlines()
    assert len(examples) == 2
    for example in examples:
        program, *words = shlex.split(example)
        command, options = cli.split_command(words)
        assert (program, command) == ("zephyr-jax", name)
        config: Any = cli.parse(COMMANDS[command].config_type(), command, options)
        validation.validate(config)


# ---- commands in texts ----


def texts() -> list[Path]:
    """Files of the repository that users read, and the package, whose messages print commands."""
    root = Path(__file__).parents[1]
    folders = [root / name for name in ("zephyr_jax", "docs", "launch", "configs", "benchmarks")]
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in SUFFIXES]
    return [root / "README.md", *files]


SUFFIXES = (".py", ".md", ".sh", ".yaml", ".ipynb")


def test_options_in_texts_are_those_of_the_parser() -> None:
    """Law: each `--section.setting` in documents, scripts and messages exists, and flags are written without a value."""
    known = {option for name in COMMANDS for setting in settings(name) for option in setting.options}
    flags = [on for name in COMMANDS for setting in settings(name) for on in setting.options if setting.hint is bool]
    valued = re.compile(rf"(?:{'|'.join(map(re.escape, dict.fromkeys(flags)))})[ =](?:True|False|true|false)\b")
    checked = 0
    for path in texts():
        text = path.read_text()
        assert not valued.findall(text), path
        for option in re.findall(r"(?<![\w-])--[a-z]\w*\.[a-z][\w-]*\b(?!\.)", text):
            assert option.replace("-", "_").replace("__", "--", 1) in known, f"{path}: {option}"
            checked += 1
    assert checked > 50
