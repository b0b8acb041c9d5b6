"""Every setting of every command does something: `setting_effects` names the test that shows it."""

import ast
import re
from dataclasses import fields, is_dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from tests.setting_effects import EFFECTS
from tests.settings import setting_names
from zephyr_jax.cli import parse
from zephyr_jax.commands import COMMANDS
from zephyr_jax.config.inherited import CARRIED

TESTS = Path(__file__).parent
CARD = TESTS.parent / "configs" / "tiny" / "dpo.yaml"


def homes(kind: Any) -> set[str]:
    """`Class.setting` of every setting of a config, by the class that defines it."""
    types, found = get_type_hints(kind), set()
    for item in fields(kind):
        if is_dataclass(types[item.name]):
            found |= homes(types[item.name])
        else:
            owner = next(each for each in reversed(kind.__mro__) if item.name in vars(each).get("__annotations__", {}))
            found.add(f"{owner.__name__}.{item.name}")
    return found


def configs() -> dict[str, type]:
    return {name: command.config_type() for name, command in COMMANDS.items()}


@cache
def functions(file: str) -> dict[str, str]:
    """Top-level functions of a test file, with their decorators, as text."""
    text = (TESTS / file).read_text()
    lines = text.splitlines()
    return {
        node.name: "\n".join(
            lines[min([node.lineno, *(each.lineno for each in node.decorator_list)]) - 1 : node.end_lineno]
        )
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef)
    }


def test_every_setting_has_a_test_that_shows_what_it_changes() -> None:
    """Law: a setting that nothing shows to work does not exist, and no entry outlives its setting."""
    settings = set().union(*map(homes, configs().values()))
    missing, stale = sorted(settings - EFFECTS.keys()), sorted(EFFECTS.keys() - settings)
    assert not missing, (
        f"no test shows what these settings change: {', '.join(missing)}. Write one that sets the setting to two values and "
        "asserts that the program, the result or the output differs as the help describes, and add "
        '`"Class.setting": "file.py::test_name"` to EFFECTS in tests/setting_effects.py.'
    )
    assert not stale, (
        f"EFFECTS in tests/setting_effects.py names settings that do not exist: {', '.join(stale)}. Remove them."
    )


def test_the_tests_are_there_and_set_the_setting() -> None:
    """Law: each entry names a function of a test file, whose text has the setting's name, or `no_` before it for a flag."""
    wrong = []
    for setting, node in EFFECTS.items():
        file, _, name = node.partition("::")
        known = functions(file) if (TESTS / file).is_file() else {}
        if not re.search(rf"\b(no_)?{setting.partition('.')[2]}\b", known.get(name, "")):
            wrong.append(f"{setting} -> {node} ({'does not mention it' if name in known else 'no such function'})")
    assert not wrong, "Correct these entries of EFFECTS in tests/setting_effects.py:\n" + "\n".join(wrong)


def test_what_is_carried_is_a_setting() -> None:
    """Law: `CARRIED` lists settings of its commands, and no other command accepts what it does not use."""
    for command, patterns in CARRIED.items():
        names = setting_names(configs()[command])
        unknown = [each for each in patterns if not any(fnmatch(name, each) for name in names)]
        assert not unknown, (
            f"`{command}` has no settings {', '.join(unknown)}: correct CARRIED in zephyr_jax/config/inherited.py"
        )


def test_a_carried_setting_on_the_command_line_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Law: a setting that a command accepts and does not use is reported; one that it uses, or that a card holds, is not."""
    words = ["--optimizer.learning_rate=1", "--data.limit", "5", "--report.no_progress_bar", "--config", str(CARD)]
    parse(configs()["reference"], "reference", words)
    printed = capsys.readouterr().err
    assert "`reference` does not use --optimizer.learning_rate, --report.no_progress_bar;" in printed
    parse(configs()["dpo"], "dpo", words)
    assert capsys.readouterr().err == ""
