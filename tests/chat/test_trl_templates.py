"""TRL's chat templates: the committed table is what happens, where TRL is installed."""

import re
from importlib.metadata import version

import pytest

from benchmarks.templates import TABLE, page, trl_templates


def test_the_committed_table_names_a_version_and_its_templates() -> None:
    text = TABLE.read_text()
    assert re.search(r"^# Chat templates of TRL \d+\.\d+", text)
    assert len(re.findall(r"^\| \w.* \| (?:accepted|[a-z])", text, re.MULTILINE)) > 50


def test_the_committed_table_is_what_happens() -> None:
    """Law: docs/templates.md is what `python -m benchmarks.templates` writes for the TRL it names."""
    folder = trl_templates()
    if folder is None or f"# Chat templates of TRL {version('trl')}\n" not in TABLE.read_text():
        pytest.skip("the TRL of docs/templates.md is not installed")
    assert page(folder, version("trl")) == TABLE.read_text()
