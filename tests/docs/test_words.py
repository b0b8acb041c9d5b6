"""The language of the documentation pages, and their place in the navigation."""

import re
from pathlib import Path

import pytest
import yaml

from tests.test_language import PHRASES

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_no_banned_words(page: Path) -> None:
    """Also across line breaks; blocks of code, which hold data and the output of programs, are left out."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert not [match.group() for match in PHRASES.finditer(" ".join(text.split()))]


def test_the_navigation_has_every_page() -> None:
    """Each page once; those below `reference/` are generated."""
    config = yaml.safe_load((DOCS.parent / "mkdocs.yml").read_text())
    names = [name for entry in config["nav"] for name in _leaves(entry)]
    assert len(names) == len(set(names))
    pages = {path.name for path in DOCS.glob("*.md")}
    assert {name for name in names if not name.startswith("reference/")} >= pages
    assert {"reference/cli.md", "reference/configuration.md"} <= set(names)


def _leaves(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    values = entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ()
    return [name for value in values for name in _leaves(value)]
