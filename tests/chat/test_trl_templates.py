"""TRL's chat templates: the committed table is what happens, where TRL is installed."""

import re
from importlib.metadata import version

import pytest

from benchmarks.templates import HEADING, TABLE, page, trl_templates


def test_the_committed_table_names_a_version_and_its_templates() -> None:
    text = TABLE.read_text()
    assert re.search(rf"^{HEADING}\d+\.\d+", text, re.MULTILINE)
    assert len(re.findall(r"^\| \w.* \| (?:accepted|[a-z])", text, re.MULTILINE)) > 50


def test_the_committed_table_is_what_happens() -> None:
    """Law: the table in docs/templates.md is what `python -m benchmarks.templates` writes for the TRL it names."""
    folder, text = trl_templates(), TABLE.read_text()
    if folder is None or f"{HEADING}{version('trl')}\n" not in text:
        pytest.skip("the TRL of docs/templates.md is not installed")
    assert page(folder, version("trl")) == text[text.index(HEADING) :]
