"""The documentation's commands: every one parses with the real parser, and those that a CPU can run are run in order.

A page is read as a user reads it: a fence with `title="NAME"` is a file to save, a `bash` fence is commands to type. A comment
`<!-- not run: REASON -->` before a fence marks commands that need what a test does not have; they are parsed all the same.
"""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from zephyr_jax import cli
from zephyr_jax.commands import COMMANDS
from zephyr_jax.config import validation
from zephyr_jax.data.row_formats import CONVERSATION_FORMATS, PREFERENCE_FORMATS, find_format
from zephyr_jax.data.rows import to_conversation, to_preference, to_prompt
from zephyr_jax.errors import InputError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = ("quickstart", "data", "training", "evaluation", "report", "serving", "export")
"""Pages whose commands run, in this order and in one folder: later pages use the files and runs of the first."""
LIMITS = {
    "sft": ["--schedule.max_steps", "2", "--report.num_samples", "0"],
    "dpo": ["--schedule.max_steps", "2", "--report.num_samples", "0"],
    "generate": ["--max_new_tokens", "4"],
}
"""Added to commands so that a test does not take minutes."""
WRITTEN = {
    "quickstart": ["runs/tiny-dpo/report.html", "my-zephyr/provenance.json"],
    "data": ["data/pairs/README.md"],
    "training": ["runs/my-dpo/report.html"],
    "evaluation": ["dpo-metrics.json"],
    "serving": ["answers.jsonl"],
}
"""What the commands of a page leave in the folder."""
FENCE = re.compile(
    r"(?:<!-- not run: (?P<skip>[^\n]+?) -->\n)?^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Fence:
    """A block of code on a page."""

    language: str
    title: str
    text: str
    skipped: bool

    def commands(self) -> Iterator[list[str]]:
        """The arguments of each `zephyr-jax` call."""
        for line in self.text.replace("\\\n", " ").splitlines():
            for part in re.split(r"\s(?:&&|\|)\s", line):
                words = shlex.split(part, comments=True)
                if "zephyr-jax" in words:
                    yield words[words.index("zephyr-jax") + 1 :]


def fences(page: Path) -> list[Fence]:
    """The blocks of code of a page."""
    return [
        Fence(match["language"], match["title"] or "", match["text"], bool(match["skip"]))
        for match in FENCE.finditer(page.read_text())
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone as a user has it, with the files that the pages show."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("configs", "zephyr_jax"):
        (folder / name).symlink_to(ROOT / name)
    for page in PAGES:
        for fence in fences(page):
            if fence.title:
                (folder / fence.title).write_text(fence.text)
    return folder


def parsed(words: list[str]) -> Any:
    """The checked config of a command. Raises InputError."""
    name, options = cli.split_command(words)
    config = cli.parse(COMMANDS[name].config_type(), name, options)
    validation.validate(config)
    return config


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_parses(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Command, settings and cards exist, and the values fit their types and each other."""
    monkeypatch.chdir(folder)
    for fence in fences(page):
        for words in fence.commands() if fence.language in ("bash", "console") else ():
            if "--help" not in words:
                parsed(words)


def test_a_wrong_command_is_found(tmp_path: Path) -> None:
    """The check refuses a setting that does not exist, also in a block that does not run."""
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- not run: why -->\n```bash\nuv run zephyr-jax sft \\\n    --data.max_lenght 3  # comment\n```\n"
    )
    (fence,) = fences(page)
    assert fence.skipped
    (words,) = fence.commands()
    assert words == ["sft", "--data.max_lenght", "3"]
    with pytest.raises(InputError, match="max_length"):
        parsed(words)


@pytest.mark.parametrize("name", RUN)
def test_the_commands_run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block without a mark runs without an error, after the blocks before it."""
    monkeypatch.chdir(folder)
    for fence in fences(ROOT / "docs" / f"{name}.md"):
        for words in fence.commands() if fence.language == "bash" and not fence.skipped else ():
            if "--help" not in words:
                cli.main([*words, *LIMITS.get(words[0], [])])
    assert [file for file in WRITTEN.get(name, []) if not (folder / file).exists()] == []


def test_the_quickstart_ends_with_an_export(folder: Path) -> None:
    """The lineage of what the runs above exported has every stage."""
    if not (folder / "my-zephyr").exists():
        pytest.skip("the commands of the pages were not run")
    record = json.loads((folder / "my-zephyr" / "provenance.json").read_text())
    stages = [record["made_by"], record["parent"]["made_by"], record["parent"]["parent"]["made_by"]]
    assert stages == ["export", "dpo", "sft"]


def test_every_row_format_has_an_example() -> None:
    """data.md shows a row of each format, which is read as that format."""
    page = (ROOT / "docs" / "data.md").read_text()
    sections = dict(re.findall(r"^## (\w+)[^\n]*\n(.*?)(?=^## )", page, re.MULTILINE | re.DOTALL))
    for title, formats, convert in (
        ("Conversations", CONVERSATION_FORMATS, to_conversation),
        ("Preferences", PREFERENCE_FORMATS, to_preference),
    ):
        rows = [json.loads(line) for line in re.findall(r"^\{.*\}$", sections[title], re.MULTILINE)]
        for row in rows:
            convert(row)
            to_prompt(row)
        assert {found.name for row in rows if (found := find_format(row, formats))} == {item.name for item in formats}
